"""Peak memory of the first training steps in a new process, and the seconds from the imports to the first step.

    python benchmarks/fresh.py ours --arch resnet18 --batch-size 128
    python benchmarks/fresh.py bare --arch resnet18 --batch-size 128
    python benchmarks/fresh.py ours --dataset folder --data-dir data/cifar10-jpeg     # needs its cache

`bare` is the least that a step can be: network, one batch of random numbers, forward, backward, fused SGD with
momentum, in the precision and memory order of `ours`. Random images are mapped from a file, like a cached data set.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from resnet_train.models import create_model
from resnet_train.runtime.device import keep_freed_memory, peak_memory_bytes, prepare_machine, synchronize
from resnet_train.runtime.precision import choose_precision

STEPS = 3  # the optimizer allocates its buffers in the first one


def bare_steps(arch: str, batch_size: int, device: torch.device) -> tuple[float, int]:
    """Return the seconds until the first step is done, and the bytes of the data set: 0."""
    start = time.perf_counter()
    precision = choose_precision("auto", device)
    model = create_model(arch).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    images = torch.randn(batch_size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch_size,), device=device)
    seconds = 0.0
    for _ in range(STEPS):
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        seconds = seconds or time.perf_counter() - start
    return seconds, 0


def our_steps(settings: dict[str, Any], device: torch.device, folder: Path) -> tuple[float, int]:
    """Return the seconds until the first step is done, and the bytes of the training images."""
    from resnet_train.build import load_data
    from resnet_train.config import make_config
    from resnet_train.jobs import measure

    config = make_config(settings)
    mapped = None if "dataset" in settings else map_random_data(settings, folder)
    start = time.perf_counter()
    data = mapped or load_data(config)
    seconds = 0.0
    for _ in islice(measure.train(measure.build_bench_trainer(config, data, device), config), STEPS):
        synchronize(device)
        seconds = seconds or time.perf_counter() - start
    return seconds, data.train.images.nbytes


def map_random_data(settings: dict[str, Any], folder: Path) -> Any:
    """Return as many random images as CIFAR-10 has, mapped from a file.

    They are written in parts, so that this process never holds all of them.
    """
    import numpy as np

    from resnet_train.build import RunData
    from resnet_train.data.sources.cifar import CIFAR10
    from resnet_train.jobs.measure import random_images

    part, (path, num) = random_images(1000), (folder / "images.npy", settings.get("train_size", CIFAR10.num_train))
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(num, 3, 32, 32))
    for first in range(0, num, len(part)):
        written[first : first + len(part)] = part.images[: num - first]
    written.flush()
    del written
    labels = np.resize(part.labels, num)
    train = replace(part, images=np.load(path, mmap_mode="r"), labels=labels)
    return RunData(train=train, test=part, train_indices=np.arange(num), val_indices=np.arange(0))


def main(
    kind: Annotated[str, typer.Argument(metavar="bare|ours")],
    arch: Annotated[str, typer.Option(help="Architecture.")] = "resnet18",
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 128,
    device_name: Annotated[str, typer.Option("--device")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.")] = 0,
    train_size: Annotated[int | None, typer.Option(help="Number of images; by default all.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set of `ours`; by default random images.")] = None,
    data_dir: Annotated[str, typer.Option(help="Where the data set is.")] = "data",
) -> None:
    """Run a few steps and print a line of JSON."""
    if kind not in {"bare", "ours"}:
        raise typer.BadParameter(f"{kind!r} is neither bare nor ours")
    device = prepare_machine(device_name, threads)
    keep_freed_memory(device.type == "cpu" and kind == "ours")  # the bare step leaves memory to torch
    imported = peak_memory_bytes(device)
    given = {"train_size": train_size, "dataset": dataset, "data_dir": data_dir if dataset else None}
    settings = {name: value for name, value in given.items() if value is not None}
    settings |= {"arch": arch, "batch_size": batch_size, "device": device_name, "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        if kind == "ours":
            seconds, data_bytes = our_steps(settings, device, Path(folder))
        else:
            seconds, data_bytes = bare_steps(arch, batch_size, device)
        numbers = {
            "imported_bytes": imported,
            "peak_bytes": peak_memory_bytes(device),
            "data_bytes": data_bytes,
            "first_step_seconds": seconds,
        }
        print(json.dumps(numbers))


if __name__ == "__main__":
    typer.run(main)
