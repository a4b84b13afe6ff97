"""Parameter groups: which parameters decay, and what all groups of an optimizer share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
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


def share_lr(*optimizers: Optimizer) -> None:
    """Keep the learning rate of all groups in one tensor on their device, where fused kernels read it.

    A CUDA graph repeats the numbers of the step that it captured, but reads tensors again at each replay. CUDA kernels
    read float32; with float64, a CPU gets the same bits as with a Python number. Devices without fused kernels keep a
    Python number, and so does `state_dict`.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    device = next(parameter.device for group in groups for parameter in group["params"])
    if not has_fused_kernels(device):
        return
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    lr = torch.full((), groups[0]["lr"], dtype=dtype, device=device)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.register_state_dict_post_hook(_lr_to_number)


def _lr_to_number(optimizer: Optimizer, state: dict[str, Any]) -> None:
    for group in state["param_groups"]:
        group["lr"] = float(group["lr"])


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group; one in a tensor keeps its place."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def can_fuse(model: nn.Module) -> bool:
    """Return whether torch has fused optimizer kernels for the device of the model."""
    return has_fused_kernels(next(model.parameters()).device)


def has_fused_kernels(device: torch.device) -> bool:
    """Return whether torch has fused optimizer kernels for this device."""
    return device.type in {"cuda", "cpu"}
