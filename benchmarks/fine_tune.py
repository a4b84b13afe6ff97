"""What fine-tuning gains over training from scratch, on few images: digits, and classes that the network never saw.

    python benchmarks/fine_tune.py --data-dir data/cifar10-jpeg --out runs/fine-tune \
        --json benchmarks/results/fine-tune-resnet20.json

The images are split by class. A network is trained on five classes (or given with --weights); then networks are trained
on few images of the other five, and on few digits, once from its weights and once from scratch. Both have the same
steps, augmentation and number of learning rates, of which the better one on an additional seed is used.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy import stats

from resnet_train.config import make_config
from resnet_train.jobs.train import train
from resnet_train.recipes import find_recipe, read_yaml
from resnet_train.runtime.device import select_device
from resnet_train.runtime.environment import describe_environment

SEEDS, TUNING_SEED = range(5), 100
FIRST_SEEN = 5  # classes, in alphabetical order, that the network is first trained on
SEEN_PER_CLASS, FEW_PER_CLASS, TEST_PER_CLASS = 2000, 40, 400
ARMS: dict[str, tuple[float, ...]] = {"scratch": (0.1, 0.03), "fine-tuned": (0.03, 0.01)}  # learning rates
COMMON = {
    "arch": "resnet20",
    "batch_size": 25,
    "nesterov": True,
    "schedule": "one-cycle",
    "tensorboard": False,
    "amp": "off",
}
TASKS: dict[str, dict[str, Any]] = {
    "digits, 100 images": {"dataset": "digits", "image_size": 16, "train_size": 100, "flip": "none", "epochs": 30},
    "5 classes, 200 images": {"dataset": "folder", "epochs": 15},
}


def main(
    data_dir: Annotated[Path, typer.Option(help="Image folder with train/ and test/.")] = Path("data/cifar10-jpeg"),
    out: Annotated[Path, typer.Option(help="Folder of the runs; finished ones are not trained again.")] = Path(
        "runs/fine-tune"
    ),
    weights: Annotated[Path | None, typer.Option(help="Start from this run instead of one on five classes.")] = None,
    only: Annotated[str | None, typer.Option(help="Measure only the task of this data set: digits or folder.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write all results to this file.")] = None,
) -> None:
    """Train each network and print a Markdown table."""
    link_classes(data_dir, out)
    source = weights or pretrain(out)
    rows = json.loads(json_path.read_text())["rows"] if json_path is not None and json_path.exists() else []
    for task, settings in TASKS.items():
        if only not in (None, settings["dataset"]) or any(row["task"] == task for row in rows):
            continue
        place = {"data_dir": str(out / "few")} if settings["dataset"] == "folder" else {}
        found = {}
        for arm, rates in ARMS.items():
            start = fine_tuning(source) if arm == "fine-tuned" else {}
            given = {**COMMON, **start, **settings, **place, "eval_every": settings["epochs"]}
            label = f"{settings['dataset']}-{arm}" + (f"-{weights.name}" if weights and start else "")
            tuned = {lr: accuracy(out, label, {**given, "lr": lr}, TUNING_SEED) for lr in rates}
            best = max(tuned, key=lambda lr: tuned[lr])
            found[arm] = [accuracy(out, label, {**given, "lr": best}, seed) for seed in SEEDS]
            rows.append({"task": task, "arm": arm, "lr": best, "tuning": tuned, "accuracies": found[arm]})
        rows.append({"task": task, "gain": np.mean(found["fine-tuned"]) - np.mean(found["scratch"]), **welch(found)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if json_path is not None:
        document = {
            "command": "python " + " ".join(sys.argv),
            "date": date.today().isoformat(),
            "environment": describe_environment(select_device("cpu")),
            "torch_threads": torch.get_num_threads(),
            "rows": rows,
        }
        json_path.write_text(json.dumps(document, indent=1) + "\n")
    print_table(rows)


def link_classes(data_dir: Path, out: Path) -> None:
    """Make two image folders of links: many images of the first classes, and few of the others."""
    classes = sorted(path.name for path in (data_dir / "train").iterdir() if path.is_dir())
    for number, name in enumerate(classes):
        kind, limit = ("seen", SEEN_PER_CLASS) if number < FIRST_SEEN else ("few", FEW_PER_CLASS)
        for split, count in (("train", limit), ("test", TEST_PER_CLASS)):
            source = (data_dir / split / name).absolute()
            target = out / kind / split / name
            if target.exists():
                continue
            target.mkdir(parents=True)
            for file in sorted(source.iterdir())[:count]:
                (target / file.name).symlink_to(file)


def pretrain(out: Path) -> Path:
    """Train on the first classes with the recipe resnet20-fast and return the run's folder."""
    recipe = {**read_yaml(find_recipe("resnet20-fast")), "tensorboard": False, "amp": "off"}
    run(out, "seen", {**recipe, "dataset": "folder", "data_dir": str(out / "seen")}, 0)
    return out / "runs" / "seen-seed0"


def fine_tuning(source: Path) -> dict[str, Any]:
    """Return the settings of the recipe fine-tune that concern the weights."""
    recipe = read_yaml(find_recipe("fine-tune"))
    return {"weights": str(source), "head_lr_scale": recipe["head_lr_scale"]}


def run(out: Path, label: str, settings: dict[str, Any], seed: int) -> float:
    """Train a network, unless it is already trained, and return its final test accuracy."""
    given = {**settings, "seed": seed, "name": f"{label}-seed{seed}", "output_dir": str(out / "runs")}
    result = train(make_config(given), given, resume="auto")
    assert result is not None
    return result.final.scores["test"]["accuracy"]


def accuracy(out: Path, label: str, settings: dict[str, Any], seed: int) -> float:
    """Return the final test accuracy with these settings."""
    return run(out, f"{label}-lr{settings['lr']:g}", settings, seed)


def welch(found: dict[str, Sequence[float]]) -> dict[str, float]:
    """Return the 95 % interval of the difference of two means."""
    test = stats.ttest_ind(found["fine-tuned"], found["scratch"], equal_var=False)
    interval = test.confidence_interval(0.95)
    return {"low": float(interval.low), "high": float(interval.high)}


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a row for each way of training, and the gain."""
    print("| task | from | lr | test accuracy, mean ± sd (n) | gain, 95 % interval |\n|---|---|---|---|---|")
    for row in rows:
        if "gain" in row:
            gain, low, high = (100 * row[name] for name in ("gain", "low", "high"))
            print(f"| {row['task']} | | | | {gain:+.1f} ({low:+.1f} to {high:+.1f}) |")
        else:
            values = np.array(row["accuracies"])
            shown = f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f} % ({len(values)})"
            print(f"| {row['task']} | {row['arm']} | {row['lr']:g} | {shown} | |")


if __name__ == "__main__":
    typer.run(main)
