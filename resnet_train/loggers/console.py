"""Progress on stderr: a live bar on a terminal, and one plain line per epoch everywhere."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress

from tqdm import tqdm

from resnet_train.loggers.base import Logger
from resnet_train.records import RunInfo, Scalars
from resnet_train.runtime.duration import format_duration

log = logging.getLogger(__name__)

SHOWN_METRICS = ("loss", "accuracy")
LONG_RUN_SECONDS = 60  # longer runs are announced with an estimate


class BarHandler(logging.Handler):
    """Write log lines to stderr, above the live bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        with suppress(OSError):  # the reader of the pipe is gone; training and train.log continue
            if sys.stderr is not None:
                tqdm.write(self.format(record), file=sys.stderr)


class Console(Logger):
    """Show a bar and lines, and estimate after the first steps how long a run will take."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.info: RunInfo | None = None
        self.estimated = False
        self.num_timed_steps, self.start_time = 0, 0.0

    def start(self, info: RunInfo) -> None:
        """Remember the extent of the run."""
        self.info = info

    def tick(self, step: int) -> None:
        """Advance the bar; open it at the first step of an epoch."""
        assert self.info is not None
        if self.bar is None:
            self._open_bar(step)
            self.num_timed_steps = 0
        assert self.bar is not None
        self.bar.update(self.info.batch_size)
        if self.num_timed_steps == 0:  # the first step warms up caches and is not timed
            self.start_time = time.perf_counter()
        self.num_timed_steps += 1

    def _open_bar(self, step: int) -> None:
        assert self.info is not None
        epoch, done = divmod(step - 1, self.info.steps_per_epoch)
        self.bar = tqdm(
            total=self.info.steps_per_epoch * self.info.batch_size,
            initial=done * self.info.batch_size,
            desc=f"epoch {epoch + 1}/{self.info.epochs}",
            unit=" images",
            unit_scale=True,
            disable=sys.stderr is None or not sys.stderr.isatty(),
            leave=False,
            dynamic_ncols=True,
        )

    def log(self, scalars: Scalars, *, step: int, epoch: int | None = None) -> None:
        """Show the scores in the bar, or after an epoch in a line that stays."""
        if epoch is not None:
            self._log_epoch(scalars, epoch)
            return

        # Within an epoch: the bar, and once the estimate.
        if self.bar is not None:
            self.bar.set_postfix_str("  ".join([*_describe_scores(scalars), f"lr {scalars['lr']:.3g}"]))
        if not self.estimated and self.num_timed_steps > 1:
            self._estimate(step)

    def _estimate(self, step: int) -> None:
        assert self.info is not None
        # The first step is not among the timed ones.
        self.estimated = True
        step_seconds = (time.perf_counter() - self.start_time) / (self.num_timed_steps - 1)
        left = (self.info.epochs * self.info.steps_per_epoch - step) * step_seconds
        if left > LONG_RUN_SECONDS:
            rate = self.info.batch_size / step_seconds
            log.info("training will take about %s: %.0f images/s on %s", format_duration(left), rate, self.info.device)

    def _log_epoch(self, scalars: Scalars, epoch: int) -> None:
        assert self.info is not None
        self.close()
        head = f"epoch {epoch:>{len(str(self.info.epochs))}}/{self.info.epochs}"
        rate = f"{scalars['timing/images_per_second']:.0f} images/s"
        log.info("  ".join([head, *_describe_scores(scalars), rate]))

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _describe_scores(scalars: Scalars) -> list[str]:
    """Return one text for each split, as ``test loss 0.8000 accuracy 70.00%``."""
    splits: dict[str, list[str]] = {}
    for name, value in scalars.items():
        split, slash, metric = name.partition("/")
        if slash and metric in SHOWN_METRICS:
            shown = f"{value:.2%}" if metric == "accuracy" else f"{value:.4f}"
            splits.setdefault(split, [split]).append(f"{metric} {shown}")
    return [" ".join(parts) for parts in splits.values()]
