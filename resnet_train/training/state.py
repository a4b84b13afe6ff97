"""Everything a trainer needs to continue exactly where it stopped, as one typed structure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, StrictFloat, model_validator

from resnet_train.evaluation.metrics import SHARES
from resnet_train.optim.ema import AverageState
from resnet_train.records import Calibration, EpochRecord
from resnet_train.training.sums import ROUNDING, TRAIN_METRICS, RunningSums

MAX_SECONDS = 1e9  # per epoch; 30 years
SumsRow = Annotated[list[StrictFloat], Field(min_length=len(RunningSums.NAMES), max_length=len(RunningSums.NAMES))]


@dataclass(kw_only=True)
class Progress:
    """How far a run has come.

    Attributes:
        epoch: finished epochs.
        step: optimizer steps since the start.
        history: a record for each finished epoch.
        best_epoch, best_accuracy: the first epoch that reached the highest accuracy on the split that selects.
    """

    epoch: int = 0
    step: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    best_accuracy: float = -1.0

    def add(self, record: EpochRecord, best_split: str) -> None:
        """Append a finished epoch. A later epoch must exceed the best accuracy to replace it; a tie does not."""
        self.epoch = record.epoch
        self.history.append(record)
        accuracy = record.scores.get(best_split, {}).get("accuracy")
        if accuracy is not None and accuracy > self.best_accuracy:
            self.best_epoch, self.best_accuracy = record.epoch, accuracy


class TrainerState(BaseModel):
    """The state of a trainer: tensors and primitives only.

    Attributes:
        model: the network's `state_dict`.
        optimizer, scaler: their `state_dict`; the scaler's is empty unless training in float16.
        averaged: the averaged weights, if averaging is on.
        sums: one row of `RunningSums` per rank.
        epoch_seconds: training time of the current epoch so far.
        calibration: that of the model, if it was just evaluated on validation images.
        epoch, step, history, best_epoch, best_accuracy: see `Progress`.
    """

    model: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    averaged: AverageState | None
    epoch: int = Field(ge=0, strict=True)
    step: int = Field(ge=0, strict=True)
    sums: list[SumsRow] = Field(min_length=1)
    epoch_seconds: float = Field(ge=0, le=MAX_SECONDS, strict=True)
    calibration: Calibration | None = None
    history: list[EpochRecord]
    best_epoch: int = Field(ge=0, strict=True)
    best_accuracy: float = Field(ge=-1, le=1, strict=True)

    @property
    def progress(self) -> Progress:
        """Return how far the run has come."""
        values = {field.name: getattr(self, field.name) for field in fields(Progress)}
        return Progress(**{**values, "history": list(self.history)})

    @property
    def weights(self) -> dict[str, Any]:
        """Return the weights to evaluate: the averaged ones if averaging is on."""
        return self.averaged.model if self.averaged else self.model

    @model_validator(mode="after")
    def _check_history(self) -> Self:
        epochs = [record.epoch for record in self.history]
        if self.epoch != len(epochs) or epochs != list(range(1, len(epochs) + 1)):
            raise ValueError(f"the history does not hold the {self.epoch} finished epochs")
        for number, record in enumerate(self.history):
            if record.step != record.epoch * self.history[0].step or not 0 < record.step <= self.step:
                raise ValueError(f"history.{number}.step (={record.step}) does not fit step (={self.step})")
            if missing := set(TRAIN_METRICS) - record.scores.get("train", {}).keys():
                raise ValueError(f"history.{number}.scores.train has no {min(missing)}")

            # Only the loss of an evaluation may be infinite or NaN: that of training ends the run.
            values = {"lr": record.lr, "grad_norm": record.grad_norm, "train loss": record.scores["train"]["loss"]}
            shares = {
                f"{split} {name}": row[name] for split, row in record.scores.items() for name in SHARES if name in row
            }
            for name, value in (values | shares).items():
                if not 0 <= value < math.inf or (name in shares and value > 1 + ROUNDING):
                    raise ValueError(f"history.{number}: {name} (={value}) is out of range")

        # The best epoch is a function of the history.
        best, split = Progress(), "val" if any("val" in record.scores for record in self.history) else "test"
        for record in self.history:
            best.add(record, split)
        for name in ("best_epoch", "best_accuracy"):
            value, expected = getattr(self, name), getattr(best, name)
            if value != expected:
                raise ValueError(f"{name} (={value}) must be {expected}, as in the history")
        return self
