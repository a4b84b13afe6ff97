"""The interface of all loggers."""

from __future__ import annotations

import numpy as np

from resnet_train.records import RunInfo, Scalars

EVENT_BYTES = 128  # at most, of one point of a curve in TensorBoard
MAX_POINTS = 4000  # of a curve over the steps in TensorBoard, which draws 1,000 of them
PICTURE_BYTES = 200_000  # about, of the pictures of a run


class Logger:
    """Take the scalars and pictures of a run; a subclass overrides what it needs.

    The order of calls is `start`, then `tick` and `log` as the run proceeds, then `close`.
    """

    def start(self, info: RunInfo) -> None:
        """Prepare for a run, which is resumed if `info.first_step` is not 0."""

    def tick(self, step: int) -> None:
        """Note that an optimizer step is done; called after each one, so it must cost nothing."""

    def log(self, scalars: Scalars, *, step: int, epoch: int | None = None) -> None:
        """Log scalars.

        Args:
            scalars: values by name; a name with a slash is a split and its metric, as ``test/accuracy``.
            step: optimizer steps since the start of the run.
            epoch: finished epochs if the scalars describe the one that ends here; None within an epoch.
        """

    def log_picture(self, name: str, picture: np.ndarray, *, split: str, epoch: int) -> None:
        """Log a picture uint8 [H, W, 3] about a split after epoch `epoch`."""

    def flush(self) -> None:
        """Write everything that was logged to disk."""

    def close(self) -> None:
        """Release all resources; may be called more than once."""
