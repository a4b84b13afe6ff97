"""The optimizers, by name.

Each is a function `(model, *, lr, …) -> Optimizer`, called with the settings that its signature names. The model must
already be on its device and in its memory format.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from resnet_train.optim.groups import can_fuse, parameter_groups, share_lr
from resnet_train.optim.muon import Muon
from resnet_train.registry import Registry

OPTIMIZERS: Registry[Callable[..., Optimizer]] = Registry("optimizer")


@OPTIMIZERS.register("sgd")
def sgd(
    model: nn.Module,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    no_decay_norm_bias: bool,
    head_lr_scale: float = 1.0,
) -> Optimizer:
    """Stochastic gradient descent with momentum (Sutskever et al. 2013), one fused kernel for all parameters."""
    groups = parameter_groups(model, weight_decay, no_decay_norm_bias, head_lr_scale)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=can_fuse(model))
    if momentum:
        optimizer.register_step_pre_hook(_start_momentum)
    share_lr(optimizer)
    return optimizer


def _start_momentum(optimizer: Optimizer, arguments: object, named: object) -> None:
    """Create the momentum as zeros: where the first step is skipped, torch's fused kernel leaves it uninitialized."""
    if not optimizer.state:
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            if parameter.grad is not None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


@OPTIMIZERS.register("adamw")
def adamw(
    model: nn.Module, *, lr: float, weight_decay: float, no_decay_norm_bias: bool, head_lr_scale: float = 1.0
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); betas 0.9 and 0.999; a usual lr is 0.001."""
    groups = parameter_groups(model, weight_decay, no_decay_norm_bias, head_lr_scale)
    on_cuda = next(model.parameters()).is_cuda
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=can_fuse(model), capturable=on_cuda)
    share_lr(optimizer)
    return optimizer


OPTIMIZERS.register("muon")(Muon)
