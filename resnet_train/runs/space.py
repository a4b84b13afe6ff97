"""The disk space that a run takes."""

from __future__ import annotations

import logging
import shutil

from resnet_train.config import TrainConfig
from resnet_train.loggers.base import EVENT_BYTES, MAX_POINTS, PICTURE_BYTES
from resnet_train.runs.checkpoint import count_bytes
from resnet_train.runs.folder import RunFolder
from resnet_train.training.trainer import Trainer, list_scalars

log = logging.getLogger(__name__)

NUM_STATES = 3  # last.pt, previous.pt, and the one being written
NUM_MODELS = 2  # the best one, and the final one or the one waiting to become the best
MAX_BUFFERS = 2  # copies of the weights that an optimizer keeps: one for momentum, two for Adam
CELL_BYTES = 24  # per value in metrics.csv
LINE_BYTES = 256  # per row of timing.csv and line of train.log


def warn_if_nearly_full(folder: RunFolder, config: TrainConfig, trainer: Trainer) -> None:
    """Warn if the disk has no room for the files that the run has yet to write."""
    present = sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file())
    needed, free = count_run_bytes(config, trainer) - present, shutil.disk_usage(folder.path).free
    if free < needed:
        log.warning(
            "%s has %.1f MB free, and the files of a run take up to %.1f MB more: make room, or choose another "
            "--output-dir",
            folder.path,
            free / 1e6,
            needed / 1e6,
        )


def count_run_bytes(config: TrainConfig, trainer: Trainer) -> int:
    """Return about how many bytes all files of a run take at most, from the first checkpoint to the last row."""
    # Checkpoints: three states, and the best and the final model.
    model_bytes = count_bytes(trainer.eval_model.state_dict())
    averaged = trainer.averaged.model.state_dict() if trainer.averaged else {}
    state_bytes = count_bytes([trainer.model.state_dict(), averaged]) + MAX_BUFFERS * count_bytes(trainer.parameters)

    # Curves: the rows of both CSV files and a line of the log per epoch; the events of both kinds of points.
    num_scalars = len(list_scalars())
    num_logs = min(MAX_POINTS, config.epochs * len(trainer.train_loader) // config.log_every)
    text_bytes = config.epochs * (CELL_BYTES * num_scalars + LINE_BYTES)
    event_bytes = EVENT_BYTES * (num_scalars * (config.epochs + num_logs) + 4 * config.epochs) + PICTURE_BYTES
    curves = text_bytes + (event_bytes if config.tensorboard else 0)
    return NUM_STATES * state_bytes + NUM_MODELS * model_bytes + curves
