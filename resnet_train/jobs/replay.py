"""Retrain from one saved state to the next, to compare the results."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from resnet_train.loggers.base import Logger
from resnet_train.loggers.events import Points, find_curve
from resnet_train.records import Calibration, EpochRecord, Scalars
from resnet_train.runs.bitwise import Difference
from resnet_train.runs.checkpoint import RunCheckpoint
from resnet_train.training.signals import Interrupted
from resnet_train.training.trainer import NotFinite, Trainer


class Replay(Logger):
    """The logger and saver of a trainer that retrains up to a saved state. It writes nothing.

    Attributes:
        is_reached: whether the trainer has reached the state.
        points: what was logged within epochs, as TensorBoard shows it.
        best_weights, best_epoch: the last model that was the best one so far, and its epoch.
    """

    def __init__(self, trainer: Trainer, state: RunCheckpoint) -> None:
        self.trainer, self.state, self.is_reached = trainer, state, False
        self.points: Points = {}
        self.best_weights: dict[str, Tensor] = {}
        self.best_epoch = 0

    def tick(self, step: int) -> None:
        """Stop after this step, as a signal does, if the state was saved within an epoch or its evaluation."""
        if step == self.state.step and self.state.steps_after_epoch:
            self.is_reached, self.trainer.signals.stop = True, -1

    def log(self, scalars: Scalars, *, step: int, epoch: int | None = None) -> None:
        """Collect the points; stop after the epoch that the state ends with."""
        if epoch is None:
            curves = ((find_curve(name, within_epoch=True), value) for name, value in scalars.items())
            self.points |= {(*curve, step): value for curve, value in curves if curve is not None}
        elif epoch == self.state.epoch and not self.state.steps_after_epoch:
            self.is_reached = True
            raise Interrupted(-1, "")

    def save_state(self, state: Any) -> None:
        """Save nothing."""

    def save_best(
        self, weights: dict[str, Tensor], split: str, record: EpochRecord, calibration: Calibration | None
    ) -> None:
        """Keep a copy of the best model."""
        self.best_weights, self.best_epoch = {name: value.clone() for name, value in weights.items()}, record.epoch


def train_again(trainer: Trainer, previous: RunCheckpoint | None, last: RunCheckpoint) -> Replay:
    """Train from a state, or from step 0, to where another one was saved; the trainer then has that state.

    Args:
        trainer: a new trainer with the settings of `last`, which are those of the process that trained this stretch.

    Raises:
        Difference: the states can't be those of one run.
        Interrupted: by a signal.
    """
    if previous is not None:
        try:
            trainer.load_state(previous)
        except (KeyError, TypeError, IndexError, ValueError, RuntimeError) as error:
            raise Difference(f"previous.pt: {' '.join(str(error).split())[:200]}") from None
    replay = Replay(trainer, last)
    trainer.attach([replay], replay, "the verification was stopped")
    if previous is not None and (previous.epoch, previous.step) == (last.epoch, last.step):
        return replay
    try:
        trainer.fit()
    except Interrupted:
        if not replay.is_reached:
            raise
    except NotFinite as error:
        raise Difference(f"the replay: {error}") from None
    if not replay.is_reached:
        raise Difference(f"last.pt: the replay does not reach step {last.step} of epoch {last.epoch}")
    return replay
