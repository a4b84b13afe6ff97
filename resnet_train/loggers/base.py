"""The interface of all loggers, and their registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from resnet_train.records import RunInfo, Scalars
from resnet_train.registry import Registry, on_unload

CURVE_FOLDERS = ("train", "val", "test")  # the event files of each split
EVENTS = "events.out.tfevents.*"

EVENT_BYTES = 128  # at most, per point of a curve in TensorBoard
MAX_POINTS = 4000  # per curve over the steps in TensorBoard, which draws 1,000 of them
PICTURE_BYTES = 200_000  # about, for the pictures of a run


class Logger:
    """Take the scalars and pictures of a run; a subclass overrides what it needs.

    The order of calls is `start`, then `tick` and `log` as the run proceeds, then `close`.
    """

    def start(self, info: RunInfo) -> None:
        """Prepare for a run, which is resumed if `info.first_step` is not 0."""

    def tick(self, step: int) -> None:
        """Note that an optimizer step is done; called after each one, so it must cost almost nothing."""

    def log(self, scalars: Scalars, *, step: int, epoch: int | None = None) -> None:
        """Log scalars.

        Args:
            scalars: values by name; a name with a slash is a split and its metric, such as ``test/accuracy``.
            step: optimizer steps since the start of the run.
            epoch: finished epochs if the scalars describe the one that ends here; None within an epoch.
        """

    def log_picture(self, name: str, picture: np.ndarray, *, split: str, epoch: int) -> None:
        """Log a picture uint8 [H, W, 3] about a split after epoch `epoch`."""

    def flush(self) -> None:
        """Write everything that was logged to disk."""

    def close(self) -> None:
        """Release all resources; may be called more than once."""


BuildLogger = Callable[..., Logger | None]
LOGGERS: Registry[BuildLogger] = Registry("logger")
_FILES: dict[str, tuple[str, ...]] = {}  # by logger


def register_logger(name: str, files: Sequence[str] = ()) -> Callable[[BuildLogger], BuildLogger]:
    """Return a decorator that registers a subclass of `Logger`, or a function that returns a logger or None.

    It is called with the settings that its signature names, where `folder` is the run's folder. Loggers are called in
    the order in which they were registered.

    Args:
        files: what it writes to the run's folder, as patterns such as "log.jsonl" or "curves/*". A run that was killed
            before its first save may start again in a folder with such files.
    """

    def add(build: BuildLogger) -> BuildLogger:
        LOGGERS.register(name)(build)
        _FILES[name] = tuple(files)
        on_unload(partial(_FILES.pop, name))
        return build

    return add


def logger_files() -> list[str]:
    """Return the patterns of the files of all loggers."""
    return [pattern for patterns in _FILES.values() for pattern in patterns]
