"""Progress on stderr: durations as text, no bar without a terminal, one estimate of a long run."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

import pytest

from resnet_train.loggers import console
from resnet_train.loggers.console import BarHandler, Console
from resnet_train.runtime.duration import format_duration
from tests.harness.records import epoch_scalars, make_info, make_record, step_scalars

Lines = Callable[[], list[str]]


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that advances by `step_seconds` at each reading."""

    def __init__(self, step_seconds: float) -> None:
        self.now, self.step_seconds = 0.0, step_seconds

    def perf_counter(self) -> float:
        self.now += self.step_seconds
        return self.now


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Lines:
    """Return the messages logged so far."""
    monkeypatch.setattr(logging.getLogger("resnet_train"), "propagate", True)
    caplog.set_level(logging.INFO, logger="resnet_train")
    return lambda: [record.getMessage() for record in caplog.records]


def started(**values: int) -> Console:
    logger = Console()
    logger.start(make_info(**{"epochs": 10, "steps_per_epoch": 10, **values}))
    return logger


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (0.6, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (1025, "17 min 5 s"),
        (3600, "1 h"),
        (3601, "1 h 1 s"),
        (3660, "1 h 1 min"),
        (3661, "1 h 1 min"),
        (86399, "23 h 59 min"),
        (86400, "1 day"),
        (86460, "1 day 1 min"),
        (90000, "1 day 1 h"),
        (388800, "4 days 12 h"),
        (400 * 86400, "400 days"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_without_a_terminal_there_is_no_bar(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    logger = started()
    logger.tick(1)
    logger.log(step_scalars(), step=1)
    logger.close()
    assert stderr.getvalue() == ""


def test_the_bar_shows_epoch_and_scores(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    logger = started()
    logger.tick(26)  # the sixth step of the third epoch
    logger.log(step_scalars(), step=26)
    bar = logger.bar
    assert bar is not None
    assert (bar.n, bar.total) == (6 * 32, 10 * 32)
    logger.close()
    assert "\repoch 3/10:" in terminal.getvalue()
    assert "train loss 2.1000 accuracy 25.00%  lr 0.1" in terminal.getvalue()
    assert not terminal.getvalue().endswith("\n")
    assert logger.bar is None


def test_a_line_is_logged_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    logger = started()
    logger.tick(1)
    BarHandler().handle(logging.LogRecord("resnet_train", logging.INFO, "", 0, "hello", None, None))
    logger.close()
    assert "hello\n" in terminal.getvalue()
    assert "hello" in [line.rpartition("\r")[2].strip() for line in terminal.getvalue().split("\n")]


def test_an_epoch_is_one_line_with_every_split(lines: Lines) -> None:
    logger = started(epochs=200)
    train_only = make_record(7, train=(1.23456, 0.5))
    full = make_record(8, train=(1.0, 0.5), val=(0.9, 0.6), test=(0.8, 0.7))
    for record in (train_only, full):
        logger.log(epoch_scalars(record), step=record.step, epoch=record.epoch)
    assert lines() == [
        "epoch   7/200  train loss 1.2346 accuracy 50.00%  123 images/s",
        "epoch   8/200  train loss 1.0000 accuracy 50.00%  val loss 0.9000 accuracy 60.00%  "
        "test loss 0.8000 accuracy 70.00%  123 images/s",
    ]


def test_an_epoch_line_shows_loss_and_accuracy_only(lines: Lines) -> None:
    record = make_record(1, test=(1.0, 0.5))
    record.scores["test"] |= {"balanced_accuracy": 0.25, "macro_f1": 0.125}
    started().log(epoch_scalars(record), step=2, epoch=1)
    assert lines() == ["epoch  1/10  test loss 1.0000 accuracy 50.00%  123 images/s"]


def test_a_long_run_is_estimated_once(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    logger = started(epochs=100, steps_per_epoch=100)
    monkeypatch.setattr(console, "time", Clock(2.0))
    for step in (1, 2, 3, 4):
        logger.tick(step)
        logger.log(step_scalars(), step=step)
    logger.close()
    # The clock is read after the first step and again when the second is logged: one timed step of 2 s.
    assert lines() == ["training will take about 5 h 33 min: 16 images/s on cpu (2 threads)"]


@pytest.mark.parametrize(("epochs", "num_steps"), [(1, 3), (1000, 1)], ids=["short run", "first step"])
def test_no_estimate(epochs: int, num_steps: int, monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    logger = started(epochs=epochs)
    monkeypatch.setattr(console, "time", Clock(2.0))
    for step in range(1, num_steps + 1):
        logger.tick(step)
        logger.log(step_scalars(), step=step)
    logger.close()
    assert lines() == []


def test_closing_twice_is_harmless() -> None:
    logger = started()
    logger.close()
    logger.tick(1)
    logger.close()
    logger.close()
    assert logger.bar is None
