"""Progress: what is trained, a live bar on a terminal or in a notebook, and a table with a row per epoch.

It goes to stderr, or to stdout in a notebook, which shows everything on stderr as an error.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from tqdm import TqdmWarning

from resnet_train.loggers.base import Logger, register_logger
from resnet_train.loggers.table import EpochTable, describe_run
from resnet_train.loggers.time_left import TimeLeft
from resnet_train.records import RunInfo, Scalars
from resnet_train.runtime.duration import format_clock, format_end, format_estimate
from resnet_train.runtime.ranks import rank
from resnet_train.runtime.terminal import can_show, is_terminal, paint, text_width
from resnet_train.text import LineFormatter, counted

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)  # a notebook without ipywidgets has no bar, but the same lines
    from tqdm.auto import tqdm

log = logging.getLogger(__name__)

MEASURED_SECONDS = 2.5  # time of steps to measure before the time of the run is estimated
SHORT_SECONDS = 10  # shorter runs need no estimate
HAS_WIDGETS = any(kind.__name__ == "tqdm_notebook" for kind in tqdm.__mro__)  # whether the bar is a widget
WIDTH_WITH_LOSS = 70  # from this width on, the bar shows the loss


def screen() -> TextIO | None:
    """Return the stream that shows progress, None if it is closed."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return sys.stdout if getattr(shell, "kernel", None) is not None else sys.stderr


class BarHandler(logging.Handler):
    """Write log lines to the screen, above the live bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        with suppress(OSError):  # the reader of the pipe is gone; training and train.log continue
            if (stream := screen()) is not None:
                tqdm.write(self.format(record), file=stream)


class _LevelFormatter(LineFormatter):
    """Format a record as its message, with the level in front of warnings and errors."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)  # escaped
        if record.levelno <= logging.INFO:
            return text
        kind = "warning" if record.levelno == logging.WARNING else "error"
        return f"{paint(f'{record.levelname.lower()}:', kind, screen())} {text}"


@contextmanager
def shown_log() -> Iterator[None]:
    """While entered, show the log of the package, unless the caller has added a handler to its logger."""
    logger = logging.getLogger("resnet_train")
    if logger.handlers:
        yield
        return
    before = logger.handlers, logger.propagate, logger.level
    show_log()
    try:
        yield
    finally:
        logger.handlers, logger.propagate, level = before
        logger.setLevel(level)


def show_log() -> None:
    """Show the log of the package on stderr, in a notebook on stdout; ranks other than 0 show only errors."""
    handler = BarHandler()
    handler.setFormatter(_LevelFormatter())
    logger = logging.getLogger("resnet_train")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO if rank() == 0 else logging.ERROR)


@register_logger("console")
class Console(Logger):
    """Show what is trained, a bar and a table, and estimate after the first steps how long the run will take."""

    def __init__(self) -> None:
        self.bar: _Bar | None = None
        self.info: RunInfo | None = None
        self.has_header = self.has_estimate = False

    def start(self, info: RunInfo) -> None:
        """Describe the run."""
        self.info, self.time_left = info, TimeLeft(info)
        width = text_width(screen())
        self.table = EpochTable(info, width)
        if info.first_step:
            epochs = counted(len(info.history), "epoch")
            log.info("resuming %s: %s done, step %d", info.folder, epochs, info.first_step)
        for line in describe_run(info, width):
            log.info(line)

    def tick(self, step: int) -> None:
        """Advance the bar; open it at the first step of an epoch."""
        assert self.info is not None
        self.time_left.tick(step, time.perf_counter())
        if self.bar is None:
            self._open_bar(step)
        assert self.bar is not None
        if HAS_WIDGETS and (step - 1) % self.info.steps_per_epoch == 0:
            self._restart_bar(step)
        self.bar.step = step
        self.bar.update(self.info.batch_size)
        if self.time_left.measured_seconds > MEASURED_SECONDS:
            self._estimate(step, step // self.info.steps_per_epoch)

    def _open_bar(self, step: int) -> None:
        assert self.info is not None
        epoch, done = divmod(step - 1, self.info.steps_per_epoch)
        self.bar = _Bar(
            total=self.info.steps_per_epoch * self.info.batch_size,
            initial=done * self.info.batch_size,
            desc=self.table.label(epoch + 1),
            bar_format="{desc} {bar} {percentage:3.0f} %{scores}{speed}",
            ascii="─━" if can_show("─━", screen()) else "-#",
            disable=not HAS_WIDGETS and not is_terminal(screen()),
            file=screen(),
            leave=False,
            dynamic_ncols=True,
            miniters=1,
        )
        self.bar.epoch, self.bar.time_left = epoch, self.time_left

    def _restart_bar(self, step: int) -> None:
        """Reuse the widget for an epoch: a notebook keeps a blank line for each widget that was closed."""
        assert self.bar is not None
        assert self.info is not None
        self.bar.epoch = (step - 1) // self.info.steps_per_epoch
        self.bar.set_description_str(self.table.label(self.bar.epoch + 1), refresh=False)
        self.bar.reset()

    def _estimate(self, step: int, epoch: int) -> None:
        """Log once how long the run takes, unless that is short."""
        if not self.has_estimate and (seconds := self.time_left.seconds(step, epoch)) is not None:
            self.has_estimate = True
            if seconds > SHORT_SECONDS:
                about, end = format_estimate(seconds), format_end(seconds)
                log.info("%s, done %s (measured, including evaluation)", about, end)

    def log(self, scalars: Scalars, *, step: int, epoch: int | None = None) -> None:
        """Show the scores in the bar, or after an epoch in a row of the table."""
        if epoch is not None:
            self._log_epoch(scalars, step, epoch)
        elif self.bar is not None:
            accuracy = f"  acc {100 * scalars['train/accuracy']:.1f} %"
            loss = f"  loss {scalars['train/loss']:.2f}"
            self.bar.scores = loss + accuracy if text_width(screen()) >= WIDTH_WITH_LOSS else accuracy

    def _log_epoch(self, scalars: Scalars, step: int, epoch: int) -> None:
        assert self.info is not None
        if not HAS_WIDGETS or epoch == self.info.epochs:
            self.close()
        self.time_left.end_epoch(scalars.get("timing/eval_seconds", 0.0))
        self._estimate(step, epoch)
        if not self.has_header:
            self.has_header = True
            if is_terminal(screen()):
                tqdm.write("", file=screen())
            log.info(self.table.header)
        left = self.time_left.seconds(step, epoch) if epoch < self.info.epochs else None
        log.info(self.table.row(epoch, scalars, left))

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class _Bar(tqdm):
    """A bar of one epoch whose time left is that of the whole run."""

    monitor_interval = 0  # no thread to watch the bar, because every step updates it
    step, epoch = 0, 0
    scores = ""
    time_left: TimeLeft | None = None

    @property
    def format_dict(self) -> dict[str, Any]:
        """Return the values from which tqdm formats the bar."""
        values = super().format_dict
        speed = f"{values['rate']:9,.0f}/s" if values["rate"] else ""
        if self.time_left is not None and (left := self.time_left.seconds(self.step, self.epoch)) is not None:
            speed += f"{format_clock(left):>9}"
        return {**values, "scores": self.scores, "speed": speed}
