"""Plot test accuracy over training time of finished runs: one line per run, one color per recipe.

    python benchmarks/curves.py docs/images/fast.png plain=runs/plain-0,runs/plain-1 fast=runs/fast-0,runs/fast-1

Training time comes from timing.csv and excludes evaluation.
"""

from __future__ import annotations

import csv
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import typer

mpl.use("Agg")
from matplotlib import pyplot as plt

COLORS = ("#7a869a", "#d1495b", "#2a7de1", "#3a9d5d")


def read_curve(run: Path) -> tuple[list[float], list[float]]:
    """Return the seconds of training until the end of each epoch, and the test accuracy there in percent."""
    with (run / "timing.csv").open() as timing, (run / "metrics.csv").open() as metrics:
        seconds = list(accumulate(float(row["train_seconds"]) for row in csv.DictReader(timing)))
        accuracies = [100 * float(row["test_accuracy"]) for row in csv.DictReader(metrics)]
    return seconds, accuracies


def main(
    picture: Annotated[Path, typer.Argument(help="The PNG to write.")],
    recipes: Annotated[list[str], typer.Argument(help="NAME=RUN,RUN,… for each recipe.")],
    target: Annotated[float | None, typer.Option(help="Draw a dashed line at this accuracy, in percent.")] = None,
) -> None:
    """Draw the curves of some runs."""
    figure, axes = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
    for color, recipe in zip(COLORS, recipes):
        name, _, runs = recipe.partition("=")
        num_runs = runs.count(",") + 1
        for number, run in enumerate(runs.split(",")):
            seconds, accuracies = read_curve(Path(run))
            label = f"{name} ({num_runs} seed{'s' if num_runs > 1 else ''})" if number == 0 else None
            axes.plot(seconds, accuracies, marker="o", markersize=3.5, color=color, label=label, alpha=0.85)

    # Mark the target and save.
    if target is not None:
        axes.axhline(target, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlabel="seconds of training", ylabel="test accuracy (%)", xlim=(0, None))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=160)


if __name__ == "__main__":
    typer.run(main)
