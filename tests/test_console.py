"""The screen of a run: header, live bar, table of epochs, estimated time; plain lines without a terminal."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from resnet_train.config import make_config, to_plain
from resnet_train.loggers import console
from resnet_train.loggers.console import BarHandler, Console, show_log
from resnet_train.loggers.table import EpochTable, describe_run
from resnet_train.loggers.time_left import TimeLeft
from resnet_train.records import RunInfo
from resnet_train.runtime import terminal
from resnet_train.runtime.duration import format_clock, format_duration, format_end, format_estimate
from tests.harness.records import epoch_scalars, make_info, make_record, step_scalars

Lines = Callable[[], list[str]]
SPLITS = {"train": 320, "val": 100, "test": 200}


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


def run_info(*splits: str, config: dict[str, Any] | None = None, **values: Any) -> RunInfo:
    """Return the description of a run with these splits beside the training images."""
    chosen = ("train", *(splits or ("test",)))
    defaults: dict[str, Any] = {
        "config": to_plain(make_config({"arch": "resnet20", **(config or {})})),
        "folder": "runs/x",
        "splits": chosen,
        "num_images": {split: SPLITS[split] for split in chosen},
        "num_classes": 10,
        "num_params": 269_722,
        "epochs": 10,
        "steps_per_epoch": 10,
    }
    info = make_info(**{**defaults, **values})
    return info if info.sizes else replace(info, sizes=((32, info.epochs * info.steps_per_epoch),))


def started(**values: Any) -> Console:
    logger = Console()
    logger.start(run_info(**values))
    return logger


# --- Times as text ---------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("seconds", "words", "clock"),
    [
        (0.2, "about 1 s", "0:00"),
        (31, "about 30 s", "0:31"),
        (101, "about 2 min", "1:41"),
        (7300, "about 2 h", "2:01:40"),
        (100_000, "about 1 day 4 h", "1 d 3 h"),
        (440_000, "about 5 days", "5 d 2 h"),
    ],
)
def test_an_estimate_is_rounded_and_a_clock_exact(seconds: float, words: str, clock: str) -> None:
    assert (format_estimate(seconds), format_clock(seconds)) == (words, clock)


def test_an_end_on_another_day_has_its_date() -> None:
    assert re.fullmatch(r"at \d\d:\d\d", format_end(0))
    assert re.fullmatch(r"on \d{4}-\d\d-\d\d at \d\d:\d\d", format_end(86400))


# --- Header and table ------------------------------------------------------------------------------------------------


def test_the_header_describes_network_data_recipe_and_device() -> None:
    info = run_info("val", "test", config={"lr": 0.02, "seed": 3}, batch_size=32, precision="bf16")
    assert [re.sub(" {3,}", " | ", line) for line in describe_run(info, 79)] == [
        "resnet20 | 269,722 parameters | runs/x",
        "data | tiny: 320 train, 100 val, 200 test, 10 classes, 32 px",
        "recipe | 10 epochs, batch 32, sgd lr 0.02, cosine | seed 3",
        "device | cpu (2 threads), bf16 | Ctrl-C saves and stops",
    ]


def test_the_header_says_which_images_fill_no_batch() -> None:
    assert "320 train (20 do not fill a batch)" in describe_run(run_info(batch_size=100), 79)[1]


@pytest.mark.parametrize("width", [49, 79, 119])
@pytest.mark.parametrize("splits", [("test",), ("val",), ("val", "test")])
@pytest.mark.parametrize("epochs", [1, 200, 100_000])
def test_header_and_table_fit_the_terminal(width: int, splits: tuple[str, ...], epochs: int) -> None:
    info = run_info(*splits, epochs=epochs, folder="runs/" + "n" * 30, title="pictures of a very long kind")
    table = EpochTable(info, width)
    record = make_record(epochs, train=(1.5, 0.5), **dict.fromkeys(splits, (12.25, 1.0)))
    rows = [table.header, table.row(epochs, epoch_scalars(record), 400_000.0), *describe_run(info, width)]
    assert max(map(len, rows)) <= width
    assert len(rows[0]) == len(rows[1])
    assert all(f"{split} " in table.header for split in splits)


def test_a_path_that_does_not_fit_has_its_own_line() -> None:
    folder = "runs/" + "n" * 90
    assert folder in describe_run(run_info(folder=folder), 79)


def test_a_row_has_loss_and_accuracy_of_every_split() -> None:
    table = EpochTable(run_info("val", "test", epochs=200), 119)
    full = make_record(8, train=(1.0, 0.5), val=(0.9, 0.6), test=(0.8, 0.705))
    row = table.row(8, epoch_scalars(full), 130.0)
    assert row.split() == [
        "8/200",
        "1.0000",
        "50.0",
        "%",
        "0.9000",
        "60.0",
        "%",
        "0.8000",
        "70.5",
        "%",
        "0.1",
        "123",
        "2:10",
    ]
    assert table.header.split() == [
        "epoch",
        "train",
        "loss",
        "acc",
        "val",
        "loss",
        "acc",
        "test",
        "loss",
        "acc",
        "lr",
        "images/s",
        "left",
    ]


def test_what_was_not_evaluated_is_blank() -> None:
    table = EpochTable(run_info("test"), 79)
    row = table.row(7, epoch_scalars(make_record(7, train=(1.23456, 0.5))), None)
    assert row.split() == ["7/10", "1.2346", "50.0", "%", "123"]


# --- Time left -------------------------------------------------------------------------------------------------------


def measured(info: RunInfo, seconds: list[float], first: int = 1) -> TimeLeft:
    """Return what is known after steps of these seconds, the first of which is not measured."""
    time_left, now = TimeLeft(info), 0.0
    for step, second in enumerate(seconds, first):
        now += second
        time_left.tick(step, now)
    return time_left


def test_time_left_counts_steps_and_evaluations() -> None:
    time_left = measured(run_info(epochs=4, config={"eval_every": 3}), [9.0, 2.0, 2.0])
    time_left.end_epoch(5.0)
    assert time_left.seconds(step=20, epoch=2) == pytest.approx(20 * 2 + 2 * 5)  # after the third and the last epoch
    assert time_left.seconds(step=40, epoch=4) == 0
    assert time_left.measured_seconds == 4


def test_an_evaluation_that_was_not_measured_is_estimated() -> None:
    info = run_info(epochs=1, batch_size=32)
    seconds = measured(info, [1.0, 2.0]).seconds(step=10, epoch=0)
    assert seconds is not None
    assert 0.2 < seconds / (2.0 / 32 * 200) < 1  # of a training step on as many images


def test_larger_images_cost_more_by_their_pixels() -> None:
    info = run_info(sizes=((16, 30), (32, 100)), num_images={"train": 320})
    assert measured(info, [1.0] * 3).seconds(step=30, epoch=10) == pytest.approx(70 * 4, rel=0.2)
    both = measured(info, [*[1.0] * 30, *[3.0] * 5])
    assert both.seconds(step=35, epoch=10) == pytest.approx(65 * 3)


def test_two_measured_sizes_predict_the_third() -> None:
    info = run_info(sizes=((16, 3), (24, 6), (32, 100)), num_images={"train": 320})
    seconds = measured(info, [1.0, 1.256, 1.256, 1.576, 1.576, 1.576]).seconds(step=99, epoch=10)
    assert seconds == pytest.approx(1 + 32**2 / 1000)


def test_time_before_the_first_measured_step_is_unknown() -> None:
    assert measured(run_info(), [1.0]).seconds(step=1, epoch=0) is None


# --- On the screen ---------------------------------------------------------------------------------------------------


def test_without_a_terminal_there_is_no_bar(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    logger = started()
    logger.tick(1)
    logger.log(step_scalars(), step=1)
    logger.close()
    assert stderr.getvalue() == ""


def test_the_bar_shows_epoch_scores_and_time_left(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(console, "time", Clock(2.0))
    logger = started(batch_size=32)
    for step in (25, 26):  # the sixth step of the third epoch
        logger.tick(step)
        logger.log(step_scalars(), step=step)
    bar = logger.bar
    assert bar is not None
    assert (bar.n, bar.total) == (6 * 32, 10 * 32)
    assert str(bar).startswith("  3/10 ━")
    assert "  60 %  loss 2.10  acc 25.0 %" in str(bar)
    assert str(bar).endswith(" 3:05")  # 74 steps of 2 s, and eight evaluations of 4.6 s
    logger.close()
    assert not screen.getvalue().endswith("\n")
    assert logger.bar is None


def test_a_terminal_without_unicode_gets_an_ascii_bar(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    class OldTerminal(Terminal):
        encoding = "ascii"

    monkeypatch.setattr("sys.stderr", OldTerminal())
    logger = started()
    logger.tick(1)
    assert str(logger.bar).isascii()
    logger.close()


def test_a_line_is_logged_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    logger = started()
    logger.tick(1)
    BarHandler().handle(logging.LogRecord("resnet_train", logging.INFO, "", 0, "hello", None, None))
    logger.close()
    assert "hello\n" in screen.getvalue()
    assert "hello" in [line.rpartition("\r")[2].strip() for line in screen.getvalue().split("\n")]


def test_the_table_has_its_header_once(lines: Lines) -> None:
    logger = started()
    for epoch in (1, 2):
        logger.log(epoch_scalars(make_record(epoch, train=(1.0, 0.5))), step=10 * epoch, epoch=epoch)
    assert [line.split()[0] for line in lines()[4:]] == ["epoch", "1/10", "2/10"]


def test_a_resumed_run_says_where_it_continues(lines: Lines) -> None:
    started(first_step=25, history=(make_record(1), make_record(2)))
    assert lines()[0] == "resuming runs/x: 2 epochs done, step 25"


def test_one_finished_epoch_is_singular(lines: Lines) -> None:
    started(first_step=15, history=(make_record(1),))
    assert lines()[0] == "resuming runs/x: 1 epoch done, step 15"


def test_a_row_shows_no_other_scores(lines: Lines) -> None:
    record = make_record(1, test=(1.0, 0.5))
    record.scores["test"] |= {"balanced_accuracy": 0.25, "macro_f1": 0.125}
    started().log(epoch_scalars(record), step=2, epoch=1)
    assert "50.0" in lines()[-1]
    assert not any(score in lines()[-1] for score in ("25.0", "12.5", "0.25", "0.125"))


def test_a_long_run_is_estimated_once(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    logger = started(epochs=100, steps_per_epoch=100)
    monkeypatch.setattr(console, "time", Clock(2.0))
    for step in (1, 2, 3, 4):
        logger.tick(step)
        logger.log(step_scalars(), step=step)
    logger.close()
    (estimate,) = lines()[4:]
    assert re.fullmatch(r"about 5 h [345]0 min, done .* \(measured, including evaluation\)", estimate)


def test_a_short_run_has_no_estimate(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    logger = started(epochs=1)
    monkeypatch.setattr(console, "time", Clock(0.5))
    for step in range(1, 11):
        logger.tick(step)
    logger.close()
    assert len(lines()) == 4


def test_closing_twice_is_harmless() -> None:
    logger = started()
    logger.close()
    logger.tick(1)
    logger.close()
    logger.close()
    assert logger.bar is None


@pytest.mark.parametrize(("no_color", "colored"), [("", True), ("1", False)])
def test_warnings_have_a_color_unless_no_color_is_set(
    no_color: str, colored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, package = Terminal(), logging.getLogger("resnet_train")
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(package, name, getattr(package, name))
    monkeypatch.setattr("sys.stderr", screen)
    show_log()
    package.warning("careful")
    package.info("plain")
    assert ("\x1b[33mwarning:\x1b[0m careful\n" in screen.getvalue()) == colored
    assert ("\x1b" in screen.getvalue()) == colored


def test_a_pipe_gets_no_color() -> None:
    assert terminal.paint("text", "result", io.StringIO()) == "text"
    assert terminal.text_width(io.StringIO()) == terminal.text_width(None) == 79
