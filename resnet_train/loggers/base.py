"""What every logger can be told; it overrides what it wants to hear."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import torch

from resnet_train.records import EpochRecord, EpochTiming, RunInfo, RunResult, StepRecord


class Logger:
    """Takes records, nothing more."""

    def run_started(self, info: RunInfo) -> None:
        """Before the first step of a run, or of its continuation."""

    def batch_seen(self, images: torch.Tensor) -> None:
        """The first batch of a run, float [B, 3, H, W] on a 0–1 scale, as the network sees it."""

    def epoch_started(self, epoch: int, first_step: int) -> None:
        """Before an epoch (counted from 1); `first_step` of its steps are done already."""

    def step_done(self) -> None:
        """After every optimizer step; must cost nothing."""

    def step_read(self, record: StepRecord) -> None:
        """Every `log_every` steps."""

    def epoch_done(self, record: EpochRecord, timing: EpochTiming) -> None:
        """After an epoch was evaluated, before it is saved."""

    def flush(self) -> None:
        """Everything told so far must be on its way to the disk."""

    def run_done(self, result: RunResult) -> None:
        """After the last epoch."""

    def close(self) -> None:
        """Nothing will be told any more."""


class LoggerList(Logger):
    """Tells several loggers the same; a context manager that closes them."""

    def __init__(self, loggers: list[Logger]) -> None:
        self.loggers = loggers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run_started(self, info: RunInfo) -> None:
        for logger in self.loggers:
            logger.run_started(info)

    def batch_seen(self, images: torch.Tensor) -> None:
        for logger in self.loggers:
            logger.batch_seen(images)

    def epoch_started(self, epoch: int, first_step: int) -> None:
        for logger in self.loggers:
            logger.epoch_started(epoch, first_step)

    def step_done(self) -> None:
        for logger in self.loggers:
            logger.step_done()

    def step_read(self, record: StepRecord) -> None:
        for logger in self.loggers:
            logger.step_read(record)

    def epoch_done(self, record: EpochRecord, timing: EpochTiming) -> None:
        for logger in self.loggers:
            logger.epoch_done(record, timing)

    def flush(self) -> None:
        for logger in self.loggers:
            logger.flush()

    def run_done(self, result: RunResult) -> None:
        for logger in self.loggers:
            logger.run_done(result)

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()
