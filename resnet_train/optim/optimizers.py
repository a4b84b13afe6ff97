"""The optimizers, by name.

Each is a function `(model, *, lr, …) -> Optimizer`, called with the settings that its signature names. The model must
already be on its device and in its memory format.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from resnet_train.optim.groups import can_fuse, decay_groups
from resnet_train.optim.muon import Muon
from resnet_train.registry import Registry

OPTIMIZERS: Registry[Callable[..., Optimizer]] = Registry("optimizer")


@OPTIMIZERS.register("sgd")
def sgd(
    model: nn.Module, *, lr: float, momentum: float, nesterov: bool, weight_decay: float, no_decay_norm_bias: bool
) -> Optimizer:
    """Stochastic gradient descent with momentum (Sutskever et al. 2013), one fused kernel for all parameters."""
    groups = decay_groups(model.parameters(), weight_decay, no_decay_norm_bias)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=can_fuse(model))


@OPTIMIZERS.register("adamw")
def adamw(model: nn.Module, *, lr: float, weight_decay: float, no_decay_norm_bias: bool) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); betas 0.9 and 0.999; a usual lr is 0.001."""
    groups = decay_groups(model.parameters(), weight_decay, no_decay_norm_bias)
    return torch.optim.AdamW(groups, lr=lr, fused=can_fuse(model))


OPTIMIZERS.register("muon")(Muon)
