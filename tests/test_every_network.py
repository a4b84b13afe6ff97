"""Every architecture trains and evaluates; one of each family overfits eight images."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from resnet_train.models import create_model, list_models
from resnet_train.models.blocks import set_bn_momentum
from tests.harness.trainers import tiny_data, tiny_trainer

FAMILIES = {entry.family: entry.name for entry in list_models() if entry.family != "preact_cifar_resnet"}
SMALLEST = {**FAMILIES, "resnet": "resnet18", "cifar_resnet": "resnet20", "preact_resnet": "preact_resnet18"}
SMALLEST |= {"wide_resnet": "wide_resnet16_8", "resnext": "resnext29_2x64d"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(entry.name, marks=() if entry.name in SMALLEST.values() else pytest.mark.slow)
        for entry in list_models()
    ],
)
def test_every_architecture_trains_one_step_and_evaluates(name):
    trainer = tiny_trainer(arch=name, lr=1e-4, batch_size=4, data=tiny_data(20))
    set_bn_momentum(trainer.model, 1.0)  # running statistics of deep networks need more than one step otherwise
    before = copy.deepcopy(trainer.model.linear.weight)
    trainer.model.train()
    trainer.train_step(next(trainer.train_loader.epoch(0)))
    assert trainer.read_sums()["bad_step"] == -1
    assert not torch.equal(trainer.model.linear.weight, before)
    evaluation = trainer.evaluate(trainer.epochs - 1)[0]["test"]
    assert evaluation.n == 20
    assert math.isfinite(evaluation.loss)


@pytest.mark.parametrize("name", [*SMALLEST.values(), "resnet50"])
def test_eight_images_overfit(name):
    torch.manual_seed(0)
    model = create_model(name, num_classes=4)
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(80):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            break
    assert loss.item() < 0.01
