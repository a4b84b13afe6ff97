"""Everything a trainer needs to continue exactly where it stopped, as one typed structure."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from resnet_train.optim.ema import AverageState
from resnet_train.records import EpochRecord
from resnet_train.training.sums import RunningSums

SumsRow = Annotated[list[float], Field(min_length=len(RunningSums.NAMES), max_length=len(RunningSums.NAMES))]


@dataclass(kw_only=True)
class Progress:
    """How far a run has come.

    Attributes:
        epoch: finished epochs.
        step: optimizer steps since the start.
        history: a record for each finished epoch.
        best_epoch, best_accuracy: the first epoch that reached the highest accuracy on the split that chooses.
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
        optimizer, scaler: theirs; the scaler's is empty unless training in float16.
        averaged: the averaged weights, if averaging is on.
        sums: one row of `RunningSums` per rank.
        epoch_seconds: training time of the running epoch so far.
        epoch, step, history, best_epoch, best_accuracy: see `Progress`.
    """

    model: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    averaged: AverageState | None
    epoch: int = Field(ge=0)
    step: int = Field(ge=0)
    sums: list[SumsRow] = Field(min_length=1)
    epoch_seconds: float
    history: list[EpochRecord]
    best_epoch: int
    best_accuracy: float

    @property
    def progress(self) -> Progress:
        """Return the part that says how far the run has come."""
        values = {field.name: getattr(self, field.name) for field in fields(Progress)}
        return Progress(**{**values, "history": list(self.history)})

    @property
    def weights(self) -> dict[str, Any]:
        """Return the weights to evaluate: the averaged ones if averaging is on."""
        return self.averaged.model if self.averaged else self.model

    @model_validator(mode="after")
    def _check_history(self) -> Self:
        if [record.epoch for record in self.history] != list(range(1, self.epoch + 1)):
            raise ValueError(f"the history does not hold the {self.epoch} finished epochs")
        return self
