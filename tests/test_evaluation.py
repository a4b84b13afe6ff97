"""Evaluation: every image once, the same numbers as a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score
from torch import nn

from resnet_train.data.batch import Batch
from resnet_train.evaluation.evaluate import evaluate
from resnet_train.evaluation.metrics import compute_scores, top5
from tests.harness.trainers import CPU, tiny_trainer


class Lookup(nn.Module):
    """Return for each image the logits that its first pixel points at."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits[images[:, 0, 0, 0].long()]


def batches_of(labels: torch.Tensor, batch_size: int):
    """Return batches in which image i has the value i."""
    images = torch.arange(len(labels)).float()[:, None, None, None].expand(-1, 3, 2, 2)
    return [Batch(i, y) for i, y in zip(images.split(batch_size), labels.split(batch_size))]


def test_numbers_equal_scikit_learns():
    torch.manual_seed(0)
    logits, labels = torch.randn(103, 10), torch.randint(0, 10, (103,))
    result = evaluate(Lookup(logits), batches_of(labels, 25), 10, CPU)
    probabilities = logits.double().softmax(1).numpy()
    assert result.n == 103
    torch.testing.assert_close(result.logits, logits, rtol=0, atol=0)
    assert torch.equal(result.labels, labels)
    np.testing.assert_array_equal(result.confusion, confusion_matrix(labels, logits.argmax(1), labels=range(10)))
    np.testing.assert_allclose(result.loss, log_loss(labels, probabilities, labels=range(10)), rtol=1e-6)
    np.testing.assert_allclose(top5(result), top_k_accuracy_score(labels, probabilities, k=5, labels=range(10)))
    np.testing.assert_allclose(compute_scores(result)["accuracy"], (logits.argmax(1) == labels).double().mean())


def test_the_batch_size_does_not_matter():
    torch.manual_seed(0)
    logits, labels = torch.randn(60, 7), torch.randint(0, 7, (60,))
    results = [evaluate(Lookup(logits), batches_of(labels, size), 7, CPU) for size in (1, 7, 60)]
    assert len({compute_scores(result)["accuracy"] for result in results}) == 1
    assert len({top5(result) for result in results}) == 1
    np.testing.assert_allclose([result.loss for result in results], results[0].loss, rtol=1e-6)


def test_top5_of_five_classes_is_not_defined():
    result = evaluate(Lookup(torch.eye(5)), batches_of(torch.arange(5), 5), 5, CPU)
    assert top5(result) is None
    assert compute_scores(result)["accuracy"] == 1.0


def test_logits_are_kept_although_the_next_call_overwrites_them():
    static = torch.zeros(2, 4)

    def forward(batch):  # as graphs of kernels do
        return static.copy_(torch.eye(4)[batch.labels])

    labels = torch.arange(4)
    result = evaluate(nn.Identity(), batches_of(labels, 2), 4, CPU, forward=forward)
    assert torch.equal(result.logits, torch.eye(4))


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_trainer_evaluates_in_the_format_of_training(amp):
    trainer = tiny_trainer(amp=amp, ema_decay=0.5)
    batch = next(trainer.eval_loaders["test"].epoch(0))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp == "bf16"):
        expected = trainer.averaged.model(batch.images).float()
    assert torch.equal(trainer.evaluate_on(trainer.eval_loaders["test"]).logits, expected)


def test_the_mode_is_kept_and_no_gradient_is_computed():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3))
    before = model[2].running_mean.clone()
    evaluate(model.train(), batches_of(torch.arange(3), 3), 3, CPU)
    assert model.training
    assert torch.equal(model[2].running_mean, before)
    assert model[1].weight.grad is None
