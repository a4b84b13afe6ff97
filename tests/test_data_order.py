"""What a run sees, image by image, does not depend on where it was stopped: ids, augmentation parameters and pixels."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from torch import Tensor, nn

from resnet_train.data.augment import AlternatingFlip, Cutout, Normalize, RandomCrop, RandomErasing, Transform
from resnet_train.data.loader import Batch, BatchLoader
from resnet_train.data.mix import Mix
from resnet_train.data.plan import draw_plan
from resnet_train.data.trivial_augment import TrivialAugment
from resnet_train.loggers.base import Logger
from resnet_train.runs.checkpoint import read_checkpoint, write_checkpoint
from resnet_train.training.signals import Interrupted
from resnet_train.training.trainer import Trainer
from tests.conftest import SMALL, RunCli
from tests.harness.trainers import CPU, tiny_images, tiny_trainer

EPOCHS, STEPS_PER_EPOCH, BATCH_SIZE = 4, 6, 8
STEPS = EPOCHS * STEPS_PER_EPOCH
NUM_STOPS = 50


@dataclass
class Recorded:
    """A transform that notes the parameters each image is given."""

    inner: Transform
    rows: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stream, self.redraws = self.inner.stream, self.inner.redraws  # type: ignore[misc]

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray | None:
        return self.inner.draw(rng, num_images, epoch)

    def __call__(self, images: Tensor, parameters: Tensor | None) -> Tensor:
        self.rows += [b""] * len(images) if parameters is None else [row.numpy().tobytes() for row in parameters]
        return self.inner(images, parameters)


@dataclass
class ImageNumbers:
    """Changes nothing; its parameters are the images' own numbers, so it learns which images it is given."""

    stream: ClassVar[str] = "numbers"
    redraws: ClassVar[bool] = True

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray:
        return np.arange(num_images)

    def __call__(self, images: Tensor, parameters: Tensor | None) -> Tensor:
        return images


class SignalAfter(Logger):
    """Asks the trainer to stop after this many steps of its own."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step_done(self) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)


class FileSaver:
    """Saves the state to a file, as a run does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save_state(self, state: dict[str, object]) -> None:
        write_checkpoint(self.path, state)

    def save_best(self, *_: object) -> None:
        pass


class Linear(nn.Module):
    """Little work, so that fifty runs take a second."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


def recording_trainer(mix: Mix | None) -> tuple[Trainer, list[Recorded], list[bytes]]:
    """A trainer, its transforms with the parameters they were given so far, and the pixels it was trained on so far."""
    trainer = tiny_trainer(epochs=EPOCHS, model=Linear())
    images, labels = tiny_images(STEPS_PER_EPOCH * BATCH_SIZE)
    inner = [ImageNumbers(), TrivialAugment(), RandomCrop(1), AlternatingFlip(), Normalize((0.5,) * 3, (0.25,) * 3),
             Cutout(4, 8), RandomErasing(0.5, 8)]  # fmt: skip
    transforms = [Recorded(transform) for transform in inner]
    trainer.train_loader = BatchLoader(
        images,
        labels,
        batch_size=BATCH_SIZE,
        transforms=transforms,
        plan=partial(draw_plan, 3, num_images=len(labels), transforms=transforms, mix=mix),
        device=CPU,
        drop_last=True,
    )
    pixels: list[bytes] = []
    train_step = trainer.train_step

    def train_step_and_note(batch: Batch) -> None:
        for row in zip(*(tensor for tensor in batch if tensor is not None)):
            pixels.append(b"".join(part.contiguous().numpy().tobytes() for part in row))
        train_step(batch)

    trainer.train_step = train_step_and_note  # type: ignore[method-assign]
    return trainer, transforms, pixels


def rows_seen(transforms: list[Recorded], steps: int, mix: Mix | None) -> list[list[bytes]]:
    """For each transform, the parameters of the images of the first steps."""
    num = steps * BATCH_SIZE * (2 if mix else 1)  # the partners pass through the transforms, too
    assert all(len(transform.rows) >= num for transform in transforms)
    return [transform.rows[:num] for transform in transforms]


def test_random_stops_leave_the_sequence_of_images_and_parameters_as_it_was(tmp_path: Path) -> None:
    check_random_stops(5, Mix(0.4, 1.0, 8), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mix", [None, Mix(0.4, 1.0, 8)], ids=["plain", "mixed"])
def test_fifty_random_stops_leave_the_sequence_of_images_and_parameters_as_it_was(
    mix: Mix | None, tmp_path: Path
) -> None:
    check_random_stops(NUM_STOPS, mix, tmp_path)


def check_random_stops(num_stops: int, mix: Mix | None, folder: Path) -> None:
    """Trains once without a stop, and then in two parts for each of the stops."""
    whole, transforms, pixels = recording_trainer(mix)
    whole.fit()
    rows = rows_seen(transforms, STEPS, mix)
    per_epoch = STEPS_PER_EPOCH * BATCH_SIZE
    assert len(pixels) == EPOCHS * per_epoch
    if mix is None:
        numbers = [int.from_bytes(row, "little") for row in rows[0]]
        epochs = [numbers[start : start + per_epoch] for start in range(0, len(numbers), per_epoch)]
        assert [sorted(epoch) for epoch in epochs] == [list(range(per_epoch))] * EPOCHS
        assert len({tuple(epoch) for epoch in epochs}) == EPOCHS
    assert all(len(set(drawn)) > 1 for transform, drawn in zip(transforms, rows) if transform.stream != "normalize")

    draw = random.Random(11)
    for number in range(num_stops):
        stop = draw.randrange(1, STEPS)
        path = folder / f"{number}.pt"
        first, first_transforms, first_pixels = recording_trainer(mix)
        first.attach(SignalAfter(stop), FileSaver(path))
        with pytest.raises(Interrupted):
            first.fit()
        rest, rest_transforms, rest_pixels = recording_trainer(mix)
        rest.load_state_dict(read_checkpoint(path))
        assert rest.progress.step == stop
        rest.fit()
        parts = rows_seen(first_transforms, stop, mix), rows_seen(rest_transforms, STEPS - stop, mix)
        assert [before + after for before, after in zip(*parts)] == rows, stop
        assert first_pixels + rest_pixels == pixels, stop


# --- Through the command line ----------------------------------------------------------------------------------------

ARGUMENTS = [*SMALL, "--batch-size", "16", "--epochs", "3", "--no-tensorboard", "--trivial-augment", "--cutout", "4",
             "--cutmix", "1", "--mixup", "0.2", "--random-erasing", "0.5", "--flip", "alternating"]  # fmt: skip


def steps_of(
    *arguments: object, stop: int, run_cli: RunCli, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[bytes]]:
    """Runs the command, stopped after the step of this number (0: not); its exit code and every image it trained on."""
    seen: list[bytes] = []
    train_step = Trainer.train_step

    def note(trainer: Trainer, batch: Batch) -> None:
        for row in zip(*(tensor for tensor in batch if tensor is not None)):
            seen.append(b"".join(part.contiguous().numpy().tobytes() for part in row))
        train_step(trainer, batch)
        if trainer.progress.step == stop:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", note)
        outcome = run_cli("resnet-train", *ARGUMENTS, *arguments, cwd=cwd)
    return outcome.code, seen


@pytest.mark.slow
def test_fifty_random_stops_of_the_command_leave_every_pixel_it_trains_on_as_it_was(
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
