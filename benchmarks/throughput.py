"""Images per second of resnet-train relative to the plain loop that people copy, and what each gain brings alone.

    python benchmarks/throughput.py --arch resnet18 --json benchmarks/results/throughput-resnet18.json
    python benchmarks/throughput.py --arch resnet20 --variants default,channels-last --rounds 7

Each round times every variant in turn, so a machine that speeds up or slows down affects all of them. The result is
the ratio to the plain loop within a round: its median over the rounds, and its range. The images are random numbers of
CIFAR-10's shape. The plain loop has what torch offers: TF32 and cuDNN's search for the fastest kernels on a GPU, and
the best of several numbers of DataLoader workers. timm and airbench are measured where they are installed.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from resnet_train.build import CUDA_CHUNK_BYTES, RunData
from resnet_train.config import TrainConfig, make_config
from resnet_train.data.augment import Normalize, RandomCrop, RandomFlip, Transform
from resnet_train.data.dataset import ImageDataset
from resnet_train.data.loader import BatchLoader
from resnet_train.data.plan import draw_plan
from resnet_train.data.sources.cifar import CIFAR10
from resnet_train.jobs import measure
from resnet_train.jobs.measure import Spread, Training
from resnet_train.models import create_model
from resnet_train.runtime.compilation import can_compile
from resnet_train.runtime.device import keep_freed_memory, memory_format, prepare_machine
from resnet_train.runtime.environment import describe_environment
from resnet_train.runtime.precision import choose_precision

WORKER_ROUNDS = 2  # of the search for the best number of workers
TIMM_LOG_STEPS = 50
CPU_STEPS = 20

VARIANTS = {
    "plain": "DataLoader workers, per-image transforms on Pillow images, eager, contiguous, .item() each step",
    "default": "resnet-train with its defaults, including its checks and reads of the loss",
    "default-eager": "default, but each kernel is launched separately (--no-capture)",
    "default-float32": "default, but in float32, TF32 on a GPU (--amp off)",
    "default-fp16": "default, but in fp16 with a loss scaler (--amp fp16)",
    "default-nchw": "default, but in NCHW memory order (--no-channels-last)",
    "default-compiled": "default, but with torch.compile (--compile)",
    "resident-data": "plain, but images stay on the device and are transformed there, one by one, without workers",
    "batched-augmentation": "plain, but a thread gathers batches and the device augments them whole; nothing resident",
    "resident-and-batched": "plain, but with the loader of resnet-train: both of the above",
    "channels-last": "plain, but images and weights in NHWC memory order",
    "mixed-precision": "plain, but under autocast: what --amp auto chooses on a GPU, bf16 on a CPU",
    "compilation": "plain, but with torch.compile",
    "graph-capture": "plain, but compiled and captured in a CUDA graph (mode reduce-overhead)",
    "kept-memory": "plain, but the C library keeps freed memory for the next step (on a CPU)",
    "fused-optimizer": "plain, but with one fused kernel for the optimizer",
    "all-gains": "plain with the loader, memory order, precision and optimizer of the default, without its checks",
    "timm": "timm's network and optimizer in its training step, channels-last, fed by the loader of resnet-train",
    "airbench": "airbench's loader in all-gains",
}

# Settings of resnet-train by variant.
OURS: dict[str, dict[str, Any]] = {
    "default": {},
    "default-eager": {"capture": False},
    "default-float32": {"amp": "off"},
    "default-fp16": {"amp": "fp16"},
    "default-nchw": {"channels_last": False},
    "default-compiled": {"compile": True},
}
KEEP_MEMORY = {*OURS, "kept-memory", "all-gains"}  # as the trainer does on a CPU

Batches = Generator[tuple[Tensor, Tensor], None, None]
TIMM_NETWORKS = {
    "resnet18": ("BasicBlock", (2, 2, 2, 2)),
    "resnet34": ("BasicBlock", (3, 4, 6, 3)),
    "resnet50": ("Bottleneck", (3, 4, 6, 3)),
    "resnet101": ("Bottleneck", (3, 4, 23, 3)),
    "resnet152": ("Bottleneck", (3, 8, 36, 3)),
}


@dataclass(frozen=True)
class Setting:
    """What all variants have in common."""

    arch: str
    batch_size: int
    device: torch.device
    images: ImageDataset
    workers: int = 0

    @property
    def epoch_steps(self) -> int:
        """Return the number of batches per epoch."""
        return len(self.images) // self.batch_size

    @property
    def precision(self) -> torch.dtype | None:
        """Return the data type that the default computes in; None is float32."""
        return choose_precision("auto", self.device)


# --- The plain loop --------------------------------------------------------------------------------------------------


class PillowImages(Dataset):
    """Images as torchvision's CIFAR10 returns them: a Pillow image from the array, then the transforms."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images.transpose(0, 2, 3, 1), labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(CIFAR10.mean, CIFAR10.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


@dataclass(frozen=True)
class Gains:
    """What is added to the plain loop, by default nothing."""

    batches: str = "workers"
    channels_last: bool = False
    precision: torch.dtype | None = None
    compile_mode: str | None = None
    fused: bool = False


def plain_loop(setting: Setting, gains: Gains = Gains()) -> Callable[[], Training]:
    """Build the loop that people copy, with some gains, and return a function that starts it."""
    device = setting.device
    layout = memory_format(gains.channels_last)
    torch.manual_seed(0)
    model = create_model(setting.arch).to(device).to(memory_format=layout).train()
    fused = True if gains.fused else None  # None leaves the choice to torch
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=fused)
    criterion = nn.CrossEntropyLoss()
    scaler = torch.amp.GradScaler(device.type, enabled=gains.precision is torch.float16)
    if gains.compile_mode:
        model.compile(mode=gains.compile_mode)
    new_batches = BATCHES[gains.batches](setting)

    def start() -> Training:
        total_loss, correct = 0.0, 0
        # Closing the batches ends their workers, which would slow down the other variants.
        with closing(new_batches()) as batches:
            for inputs, targets in batches:
                inputs, targets = inputs.to(device), targets.to(device)
                if gains.channels_last:
                    inputs = inputs.to(memory_format=layout)
                optimizer.zero_grad()
                with torch.autocast(device.type, dtype=gains.precision, enabled=gains.precision is not None):
                    outputs = model(inputs)
                    loss = criterion(outputs, targets)
                if scaler.is_enabled():
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()
                else:
                    loss.backward()
                    optimizer.step()
                total_loss += loss.item()
                correct += outputs.max(1)[1].eq(targets).sum().item()
                yield len(targets)

    return start


def worker_batches(setting: Setting) -> Callable[[], Batches]:
    """Return the batches of a DataLoader over Pillow images."""
    loader = DataLoader(
        PillowImages(setting.images.images, setting.images.labels),
        batch_size=setting.batch_size,
        shuffle=True,
        num_workers=setting.workers,
        pin_memory=setting.device.type == "cuda",
        drop_last=True,
    )
    return partial(_repeat, lambda _: loader)


def resident_batches(setting: Setting) -> Callable[[], Batches]:
    """Return batches of images that are on the device and transformed there one by one by torchvision."""
    images = torch.from_numpy(setting.images.images).to(setting.device)
    labels = torch.from_numpy(setting.images.labels).to(setting.device)
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ConvertImageDtype(torch.float32),
            transforms.Normalize(CIFAR10.mean, CIFAR10.std),
        ]
    )

    def epoch(_number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(images)).split(setting.batch_size):
            if len(chosen) == setting.batch_size:
                yield torch.stack([transform(images[number]) for number in chosen.tolist()]), labels[chosen]

    return partial(_repeat, epoch)


def our_batches(setting: Setting, resident: bool, channels_last: bool = False) -> Callable[[], Batches]:
    """Return the batches of resnet-train's loader; its images are on the device or gathered by a thread."""
    images = setting.images
    augment: list[Transform] = [RandomCrop(4), RandomFlip()]
    loader = BatchLoader(
        images.images,
        images.labels,
        batch_size=setting.batch_size,
        normalize=Normalize(CIFAR10.mean, CIFAR10.std, channels_last),
        transforms=augment,
        plan=partial(draw_plan, 0, num_images=len(images), transforms=augment),
        device=setting.device,
        resident=resident,
        drop_last=True,
        chunk_bytes=CUDA_CHUNK_BYTES if setting.device.type == "cuda" else 0,
    )
    return partial(_repeat, lambda number: ((batch.images, batch.labels) for batch in loader.epoch(number)))


def airbench_batches(setting: Setting) -> Callable[[], Batches]:
    """Return the batches of airbench's loader with its crop and alternating flip."""
    from airbench import CifarLoader

    # Write the file that the loader would write after a download.
    with tempfile.TemporaryDirectory() as folder:
        pixels = torch.from_numpy(setting.images.images).permute(0, 2, 3, 1).contiguous()
        labels = torch.from_numpy(setting.images.labels)
        contents = {"images": pixels, "labels": labels, "classes": list(setting.images.classes)}
        torch.save(contents, Path(folder) / "train.pt")
        augment = {"flip": True, "translate": 4}
        # `gpu` is passed to torch.device, so it can name any device.
        loader = CifarLoader(folder, batch_size=setting.batch_size, aug=augment, altflip=True, gpu=str(setting.device))
    in_float16 = setting.precision is not None  # autocast accepts its float16 images

    def epoch(_number: int) -> Iterator[tuple[Tensor, Tensor]]:
        return ((inputs if in_float16 else inputs.float(), targets) for inputs, targets in loader)

    return partial(_repeat, epoch)


BATCHES: dict[str, Callable[[Setting], Callable[[], Batches]]] = {
    "workers": worker_batches,
    "resident": resident_batches,
    "batched": partial(our_batches, resident=False),
    "ours": partial(our_batches, resident=True),
    "ours-nhwc": partial(our_batches, resident=True, channels_last=True),
    "airbench": airbench_batches,
}


def _repeat(epoch: Callable[[int], Iterable[tuple[Tensor, Tensor]]]) -> Batches:
    """Yield the batches of one epoch after the other, without end."""
    for number in count():
        yield from epoch(number)


def gains_of(name: str, setting: Setting) -> Gains:
    """Return what a variant adds to the plain loop."""
    everything = partial(Gains, channels_last=True, precision=setting.precision, fused=True)
    gains = {
        "plain": Gains(),
        "resident-data": Gains(batches="resident"),
        "batched-augmentation": Gains(batches="batched"),
        "resident-and-batched": Gains(batches="ours"),
        "channels-last": Gains(channels_last=True),
        "mixed-precision": Gains(precision=setting.precision or torch.bfloat16),
        "compilation": Gains(compile_mode="default"),
        "graph-capture": Gains(compile_mode="reduce-overhead"),
        "kept-memory": Gains(),
        "fused-optimizer": Gains(fused=True),
        "all-gains": everything(batches="ours-nhwc"),
        "airbench": everything(batches="airbench"),
    }
    return gains[name]


# --- Others ----------------------------------------------------------------------------------------------------------


def default_training(setting: Setting, config: TrainConfig) -> Callable[[], Training]:
    """Build the trainer of resnet-train and return a function that starts it."""
    data = RunData(
        train=setting.images,
        test=setting.images,
        train_indices=np.arange(len(setting.images)),
        val_indices=np.arange(0),
    )
    return partial(measure.train, measure.build_bench_trainer(config, data, setting.device), config)


def timm_training(setting: Setting) -> Callable[[], Training]:
    """Build timm's network of the same depth with a 3×3 stem, its optimizer, and the step of its train.py."""
    from timm.models import resnet
    from timm.optim import create_optimizer_v2
    from timm.utils import NativeScaler

    device, precision = setting.device, setting.precision
    block, layers = TIMM_NETWORKS[setting.arch]
    torch.manual_seed(0)
    model = resnet.ResNet(getattr(resnet, block), layers, num_classes=len(setting.images.classes))
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    model = model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4)
    scaler = NativeScaler(device=device.type) if precision is torch.float16 else None  # as in its train.py
    criterion = nn.CrossEntropyLoss()
    new_batches = our_batches(setting, resident=True, channels_last=True)

    def start() -> Training:
        with closing(new_batches()) as batches:
            for step, (images, labels) in enumerate(batches, 1):
                with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
                    loss = criterion(model(images), labels)
                if scaler is not None:
                    scaler(loss, optimizer)
                else:
                    loss.backward()
                    optimizer.step()
                optimizer.zero_grad()
                if step % TIMM_LOG_STEPS == 0:
                    loss.item()
                yield len(labels)

    return start


# --- Measuring -------------------------------------------------------------------------------------------------------


def choose_variants(wanted: str) -> list[str]:
    """Return all variants for `all`, else those of a comma-separated list; the plain loop always comes first.

    Raises:
        typer.BadParameter: There is no such variant.
    """
    if wanted == "all":
        return list(VARIANTS)
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if unknown := [name for name in names if name not in VARIANTS]:
        raise typer.BadParameter(f"unknown variant {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    return ["plain", *(name for name in VARIANTS if name in names and name != "plain")]


def default_steps(setting: Setting) -> int:
    """Return the number of steps to time: on a GPU an epoch, because many batches are made at once."""
    return max(CPU_STEPS, setting.epoch_steps) if setting.device.type == "cuda" else CPU_STEPS


def why_not(name: str, setting: Setting, steps: int) -> str | None:
    """Return why a variant cannot be measured here, or None if it can."""
    if name == "default-fp16" and setting.device.type != "cuda":
        return "needs a CUDA GPU"
    if name in {"compilation", "graph-capture", "default-compiled"} and not can_compile(setting.device):
        return "there is no compiler"
    if name == "graph-capture" and setting.device.type != "cuda":
        return "needs a CUDA GPU"
    if name in {"timm", "airbench"} and importlib.util.find_spec(name) is None:
        return "not installed"
    if name == "timm" and setting.arch not in TIMM_NETWORKS:
        return f"has no {setting.arch}"
    if name == "airbench" and steps < setting.epoch_steps:
        return f"builds an epoch's batches at once: needs --steps {setting.epoch_steps}, a whole epoch, to be fair"
    return None


def try_workers(setting: Setting, numbers: list[int], steps: int) -> dict[int, float]:
    """Return the images per second of the plain loop by the number of workers."""
    if len(numbers) == 1:
        return {}
    measures: dict[str, Callable[[], float]] = {}
    for number in numbers:
        start = plain_loop(replace(setting, workers=number))
        measures[f"{number} workers"] = partial(measure.rate, start, steps, setting.device)
    rates = measure.interleave(measures, WORKER_ROUNDS)
    return {number: statistics.median(rates[f"{number} workers"]) for number in numbers}


def worker_numbers(wanted: str) -> list[int]:
    """Parse `2` or `0,2,4`; `auto` is 0, the powers of two up to the number of processors, and that number."""
    if wanted != "auto":
        return [int(number) for number in wanted.split(",")]
    processors = os.cpu_count() or 1
    return sorted({0, processors, *(2**power for power in range(8) if 2**power <= processors)})


def measure_memory(config: TrainConfig) -> dict[str, Any]:
    """Return peak memory and start time of our training and of the bare step, each run in a new process.

    Call it first: Linux counts the memory that the parent holds when a process starts toward the child's peak.
    """
    command = [sys.executable, str(Path(__file__).with_name("fresh.py"))]
    options = ["--arch", config.arch, "--batch-size", config.batch_size, "--device", config.device]
    options += ["--threads", config.threads]
    results = {}
    for kind in ("bare", "ours"):
        done = subprocess.run([*command, kind, *map(str, options)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"fresh.py {kind} failed: {done.stderr.strip()}")
        results[kind] = json.loads(done.stdout)
    allowed = results["bare"]["peak_bytes"] + results["ours"]["data_bytes"]
    return {**results, "ours_over_bare_and_data": results["ours"]["peak_bytes"] / allowed}


def describe_phases(seconds: dict[str, float]) -> dict[str, Any]:
    """Return seconds and shares of a step by phase, and the share outside forward, backward and optimizer."""
    shares = {phase: value / sum(seconds.values()) for phase, value in seconds.items()}
    return {"seconds": seconds, "shares": shares, "outside_share": shares["data"] + shares["host"]}


def precision_of(name: str, setting: Setting) -> torch.dtype | None:
    """Return the data type that a variant computes in; None is float32, which is TF32 on a GPU."""
    if name in OURS:
        return choose_precision(OURS[name].get("amp", "auto"), setting.device)
    return setting.precision if name == "timm" else gains_of(name, setting).precision


def matrix_name(precision: torch.dtype | None) -> str:
    """Return the name of the matrix product in this data type."""
    return f"{str(precision or torch.float32).removeprefix('torch.')} matrix FLOP/s"


def describe_rates(names: list[str], rates: dict[str, list[float]], setting: Setting, flops: int) -> dict[str, Any]:
    """Return by variant its rates, their ratios to the plain loop's, and their shares of the matrix rate."""
    rows = {}
    for name in names:
        per_second = [rate * flops for rate in rates[name]]
        rows[name] = {
            "about": VARIANTS[name],
            "images_per_second": rates[name],
            "spread": asdict(Spread.of(rates[name])),
            "over_plain": asdict(Spread.of_ratios(rates[name], rates["plain"])),
            "flops_per_second": asdict(Spread.of(per_second)),
            "matrix_share": asdict(Spread.of_ratios(per_second, rates[matrix_name(precision_of(name, setting))])),
        }
    return rows


def table(rows: dict[str, Any]) -> str:
    """Format the variants as a table."""
    lines = [f"{'variant':<22} {'images/s':>9}  over plain (median, range)   of the matrix rate"]
    for name, row in rows.items():
        ratio = row["over_plain"]
        lines.append(
            f"{name:<22} {row['spread']['median']:>9,.0f}  {ratio['median']:>5.2f}  {ratio['min']:.2f} to "
            f"{ratio['max']:.2f}  {row['matrix_share']['median']:>16.0%}"
        )
    return "\n".join(lines)


def describe(result: dict[str, Any]) -> str:
    """Format the result."""
    lines = [table(result["variants"])]
    lines += [f"{name:<22} left out: {reason}" for name, reason in result["left_out"].items()]
    parts = [f"{name} {share:.1%}" for name, share in result["phases"]["shares"].items()]
    lines.append(f"a step of the default: {', '.join(parts)}")
    if memory := result["memory"]:
        lines.append(
            f"memory of the default: {memory['ours_over_bare_and_data']:.2f} × a bare step and the data; "
            f"first step {memory['ours']['first_step_seconds']:.1f} s after the imports"
        )
    return "\n".join(lines)


def build_trainings(names: list[str], setting: Setting, config: TrainConfig) -> dict[str, Callable[[], Training]]:
    """Build the variants by name."""

    def build(name: str) -> Callable[[], Training]:
        if name in OURS:
            return default_training(setting, config.model_copy(update=OURS[name]))
        return timm_training(setting) if name == "timm" else plain_loop(setting, gains_of(name, setting))

    return {name: build(name) for name in names}


def measure_all(
    trainings: dict[str, Callable[[], Training]], setting: Setting, steps: int, rounds: int
) -> dict[str, list[float]]:
    """Return the rates of all variants, and of a matrix product in each data type that one of them computes in."""
    device = setting.device

    def rate(name: str) -> float:
        keep_freed_memory(device.type == "cpu" and name in KEEP_MEMORY)
        return measure.rate(trainings[name], steps, device)

    measures: dict[str, Callable[[], float]] = {name: partial(rate, name) for name in trainings}
    for precision in {precision_of(name, setting) for name in trainings}:
        measures[matrix_name(precision)] = partial(measure.matrix_rate, device, precision)
    return measure.interleave(measures, rounds)


def peer_versions() -> dict[str, str]:
    """Return the versions of timm and airbench where they are installed."""
    return {name: version(name) for name in ("timm", "airbench") if importlib.util.find_spec(name)}


def main(
    arch: Annotated[str, typer.Option(help="Architecture.")] = "resnet20",
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 128,
    wanted_steps: Annotated[
        int | None,
        typer.Option("--steps", help="Timed steps of each variant in a round; by default 20, or an epoch."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds; each times every variant once.")] = 7,
    variants: Annotated[str, typer.Option(help=f"all, or some of {', '.join(VARIANTS)}.")] = "all",
    device_name: Annotated[str, typer.Option("--device")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.")] = 0,
    workers: Annotated[str, typer.Option(help="DataLoader workers of the plain loop: auto, 2, or 0,2,4.")] = "auto",
    num_images: Annotated[int, typer.Option("--images", help="Random images to train on.")] = 20_000,
    memory: Annotated[bool, typer.Option(help="Measure memory and start time in new processes.")] = True,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write all results to this file.")] = None,
) -> None:
    """Measure images per second of all variants in turn."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = choose_variants(variants)
    config = make_config({"arch": arch, "batch_size": batch_size, "device": device_name, "threads": threads})
    used_memory = measure_memory(config) if memory else None

    # The plain loop also gets TF32, cuDNN's search and the best number of workers.
    device = prepare_machine(device_name, threads)
    setting = Setting(arch, batch_size, device, measure.random_images(num_images))
    steps = wanted_steps or default_steps(setting)
    tried = try_workers(setting, numbers := worker_numbers(workers), steps)
    setting = replace(setting, workers=max(tried, key=lambda number: tried[number], default=numbers[0]))

    # Measure the phases of the default, then all variants in turn.
    left_out = {name: reason for name in names if (reason := why_not(name, setting, steps))}
    names = [name for name in names if name not in left_out]
    eager = default_training(setting, config.model_copy(update={"capture": False}))  # a graph has no phases
    phase_seconds = measure.phases(eager, steps, device)
    del eager
    rates = measure_all(build_trainings(names, setting, config), setting, steps, rounds)

    flops = measure.training_flops(config, len(setting.images.classes))
    rows = describe_rates(names, rates, setting, flops)
    result: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "date": date.today().isoformat(),
        "arch": arch,
        "batch_size": batch_size,
        "steps": steps,
        "rounds": rounds,
        "workers": {"used": setting.workers, "images_per_second": tried},
        "flops_per_image": flops,
        "matrix_flops_per_second": {name: asdict(Spread.of(rates[name])) for name in rates if name not in names},
        "variants": rows,
        "left_out": left_out,
        "phases": describe_phases(phase_seconds),
        "memory": used_memory,
        "environment": describe_environment(device) | {"machine": platform.machine()} | peer_versions(),
    }
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1) + "\n")
    print(describe(result))


if __name__ == "__main__":
    typer.run(main)
