"""The images that a run trains on, pixel by pixel, do not depend on where it was stopped and resumed."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from resnet_train.data.batch import Batch
from resnet_train.data.plan import draw_plan
from resnet_train.training.signals import Interrupted
from resnet_train.training.trainer import Trainer
from tests.harness.cli import SMALL, RunCli
from tests.harness.trainers import tiny_trainer

EPOCHS, STEPS_PER_EPOCH, BATCH_SIZE = 3, 6, 8
STEPS = EPOCHS * STEPS_PER_EPOCH
NUM_STOPS = 50
AUGMENTED = {
    "trivial_augment": True,
    "flip": "alternating",
    "cutout": 4,
    "random_erasing": 0.5,
    "mixup": 0.4,
    "cutmix": 1.0,
}


class StateKeeper:
    """Keep the last saved state."""

    def save_state(self, state: Any) -> None:
        self.state = deepcopy(state)

    def save_best(self, *_: object) -> None:
        pass


class Linear(nn.Module):
    """A network that costs little, so that fifty runs take a second."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


def rows_of(batch: Batch) -> Iterator[bytes]:
    """Yield the image, label, partner's label and weight of each image as bytes."""
    for row in zip(*(tensor for tensor in batch if tensor is not None)):
        yield b"".join(part.contiguous().numpy().tobytes() for part in row)


def recording_trainer(
    stop: int = 0, saver: StateKeeper | None = None, **settings: object
) -> tuple[Trainer, list[bytes]]:
    """Return a trainer that SIGTERM stops after `stop` steps (0: never), and the rows it has trained on so far."""
    trainer = tiny_trainer(model=Linear(), saver=saver, **{"epochs": EPOCHS, "seed": 3, **AUGMENTED, **settings})
    rows: list[bytes] = []
    train_step = trainer.train_step

    def train_step_and_record(batch: Batch) -> None:
        rows.extend(rows_of(batch))
        train_step(batch)
        if stop and trainer.progress.step == stop:
            signal.raise_signal(signal.SIGTERM)

    trainer.train_step = train_step_and_record  # type: ignore[method-assign]
    return trainer, rows


def test_random_stops_leave_every_pixel_as_it_was() -> None:
    check_random_stops(3)


@pytest.mark.slow
@pytest.mark.parametrize("mix", [{}, {"mixup": 0, "cutmix": 0}], ids=["mixed", "plain"])
def test_fifty_random_stops_leave_every_pixel_as_it_was(mix: dict[str, object]) -> None:
    check_random_stops(NUM_STOPS, **mix)


def check_random_stops(num_stops: int, **settings: object) -> None:
    """Train once without a stop, and then in two parts for each of the stops."""
    whole, expected = recording_trainer(**settings)
    whole.fit()
    assert len(set(expected)) == len(expected) == STEPS * BATCH_SIZE

    draw = random.Random(11)
    for _ in range(num_stops):
        stop, saver = draw.randrange(1, STEPS), StateKeeper()
        first, rows = recording_trainer(stop, saver, **settings)
        with pytest.raises(Interrupted):
            first.fit()
        rest, remaining_rows = recording_trainer(**settings)
        rest.load_state(saver.state)
        assert rest.progress.step == stop
        rest.fit()
        assert rows + remaining_rows == expected, stop


def test_the_seed_of_the_run_decides_every_draw() -> None:
    plans = [tiny_trainer(seed=seed, **AUGMENTED).train_loader.plan(1) for seed in (3, 3, 4)]
    orders = [plan.order.tolist() for plan in plans]
    assert orders[0] == orders[1] == draw_plan(3, 1, 48, ()).order.tolist() != orders[2]
    assert list(plans[0].parameters) == ["trivial-augment", "crop", "flip", "cutout", "random-erasing"]
    for stream, rows in plans[0].parameters.items():
        assert np.array_equal(rows, plans[1].parameters[stream]), stream
        assert not np.array_equal(rows, plans[2].parameters[stream]), stream


# --- Through the command line ----------------------------------------------------------------------------------------

ARGUMENTS = [*SMALL, "--batch-size", "16", "--epochs", "3", "--no-tensorboard", "--trivial-augment", "--cutout", "4",
             "--cutmix", "1", "--mixup", "0.2", "--random-erasing", "0.5", "--flip", "alternating"]  # fmt: skip


def steps_of(
    *arguments: object, stop: int, run_cli: RunCli, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[bytes]]:
    """Run the command, stopped after `stop` steps (0: never); return its exit code and the rows it trained on."""
    seen: list[bytes] = []
    train_step = Trainer.train_step

    def record(trainer: Trainer, batch: Batch) -> None:
        seen.extend(rows_of(batch))
        train_step(trainer, batch)
        if trainer.progress.step == stop:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", record)
        outcome = run_cli("resnet-train", *ARGUMENTS, *arguments, cwd=cwd)
    return outcome.code, seen


@pytest.mark.slow
def test_fifty_stops_of_the_command_leave_every_pixel(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = partial(steps_of, run_cli=run_cli, cwd=tmp_path, monkeypatch=monkeypatch)
    code, whole = run("--name", "whole", stop=0)
    assert (code, len(whole)) == (0, 3 * 64)
    assert len(set(whole)) > 100
    draw = random.Random(12)
    for number in range(NUM_STOPS):
        stop = draw.randrange(1, 12)
        code, before = run("--name", f"stopped-{number}", stop=stop)
        assert (code, len(before)) == (130, 16 * stop)
        code, after = run("--name", f"stopped-{number}", "--resume", "auto", stop=0)
        assert code == 0
        assert before + after == whole, stop
