"""What a run tells about itself: plain records, made by the trainer, taken by loggers and reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RunInfo:
    """What is known before the first step."""

    name: str
    title: str  # of the data set
    config: dict[str, Any]
    epochs: int
    steps_per_epoch: int
    first_step: int = 0  # > 0: the run is resumed there


@dataclass(frozen=True)
class StepRecord:
    """One read of the running training, every `log_every` steps."""

    epoch: int  # the one that is running, from 1
    step: int  # optimizer steps since the start
    lr: float
    loss: float  # of the last batch
    mean_loss: float  # since the epoch began
    accuracy: float  # since the epoch began, 0–1
    grad_norm: float  # of the last batch, before clipping


@dataclass(frozen=True)
class EpochRecord:
    """A row of metrics.csv: a function of config and seed alone, so no times in it. Accuracies are 0–1.

    The training numbers are those of the training itself: on augmented images, with weights that change from step to
    step, and with label smoothing and mixing in the loss. The others are plain cross-entropy on plain images.
    """

    epoch: int  # finished epochs
    step: int
    lr: float  # of the epoch's last step
    train_loss: float
    train_accuracy: float
    grad_norm: float  # mean over the epoch's steps
    val_loss: float | None = None
    val_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None

    def to_plain(self) -> dict[str, Any]:
        """Its values by name, for checkpoints."""
        return asdict(self)


@dataclass(frozen=True)
class EpochTiming:
    """A row of timing.csv."""

    epoch: int
    step: int
    train_seconds: float
    eval_seconds: float
    images_per_second: float
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Evaluation:
    """How well a model does on a set of images.

    Attributes:
        loss: mean cross-entropy, without label smoothing.
        top5: share of images whose class is among the five likeliest, None with fewer than six classes.
        confusion: int64 [C, C], images of class row that were taken for class column.
    """

    loss: float
    top5: float | None
    confusion: np.ndarray

    @property
    def n(self) -> int:
        """The number of images."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of images whose likeliest class is theirs."""
        return float(np.trace(self.confusion) / self.n)


@dataclass(frozen=True)
class RunResult:
    """What a finished run came to: the final epoch, and the best one with the split it was chosen on."""

    name: str
    title: str
    arch: str
    seed: int
    epochs: int
    folder: str
    final: EpochRecord
    best_split: str
    best_epoch: int
    best_accuracy: float
