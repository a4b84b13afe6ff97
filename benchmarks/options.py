"""What each augmentation and each optimizer does to a short run: one run each, all else equal.

    python benchmarks/options.py --data-dir data/cifar10-jpeg --json benchmarks/results/options-resnet20-2epochs.json

Short runs show whether an option works and what it costs, not what it is worth: strong augmentation pays off late.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from resnet_train.config import make_config
from resnet_train.jobs.train import train
from resnet_train.runtime.device import select_device
from resnet_train.runtime.environment import describe_environment

VARIANTS: dict[str, dict[str, Any]] = {
    "plain recipe (crop, flip, SGD)": {},
    "cutout 16": {"cutout": 16},
    "random erasing 0.25": {"random_erasing": 0.25},
    "TrivialAugment": {"trivial_augment": True},
    "mixup 0.2": {"mixup": 0.2},
    "cutmix 1.0": {"cutmix": 1.0},
    "AdamW, lr 0.002, decay 0.05": {"optimizer": "adamw", "lr": 0.002, "weight_decay": 0.05},
    "Muon, lr 0.005, decay 0.01": {"optimizer": "muon", "lr": 0.005, "weight_decay": 0.01, "momentum": 0.95},
    "no augmentation": {"crop_padding": 0, "flip": "none"},
    "reflect padding": {"padding_mode": "reflect"},
    "alternating flip": {"flip": "alternating"},
    "averaged weights 0.99": {"ema_decay": 0.99},
}


def main(
    data_dir: Annotated[Path, typer.Option(help="Image folder with train/ and test/.")] = Path("data/cifar10-jpeg"),
    arch: Annotated[str, typer.Option()] = "resnet20",
    epochs: Annotated[int, typer.Option()] = 2,
    seed: Annotated[int, typer.Option()] = 0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write all results to this file.")] = None,
) -> None:
    """Train once per variant and print a Markdown table."""
    rows = json.loads(json_path.read_text())["rows"] if json_path is not None and json_path.exists() else []
    for name, settings in VARIANTS.items():
        if any(row["variant"] == name for row in rows):  # already measured by a run that was stopped
            continue
        with tempfile.TemporaryDirectory() as folder:
            common = {"arch": arch, "epochs": epochs, "seed": seed, "dataset": "folder", "data_dir": str(data_dir)}
            config = make_config({**common, "output_dir": folder, "tensorboard": False, **settings})
            start = time.perf_counter()
            result = train(config)
            rows.append(
                {
                    "variant": name,
                    "settings": settings,
                    "train_loss": result.final.scores["train"]["loss"],
                    "test_loss": result.final.scores["test"]["loss"],
                    "test_accuracy": result.final.scores["test"]["accuracy"],
                    "seconds": time.perf_counter() - start,
                }
            )
        print(f"{name}: {rows[-1]['test_accuracy']:.2%}", file=sys.stderr, flush=True)
        document = {
            "command": "python " + " ".join(sys.argv),
            "date": date.today().isoformat(),
            "data": "CIFAR-10, JPEG-75",
            "environment": describe_environment(select_device("auto")),
            "torch_threads": torch.get_num_threads(),
            "rows": rows,
        }
        if json_path is not None:
            json_path.write_text(json.dumps(document, indent=1) + "\n")
    print("| variant | train loss | test loss | test accuracy |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['variant']} | {row['train_loss']:.3f} | {row['test_loss']:.3f} | {row['test_accuracy']:.2%} |")


if __name__ == "__main__":
    typer.run(main)
