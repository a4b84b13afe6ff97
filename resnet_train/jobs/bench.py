"""How fast this machine trains: rates measured interleaved, where a step's time goes, what would make it faster.

Nothing here reads or downloads a data set: images and labels are random numbers of the data set's shape.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, islice, pairwise
from typing import Any

import numpy as np
import torch

from resnet_train.build import RunData, arch_options, build_trainer, check_names
from resnet_train.config import TrainConfig, make_config, to_plain
from resnet_train.data.batch import Batch
from resnet_train.data.dataset import ImageDataset
from resnet_train.data.loader import BatchLoader
from resnet_train.evaluation.evaluate import evaluate
from resnet_train.models import measure_complexity
from resnet_train.runtime.device import peak_memory_bytes, prepare_machine, synchronize
from resnet_train.runtime.environment import describe_environment
from resnet_train.runtime.precision import choose_precision
from resnet_train.training.trainer import Trainer

log = logging.getLogger(__name__)

WARMUP_STEPS = 4
EVAL_BATCHES = {"cuda": 19}  # timed ones, after one that is not
FEW_EVAL_BATCHES = 2
FEW_STEPS = 20
MAX_RANDOM_BYTES = 1 << 28  # of images: all of CIFAR-10, and a part of what is larger
HOPELESS = 0.5  # a change that trains less than half as fast is timed in one round only
AS_GIVEN, MATRIX = "as given", "matrix FLOP/s"
PHASES = ("data", "forward", "backward", "optimizer", "host")
MATRIX_SIDES = {"cuda": 8192}  # large enough to fill the device
MATRIX_SIDE, MATRIX_REPEATS = 1024, 10
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class DataSize:
    """How many images a data set has to train on and to test on, and how many classes."""

    train: int
    test: int
    classes: int


CIFAR10_SIZE = DataSize(50_000, 10_000, 10)
DATA_SIZES = {
    "cifar10": CIFAR10_SIZE,
    "cifar100": DataSize(50_000, 10_000, 100),
    "digits": DataSize(1_437, 360, 10),
}

Step = Callable[[], None]


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Attributes:
        batch_size: images of one step.
        enter: enters a running training; the function inside does one optimizer step.
    """

    batch_size: int
    enter: Callable[[], AbstractContextManager[Step]]


# --- Measuring rates -------------------------------------------------------------------------------------------------


def measure_rate(variant: Variant, steps: int, device: torch.device, warmup: int = WARMUP_STEPS) -> float:
    """Images per second over `steps` steps, after `warmup` steps that are not timed."""
    with variant.enter() as step:
        for _ in range(warmup):
            step()
        synchronize(device)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(device)
        return steps * variant.batch_size / (time.perf_counter() - start)


def interleave(
    measures: dict[str, Callable[[], float]], rounds: int, base: str = "", hopeless: float = 0.0
) -> dict[str, list[float]]:
    """What each measure gave, round by round; every round takes all of them, so a machine that slows down slows all.

    Args:
        measures: functions that give a rate.
        rounds: every other one goes in reverse order, so that no measure always follows the same other one.
        base, hopeless: after the first round those below this share of the rate of `base` are left out.
    """
    values: dict[str, list[float]] = {name: [] for name in measures}
    names = list(measures)
    for number in range(rounds):
        for name in names[:: 1 if number % 2 == 0 else -1]:
            values[name].append(measures[name]())
        if number == 0 and hopeless:
            names = [name for name in names if values[name][0] >= hopeless * values[base][0]]
        shown = ", ".join(f"{name} {values[name][-1]:.4g}" for name in names)
        log.info("round %d of %d, images/s: %s", number + 1, rounds, shown)
    return values


def spread(values: Sequence[float]) -> dict[str, float]:
    """`median`, `min` and `max`."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(values: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """The spread of the ratios within a round; rounds that only `base` has do not count."""
    return spread([value / of_base for value, of_base in zip(values, base)])


def verdict(ratio: dict[str, float]) -> str:
    """`faster` or `slower` if the whole range of the ratio is on that side of 1, else nothing."""
    return "faster" if ratio["min"] > 1 else "slower" if ratio["max"] < 1 else ""


def matrix_rate(device: torch.device, precision: torch.dtype | None, side: int | None = None) -> float:
    """Floating-point operations per second of the best of ten products of square matrices.

    What torch's own matrix product reaches, not what the device could: on some CPUs its convolutions do more, so a
    share of this rate may be above 1.

    Args:
        precision: of the matrices; None is float32, which on a GPU is TF32 where torch may use it.
        side: rows and columns; None is as many as fill the device.
    """
    side = side or MATRIX_SIDES.get(device.type, MATRIX_SIDE)
    left, right = (torch.randn(side, side, device=device, dtype=precision or torch.float32) for _ in range(2))
    seconds = []
    for _ in range(MATRIX_REPEATS):
        synchronize(device)
        start = time.perf_counter()
        left @ right
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def training_flops(config: TrainConfig, num_classes: int) -> int:
    """Floating-point operations to train on one image: 2 for each multiply-add, forward and twice that backward.

    Only those of convolutions and the linear layer, so what is derived from it is a lower bound.
    """
    size = measure_complexity(config.arch, num_classes, config.image_size, **arch_options(config))
    return 3 * 2 * size.macs


# --- What is trained -------------------------------------------------------------------------------------------------


def data_size(config: TrainConfig) -> DataSize:
    """The sizes of the config's data set; of a folder, which is not looked into, those of CIFAR-10."""
    return DATA_SIZES.get(config.dataset, CIFAR10_SIZE)


def random_images(num_images: int, image_size: int = 32, num_classes: int = 10) -> ImageDataset:
    """Random pixels and labels, the same every time."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(num_images, 3, image_size, image_size), dtype=np.uint8)
    labels = rng.integers(0, num_classes, size=num_images)
    classes = tuple(str(number) for number in range(num_classes))
    return ImageDataset(pixels, labels, classes, CIFAR_MEAN, CIFAR_STD, "random images", "")


def random_data(config: TrainConfig) -> RunData:
    """Random images of the config's size, as many as it trains on and tests on (up to 256 MiB each).

    Raises:
        ValueError: the batch is larger than the training images.
    """
    size = data_size(config)
    wanted = config.train_size or size.train - config.val_size
    if config.batch_size > wanted:
        raise ValueError(f"batch_size (={config.batch_size}) must be at most the number of training images (={wanted})")
    most = max(config.batch_size, MAX_RANDOM_BYTES // (3 * config.image_size**2))
    train = random_images(min(wanted, most), config.image_size, size.classes)
    test = random_images(min(size.test, most), config.image_size, size.classes)
    return RunData(train, test, np.arange(len(train)), np.arange(0))


def build_bench_trainer(config: TrainConfig, data: RunData, device: torch.device) -> Trainer:
    """The trainer of resnet-train, at its full image size, whose weights stay as they are."""
    trainer = build_trainer(config, data, device)
    trainer.lr = 0.0  # the same arithmetic, but random labels can't make the loss diverge
    trainer.train_loader.size_at = None
    trainer.model.train()
    return trainer


def all_batches(loader: BatchLoader) -> Generator[Batch, None, None]:
    """Epoch after epoch, without end."""
    for epoch in count():
        yield from loader.epoch(epoch)


def default_steps(loader: BatchLoader) -> int:
    """How many steps to time: as many as the batches made at once on a GPU, so that making them is part of it."""
    chunk = loader.chunk_bytes // (loader.image_bytes * loader.batch_size)
    return max(FEW_STEPS, min(chunk, len(loader)))


def train_step(trainer: Trainer, batch: Batch) -> None:
    """A step as the trainer's epoch does it, its reads of the loss included."""
    trainer.train_step(batch)
    if trainer.progress.step % trainer.log_every == 0:
        trainer.read_step(0)


def our_training(trainer: Trainer, config: TrainConfig) -> Variant:
    """The training loop of resnet-train, with the config's threads and kernels while it runs."""

    @contextmanager
    def enter() -> Iterator[Step]:
        with machine_of(config), closing(all_batches(trainer.train_loader)) as batches:
            yield lambda: train_step(trainer, next(batches))

    return Variant(config.batch_size, enter)


@contextmanager
def machine_of(config: TrainConfig) -> Iterator[None]:
    """The number of threads and the choice of kernels of a config; after it the threads are as they were."""
    threads = torch.get_num_threads()
    prepare_machine(config.device, config.threads, config.deterministic)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# --- Where a step's time goes ----------------------------------------------------------------------------------------


class PhaseClock:
    """Adds up the time between marks; each mark begins a phase and ends the one before.

    On a GPU the marks are events in its stream: the times are the GPU's own, and the host does not wait for it, which
    would change what is measured. Where a GPU waits for the host, that time is the phase's whose work came late.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[str, Any]] = []

    def start(self, phase: str) -> None:
        """Begins a phase."""
        self.marks.append((phase, self._now()))

    def _now(self) -> Any:
        if self.device.type == "cuda":
            return torch.cuda.current_stream(self.device).record_event(torch.cuda.Event(enable_timing=True))
        synchronize(self.device)
        return time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """By phase, all together; the last mark only ends the one before it."""
        synchronize(self.device)
        totals = dict.fromkeys(PHASES, 0.0)
        for (phase, start), (_, end) in pairwise(self.marks):
            totals[phase] += end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
        return totals


@contextmanager
def phases_marked(trainer: Trainer, clock: PhaseClock) -> Iterator[None]:
    """The trainer's steps tell the clock of forward (network and loss), backward and optimizer; the rest is host.

    From outside, so that the loop knows nothing of it: what it enters around the network, torch's own `backward`
    (put back after), and the hooks of the optimizer.
    """
    autocast, backward = trainer.autocast, torch.Tensor.backward

    def autocast_of_forward() -> AbstractContextManager[Any]:
        clock.start("forward")
        return autocast()

    def timed_backward(loss: torch.Tensor, *args: Any, **settings: Any) -> None:
        clock.start("backward")
        backward(loss, *args, **settings)
        clock.start("host")

    hooks = [
        trainer.optimizer.register_step_pre_hook(lambda *_: clock.start("optimizer")),
        trainer.optimizer.register_step_post_hook(lambda *_: clock.start("host")),
    ]
    trainer.autocast = autocast_of_forward  # type: ignore[method-assign]
    torch.Tensor.backward = timed_backward  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
        del trainer.autocast  # the instance's; the class's is back
        for hook in hooks:
            hook.remove()


def measure_phases(trainer: Trainer, config: TrainConfig, steps: int, warmup: int = WARMUP_STEPS) -> dict[str, float]:
    """Seconds of an average step by phase.

    `data` is the wait for the batch, augmentation included; `forward` the network and the loss; `host` all the rest:
    the gradient's norm, the check that it is finite, counting, averaged weights, reads of the loss.
    """
    clock = PhaseClock(trainer.device)
    batches = all_batches(trainer.train_loader)
    with machine_of(config), closing(batches), phases_marked(trainer, clock):
        for number in range(warmup + steps):
            if number == warmup:
                clock.marks.clear()
            clock.start("data")
            batch = next(batches)
            clock.start("host")
            train_step(trainer, batch)
        clock.start("host")
    return {phase: seconds / steps for phase, seconds in clock.seconds().items()}


def shares(seconds: dict[str, float]) -> dict[str, float]:
    """Each as a share of their sum."""
    total = sum(seconds.values())
    return {name: value / total for name, value in seconds.items()}


# --- A whole run -----------------------------------------------------------------------------------------------------


def measure_evaluation(trainer: Trainer) -> float:
    """Images per second of an evaluation, after one batch that is not timed."""
    loader = trainer.eval_loaders["test"]
    num_batches = EVAL_BATCHES.get(trainer.device.type, FEW_EVAL_BATCHES)
    evaluate(trainer.eval_model, islice(loader.epoch(0), 1), trainer.num_classes, trainer.device)
    start = time.perf_counter()
    done = evaluate(trainer.eval_model, islice(loader.epoch(0), num_batches), trainer.num_classes, trainer.device)
    return done.n / (time.perf_counter() - start)


def size_stages(config: TrainConfig) -> list[tuple[int, float]]:
    """The sides in pixels that a run goes through, each with its share of the steps; the last is the full size."""
    stages = [*(config.progressive_sizes or ()), (config.image_size, 1.0)]
    starts = [0.0, *(end for _, end in stages)]
    return [(side, end - start) for start, (side, end) in zip(starts, stages)]


def measure_stages(trainer: Trainer, config: TrainConfig, steps: int) -> dict[int, float]:
    """Images per second at each smaller side of progressive sizes; empty if there are none."""
    rates = {}
    for side, _ in size_stages(config)[:-1]:
        trainer.train_loader.size_at = lambda _step, side=side: side
        rates[side] = measure_rate(our_training(trainer, config), steps, trainer.device)
    trainer.train_loader.size_at = None
    return rates


def expected_run(
    config: TrainConfig, rates: dict[int, float], eval_rate: float, start_seconds: float
) -> dict[str, Any]:
    """The time of the whole run.

    Args:
        rates: images per second of training by side of the images.
        eval_rate: images per second of an evaluation.
        start_seconds: until the first step is done.

    Returns:
        `epochs`, `steps`, `train_images`, `eval_images`, `stages`, `train_seconds`, `eval_seconds`, `total_seconds`;
        saving is not part of it.
    """
    size = data_size(config)
    train_images = config.train_size or size.train - config.val_size
    steps = config.epochs * (train_images // config.batch_size)
    stages = [{"side": side, "share": share, "images_per_second": rates[side]} for side, share in size_stages(config)]
    train_seconds = sum(steps * s["share"] * config.batch_size / s["images_per_second"] for s in stages)
    eval_seconds = -(-config.epochs // config.eval_every) * (size.test + config.val_size) / eval_rate
    return {
        "epochs": config.epochs,
        "steps": steps,
        "train_images": train_images,
        "eval_images": size.test + config.val_size,
        "stages": stages,
        "train_seconds": train_seconds,
        "eval_seconds": eval_seconds,
        "total_seconds": start_seconds + train_seconds + eval_seconds,
    }


# --- What would help -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """Another choice of one setting: its flag, its value, and what it changes besides the time."""

    flag: str
    settings: dict[str, Any]
    note: str = ""


def changes_to_try(config: TrainConfig, device: torch.device, try_compile: bool = False) -> list[Change]:
    """Every setting that may make this machine faster, each the other way round than the config has it."""
    found = [_switch(config, "channels_last")]
    mixed = choose_precision(config.amp, device) is not None
    amp = "off" if mixed else "bf16"
    found.append(Change(f"--amp {amp}", {"amp": amp}, "rounds otherwise"))
    if device.type == "cpu":
        found += [Change(f"--threads {n}", {"threads": n}) for n in _thread_counts() if n != torch.get_num_threads()]
    if config.deterministic:
        found.append(_switch(config, "deterministic"))
    if config.accumulate > 1:
        found.append(Change("--accumulate 1", {"accumulate": 1}, "takes more memory"))
    double = 2 * config.batch_size
    found.append(Change(f"--batch-size {double}", {"batch_size": double}, "changes what is learned"))
    if try_compile and (config.compile or can_compile(device)):
        found.append(_switch(config, "compile"))
    return found


def _switch(config: TrainConfig, name: str) -> Change:
    value = not getattr(config, name)
    return Change(("--" if value else "--no-") + name.replace("_", "-"), {name: value})


def _thread_counts() -> list[int]:
    """All processors, and half of them: two that share a core rarely do more than one."""
    everything = os.cpu_count() or 1
    return sorted({everything, max(1, everything // 2)})


def can_compile(device: torch.device) -> bool:
    """Whether there is what torch.compile needs: a C++ compiler for a CPU, Triton and a C compiler for a GPU."""
    if device.type == "cuda":
        found = any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
        return found and importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))


def enter_changes(
    config: TrainConfig, changes: Sequence[Change], data: RunData, device: torch.device
) -> tuple[dict[str, Variant], dict[str, str]]:
    """The training with each change alone, after one step of it; and why others can't be tried, by flag."""
    variants, left_out = {}, {}
    for change in changes:
        changed = make_config({**to_plain(config), **change.settings})
        if changed.batch_size > len(data.train):
            left_out[change.flag] = f"there are {len(data.train)} training images"
            continue
        try:
            variant = our_training(build_bench_trainer(changed, data, device), changed)
            measure_rate(variant, 1, device, warmup=0)
        except RuntimeError as error:  # out of memory; a compiler that does not work
            left_out[change.flag] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            continue
        variants[change.flag] = variant
    return variants, left_out


# --- All of it -------------------------------------------------------------------------------------------------------


def bench(config: TrainConfig, steps: int | None = None, rounds: int = 5, try_compile: bool = False) -> dict[str, Any]:
    """Measures a recipe on this machine.

    Args:
        config: what to train; only its machine, network, augmentation and optimization settings count.
        steps: timed optimizer steps of each measurement; None: see `default_steps`.
        rounds: in each the recipe and every change to it are timed once.
        try_compile: try compilation, too, if there is a compiler; it takes minutes.

    Returns:
        Plain values, ready for JSON; rates, `matrix_share` and each change's `ratio` have `median`, `min` and `max`
        over the rounds, `phases` are shares of a step's time.

    Raises:
        ValueError: no such network or device, or a batch larger than the data set.
    """
    check_names(config)
    device = prepare_machine(config.device, config.threads, config.deterministic)
    data = random_data(config)
    start = time.perf_counter()
    trainer = build_bench_trainer(config, data, device)
    steps = steps or default_steps(trainer.train_loader)
    measure_rate(our_training(trainer, config), 1, device, warmup=0)
    start_seconds = time.perf_counter() - start
    phase_seconds = measure_phases(trainer, config, steps)
    eval_rate = measure_evaluation(trainer)
    peak = peak_memory_bytes(device)  # before there is anything else in memory
    stage_rates = measure_stages(trainer, config, steps)
    compared = compare(trainer, config, data, steps, rounds, changes_to_try(config, device, try_compile))
    full_rate = compared["images_per_second"]["median"]
    return {
        "arch": config.arch,
        "params": sum(parameter.numel() for parameter in trainer.parameters),
        "batch_size": config.batch_size,
        "image_size": config.image_size,
        "precision": str(trainer.precision or torch.float32).removeprefix("torch."),
        "data": data.train.title,
        "steps": steps,
        "rounds": rounds,
        **compared,
        "phases": shares(phase_seconds),
        "phase_seconds": phase_seconds,
        "start_seconds": start_seconds,
        "peak_memory_bytes": peak,
        "eval_images_per_second": eval_rate,
        "run": expected_run(config, {**stage_rates, config.image_size: full_rate}, eval_rate, start_seconds),
        "environment": describe_environment(device),
    }


def compare(
    trainer: Trainer, config: TrainConfig, data: RunData, steps: int, rounds: int, changes: Sequence[Change]
) -> dict[str, Any]:
    """The training as it is, a product of matrices, and the training with each change, interleaved."""
    device = trainer.device
    variants, left_out = enter_changes(config, changes, data, device)
    variants = {AS_GIVEN: our_training(trainer, config), **variants}
    measures: dict[str, Callable[[], float]] = {
        name: partial(measure_rate, variant, steps, device) for name, variant in variants.items()
    }
    measures[MATRIX] = partial(matrix_rate, device, trainer.precision)
    rates = interleave(measures, rounds, AS_GIVEN, HOPELESS)
    ours, flops = rates[AS_GIVEN], training_flops(config, len(data.train.classes))
    return {
        "images_per_second": spread(ours),
        "flops_per_image": flops,
        "flops_per_second": spread([rate * flops for rate in ours]),
        "matrix_flops_per_second": spread(rates[MATRIX]),
        "matrix_share": ratios([rate * flops for rate in ours], rates[MATRIX]),
        "changes": [
            {
                "flag": change.flag,
                "note": change.note,
                "rounds": len(rates[change.flag]),
                "ratio": ratios(rates[change.flag], ours),
            }
            for change in changes
            if change.flag in rates
        ],
        "left_out": left_out,
    }
