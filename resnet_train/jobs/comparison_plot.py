"""The curves of compared runs as an SVG file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from resnet_train.jobs.comparison import Comparison
from resnet_train.report.figures import draw_accuracy_curves, make_standalone
from resnet_train.runtime.files import open_regular, replace_text

TIME_UNITS = (
    ("hours", 3600.0, 7200.0),
    ("minutes", 60.0, 600.0),
    ("seconds", 1.0, 0.0),
)  # and the time from which it is used


def check_plot_file(path: Path) -> None:
    """Check that curves can be drawn here; only an older drawing is replaced.

    Raises:
        ValueError: the name does not end in .svg, another kind of file is there, or the folder does not exist.
    """
    if path.suffix.lower() != ".svg":
        raise ValueError(f"plot (={path}) must end in .svg; browsers show such files, and Inkscape makes PNGs of them")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    if os.path.lexists(path):
        with open_regular(path, "rb") as file:
            if file.read(4) not in (b"<svg", b""):
                raise ValueError(f"{path} exists and is not a drawing of curves; choose another name")


def write_plot(path: Path, comparison: Comparison, targets: Sequence[float]) -> None:
    """Draw the accuracy of each run over its training time, or over its epochs if a time is not known.

    Raises:
        ValueError: no run has a curve.
    """
    # Over time if all runs have it.
    runs = [run for group in comparison.groups for run in group.runs if run.curve]
    if not runs:
        raise ValueError("there are no curves to draw: tables of predictions have none")
    longest = max((seconds or 0.0 for run in runs for _, seconds, _ in run.curve), default=0.0)
    unit, size = next((unit for unit in TIME_UNITS if longest >= unit[2]), TIME_UNITS[-1])[:2]
    is_timed = all(seconds is not None for run in runs for _, seconds, _ in run.curve)
    label = f"{unit} of training" if is_timed else "epoch"

    # One line for each run, one color for each group.
    curves = {
        f"{group.label}  {group.name} (n={group.n})": [
            [
                (seconds / size if is_timed and seconds is not None else epoch, value)
                for epoch, seconds, value in run.curve
            ]
            for run in group.runs
        ]
        for group in comparison.groups
    }
    splits = " and ".join(sorted({group.split for group in comparison.groups if group.split}))
    chart = draw_accuracy_curves(curves, label, f"{splits} accuracy over {label}", targets)
    replace_text(path, make_standalone(chart))
