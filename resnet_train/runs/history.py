"""The history of a run, read from the text files of its folder: settings, and accuracy and time of each epoch.

It needs neither torch nor a checkpoint, so runs can be kept and compared without their weights.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import accumulate
from pathlib import Path
from typing import Any

from resnet_train.config import TrainConfig, make_config
from resnet_train.recipes import read_yaml
from resnet_train.runs.needed_plugins import naming_missing_plugins
from resnet_train.runtime.files import open_regular, refuse_special_files
from resnet_train.text import counted

MAX_DEPTH = 3  # of run folders below a given folder
EVALUATED = ("test", "val")  # the splits that say how good a network is; the first one present is used


@dataclass(frozen=True, kw_only=True)
class Point:
    """A finished epoch.

    Attributes:
        seconds: the time of training until its end, without evaluation; None if unknown.
        accuracy: the accuracy; None if it was not evaluated.
        loss: the loss; None likewise.
    """

    epoch: int
    seconds: float | None
    accuracy: float | None
    loss: float | None


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """What the files of a run say.

    Attributes:
        path: its folder.
        config: all settings; `amp` is the number format, if known.
        environment: versions and hardware; empty if unknown.
        split: the split that the accuracies are measured on.
        points: the finished epochs.
    """

    path: Path
    config: TrainConfig
    environment: dict[str, Any]
    split: str
    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return self.path.resolve().name

    def problem(self) -> str | None:
        """Return why the run has no final accuracy, None if it has one."""
        if not self.points:
            return "it has no finished epoch"
        last = self.points[-1]
        if last.epoch < self.config.epochs:
            return f"unfinished, epoch {last.epoch} of {self.config.epochs}"
        if last.epoch > self.config.epochs:
            return f"metrics.csv has {counted(last.epoch, 'epoch')}, but config.yaml has {self.config.epochs}"
        if last.accuracy is None:
            return "metrics.csv has no accuracy for its last epoch"
        if last.loss is not None and not math.isfinite(last.loss):
            return f"its final {self.split} loss is {last.loss}"
        return None


def find_run_folders(pattern: str) -> list[Path]:
    """Return the folders of runs at a path, below it, or at the paths that match a pattern; sorted by name.

    Raises:
        ValueError: there are none.
    """
    given = Path(pattern)
    exists = False
    with suppress(OSError, ValueError):  # the name is too long or has a null character
        exists = given.exists()
    if not exists and not has_magic(pattern):
        raise ValueError(f"there is no run {pattern!r}")
    matches = [given] if exists else [Path(path) for path in glob(pattern)]  # noqa: PTH207 - it may be absolute
    folders = [folder for match in matches for folder in _runs_below(match, MAX_DEPTH)]
    if not folders:
        raise ValueError(f"{pattern!r} {'holds' if exists else 'matches'} no run: no folder with config.yaml")
    return sorted(folders, key=lambda path: _natural(str(path)))


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folder if it is a run's, else the run folders below it; links are not followed."""
    with suppress(OSError):  # a folder that can't be listed
        if any((folder / name).exists() for name in ("metrics.csv", "checkpoints")):
            yield folder
            return
        found = False
        if depth and folder.is_dir():
            for path in folder.iterdir():
                if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
                    for run in _runs_below(path, depth - 1):
                        found = True
                        yield run
        if not found and (folder / "config.yaml").exists():  # a run that was killed at its start
            yield folder


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a sort key that puts seed10 after seed9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", text)]


def read_history(folder: Path) -> RunHistory:
    """Read the text files of a run.

    Raises:
        ValueError: a file is missing or damaged, or is not a regular file, or a plugin is missing; the message says
            which.
    """
    # The settings, and the versions that explain differences between runs.
    refuse_special_files(folder)
    for name in ("config.yaml", "metrics.csv"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}")
    environment = _read_json(folder / "environment.json")
    with naming_missing_plugins(environment, folder):
        config = make_config(read_yaml(folder / "config.yaml"), str(folder / "config.yaml"))
    if config.amp == "auto" and environment.get("device") == "cpu":  # in files of earlier versions
        config = config.model_copy(update={"amp": "off"})

    # The epochs.
    metrics, timing = folder / "metrics.csv", _read_table(folder / "timing.csv")
    rows = _read_table(metrics)
    split = next((s for s in EVALUATED if any(row.get(f"{s}_accuracy") for row in rows)), EVALUATED[0])
    seconds = _read_seconds(rows, timing)
    points = tuple(_read_point(row, split, passed, metrics) for row, passed in zip(rows, seconds))
    if [point.epoch for point in points] != list(range(1, len(points) + 1)):
        raise ValueError(f"the epochs in {metrics} are not 1, 2, 3 …")
    return RunHistory(path=folder, config=config, environment=environment, split=split, points=points)


def _read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none if there is no such file; a last row that is being written is left out.

    Raises:
        ValueError: it is not a table.
    """
    try:
        with open_regular(path, "r", encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    header, body = (rows[0], rows[1:]) if rows else ([], [])
    if body and len(body[-1]) < len(header):
        body.pop()
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}, line {number} has {len(row)} cells, but its header has {len(header)}")
    return [dict(zip(header, row)) for row in body]


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, an empty one if there is none."""
    with suppress(OSError, ValueError, RecursionError), open_regular(path, "r", encoding="utf-8") as file:
        values = json.load(file)
        if isinstance(values, dict):
            return values
    return {}


def _read_seconds(rows: Sequence[Mapping[str, str]], timing: Sequence[Mapping[str, str]]) -> list[float | None]:
    """Return the seconds of training until the end of each epoch; None for all if any is not known."""
    try:
        known = {row["epoch"]: float(row["train_seconds"]) for row in timing}
        seconds = list(accumulate(known[row["epoch"]] for row in rows))
    except (KeyError, ValueError):
        seconds = []
    return list(seconds) if seconds and math.isfinite(seconds[-1]) else [None] * len(rows)


def _read_point(row: Mapping[str, str], split: str, seconds: float | None, path: Path) -> Point:
    """Return the epoch in a row.

    Raises:
        ValueError: a cell is not a number, or an accuracy is not a share.
    """
    cells = {name: row.get(f"{split}_{name}") for name in ("accuracy", "loss")}
    try:
        epoch = int(row["epoch"])
        accuracy, loss = (float(cell) if cell else None for cell in cells.values())
    except (KeyError, ValueError):
        raise ValueError(f"{path} has a row without numbers: epoch {row.get('epoch')!r}") from None
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise ValueError(f"{path} has an accuracy of {accuracy} in epoch {epoch}, which is not between 0 and 1")
    return Point(epoch=epoch, seconds=seconds, accuracy=accuracy, loss=loss)
