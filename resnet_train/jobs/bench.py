"""Try a recipe on this machine: `bench` measures its speed and possible gains, `dry_run` checks that it works."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from resnet_train.build import RunData, build_trainer, check_config, describe_network, load_data, resolve_auto
from resnet_train.config import TrainConfig, is_planned, make_config, to_plain
from resnet_train.data.dataset import FACTS
from resnet_train.data.loader import BatchLoader
from resnet_train.data.sources.cifar import no_downloads
from resnet_train.jobs import measure
from resnet_train.jobs.measure import RunEstimate, Spread
from resnet_train.jobs.plan import choose_length, plan_length
from resnet_train.runs.checkpoint import Description, Saver, read_model
from resnet_train.runs.folder import RunFolder
from resnet_train.runs.restore import restore_model
from resnet_train.runtime.compilation import can_compile
from resnet_train.runtime.device import device_name, peak_memory_bytes, prepare_machine
from resnet_train.runtime.environment import describe_environment
from resnet_train.runtime.precision import choose_precision, precision_name, warn_if_slow
from resnet_train.training.trainer import Trainer

MIN_STEPS, DRY_RUN_STEPS = 20, 3
MIN_RATIO = 0.5  # changes that train less than half as fast are timed only once
AS_GIVEN, MATRIX = "as given", "matrix FLOP/s"
NOTES = {"amp": "rounds differently", "accumulate": "takes more memory", "batch_size": "changes what is learned"}


@dataclass(frozen=True, kw_only=True)
class DryRunResult:
    """The result of a dry run; the total is an estimate for the whole run."""

    arch: str
    title: str
    device: str
    params: int
    step_seconds: float
    images_per_second: float
    eval_images_per_second: float
    total_seconds: float
    peak_memory_bytes: int | None
    checkpoint_bytes: int


def dry_run(config: TrainConfig) -> DryRunResult:
    """Do a little of everything: train, evaluate, save a checkpoint and read it back. Keep nothing."""
    # Build the parts as a run does.
    started = time.monotonic()
    check_config(config)
    device = prepare_machine(config.device, config.threads, config.deterministic)
    config, _ = resolve_auto(config, device)
    warn_if_slow(config.amp, device)
    data = _load_or_invent(config)
    if not is_planned(config):
        config = plan_length(config, data, device, started)
    trainer = build_trainer(config, data, device)

    # Train on each image size of the run, then evaluate.
    sides = [side for side, _ in measure.size_stages(config)]
    rates = measure.rates_by_size(trainer, config, sides, DRY_RUN_STEPS, measure.warmup_calls(trainer))
    trainer.check_finite(trainer.read_sums())
    eval_rate = measure.eval_rate(trainer, num_batches=1)

    # Save a checkpoint and read it back.
    with tempfile.TemporaryDirectory() as folder:
        run_folder = RunFolder(Path(folder))
        run_folder.checkpoints.mkdir()
        description = Description(about=describe_network(config, data), config=to_plain(config), environment={})
        Saver(run_folder, description).save_state(trainer.state())
        checkpoint_bytes = run_folder.last.stat().st_size
        restore_model(read_model(run_folder.last), run_folder.last)

    # Predict the time of the whole run.
    eval_images = sum(loader.num_images for loader in trainer.eval_loaders.values())
    run = measure.estimate_run(config, (len(data.train_indices), eval_images), rates, eval_rate)
    return DryRunResult(
        arch=config.arch,
        title=data.train.title,
        device=device_name(device),
        params=sum(parameter.numel() for parameter in trainer.parameters),
        step_seconds=config.batch_size / rates[config.image_size],
        images_per_second=rates[config.image_size],
        eval_images_per_second=eval_rate,
        total_seconds=run.total_seconds,
        peak_memory_bytes=peak_memory_bytes(device),
        checkpoint_bytes=checkpoint_bytes,
    )


def _load_or_invent(config: TrainConfig) -> RunData:
    """Return the data of a run; random images of the same number and size if they would have to be downloaded."""
    try:
        with no_downloads():
            return load_data(config)
    except ConnectionError:
        data = measure.random_data(config)
        title = f"random images ({config.data_dir} does not hold {FACTS[config.dataset].title})"
        return replace(data, train=replace(data.train, title=title))


# --- What would be faster --------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """Another value of one setting."""

    setting: str
    value: Any

    @property
    def flag(self) -> str:
        """Return the flag of `resnet-train` that makes this change."""
        name = self.setting.replace("_", "-")
        if isinstance(self.value, bool):
            return f"--{name}" if self.value else f"--no-{name}"
        return f"--{name} {self.value}"


COMPILE = Change("compile", True)


@dataclass(frozen=True, kw_only=True)
class ChangeResult:
    """The rate of training with a change relative to that without it, and what else the change does."""

    flag: str
    note: str
    rounds: int
    ratio: Spread
    compile_seconds: float | None = None  # of --compile alone

    @property
    def verdict(self) -> str:
        """Return `faster` or `slower` if the whole range of the ratio is on that side of 1, else an empty string."""
        return "faster" if self.ratio.min > 1 else "slower" if self.ratio.max < 1 else ""

    def seconds_saved(self, run: RunEstimate) -> float:
        """Return how much shorter the training of a whole run is with this change, without compilation."""
        return run.train_seconds * (1 - 1 / self.ratio.median)


def changes_to_try(config: TrainConfig, device: torch.device, try_compile: bool = False) -> list[Change]:
    """Return every change of one setting that may make training faster on this machine."""
    # Memory order and precision, then what depends on the machine and on the config.
    precision = choose_precision(config.amp, device)
    changes = [Change("channels_last", not config.channels_last), Change("amp", "off" if precision else "bf16")]
    if device.type == "cuda":
        if precision is not torch.float16:
            changes.append(Change("amp", "fp16"))
        changes.append(Change("capture", config.capture is False))
    if device.type == "cpu":
        changes += [Change("threads", num) for num in _thread_counts() if num != torch.get_num_threads()]
    if config.deterministic:
        changes.append(Change("deterministic", False))
    if config.accumulate > 1:
        changes.append(Change("accumulate", 1))
    changes.append(Change("batch_size", 2 * config.batch_size))
    if try_compile and (config.compile or can_compile(device)):
        changes.append(Change("compile", not config.compile))
    return changes


def compile_all(trainer: Trainer, config: TrainConfig) -> float:
    """Train on each image size of a run and evaluate, so that all is compiled; return the seconds this takes."""
    started = time.perf_counter()
    measure.rates_by_size(trainer, config, [side for side, _ in measure.size_stages(config)], steps=1, warmup=0)
    measure.eval_rate(trainer, num_batches=1)
    return time.perf_counter() - started


def _thread_counts() -> list[int]:
    """Return the number of processors and half of it, because two that share a core rarely double its speed."""
    processors = os.cpu_count() or 1
    return sorted({processors, max(1, processors // 2)})


def start_changes(
    config: TrainConfig, changes: Sequence[Change], data: RunData, device: torch.device
) -> tuple[dict[str, Callable[[], measure.Training]], dict[str, str], float | None]:
    """Build a training loop with each change alone and do its first step.

    Returns:
        The training loops by flag; why other changes cannot be tried, by flag; the seconds of compilation if it is one
        of the changes.
    """
    # A change that fails in its first step is left out with the first line of its error.
    trainings: dict[str, Callable[[], measure.Training]] = {}
    left_out, compile_seconds = {}, None
    for change in changes:
        try:
            changed = make_config({**to_plain(config), change.setting: change.value})
            trainer = measure.build_bench_trainer(changed, data, device)
            training = partial(measure.train, trainer, changed)
            if change == COMPILE:
                compile_seconds = compile_all(trainer, changed)
            measure.rate(training, 1, device, warmup=0)
            trainings[change.flag] = training
        except (ValueError, RuntimeError) as error:  # batch too large, out of memory, a compiler that does not work
            left_out[change.flag] = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return trainings, left_out, compile_seconds


# --- The whole benchmark ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """How fast a recipe trains on this machine."""

    arch: str
    params: int
    batch_size: int
    image_size: int
    precision: str
    data: str
    steps: int  # timed in each measurement
    rounds: int
    images_per_second: Spread
    flops_per_image: int
    flops_per_second: Spread
    matrix_flops_per_second: Spread
    matrix_share: Spread  # flops_per_second as a share of matrix_flops_per_second
    changes: list[ChangeResult]
    left_out: dict[str, str]  # reasons by flag
    phases: dict[str, float]  # shares of a step
    phase_seconds: dict[str, float]
    start_seconds: float  # until the first step is done
    peak_memory_bytes: int | None
    eval_images_per_second: float
    run: RunEstimate
    environment: dict[str, object]


def default_steps(loader: BatchLoader) -> int:
    """Return the number of steps to time. On a GPU many batches are made at once: time as many steps."""
    # With fewer steps, the time to make the batches would fall outside the measurement.
    chunk = loader.chunk_bytes // (loader.image_bytes * loader.batch_size)
    return max(MIN_STEPS, min(chunk, len(loader)))


def bench(config: TrainConfig, steps: int | None, rounds: int, try_compile: bool) -> BenchResult:
    """Measure a recipe on this machine.

    Args:
        config: The run to measure; its data set is replaced by random images.
        steps: Timed optimizer steps of each measurement; see `default_steps` for None.
        rounds: Each round times the recipe and every change to it once.
        try_compile: Also try compilation if there is a compiler, which takes minutes.

    Raises:
        ValueError: The network or the device does not exist, or the batch is larger than the data set.
    """
    # Build the trainer and do the first step.
    check_config(config)
    device = prepare_machine(config.device, config.threads, config.deterministic)
    config, _ = resolve_auto(config, device)
    data = measure.random_data(config)
    started = time.perf_counter()
    trainer = measure.build_bench_trainer(config, data, device)
    training = partial(measure.train, trainer, config)
    measure.rate(training, 1, device, warmup=0)
    start_seconds = time.perf_counter() - started

    # Read the peak memory after an evaluation and a few steps, before profiles and other trainers add to it.
    eval_rate = measure.eval_rate(trainer, measure.EVAL_BATCHES[device.type])
    measure.rate(training, 1, device)
    peak_memory = peak_memory_bytes(device)

    # What was chosen for this network: a change is measured against it.
    config = config.model_copy(update={"capture": trainer.capture})

    # Measure the phases and the smaller image sizes, then everything else in interleaved rounds.
    steps = steps or default_steps(trainer.train_loader)
    uncaptured = config.model_copy(update={"capture": False})  # a graph has no phases
    eager = measure.build_bench_trainer(uncaptured, data, device) if trainer.capture else trainer
    phase_seconds = measure.phases(partial(measure.train, eager, uncaptured), steps, device)
    del eager
    size_rates = measure.rates_by_size(trainer, config, [side for side, _ in measure.size_stages(config)[:-1]], steps)
    changes = changes_to_try(config, device, try_compile)
    trainings, left_out, compile_seconds = start_changes(config, changes, data, device)
    measures: dict[str, Callable[[], float]] = {AS_GIVEN: partial(measure.rate, training, steps, device)}
    measures |= {flag: partial(measure.rate, start, steps, device) for flag, start in trainings.items()}
    measures[MATRIX] = partial(measure.matrix_rate, device, trainer.precision)
    rates = measure.interleave(measures, rounds, AS_GIVEN, MIN_RATIO)

    # Compare the rates.
    given, flops = rates[AS_GIVEN], measure.training_flops(config, len(data.train.classes))
    flops_per_second = [rate * flops for rate in given]
    size_rates[config.image_size] = Spread.of(given).median
    if config.minutes is not None and not is_planned(config):
        config = choose_length(config, measure.count_images(config), size_rates, eval_rate, 60 * config.minutes)
    return BenchResult(
        arch=config.arch,
        params=sum(parameter.numel() for parameter in trainer.parameters),
        batch_size=config.batch_size,
        image_size=config.image_size,
        precision=precision_name(trainer.precision),
        data=data.train.title,
        steps=steps,
        rounds=rounds,
        images_per_second=Spread.of(given),
        flops_per_image=flops,
        flops_per_second=Spread.of(flops_per_second),
        matrix_flops_per_second=Spread.of(rates[MATRIX]),
        matrix_share=Spread.of_ratios(flops_per_second, rates[MATRIX]),
        changes=[
            ChangeResult(
                flag=change.flag,
                note=NOTES.get(change.setting, ""),
                rounds=len(rates[change.flag]),
                ratio=Spread.of_ratios(rates[change.flag], given),
                compile_seconds=compile_seconds if change == COMPILE else None,
            )
            for change in changes
            if change.flag in rates
        ],
        left_out=left_out,
        phases={phase: seconds / sum(phase_seconds.values()) for phase, seconds in phase_seconds.items()},
        phase_seconds=phase_seconds,
        start_seconds=start_seconds,
        peak_memory_bytes=peak_memory,
        eval_images_per_second=eval_rate,
        run=measure.estimate_run(config, measure.count_images(config), size_rates, eval_rate, start_seconds),
        environment=describe_environment(device),
    )
