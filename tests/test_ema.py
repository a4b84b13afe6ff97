"""Averaged weights: the same as torch's own average, buffers included, and evaluated instead of the raw ones."""

from __future__ import annotations

import torch
from torch.optim.swa_utils import AveragedModel

from resnet_train.models import create_model
from resnet_train.optim.ema import ExponentialMovingAverage
from tests.harness.trainers import assert_same_tensors, tiny_trainer

GOOD, BAD = torch.tensor(False), torch.tensor(True)


def scramble(model):
    """Change all floats and counters, as a training step does."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.randn_like(tensor))
        else:
            tensor.add_(1)


def test_equals_torchs_average_with_the_same_decay():
    torch.manual_seed(0)
    model = create_model("resnet8", 3)
    decays = [min(0.7, (1 + n) / (10 + n)) for n in range(30)]

    def average(averages, values, num_averaged):
        decay = decays[step]
        for mean, value in zip(averages, values):
            mean.mul_(decay).add_(value, alpha=1 - decay)

    ours = ExponentialMovingAverage(model, 0.7)
    theirs = AveragedModel(model, multi_avg_fn=average, use_buffers=False)
    for step in range(30):
        scramble(model)
        ours.advance()
        ours.update(GOOD)
        if step == 0:  # torch's first update copies
            for mean, start in zip(theirs.module.parameters(), ours.model.parameters()):
                mean.data.copy_(start)
            theirs.n_averaged += 1
        else:
            theirs.update_parameters(model)
    for left, right in zip(ours.model.parameters(), theirs.module.parameters()):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_the_decay_warms_up():
    model = torch.nn.Linear(1, 1, bias=False)
    averaged = ExponentialMovingAverage(model, 0.999)
    with torch.no_grad():
        averaged.model.weight.zero_()
        model.weight.fill_(1.0)
    averaged.advance()
    averaged.update(GOOD)
    assert averaged.model.weight.item() == torch.tensor(0.9).item()  # decay 1/10 at first


def test_running_statistics_are_averaged_and_counters_copied():
    model = torch.nn.BatchNorm2d(2)
    averaged = ExponentialMovingAverage(model, 0.5)
    scramble(model)
    before = averaged.model.running_mean.clone()
    averaged.advance()
    averaged.update(GOOD)
    torch.testing.assert_close(averaged.model.running_mean, before + 0.9 * (model.running_mean - before))
    assert averaged.model.num_batches_tracked == model.num_batches_tracked


def test_a_bad_step_leaves_the_average():
    model = create_model("resnet8", 3)
    averaged = ExponentialMovingAverage(model, 0.5)
    before = {name: value.clone() for name, value in averaged.model.named_parameters()}
    scramble(model)
    averaged.advance()
    averaged.update(BAD)
    assert_same_tensors(dict(averaged.model.named_parameters()), before)


def test_the_average_needs_no_gradients():
    average = ExponentialMovingAverage(create_model("resnet8"), 0.9).model
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert not average.training


def test_the_average_is_what_is_evaluated():
    trainer = tiny_trainer(epochs=1, ema_decay=0.9)
    trainer.fit()
    assert trainer.eval_model is trainer.averaged.model
    raw, averaged = trainer.model.state_dict(), trainer.eval_model.state_dict()
    assert not torch.equal(raw["linear.weight"], averaged["linear.weight"])
    trainer.averaged = None
    evaluation = trainer.evaluate(0)[0]["test"]
    assert evaluation.loss != trainer.progress.history[-1].scores["test"]["loss"]
