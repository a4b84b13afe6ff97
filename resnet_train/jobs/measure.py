"""Measure training: its rate, the phases of a step, evaluation, and what these predict for a whole run.

`resnet-bench`, `resnet-train --dry-run` and the programs in benchmarks/ all measure with these functions.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from resnet_train.build import RunData, arch_options, build_trainer
from resnet_train.config import TrainConfig
from resnet_train.data.dataset import FACTS, ImageDataset
from resnet_train.data.sources.cifar import CIFAR10
from resnet_train.evaluation.evaluate import evaluate
from resnet_train.models import measure_complexity
from resnet_train.runtime.capture import EAGER_CALLS
from resnet_train.runtime.device import prepare_machine, synchronize
from resnet_train.training.trainer import Trainer, mark

log = logging.getLogger(__name__)

WARMUP_STEPS = EAGER_CALLS + 1  # the last of them captures a CUDA graph
MAX_RANDOM_BYTES = 1 << 28  # enough for all images of CIFAR-10; larger images are fewer
MATRIX_SIDES = {"cuda": 8192}  # large enough to fill the device
MATRIX_SIDE, MATRIX_REPEATS = 1024, 10
EVAL_BATCHES = {"cpu": 2, "mps": 2, "cuda": 19}
PHASES = ("data", "forward", "backward", "optimizer", "host")

# Training in progress: each `next` does one optimizer step and returns the number of its images.
Training = Generator[int, None, None]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and range of repeated measurements."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one or more values."""
        return cls(median=statistics.median(values), min=min(values), max=max(values))

    @classmethod
    def of_ratios(cls, values: Sequence[float], base: Sequence[float]) -> Spread:
        """Return the spread of the ratios within each round; rounds that only `base` has are ignored."""
        return cls.of([value / reference for value, reference in zip(values, base)])


# --- Rates -----------------------------------------------------------------------------------------------------------


def rate(start: Callable[[], Training], steps: int, device: torch.device, warmup: int = WARMUP_STEPS) -> float:
    """Start training and return the images per second over `steps` steps, after `warmup` untimed ones."""
    # The clock starts and stops when the device has finished everything that was launched.
    with closing(start()) as training:
        sum(islice(training, warmup))
        synchronize(device)
        started = time.perf_counter()
        num_images = sum(islice(training, steps))
        synchronize(device)
        return num_images / (time.perf_counter() - started)


def interleave(
    measures: dict[str, Callable[[], float]], rounds: int, base: str = "", min_ratio: float = 0.0
) -> dict[str, list[float]]:
    """Return the results of each measure by round. A machine that slows down slows all measures of a round.

    Args:
        measures: Functions that return a rate. Every second round calls them in reverse order, so that none always
            follows the same one.
        rounds: Number of rounds.
        base: With `min_ratio`, the measure that the others are compared with.
        min_ratio: Measures below this share of the rate of `base` in the first round are not repeated.
    """
    rates: dict[str, list[float]] = {name: [] for name in measures}
    # Drop measures that are far too slow after the first round.
    names = list(measures)
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            rates[name].append(measures[name]())
        if number == 0 and min_ratio:
            names = [name for name in names if rates[name][0] >= min_ratio * rates[base][0]]
        shown = ", ".join(f"{name} {rates[name][-1]:.4g}" for name in names)
        log.info("round %d of %d, images/s: %s", number + 1, rounds, shown)
    return rates


def matrix_rate(device: torch.device, precision: torch.dtype | None, side: int | None = None) -> float:
    """Return the floating-point operations per second of the fastest of ten products of square matrices.

    On some CPUs convolutions are faster than torch's matrix product, so a share of this rate may exceed 1.

    Args:
        device: Where to multiply.
        precision: Data type of the matrices. None is float32, which on a GPU means TF32 where torch may use it.
        side: Rows and columns; by default enough to fill the device.
    """
    side = side or MATRIX_SIDES.get(device.type, MATRIX_SIDE)
    left, right = (torch.randn(side, side, device=device, dtype=precision or torch.float32) for _ in range(2))
    seconds = []
    for _ in range(MATRIX_REPEATS):
        synchronize(device)
        started = time.perf_counter()
        left @ right
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)


def training_flops(config: TrainConfig, num_classes: int) -> int:
    """Return the floating-point operations to train on one image: two per multiply-add, for three passes.

    The backward pass costs as much as two forward passes. Only convolutions and linear layers count, so rates derived
    from this number are lower bounds.
    """
    size = measure_complexity(config.arch, num_classes, config.image_size, **arch_options(config))
    return 3 * 2 * size.macs


def warmup_calls(trainer: Trainer, eager: int = 1) -> int:
    """Return how many calls to leave untimed: until there is a CUDA graph, or `eager` of them without graphs."""
    return EAGER_CALLS + 1 if trainer.capture else eager


# --- What is trained -------------------------------------------------------------------------------------------------


def count_images(config: TrainConfig) -> tuple[int, int]:
    """Return the numbers of training and evaluation images of a run; an image folder counts as CIFAR-10."""
    facts = FACTS.get(config.dataset, CIFAR10)
    return config.train_size or max(0, facts.num_train - config.val_size), facts.num_test + config.val_size


def random_images(num_images: int, image_size: int = 32, num_classes: int = 10) -> ImageDataset:
    """Return random pixels and labels, the same in every call."""
    # The statistics are those of CIFAR-10; normalization costs the same with any.
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(num_images, 3, image_size, image_size), dtype=np.uint8)
    labels = rng.integers(0, num_classes, size=num_images)
    classes = tuple(str(label) for label in range(num_classes))
    return ImageDataset(
        images=pixels,
        labels=labels,
        classes=classes,
        mean=CIFAR10.mean,
        std=CIFAR10.std,
        title="random images",
        fingerprint="",
    )


def random_data(config: TrainConfig) -> RunData:
    """Return random images in the number and size that the config trains and evaluates on, up to 256 MiB each."""
    num_classes = FACTS.get(config.dataset, CIFAR10).num_classes
    limit = max(config.batch_size, MAX_RANDOM_BYTES // (3 * config.image_size**2))
    train, test = (random_images(min(num, limit), config.image_size, num_classes) for num in count_images(config))
    return RunData(train=train, test=test, train_indices=np.arange(len(train)), val_indices=np.arange(0))


def build_bench_trainer(config: TrainConfig, data: RunData, device: torch.device) -> Trainer:
    """Build the trainer of `resnet-train` at full image size, with learning rate 0.

    The arithmetic is the same, but random labels cannot make the loss diverge.
    """
    trainer = build_trainer(config, data, device)
    trainer.lr = 0.0
    trainer.train_loader.size_at = None
    return trainer


def train(trainer: Trainer, config: TrainConfig) -> Training:
    """Train endlessly, as an epoch of `resnet-train` does, with the threads and kernels of the config."""
    # Several training loops are interleaved: each sets its threads and kernels and restores the number of threads.
    threads = torch.get_num_threads()
    prepare_machine(config.device, config.threads, config.deterministic)
    batches = chain.from_iterable(map(trainer.train_loader.epoch, count()))
    try:
        while True:
            with mark("data"):
                batch = next(batches)
            trainer.train_step(batch)
            if trainer.progress.step % trainer.log_every == 0:
                trainer.log_step()
            yield len(batch.labels)
    finally:
        torch.set_num_threads(threads)


# --- Phases of a step ------------------------------------------------------------------------------------------------


def phases(
    start: Callable[[], Training], steps: int, device: torch.device, warmup: int = WARMUP_STEPS
) -> dict[str, float]:
    """Profile training and return the seconds of an average step by phase.

    `data` is the wait for the batch, including augmentation. `forward` is the network and the loss. `host` is the rest:
    gradient norm, the check for finite values, averaged weights, reads of the loss. The profiler slows a step down, so
    rates are measured without it.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its own progress on stderr
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]

    # The mark "host" spans all timed steps; the trainer's marks lie within it.
    with closing(start()) as training:
        sum(islice(training, warmup))
        with profile(activities=activities, acc_events=True) as profiler, record_function("host"):
            sum(islice(training, steps))
            synchronize(device)

    # `profiler.events()` links every operation to its parents, which takes 70 times as long.
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    seconds = add_up_phases(profiler.profiler.kineto_results.events())
    return {phase: seconds[phase] / steps for phase in PHASES}


def add_up_phases(events: Iterable[Any]) -> dict[str, float]:
    """Return the seconds of each phase in the events of a profile; the mark "host" spans all steps.

    Without device events, these are the times between the host's marks. With device events, they are times on the
    device: an operation, with the idle time before it, belongs to the phase in which the host launched it.
    """
    # Marks are annotations on the host, where torch has its own. On the device they repeat what they enclose.
    marks, launches, operations = [], {}, []
    for event in events:
        on_host = event.device_type().name == "CPU"
        if on_host and event.is_user_annotation() and event.name() in PHASES:
            marks.append(event)
        if on_host and event.linked_correlation_id() == 0:
            launches[event.correlation_id()] = event.start_ns()
        elif not on_host and not event.is_user_annotation():
            operations.append(event)
    everything, *marks = sorted(marks, key=lambda event: (event.start_ns(), -event.end_ns()))
    nanoseconds = dict.fromkeys(PHASES, 0)

    # Without a device, add up the marks; the rest belongs to the host.
    if not operations:
        for event in marks:
            nanoseconds[event.name()] += event.duration_ns()
        nanoseconds["host"] = everything.duration_ns() - sum(nanoseconds.values())

    # With a device, add up the times from the end of one operation to the end of the next.
    starts, end = [event.start_ns() for event in marks], everything.start_ns()
    for operation in sorted(operations, key=lambda event: event.start_ns()):
        launch = launches.get(operation.linked_correlation_id(), -1)
        last = marks[max(0, bisect_right(starts, launch) - 1)]
        phase = last.name() if last.start_ns() <= launch < last.end_ns() else "host"
        nanoseconds[phase] += max(0, operation.end_ns() - end)
        end = max(end, operation.end_ns())
    return {phase: total / 1e9 for phase, total in nanoseconds.items()}


# --- A whole run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The part of a run that trains on images of one size."""

    side: int  # in pixels
    share: float  # of the steps
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class RunEstimate:
    """The predicted time of a whole run, without saving."""

    epochs: int
    steps: int
    train_images: int
    eval_images: int
    stages: list[Stage]
    train_seconds: float
    eval_seconds: float
    total_seconds: float


def eval_rate(trainer: Trainer, num_batches: int) -> float:
    """Return the images per second of an evaluation of `num_batches` batches, after untimed ones."""
    # Any split will do, because all have the same batch size.
    loader = next(iter(trainer.eval_loaders.values()))

    def run(num: int) -> None:
        batches = islice(loader.epoch(0), num)
        evaluate(trainer.eval_model, batches, trainer.num_classes, trainer.device, forward=trainer.run_forward)

    for _ in range(warmup_calls(trainer)):
        run(1)
    started = time.perf_counter()
    run(num_batches)
    return min(loader.num_images, num_batches * loader.batch_size) / (time.perf_counter() - started)


def size_stages(config: TrainConfig) -> list[tuple[int, float]]:
    """Return each image size in pixels that a run trains on, with its share of the steps; the full size comes last."""
    stages = [*(config.progressive_sizes or ()), (config.image_size, 1.0)]
    starts = [0.0, *(end for _, end in stages)]
    return [(side, end - start) for start, (side, end) in zip(starts, stages)]


def rates_by_size(
    trainer: Trainer, config: TrainConfig, sides: Iterable[int], steps: int, warmup: int = WARMUP_STEPS
) -> dict[int, float]:
    """Return the images per second of training by image size."""
    rates, size_at = {}, trainer.train_loader.size_at
    for side in sides:
        trainer.train_loader.size_at = lambda _step, side=side: side
        rates[side] = rate(partial(train, trainer, config), steps, trainer.device, warmup)
    trainer.train_loader.size_at = size_at
    return rates


def estimate_run(
    config: TrainConfig,
    num_images: tuple[int, int],
    train_rates: dict[int, float],
    eval_rate: float,
    start_seconds: float = 0.0,
) -> RunEstimate:
    """Predict the time of a whole run.

    Args:
        config: The run.
        num_images: Numbers of training and evaluation images.
        train_rates: Images per second of training by image size.
        eval_rate: Images per second of evaluation.
        start_seconds: Time until the first step is done.
    """
    # Training: each stage at the rate for its image size.
    train_images, eval_images = num_images
    steps = config.epochs * (config.epoch_steps or train_images // config.batch_size)
    stages = [Stage(side=side, share=share, images_per_second=train_rates[side]) for side, share in size_stages(config)]
    train_seconds = sum(steps * stage.share * config.batch_size / stage.images_per_second for stage in stages)

    # Evaluation: every `eval_every` epochs and after the last one.
    eval_seconds = -(-config.epochs // config.eval_every) * eval_images / eval_rate
    return RunEstimate(
        epochs=config.epochs,
        steps=steps,
        train_images=train_images,
        eval_images=eval_images,
        stages=stages,
        train_seconds=train_seconds,
        eval_seconds=eval_seconds,
        total_seconds=start_seconds + train_seconds + eval_seconds,
    )
