"""metrics.csv and timing.csv: every bit of a number survives, and a resumed run cuts them back."""

from __future__ import annotations

import csv
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_train.loggers.csv import MetricsCsv
from resnet_train.records import EpochRecord, EpochTiming, RunInfo

RECORD = EpochRecord(epoch=1, step=7, lr=0.1, train_loss=2.5, train_accuracy=0.1, grad_norm=1 / 3)
INFO = RunInfo(name="x", title="t", config={}, epochs=3, steps_per_epoch=7)
TIMING = EpochTiming(1, 7, train_seconds=0.1 + 0.2, eval_seconds=1e-9, images_per_second=1e6, peak_memory_bytes=None)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_run(folder: Path, epochs: int, history: list[EpochRecord] | None = None) -> list[EpochRecord]:
    """Logs the epochs that follow the history, as a run does; returns all of its records."""
    history = list(history or [])
    logger = MetricsCsv(folder, list(history))
    logger.run_started(INFO)
    for epoch in range(len(history) + 1, epochs + 1):
        history.append(replace(RECORD, epoch=epoch, step=7 * epoch, test_accuracy=epoch / 7, test_loss=1 / epoch))
        logger.epoch_done(history[-1], replace(TIMING, epoch=epoch, step=7 * epoch))
    logger.close()
    return history


def test_the_headers_are_the_fields_of_the_records(tmp_path: Path) -> None:
    write_run(tmp_path, 0)
    assert (tmp_path / "metrics.csv").read_text() == ",".join(field.name for field in fields(EpochRecord)) + "\n"
    assert (tmp_path / "timing.csv").read_text() == ",".join(field.name for field in fields(EpochTiming)) + "\n"


def test_an_epoch_is_one_row_in_each_file(tmp_path: Path) -> None:
    write_run(tmp_path, 2)
    assert [row["epoch"] for row in rows_of(tmp_path / "metrics.csv")] == ["1", "2"]
    assert [row["step"] for row in rows_of(tmp_path / "timing.csv")] == ["7", "14"]
    assert b"\r" not in (tmp_path / "metrics.csv").read_bytes()


def test_what_was_not_measured_is_empty(tmp_path: Path) -> None:
    write_run(tmp_path, 1)
    assert rows_of(tmp_path / "metrics.csv")[0]["val_loss"] == ""
    assert rows_of(tmp_path / "timing.csv")[0]["peak_memory_bytes"] == ""


@settings(max_examples=100, deadline=None, database=None)
@given(value=st.floats(allow_nan=False))
def test_every_bit_of_a_number_survives(value: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    logger = MetricsCsv(folder, [])
    logger.run_started(INFO)
    logger.epoch_done(replace(RECORD, train_loss=value), replace(TIMING, train_seconds=value))
    for path, column in ((folder / "metrics.csv", "train_loss"), (folder / "timing.csv", "train_seconds")):
        (row,) = rows_of(path)
        assert row[column] == repr(value)
        assert math.copysign(1, float(row[column])) == math.copysign(1, value)
        assert float(row[column]) == value


def test_equal_runs_have_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name, 3)
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()


@pytest.mark.parametrize("known", [0, 1, 2, 3])
def test_a_resumed_run_cuts_both_files_back_to_its_history(known: int, tmp_path: Path) -> None:
    history = write_run(tmp_path, 3)
    whole = (tmp_path / "metrics.csv").read_bytes()
    MetricsCsv(tmp_path, history[:known]).run_started(INFO)
    expected = [str(epoch) for epoch in range(1, known + 1)]
    assert [row["epoch"] for row in rows_of(tmp_path / "metrics.csv")] == expected
    assert [row["epoch"] for row in rows_of(tmp_path / "timing.csv")] == expected
    write_run(tmp_path, 3, history[:known])
    assert (tmp_path / "metrics.csv").read_bytes() == whole
    assert [row["epoch"] for row in rows_of(tmp_path / "timing.csv")] == ["1", "2", "3"]


@pytest.mark.parametrize("rest", ["", "epoch\n", "\n\n", "1,7,0.1", "no csv at all"])
def test_a_damaged_file_does_not_stop_a_resumed_run(rest: str, tmp_path: Path) -> None:
    history = write_run(tmp_path, 2)
    (tmp_path / "metrics.csv").write_text(rest)
    (tmp_path / "timing.csv").write_text(rest)
    write_run(tmp_path, 3, history)
    assert [row["epoch"] for row in rows_of(tmp_path / "metrics.csv")] == ["1", "2", "3"]
    assert rows_of(tmp_path / "timing.csv")[-1]["epoch"] == "3"
