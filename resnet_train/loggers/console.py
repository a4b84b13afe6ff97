"""Progress on stderr: a live bar on a terminal, and one plain line an epoch everywhere."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress

from tqdm import tqdm

from resnet_train.loggers.base import Logger
from resnet_train.records import EpochRecord, EpochTiming, RunInfo, StepRecord
from resnet_train.runtime.duration import format_duration

log = logging.getLogger(__name__)

SAID_FIRST_SECONDS = 60  # a run that takes longer says so before it goes on


class BarHandler(logging.Handler):
    """Writes log lines to stderr above a live bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # the reader of a pipe has gone: the training, and train.log, go on
            if sys.stderr is not None:
                tqdm.write(self.format(record), file=sys.stderr)


class Console(Logger):
    """Bar and lines; says after the first batches how long the run will take."""

    def __init__(self, batch_size: int, device_name: str) -> None:
        self.batch_size, self.device_name = batch_size, device_name
        self.bar: tqdm | None = None
        self.info: RunInfo | None = None
        self.estimated = False
        self.timed_steps, self.start = 0, 0.0

    def run_started(self, info: RunInfo) -> None:
        self.info = info

    def epoch_started(self, epoch: int, first_step: int) -> None:
        assert self.info is not None
        self.bar = tqdm(
            total=self.info.steps_per_epoch * self.batch_size,
            initial=first_step * self.batch_size,
            desc=f"epoch {epoch}/{self.info.epochs}",
            unit=" images",
            unit_scale=True,
            disable=sys.stderr is None or not sys.stderr.isatty(),
            leave=False,
            dynamic_ncols=True,
        )
        self.timed_steps = 0

    def step_done(self) -> None:
        assert self.bar is not None
        self.bar.update(self.batch_size)
        if self.timed_steps == 0:  # the first step warms caches up and is not timed
            self.start = time.perf_counter()
        self.timed_steps += 1

    def step_read(self, record: StepRecord) -> None:
        assert self.bar is not None
        self.bar.set_postfix(loss=f"{record.mean_loss:.3f}", accuracy=f"{record.accuracy:.1%}", lr=f"{record.lr:.3g}")
        if not self.estimated and self.timed_steps > 1:
            self._say_how_long(record.step)

    def _say_how_long(self, step: int) -> None:
        assert self.info is not None
        self.estimated = True
        step_seconds = (time.perf_counter() - self.start) / (self.timed_steps - 1)
        left = (self.info.epochs * self.info.steps_per_epoch - step) * step_seconds
        if left > SAID_FIRST_SECONDS:
            rate = self.batch_size / step_seconds
            log.info("training will take about %s: %.0f images/s on %s", format_duration(left), rate, self.device_name)

    def epoch_done(self, record: EpochRecord, timing: EpochTiming) -> None:
        assert self.info is not None
        self.close()
        parts = [f"epoch {record.epoch:>{len(str(self.info.epochs))}}/{self.info.epochs}"]
        parts.append(f"train loss {record.train_loss:.4f} accuracy {record.train_accuracy:.2%}")
        if record.val_accuracy is not None:
            parts.append(f"val loss {record.val_loss:.4f} accuracy {record.val_accuracy:.2%}")
        if record.test_accuracy is not None:
            parts.append(f"test loss {record.test_loss:.4f} accuracy {record.test_accuracy:.2%}")
        parts.append(f"{timing.images_per_second:.0f} images/s")
        log.info("  ".join(parts))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
