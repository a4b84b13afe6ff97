"""The optimizers, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from resnet_train.registry import Registry

OPTIMIZERS: Registry[Callable[..., Optimizer]] = Registry("optimizer")


def build_optimizer(name: str, model: nn.Module, **settings: Any) -> Optimizer:
    """An optimizer over all parameters of the model.

    Args:
        name: a name that `OPTIMIZERS` knows.
        settings: `lr`, `momentum`, `nesterov` and `weight_decay`; an optimizer ignores what it has no use for.

    Raises:
        ValueError: unknown name.
    """
    return OPTIMIZERS[name](model, **settings)


@OPTIMIZERS.register("sgd")
def sgd(model: nn.Module, *, lr: float, momentum: float, nesterov: bool, weight_decay: float) -> Optimizer:
    """Stochastic gradient descent with momentum (Sutskever et al. 2013), one fused kernel for all parameters."""
    return torch.optim.SGD(
        model.parameters(),
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        fused=_can_fuse(model),
    )


def _can_fuse(model: nn.Module) -> bool:
    """Whether torch has a fused kernel where the parameters are."""
    return all(parameter.device.type in {"cuda", "cpu", "mps"} for parameter in model.parameters())


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate of every group, times the group's own `lr_factor` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restores the state, but keeps this machine's choice of fused kernels, which torch would overwrite."""
    kept: list[dict[str, Any]] = [
        {key: group[key] for key in ("fused", "foreach") if key in group} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, kept):
        group |= values
