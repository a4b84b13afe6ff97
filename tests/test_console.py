"""Progress on stderr: durations in words, no bar off a terminal, one estimate of a long run."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

import pytest

from resnet_train.loggers import console
from resnet_train.loggers.console import BarHandler, Console
from resnet_train.records import EpochRecord, EpochTiming, RunInfo, StepRecord
from resnet_train.runtime.duration import format_duration

STEP = StepRecord(epoch=1, step=2, lr=0.1, loss=2.0, mean_loss=2.1, accuracy=0.25, grad_norm=1.0)
TIMING = EpochTiming(1, 10, train_seconds=1.0, eval_seconds=1.0, images_per_second=123.4, peak_memory_bytes=None)


class Terminal(io.StringIO):
    """A stderr that a person looks at."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that goes on by `step_seconds` whenever it is read."""

    def __init__(self, step_seconds: float) -> None:
        self.now, self.step_seconds = 0.0, step_seconds

    def perf_counter(self) -> float:
        self.now += self.step_seconds
        return self.now


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What was logged so far."""
    monkeypatch.setattr(logging.getLogger("resnet_train"), "propagate", True)
    caplog.set_level(logging.INFO, logger="resnet_train")
    return lambda: [record.getMessage() for record in caplog.records]


def started(epochs: int = 10, steps_per_epoch: int = 10) -> Console:
    logger = Console(batch_size=32, device_name="cpu (2 threads)")
    logger.run_started(RunInfo("x", "t", {}, epochs, steps_per_epoch))
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
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_off_a_terminal_there_is_no_bar(monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    logger = started()
    logger.epoch_started(1, 0)
    logger.step_done()
    logger.step_read(STEP)
    logger.close()
    assert stderr.getvalue() == ""


def test_on_a_terminal_there_is_a_bar_with_the_numbers(
    monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    logger = started()
    logger.epoch_started(3, 5)
    logger.step_done()
    logger.step_read(STEP)
    logger.close()
    assert "\repoch 3/10:" in terminal.getvalue()
    assert "loss=2.100" in terminal.getvalue()
    assert "accuracy=25.0%" in terminal.getvalue()
    assert "lr=0.1" in terminal.getvalue()
    assert not terminal.getvalue().endswith("\n")
    assert logger.bar is None


def test_a_line_is_logged_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    logger = started()
    logger.epoch_started(1, 0)
    BarHandler().handle(logging.LogRecord("resnet_train", logging.INFO, "", 0, "hello", None, None))
    logger.close()
    assert "hello\n" in terminal.getvalue()
    assert "hello" in [line.rpartition("\r")[2].strip() for line in terminal.getvalue().split("\n")]


def test_an_epoch_is_one_line_with_every_split(lines: Callable[[], list[str]]) -> None:
    logger = started(epochs=200)
    logger.epoch_started(7, 0)
    record = EpochRecord(7, 70, 0.1, train_loss=1.23456, train_accuracy=0.5, grad_norm=1.0)
    logger.epoch_done(record, TIMING)
    full = EpochRecord(8, 80, 0.1, 1.0, 0.5, 1.0, val_loss=0.9, val_accuracy=0.6, test_loss=0.8, test_accuracy=0.7)
    logger.epoch_started(8, 0)
    logger.epoch_done(full, TIMING)
    assert lines() == [
        "epoch   7/200  train loss 1.2346 accuracy 50.00%  123 images/s",
        "epoch   8/200  train loss 1.0000 accuracy 50.00%  val loss 0.9000 accuracy 60.00%  "
        "test loss 0.8000 accuracy 70.00%  123 images/s",
    ]


def test_a_long_run_says_once_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]
) -> None:
    logger = started(epochs=100, steps_per_epoch=100)
    monkeypatch.setattr(console, "time", Clock(2.0))
    for epoch in (1, 2):
        logger.epoch_started(epoch, 0)
        for _ in range(2):
            logger.step_done()
            logger.step_read(STEP)
    logger.close()
    # The clock is read after the first step and again when the second is read: one timed step of 2 s.
    assert lines() == ["training will take about 5 h 33 min: 16 images/s on cpu (2 threads)"]


def test_a_short_run_says_nothing(monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]) -> None:
    logger = started(epochs=1, steps_per_epoch=10)
    monkeypatch.setattr(console, "time", Clock(2.0))
    logger.epoch_started(1, 0)
    for _ in range(3):
        logger.step_done()
        logger.step_read(STEP)
    logger.close()
    assert lines() == []


def test_the_first_step_alone_is_no_estimate(monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]) -> None:
    logger = started(epochs=1000, steps_per_epoch=1000)
    monkeypatch.setattr(console, "time", Clock(1000.0))
    logger.epoch_started(1, 0)
    logger.step_done()
    logger.step_read(STEP)
    logger.close()
    assert lines() == []


def test_closing_twice_is_harmless() -> None:
    logger = started()
    logger.close()
    logger.epoch_started(1, 0)
    logger.close()
    logger.close()
    assert logger.bar is None
