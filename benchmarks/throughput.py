"""Images per second of this project's training loop beside the plain loop that people copy, interleaved in one run.

    python benchmarks/throughput.py --arch resnet20 --json benchmarks/results/throughput-resnet20.json

Each round times every variant in turn, so a machine that speeds up or slows down moves all of them; what is quoted is
the ratio within a round, its median over the rounds, and its range. The images are random numbers of CIFAR-10's shape.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import date
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from resnet_train.build import RunData, build_trainer
from resnet_train.config import make_config
from resnet_train.data.datasets import ImageDataset
from resnet_train.models import create_model
from resnet_train.runtime.device import select_device, synchronize
from resnet_train.runtime.environment import describe_environment

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
NUM_IMAGES = 20_000
WARMUP_STEPS = 4

# Enters a running training; the function inside does one optimizer step.
Variant = Callable[[], AbstractContextManager[Callable[[], None]]]


class PillowImages(Dataset):
    """What torchvision's CIFAR10 does: a Pillow image from the array, then the transforms, one image at a time."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images.transpose(0, 2, 3, 1), labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[number])), int(self.labels[number])


def plain_loop(arch: str, batch_size: int, device: torch.device, images: ImageDataset, workers: int) -> Variant:
    """DataLoader workers, per-image transforms, eager, contiguous, `.item()` each step."""
    torch.manual_seed(0)
    model = create_model(arch).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(
        PillowImages(images.images, images.labels),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )

    @contextmanager
    def enter() -> Iterator[Callable[[], None]]:
        batches = iter(loader)
        total_loss, correct = 0.0, 0

        def step() -> None:
            nonlocal total_loss, correct
            inputs, targets = next(batches)
            inputs, targets = inputs.to(device), targets.to(device)
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = criterion(outputs, targets)
            loss.backward()
            optimizer.step()
            total_loss += loss.item()
            correct += outputs.max(1)[1].eq(targets).sum().item()

        yield step  # when the round drops it, the workers end and take nothing from the other variant

    return enter


def our_loop(arch: str, batch_size: int, device: torch.device, images: ImageDataset) -> Variant:
    """The trainer of resnet-train with its defaults, its reads of the loss included."""
    config = make_config({"arch": arch, "batch_size": batch_size, "device": str(device)})
    data = RunData(images, images, np.arange(len(images)), np.arange(0))
    trainer = build_trainer(config, data, device)
    trainer.model.train()

    @contextmanager
    def enter() -> Iterator[Callable[[], None]]:
        batches = trainer.until_interrupted(trainer.train_loader.epoch(0))

        def step() -> None:
            trainer.train_step(next(batches))
            if trainer.progress.step % trainer.log_every == 0:
                trainer.read_step(0)

        yield step

    return enter


def measure(variant: Variant, steps: int, batch_size: int, device: torch.device) -> float:
    """Images per second over `steps` steps, after a few that are not timed."""
    with variant() as step:
        for _ in range(WARMUP_STEPS):
            step()
        synchronize(device)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(device)
        return steps * batch_size / (time.perf_counter() - start)


def main(
    arch: Annotated[str, typer.Option(help="Architecture.")] = "resnet20",
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    steps: Annotated[int, typer.Option(help="Timed steps of each variant in a round.")] = 20,
    rounds: Annotated[int, typer.Option(help="Rounds; each times every variant once.")] = 7,
    device_name: Annotated[str, typer.Option("--device")] = "auto",
    workers: Annotated[int, typer.Option(help="DataLoader workers of the plain loop.")] = 2,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write everything here.")] = None,
) -> None:
    """Measure images per second, interleaved."""
    device = select_device(device_name)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(NUM_IMAGES, 3, 32, 32), dtype=np.uint8)
    classes = tuple(str(i) for i in range(10))
    images = ImageDataset(pixels, rng.integers(0, 10, size=NUM_IMAGES), classes, MEAN, STD, "random images", "")
    variants = {
        "plain": plain_loop(arch, batch_size, device, images, workers),
        "ours": our_loop(arch, batch_size, device, images),
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        # Every other round in reverse order: neither variant always follows the other.
        for name in list(variants)[:: 1 if number % 2 == 0 else -1]:
            rates[name].append(measure(variants[name], steps, batch_size, device))
        print(
            f"round {number + 1}: " + ", ".join(f"{name} {rate[-1]:.0f}" for name, rate in rates.items()),
            file=sys.stderr,
        )
    ratios = [ours / plain for ours, plain in zip(rates["ours"], rates["plain"])]
    result = {
        "command": "python " + " ".join(sys.argv),
        "date": date.today().isoformat(),
        "arch": arch,
        "batch_size": batch_size,
        "steps": steps,
        "workers": workers,
        "images_per_second": rates,
        "median_images_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "ours_over_plain": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "environment": describe_environment(device) | {"machine": platform.machine()},
    }
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1) + "\n")
    for name, rate in result["median_images_per_second"].items():
        print(f"{name:<6} {rate:8.0f} images/s (median of {rounds} rounds)")
    print(f"ours / plain: {statistics.median(ratios):.2f} (median; {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    typer.run(main)
