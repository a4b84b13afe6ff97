"""metrics.csv and timing.csv: one row for each epoch."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from resnet_train.loggers.base import Logger
from resnet_train.records import EpochTiming, RunInfo, Scalars
from resnet_train.runtime.files import explain_write_errors, open_regular, write_text

TIMING = tuple(f"timing/{field.name}" for field in fields(EpochTiming))


class MetricsCsv(Logger):
    """Append to both files. When a run is resumed, they are first cut back to the epochs of the checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.metrics, self.timing = folder / "metrics.csv", folder / "timing.csv"
        self.columns: Sequence[str] = ()

    def start(self, info: RunInfo) -> None:
        """Write metrics.csv from the history and drop the timings of epochs that are not part of it."""
        # metrics.csv is a function of the history.
        self.columns = info.scalar_names
        rows = [_row(r.epoch, r.step, r.scalars(), self.columns) for r in info.history]
        _write(self.metrics, [_header(self.columns), *rows])

        # timing.csv is not: keep its rows, except those of epochs after the checkpoint.
        known = {str(record.epoch) for record in info.history}
        old: list[list[str]] = []
        if os.path.lexists(self.timing):
            with open_regular(self.timing, "r", encoding="utf-8", newline="") as file:
                old = list(csv.reader(file))
        _write(self.timing, [_header(TIMING), *(row for row in old[1:] if row and row[0] in known)])

    def log(self, scalars: Scalars, *, step: int, epoch: int | None = None) -> None:
        """Append one row to each file after an epoch."""
        if epoch is not None:
            _append(self.metrics, _row(epoch, step, scalars, self.columns))
            _append(self.timing, _row(epoch, step, scalars, TIMING))


def _header(columns: Sequence[str]) -> list[str]:
    return ["epoch", "step", *(name.removeprefix("timing/").replace("/", "_") for name in columns)]


def _row(epoch: int, step: int, scalars: Scalars, columns: Sequence[str]) -> list[Any]:
    """Return the cells of an epoch. `repr` keeps every bit of a float, so that equal runs have equal files."""
    return [epoch, step, *(repr(scalars[name]) if name in scalars else "" for name in columns)]


def _write(path: Path, rows: list[list[Any]]) -> None:
    write_text(path, _format(rows))


def _append(path: Path, row: list[Any]) -> None:
    text = _format([row])
    with explain_write_errors(path, len(text)), open_regular(path, "a", encoding="utf-8", newline="") as file:
        file.write(text)


def _format(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
