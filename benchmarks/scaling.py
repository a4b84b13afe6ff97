"""Images per second of resnet-train by depth and by batch size: does the cost grow as the arithmetic does?

    python benchmarks/scaling.py --archs resnet20,resnet32,resnet44,resnet56 --batch-sizes 32,64,128,256 --json FILE

Every depth is measured at one batch size and every batch size with one network, in turn, on random images of CIFAR-10's
shape. If the time grows only with the arithmetic, `cost` (seconds per multiply-add, relative to the first row) stays
at 1; less is better.
"""

from __future__ import annotations

import json
import logging
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from resnet_train.build import RunData
from resnet_train.config import TrainConfig, make_config
from resnet_train.jobs import measure
from resnet_train.jobs.measure import Spread
from resnet_train.runtime.device import prepare_machine
from resnet_train.runtime.environment import describe_environment
from resnet_train.runtime.precision import choose_precision

MATRIX = "matrix FLOP/s"
Case = tuple[str, int]  # architecture and batch size


def cases_of(archs: list[str], batch_sizes: list[int], batch_size: int) -> list[Case]:
    """Return every depth at one batch size, then every batch size with the first network."""
    return list(dict.fromkeys([*((arch, batch_size) for arch in archs), *((archs[0], size) for size in batch_sizes)]))


def measure_case(config: TrainConfig, data: RunData, device: torch.device, steps: int) -> float:
    """Build a trainer and return its images per second. It is freed before the next one is built."""
    trainer = measure.build_bench_trainer(config, data, device)
    return measure.rate(partial(measure.train, trainer, config), steps, device)


def describe_case(config: TrainConfig, rates: list[float], base: list[float], matrix: list[float]) -> dict[str, Any]:
    """Return a row of the result; `base` holds the operations per second of the first row."""
    flops = measure.training_flops(config, 10)
    per_second = [rate * flops for rate in rates]
    return {
        "arch": config.arch,
        "batch_size": config.batch_size,
        "flops_per_image": flops,
        "images_per_second": rates,
        "spread": asdict(Spread.of(rates)),
        "cost": asdict(Spread.of_ratios(base, per_second)),
        "matrix_share": asdict(Spread.of_ratios(per_second, matrix)),
    }


def main(
    archs: Annotated[str, typer.Option(help="Networks in order of depth.")] = "resnet20,resnet32,resnet44,resnet56",
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes of the first network.")] = "32,64,128,256",
    batch_size: Annotated[int, typer.Option(help="Batch size of all networks.")] = 128,
    steps: Annotated[int, typer.Option(help="Timed steps of each case in a round.")] = 10,
    rounds: Annotated[int, typer.Option(help="Rounds; each times every case once.")] = 5,
    device_name: Annotated[str, typer.Option("--device")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.")] = 0,
    num_images: Annotated[int, typer.Option("--images", help="Random images to train on.")] = 20_000,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write all results to this file.")] = None,
) -> None:
    """Measure images per second by depth and by batch size, in turn."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = prepare_machine(device_name, threads)
    images = measure.random_images(num_images)
    data = RunData(train=images, test=images, train_indices=np.arange(len(images)), val_indices=np.arange(0))

    # Measure every case in turn, along with a matrix product.
    cases = cases_of(archs.split(","), [int(size) for size in batch_sizes.split(",")], batch_size)
    common = {"device": device_name, "threads": threads}
    configs = {f"{arch} × {size}": make_config({"arch": arch, "batch_size": size, **common}) for arch, size in cases}
    measures: dict[str, Callable[[], float]] = {
        name: partial(measure_case, config, data, device, steps) for name, config in configs.items()
    }
    measures[MATRIX] = partial(measure.matrix_rate, device, choose_precision("auto", device))
    rates = measure.interleave(measures, rounds)

    # Relate every case to the first.
    first = next(iter(configs))
    base = [rate * measure.training_flops(configs[first], 10) for rate in rates[first]]
    rows = [describe_case(config, rates[name], base, rates[MATRIX]) for name, config in configs.items()]
    result = {
        "command": "python " + " ".join(sys.argv),
        "date": date.today().isoformat(),
        "steps": steps,
        "rounds": rounds,
        "rows": rows,
        "matrix_flops_per_second": asdict(Spread.of(rates[MATRIX])),
        "environment": describe_environment(device) | {"machine": platform.machine()},
    }
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{'network':<18} {'batch':>5} {'images/s':>9}  cost (median, range)   of the matrix rate")
    for row in rows:
        print(
            f"{row['arch']:<18} {row['batch_size']:>5} {row['spread']['median']:>9,.0f}  {row['cost']['median']:.2f}  "
            f"{row['cost']['min']:.2f} to {row['cost']['max']:.2f}  {row['matrix_share']['median']:>18.0%}"
        )


if __name__ == "__main__":
    typer.run(main)
