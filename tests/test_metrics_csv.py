"""metrics.csv and timing.csv: every bit of a number survives, and a resumed run cuts them back."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_train.loggers.csv import MetricsCsv
from resnet_train.records import EpochRecord
from tests.harness.records import TIMING, epoch_scalars, make_info, make_record


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_run(folder: Path, epochs: int, history: tuple[EpochRecord, ...] = ()) -> tuple[EpochRecord, ...]:
    """Log the epochs that follow the history, as a run does, and return the records of all epochs."""
    logger = MetricsCsv(folder)
    logger.start(make_info(history=history))
    for epoch in range(len(history) + 1, epochs + 1):
        record = make_record(epoch, train=(2.5, 0.1), test=(1 / epoch, epoch / 7))
        logger.log({"loss": 9.9}, step=record.step - 1)  # within an epoch: no row
        logger.log(epoch_scalars(record), step=record.step, epoch=epoch)
        history = (*history, record)
    logger.close()
    return history


def test_the_columns_keep_their_names(tmp_path: Path) -> None:
    write_run(tmp_path, 0)
    columns = "epoch,step,lr,train_loss,train_accuracy,grad_norm,val_loss,val_accuracy,test_loss,test_accuracy"
    with (tmp_path / "metrics.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert [name for name in header if name in columns.split(",")] == columns.split(",")
    timing = "epoch,step,train_seconds,eval_seconds,images_per_second,peak_memory_bytes\n"
    assert (tmp_path / "timing.csv").read_text() == timing


def test_an_epoch_is_one_row_in_each_file(tmp_path: Path) -> None:
    write_run(tmp_path, 2)
    assert [row["epoch"] for row in rows_of(tmp_path / "metrics.csv")] == ["1", "2"]
    assert [row["test_accuracy"] for row in rows_of(tmp_path / "metrics.csv")] == [repr(1 / 7), repr(2 / 7)]
    assert [row["step"] for row in rows_of(tmp_path / "timing.csv")] == ["2", "4"]
    assert [row["images_per_second"] for row in rows_of(tmp_path / "timing.csv")] == ["123.4", "123.4"]
    assert b"\r" not in (tmp_path / "metrics.csv").read_bytes()


def test_what_was_not_measured_is_empty(tmp_path: Path) -> None:
    write_run(tmp_path, 1)
    assert rows_of(tmp_path / "metrics.csv")[0]["val_loss"] == ""
    assert rows_of(tmp_path / "timing.csv")[0]["peak_memory_bytes"] == ""


@settings(max_examples=100, deadline=None, database=None)
@given(value=st.floats(allow_nan=False))
def test_every_bit_of_a_number_survives(value: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    logger = MetricsCsv(folder)
    logger.start(make_info())
    record, timing = make_record(1, train=(value, 0.5)), replace(TIMING, train_seconds=value)
    logger.log(epoch_scalars(record, timing), step=2, epoch=1)
    for path, column in ((folder / "metrics.csv", "train_loss"), (folder / "timing.csv", "train_seconds")):
        (row,) = rows_of(path)
        assert row[column] == repr(value)
        assert math.copysign(1, float(row[column])) == math.copysign(1, value)
        assert float(row[column]) == value


@pytest.mark.parametrize("known", [0, 1, 2, 3])
def test_a_resumed_run_cuts_both_files_back(known: int, tmp_path: Path) -> None:
    history = write_run(tmp_path, 3)
    whole = (tmp_path / "metrics.csv").read_bytes()
    MetricsCsv(tmp_path).start(make_info(history=history[:known]))
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
