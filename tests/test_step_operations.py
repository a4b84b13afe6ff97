"""A training step never waits for the device, and launches few kernels beside those of the network."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._pytree import tree_leaves

from resnet_train import build
from resnet_train.config import TrainConfig
from resnet_train.data import augment
from resnet_train.models import create_model
from resnet_train.optim import ema, groups
from resnet_train.optim.optimizers import OPTIMIZERS
from resnet_train.training.trainer import Trainer
from tests.harness import trainers
from tests.harness.replay import Kernels
from tests.harness.trainers import tiny_trainer

# Kernels of a step of resnet18 with SGD: all of them, and those outside of forward and backward.
MAX_KERNELS, MAX_OTHER_KERNELS = 220, 40

# A device that torch knows by name only. On "cuda" torch can't differentiate fake tensors without a GPU.
NOWHERE = "lazy:0"
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip": {"clip_grad": 0.5},
    "averages": {"ema_decay": 0.9},
    "mixup": {"mixup": 0.4, "cutmix": 1.0},
    "accumulation": {"accumulate": 2},
    "two groups": {"no_decay_norm_bias": True},
    "drop path": {"arch": "resnet18", "drop_path": 0.5},
    "all": {"clip_grad": 0.5, "ema_decay": 0.9, "mixup": 0.4, "accumulate": 2, "no_decay_norm_bias": True},
}


class NoValues(FakeTensorMode):
    """A mode in which tensors have shapes, types and devices only. What needs a value or mixes devices raises."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_fused_" not in function.name():
            return super().__torch_dispatch__(function, types, args, kwargs)
        # torch has no version without values of the fused optimizers, which work in place.
        assert len({leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}) == 1
        return None


def fake_trainer(monkeypatch: pytest.MonkeyPatch, device: str, **settings: Any) -> Trainer:
    """Build a trainer whose tensors have no values; call it within `NoValues`."""

    def build_model(config: TrainConfig, num_classes: int, device: torch.device) -> nn.Module:
        with torch.device(device):  # fake networks can't be moved or copied
            return create_model(config.arch, num_classes, **build.arch_options(config))

    monkeypatch.setattr(build, "build_model", build_model)
    copy = SimpleNamespace(
        deepcopy=lambda _: build_model(trainers.make_config({**trainers.TINY, **settings}), 3, where)
    )
    monkeypatch.setattr(ema, "copy", copy)
    monkeypatch.setattr(augment, "scale_and_shift", augment.scale_and_shift.__wrapped__)  # its cache would mix modes
    monkeypatch.setattr(groups, "has_fused_kernels", lambda _: True)
    torch_optimizer = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(torch_optimizer, "_get_fused_kernels_supported_devices", lambda: [torch.device(device).type])
    where = torch.device(device)
    monkeypatch.setattr(trainers, "CPU", where)
    return tiny_trainer(**settings)


def steps_without_values(monkeypatch: pytest.MonkeyPatch, device: str, **settings: Any) -> None:
    """Do the first steps of a run on fake tensors: whatever needs a value, or mixes devices, raises."""
    with NoValues(allow_non_fake_inputs=True):
        trainer = fake_trainer(monkeypatch, device, nesterov=False, **settings)
        batches = list(trainer.train_loader.epoch(0))
        for batch in batches[:3]:
            trainer.train_step(batch)
        assert isinstance(trainer.sums.values, FakeTensor)
        assert trainer.sums.values.device == torch.device(device)


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_a_step_reads_nothing_from_the_device(optimizer: str, feature: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps_without_values(monkeypatch, NOWHERE, optimizer=optimizer, **FEATURES[feature])


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_a_step_in_half_precision_reads_nothing(optimizer: str, amp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps_without_values(monkeypatch, "cpu", optimizer=optimizer, amp=amp, clip_grad=0.5)


READS: dict[str, Callable[[Tensor], object]] = {
    "item": Tensor.item,
    "bool": bool,
    "float": float,
    "tolist": Tensor.tolist,
    "nonzero": torch.nonzero,
    "mask": lambda tensor: tensor[tensor > 0],
    "mixed devices": lambda tensor: tensor[None] + torch.ones(1),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_in_a_step_is_found(read: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Trainer.clip_gradients

    def clip_and_read(trainer: Trainer) -> Tensor:
        norm = clip(trainer)
        read(norm)
        return norm

    monkeypatch.setattr(Trainer, "clip_gradients", clip_and_read)
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException, RuntimeError)):
        steps_without_values(monkeypatch, NOWHERE)


def test_a_step_launches_few_kernels() -> None:
    trainer = tiny_trainer(arch="resnet18")
    batches = list(trainer.train_loader.epoch(0))
    for batch in batches[:2]:
        trainer.train_step(batch)
    with Kernels() as step:
        trainer.train_step(batches[2])
    with Kernels() as network:
        trainer.loss(trainer.model(batches[3].images).float(), batches[3]).backward()
    assert len(step.names) <= MAX_KERNELS
    assert len(step.names) - len(network.names) <= MAX_OTHER_KERNELS
