"""Which epoch becomes the best model, and what is never taken for a result: numbers that are not finite."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnet_train.training.trainer import NotFinite
from tests.harness.trainers import NUM_CLASSES, assert_same_tensors, tiny_trainer

VAL_SIZE = 12


class Scripted(nn.Module):
    """A linear network that classifies a scripted share of the images correctly in each evaluation.

    Args:
        shares: for a number of images evaluated at once, the share for each evaluation of a split of that size.
    """

    def __init__(self, shares: dict[int, list[float]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * 8 * 8, NUM_CLASSES)
        self.shares = copy.deepcopy(shares)
        self.evaluated: list[torch.Tensor] = []  # the weights at each evaluation

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.linear(images.flatten(1))
        self.evaluated.append(self.linear.weight.detach().clone())
        share = self.shares[len(images)].pop(0)
        brightness = ((images * 0.25 + 0.5) * 255).mean((1, 2, 3))  # of class c between 80 c and 80 c + 80
        logits = 5.0 * F.one_hot((brightness // 80).long(), NUM_CLASSES)
        num_right = 0 if math.isnan(share) else round(share * len(images))
        logits[num_right:] = logits[num_right:].roll(1, 1)
        return logits * (share if math.isnan(share) else 1.0)


class KeptFiles:
    """Keep copies of what is saved, and the split and epoch of the best model."""

    def __init__(self) -> None:
        self.states, self.best, self.best_weights = [], [], []

    def save_state(self, state) -> None:
        self.states.append(copy.deepcopy(state))

    def save_best(self, weights, split, record, calibration) -> None:
        self.best.append((split, record.epoch))
        self.best_weights.append(weights["linear.weight"].clone())


def train(model, **settings):
    """Train as many epochs as are scripted for the test images; return the trainer and what it saved."""
    saver = KeptFiles()
    epochs = settings.pop("epochs", len(model.shares[48]))
    trainer = tiny_trainer(model=model, saver=saver, epochs=epochs, **settings)
    trainer.fit()
    return trainer, saver


def test_only_a_better_epoch_replaces_the_best_model():
    model = Scripted({48: [0.5, 0.75, 0.5, 0.625, 0.25]})
    trainer, saver = train(model)
    assert saver.best == [("test", 1), ("test", 2)]
    assert_same_tensors(saver.best_weights, model.evaluated[:2])
    assert (trainer.progress.best_epoch, trainer.progress.best_accuracy) == (2, 0.75)


def test_of_equal_epochs_the_earlier_one_stays_the_best():
    trainer, saver = train(Scripted({48: [0.5, 0.75, 0.75, 0.75]}))
    assert saver.best == [("test", 1), ("test", 2)]
    assert trainer.progress.best_epoch == 2


def test_the_validation_split_chooses_whatever_the_test_says():
    model = Scripted({48: [0.9, 0.8, 0.25, 1.0], VAL_SIZE: [0.25, 0.5, 0.75, 0.5]})
    trainer, saver = train(model, val_size=VAL_SIZE)
    assert saver.best == [("val", 1), ("val", 2), ("val", 3)]
    assert (trainer.progress.best_epoch, trainer.progress.best_accuracy) == (3, 0.75)


def test_epochs_without_an_evaluation_are_never_the_best():
    _, saver = train(Scripted({48: [0.5, 0.75, 0.25]}), epochs=5, eval_every=2)
    assert saver.best == [("test", 2), ("test", 4)]


def test_a_resumed_run_keeps_its_best_model_until_a_better_one():
    _, first = train(Scripted({48: [0.5, 0.75, 0.5]}), epochs=3)
    saver = KeptFiles()
    resumed = tiny_trainer(model=Scripted({48: [0.625, 0.75, 1.0]}), saver=saver, epochs=6)
    resumed.load_state(first.states[-1])
    resumed.fit()
    assert saver.best == [("test", 6)]


def test_the_best_model_waits_in_memory_for_the_next_save():
    model = Scripted({48: [0.5, 0.75, 0.5, 0.875, 0.25]})
    _, saver = train(model, save_every=3)
    assert [state.epoch for state in saver.states] == [3, 5]
    assert saver.best == [("test", 2), ("test", 4)]
    assert_same_tensors(saver.best_weights, [model.evaluated[1], model.evaluated[3]])


def test_a_saved_best_model_is_never_older_than_the_state():
    files = KeptFiles()
    save_state = files.save_state
    files.save_state = lambda state: (save_state(state), files.best.append(("state", state.best_epoch)))
    trainer = tiny_trainer(model=Scripted({48: [0.5, 0.75, 0.875]}), saver=files, epochs=3, save_every=2)
    trainer.fit()
    assert files.best == [("test", 2), ("state", 2), ("test", 3), ("state", 3)]


def test_a_run_that_fails_saves_its_best_model_first():
    saver = KeptFiles()
    model = Scripted({48: [0.5, 0.75, 0.25, math.nan]})
    trainer = tiny_trainer(model=model, saver=saver, epochs=4, save_every=None)
    with pytest.raises(NotFinite):
        trainer.fit()
    assert (saver.best, saver.states) == ([("test", 2)], [])
    assert_same_tensors(saver.best_weights, [model.evaluated[1]])


# --- What is not finite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split_size", [48, VAL_SIZE])
def test_a_run_whose_last_evaluation_is_not_finite_fails(split_size):
    shares = {48: [0.5, 0.5], VAL_SIZE: [0.5, 0.5]}
    shares[split_size][-1] = math.nan
    split = {48: "test", VAL_SIZE: "val"}[split_size]
    with pytest.raises(NotFinite, match=f"^the {split} loss after epoch 2 is not finite; "):
        train(Scripted(shares), val_size=VAL_SIZE)


def test_an_early_evaluation_that_is_not_finite_is_a_warning(caplog):
    trainer, _ = train(Scripted({48: [math.nan, 0.5, 0.75]}))
    assert [record.getMessage() for record in caplog.records] == ["the test loss after epoch 1 is not finite"]
    assert trainer.progress.epoch == 3


class GradientTimes(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx, images, factor):
        ctx.factor = factor
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class SpoiledAt(nn.Module):
    """A linear network whose loss or gradient is multiplied by a factor in one training step."""

    def __init__(self, step: int, *, loss: float = 1.0, gradient: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * 8 * 8, NUM_CLASSES)
        self.step, self.loss, self.gradient, self.count = step, loss, gradient, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.linear(images.flatten(1))
        if self.training:
            self.count += 1
            if self.count == self.step + 1:
                return GradientTimes.apply(logits * self.loss, self.gradient)
        return logits


SPOILED = {"loss": {"loss": math.nan}, "gradient": {"gradient": math.inf}, "gradient nan": {"gradient": math.nan}}


@pytest.mark.parametrize("step", [2, 5, 11])
@pytest.mark.parametrize("spoiled", SPOILED.values(), ids=SPOILED)
def test_a_bad_step_ends_the_run_by_the_end_of_its_epoch(spoiled, step):
    saver = KeptFiles()
    trainer = tiny_trainer(model=SpoiledAt(step, **spoiled), saver=saver, log_every=1000)
    with pytest.raises(NotFinite, match=f"^the loss or its gradient is not finite at step {step} "):
        trainer.fit()
    assert torch.isfinite(trainer.model.linear.weight).all()
    assert len(saver.states) == step // 6  # of the epochs before


# --- Mixed precision -------------------------------------------------------------------------------------------------


def one_step(**settings):
    """Return a trainer of a linear network after one step, and the logits of that step."""
    trainer = tiny_trainer(model=SpoiledAt(-1), **settings)
    seen = []
    trainer.model.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
    batch = next(trainer.train_loader.epoch(0))
    trainer.train_step(batch)
    return trainer, seen[0], batch


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_the_loss_of_half_precision_is_computed_in_float32(amp):
    trainer, logits, batch = one_step(amp=amp)
    assert logits.dtype in (torch.bfloat16, torch.float16)
    expected = F.cross_entropy(logits.float(), batch.labels).item()
    assert trainer.read_sums()["loss"] / 8 == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("settings", [{}, {"clip_grad": 0.1}], ids=str)
def test_float16_takes_the_step_of_float32(settings):
    half, full = one_step(amp="fp16", **settings)[0], one_step(amp="off", **settings)[0]
    start = SpoiledAt(-1).linear.weight
    moved = (full.model.linear.weight - start).norm()
    assert (half.model.linear.weight - full.model.linear.weight).norm() < 0.01 * moved
    assert half.read_sums()["grad_norm"] == pytest.approx(full.read_sums()["grad_norm"], rel=0.01)


def test_a_float16_overflow_is_skipped_and_halves_the_scale():
    trainer = tiny_trainer(model=SpoiledAt(1, gradient=math.inf), amp="fp16")
    batches = list(trainer.train_loader.epoch(0))
    trainer.train_step(batches[0])
    scale, weight = trainer.scaler.get_scale(), trainer.model.linear.weight.detach().clone()
    trainer.train_step(batches[1])
    assert trainer.scaler.get_scale() == scale / 2
    assert torch.equal(trainer.model.linear.weight, weight)
    trainer.train_step(batches[2])
    assert not torch.equal(trainer.model.linear.weight, weight)
    assert trainer.read_sums()["bad_step"] == -1


def test_the_loss_scale_is_resumed():
    saver = KeptFiles()
    tiny_trainer(model=SpoiledAt(1, gradient=math.inf), amp="fp16", epochs=1, saver=saver).fit()
    resumed = tiny_trainer(model=SpoiledAt(-1), amp="fp16")
    before = resumed.scaler.get_scale()
    resumed.load_state(saver.states[-1])
    assert resumed.scaler.get_scale() == before / 2
