"""The first logger of a run: it stops the run before the others write into a folder that was moved or replaced."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from resnet_train.loggers.base import Logger
from resnet_train.records import RunInfo, Scalars


class Guard(Logger):
    """Call `check`, which raises if the folder must not be written to, before each write of the loggers after it."""

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check

    def start(self, info: RunInfo) -> None:
        """Check."""
        self.check()

    def log(self, scalars: Scalars, *, step: int, epoch: int | None = None) -> None:
        """Check."""
        self.check()

    def log_picture(self, name: str, picture: np.ndarray, *, split: str, epoch: int) -> None:
        """Check."""
        self.check()

    def flush(self) -> None:
        """Check."""
        self.check()
