"""Curves for TensorBoard; without it, the event files of an earlier start are cut to the checkpoint."""

from __future__ import annotations

from pathlib import Path

from resnet_train.loggers.base import CURVE_FOLDERS, EVENTS, Logger, register_logger


@register_logger("tensorboard", files=(EVENTS, *(f"{split}/{EVENTS}" for split in CURVE_FOLDERS)))
def curves(folder: Path, tensorboard: bool) -> Logger | None:
    """Write TensorBoard's event files if `tensorboard` is set."""
    if tensorboard:
        from resnet_train.loggers.tensorboard import TensorBoard  # takes 1 s to import

        return TensorBoard(folder)
    if any(folder.glob("events.*")):
        from resnet_train.loggers.events import EventCut  # takes 1 s to import

        return EventCut(folder)
    return None
