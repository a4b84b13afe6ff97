"""Class weights: balanced as in scikit-learn, in the training loss alone, whatever parts a batch is computed in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from resnet_train.build import balanced_class_weights
from resnet_train.config import make_config
from resnet_train.data.batch import Batch
from resnet_train.jobs import train as jobs_train
from resnet_train.jobs.train import train
from tests.harness.trainers import TINY, assert_same_tensors, tiny_data, tiny_trainer, unequal_data

WEIGHTS = torch.tensor([4 / 7 * 1.0, 1.0, 2.0])
LABELS, PARTNERS = torch.tensor([0, 0, 1, 2]), torch.tensor([2, 1, 1, 0])


def weighted_loss(logits: torch.Tensor, batch: Batch, **settings: float) -> torch.Tensor:
    trainer = tiny_trainer(data=unequal_data(), class_weights="balanced", **settings)
    trainer.class_weights = WEIGHTS
    return trainer.loss(logits, batch, trainer.scaled_class_weights(batch))


def test_balanced_weights_equal_sklearns() -> None:
    labels = np.random.default_rng(0).choice(5, size=200, p=[0.5, 0.3, 0.1, 0.07, 0.03])
    expected = compute_class_weight("balanced", classes=np.arange(5), y=labels)
    found = balanced_class_weights(labels, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[labels].mean() == pytest.approx(1, abs=1e-5)


def test_a_class_without_images_has_weight_0() -> None:
    found = balanced_class_weights(np.array([0, 0, 0, 2]), 4)
    np.testing.assert_allclose(found, [4 / (2 * 3), 0, 4 / (2 * 1), 0], rtol=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_loss_is_torchs_weighted_cross_entropy(label_smoothing: float) -> None:
    logits = torch.randn(4, 3)
    expected = nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=label_smoothing)(logits, LABELS)
    found = weighted_loss(logits, Batch(torch.zeros(4, 3, 8, 8), LABELS), label_smoothing=label_smoothing)
    torch.testing.assert_close(found, expected)


def test_a_mixed_image_has_the_weights_of_both_labels() -> None:
    logits, shares = torch.randn(4, 3), torch.tensor([1.0, 0.5, 0.25, 0.0])
    losses = nn.CrossEntropyLoss(weight=WEIGHTS, reduction="none")
    total = shares * losses(logits, LABELS) + (1 - shares) * losses(logits, PARTNERS)
    weight = shares * WEIGHTS[LABELS] + (1 - shares) * WEIGHTS[PARTNERS]
    found = weighted_loss(logits, Batch(torch.zeros(4, 3, 8, 8), LABELS, PARTNERS, shares))
    torch.testing.assert_close(found, total.sum() / weight.sum())


def test_weights_are_those_of_the_images_trained_on() -> None:
    data = unequal_data()
    assert np.bincount(data.train_indices % 3).tolist() == [16, 8, 4]
    weights = tiny_trainer(data=data, class_weights="balanced").class_weights
    torch.testing.assert_close(weights, torch.tensor([28 / (3 * 16), 28 / (3 * 8), 28 / (3 * 4)]))
    assert tiny_trainer(data=data).class_weights is None


def test_weights_change_training_and_not_the_evaluation_loss() -> None:
    plain, weighted = (tiny_trainer(data=unequal_data(), class_weights=kind) for kind in ("none", "balanced"))
    assert_same_tensors(plain.model.state_dict(), weighted.model.state_dict())
    assert plain.evaluate(0)[0]["test"].loss == weighted.evaluate(0)[0]["test"].loss
    batch = next(plain.train_loader.epoch(0))
    for trainer in (plain, weighted):
        trainer.train_step(batch)
    assert plain.read_sums()["loss"] != pytest.approx(weighted.read_sums()["loss"])
    assert plain.read_sums()["correct"] == weighted.read_sums()["correct"]


def test_equal_classes_train_as_without_weights() -> None:
    plain, weighted = (tiny_trainer(class_weights=kind) for kind in ("none", "balanced"))
    for trainer in (plain, weighted):
        trainer.train_step(next(trainer.train_loader.epoch(0)))
    assert weighted.read_sums() == pytest.approx(plain.read_sums(), rel=1e-6)


@pytest.mark.parametrize("equal", [True, False])
def test_weights_without_effect_give_a_warning(
    equal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = replace(tiny_data(), test=None) if equal else unequal_data()
    data = replace(data, test=data.train)
    monkeypatch.setattr(jobs_train, "load_data", lambda config: data)
    train(make_config({**TINY, "epochs": 1, "class_weights": "balanced", "output_dir": tmp_path, "name": "x"}))
    assert ("class_weights (=balanced) changes nothing" in caplog.text) == equal
