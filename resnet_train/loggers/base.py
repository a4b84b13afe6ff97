"""The interface of all loggers."""

from __future__ import annotations

import torch

from resnet_train.records import RunInfo, Scalars

EVENT_BYTES = 128  # at most, of one point of a curve in TensorBoard
NUM_SHOWN_IMAGES = 64


class Logger:
    """Take the scalars and images of a run; a subclass overrides what it needs.

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

    def log_images(self, name: str, images: torch.Tensor, *, step: int) -> None:
        """Log images float [B, 3, H, W] on a 0–1 scale."""

    def flush(self) -> None:
        """Write everything that was logged to disk."""

    def close(self) -> None:
        """Release all resources; may be called more than once."""
