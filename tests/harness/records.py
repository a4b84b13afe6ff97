"""Records for the tests of loggers and results."""

from __future__ import annotations

from typing import Any

from resnet_train.evaluation.metrics import METRICS
from resnet_train.records import EpochRecord, EpochTiming, RunInfo, Scalars

TIMING = EpochTiming(train_seconds=1.0, eval_seconds=0.5, images_per_second=123.4, peak_memory_bytes=None)
TRAIN_NAMES = ("lr", "train/loss", "train/accuracy", "grad_norm")
SCALAR_NAMES = (*TRAIN_NAMES, *(f"{split}/{name}" for split in ("val", "test") for name in METRICS.names()))


def make_info(**values: Any) -> RunInfo:
    """Return the description of a run of 3 epochs of 2 steps, with some values changed."""
    defaults = {
        "name": "x",
        "title": "tiny",
        "config": {"lr": 0.1, "arch": "resnet8"},
        "device": "cpu (2 threads)",
        "epochs": 3,
        "steps_per_epoch": 2,
        "batch_size": 32,
        "splits": ("train", "val", "test"),
        "scalar_names": SCALAR_NAMES,
    }
    return RunInfo(**{**defaults, **values})


def make_record(epoch: int, *, steps_per_epoch: int = 2, **splits: tuple[float, float]) -> EpochRecord:
    """Return the record of an epoch from a (loss, accuracy) pair for each split."""
    scores = {split: {"loss": loss, "accuracy": accuracy} for split, (loss, accuracy) in splits.items()}
    return EpochRecord(epoch=epoch, step=steps_per_epoch * epoch, lr=0.1, grad_norm=1.0, scores=scores)


def epoch_scalars(record: EpochRecord, timing: EpochTiming = TIMING) -> Scalars:
    """Return what the trainer logs after an epoch."""
    return {**record.scalars(), **timing.scalars()}


def step_scalars(loss: float = 2.0, *, mean_loss: float = 2.1, accuracy: float = 0.25) -> Scalars:
    """Return what the trainer logs within an epoch."""
    return {"loss": loss, "grad_norm": 1.0, "lr": 0.1, "train/loss": mean_loss, "train/accuracy": accuracy}
