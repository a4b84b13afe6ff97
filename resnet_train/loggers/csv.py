"""metrics.csv and timing.csv: one row for each epoch."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from resnet_train.loggers.base import Logger, register_logger
from resnet_train.records import EpochRecord, EpochTiming, RunInfo, Scalars
from resnet_train.runtime.files import explain_write_errors, open_regular, replace_text

FILES = ("metrics.csv", "timing.csv")
TIMING = tuple(f"timing/{field.name}" for field in fields(EpochTiming))


@register_logger("csv", files=FILES)
class MetricsCsv(Logger):
    """Append to both files. When a run is resumed, they are first cut back to the epochs of the checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.metrics, self.timing = (folder / name for name in FILES)
        self.columns: Sequence[str] = ()

    def start(self, info: RunInfo) -> None:
        """Write metrics.csv from the history and drop the timings of epochs that are not part of it."""
        # metrics.csv is a function of the history.
        self.columns = info.scalar_names
        replace_text(self.metrics, format_metrics(info.history, self.columns))

        # timing.csv is not: keep its rows, except those of epochs after the checkpoint.
        known = {str(record.epoch) for record in info.history}
        kept = {row[0]: row for row in read_rows(self.timing)[1:] if row and row[0] in known}
        replace_text(self.timing, _format([_header(TIMING), *kept.values()]))

    def log(self, scalars: Scalars, *, step: int, epoch: int | None = None) -> None:
        """Append one row to each file after an epoch."""
        if epoch is not None:
            _append(self.metrics, _row(epoch, step, scalars, self.columns))
            _append(self.timing, _row(epoch, step, scalars, TIMING))


def format_metrics(history: Sequence[EpochRecord], columns: Sequence[str]) -> str:
    """Return the text of metrics.csv after these epochs."""
    return _format([_header(columns), *(_row(r.epoch, r.step, r.scalars(), columns) for r in history)])


def read_rows(path: Path) -> list[list[str]]:
    """Return the cells of a CSV file, none if there is no such file."""
    if not os.path.lexists(path):
        return []
    with open_regular(path, "r", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def read_seconds(folder: Path) -> float | None:
    """Return the seconds of training and evaluation in timing.csv; None if the file is missing or damaged."""
    try:
        with open_regular(folder / "timing.csv", "r", encoding="utf-8", newline="") as file:
            return sum(float(row["train_seconds"]) + float(row["eval_seconds"]) for row in csv.DictReader(file))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _header(columns: Sequence[str]) -> list[str]:
    return ["epoch", "step", *(name.removeprefix("timing/").replace("/", "_") for name in columns)]


def _row(epoch: int, step: int, scalars: Scalars, columns: Sequence[str]) -> list[Any]:
    """Return the cells of an epoch. `repr` keeps every bit of a float, so that equal runs have equal files."""
    return [epoch, step, *(repr(scalars[name]) if name in scalars else "" for name in columns)]


def _append(path: Path, row: list[Any]) -> None:
    text = _format([row])
    with explain_write_errors(path, len(text)), open_regular(path, "a", encoding="utf-8", newline="") as file:
        file.write(text)


def _format(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
