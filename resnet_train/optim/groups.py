"""Parameter groups: which parameters decay, and what all groups of an optimizer share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

Group = dict[str, Any]


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float, no_decay_norm_bias: bool) -> list[Group]:
    """Return parameter groups; `no_decay_norm_bias` spares norms and biases from weight decay (He et al. 2019)."""
    parameters = list(parameters)
    if not no_decay_norm_bias:
        return [{"params": parameters, "weight_decay": weight_decay}]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def can_fuse(model: nn.Module) -> bool:
    """Return whether torch has fused optimizer kernels for the device of the model."""
    return next(model.parameters()).device.type in {"cuda", "cpu"}
