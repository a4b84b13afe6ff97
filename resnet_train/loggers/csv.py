"""metrics.csv and timing.csv: one row an epoch."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from resnet_train.loggers.base import Logger
from resnet_train.records import EpochRecord, EpochTiming, RunInfo


class MetricsCsv(Logger):
    """Appends to both files; when a run is resumed they are first cut back to what the checkpoint knows."""

    def __init__(self, folder: Path, history: list[EpochRecord]) -> None:
        self.metrics, self.timing = folder / "metrics.csv", folder / "timing.csv"
        self.history = history

    def run_started(self, info: RunInfo) -> None:
        """Writes metrics.csv anew from the history and drops the timings of epochs that are not in it."""
        rows = [_row(record) for record in self.history]
        _write(self.metrics, [_header(EpochRecord), *rows])
        known = {str(record.epoch) for record in self.history}
        old = list(csv.reader(io.StringIO(self.timing.read_text()))) if self.timing.exists() else []
        _write(self.timing, [_header(EpochTiming), *(row for row in old[1:] if row and row[0] in known)])

    def epoch_done(self, record: EpochRecord, timing: EpochTiming) -> None:
        """Adds one row to each file."""
        _append(self.metrics, _row(record))
        _append(self.timing, _row(timing))


def _header(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _row(record: EpochRecord | EpochTiming) -> list[Any]:
    """repr of floats: every bit survives, so equal runs have equal files."""
    return ["" if value is None else repr(value) for value in asdict(record).values()]


def _write(path: Path, rows: list[list[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    path.write_text(text.getvalue())


def _append(path: Path, row: list[Any]) -> None:
    with path.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(row)
