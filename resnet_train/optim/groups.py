"""Parameter groups: which parameters are trained and decay, at what rate, and what all groups of an optimizer share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_train.registry import nearest

Group = dict[str, Any]
LR_SCALE = "lr_scale"  # in a group: its learning rate as a multiple of the optimizer's; 1 if absent


# --- Which parameters are trained ------------------------------------------------------------------------------------


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Exclude parameters from training: those that a pattern names, or that are in a module that it names.

    Raises:
        ValueError: a pattern matches none, or nothing is left to train.
    """
    for pattern in patterns:
        found = [parameter for name, parameter in model.named_parameters() if _matches(name, pattern)]
        if not found:
            modules = [name for name, _ in model.named_children()]
            hint = nearest(pattern, modules) or "; layer1.0 or *.bn2 name parts of them"
            raise ValueError(f"freeze (={pattern}) matches no parameter in {', '.join(modules)}{hint}")
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze (={','.join(patterns)}) leaves nothing to train")


def _matches(name: str, pattern: str) -> bool:
    """Return whether a pattern names a parameter or a module that it is in."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:length]), pattern) for length in range(1, len(parts) + 1))


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms whose parameters are all frozen; their running statistics are also frozen."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if not any(p.requires_grad for p in norm.parameters()) and list(norm.parameters())]


def frozen_names(model: nn.Module) -> set[str]:
    """Return the names of all frozen parameters and running statistics, as in the `state_dict`."""
    norms = {id(norm) for norm in frozen_norms(model)}
    modules = [(f"{name}." if name else "", module) for name, module in model.named_modules()]
    statistics = {
        f"{prefix}{name}" for prefix, module in modules if id(module) in norms for name, _ in module.named_buffers()
    }
    return statistics | {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def head_name(model: nn.Module) -> str:
    """Return the name of the last linear layer.

    Raises:
        ValueError: the network has none.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ValueError("this network has no linear layer that could be its head")
    return names[-1]


# --- Groups ----------------------------------------------------------------------------------------------------------


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    no_decay_norm_bias: bool,
    head_lr_scale: float = 1.0,
    only: Callable[[nn.Parameter], bool] | None = None,
) -> list[Group]:
    """Return the groups of trained parameters; each has a weight decay and a learning-rate scale.

    Args:
        model: the network.
        weight_decay: the decay of all parameters, or of all but norms and biases.
        no_decay_norm_bias: exclude norms and biases from weight decay (He et al. 2019).
        head_lr_scale: learning rate of the last layer, as a multiple of that of the others.
        only: which parameters to take, if not all.
    """
    head = set(model.get_submodule(head_name(model)).parameters()) if head_lr_scale != 1 else set()
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad and (only is None or only(parameter)):
            scale = head_lr_scale if parameter in head else 1.0
            decay = 0.0 if no_decay_norm_bias and parameter.ndim <= 1 else weight_decay
            members.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, **({} if scale == 1 else {LR_SCALE: scale})}
        for (scale, decay), parameters in sorted(members.items(), key=lambda item: (item[0][0] != 1, -item[0][1]))
    ]


def share_lr(*optimizers: Optimizer) -> None:
    """Keep the learning rate of all groups of one scale in one tensor on their device, where fused kernels read it.

    A CUDA graph repeats the Python numbers of the step that it captured, but reads tensors again at each replay. CUDA
    kernels read float32; with float64, a CPU gets the same bits as with a Python number. Devices without fused kernels
    keep a Python number, and so does `state_dict`.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    device = next(parameter.device for group in groups for parameter in group["params"])
    if not has_fused_kernels(device):
        return
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    shared: dict[float, Tensor] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            scale = group.get(LR_SCALE, 1.0)
            if scale not in shared:
                shared[scale] = torch.full((), scale * group["lr"], dtype=dtype, device=device)
            group["lr"] = shared[scale]
        optimizer.register_state_dict_post_hook(_lr_to_number)


def _lr_to_number(optimizer: Optimizer, state: dict[str, Any]) -> None:
    for group in state["param_groups"]:
        group["lr"] = float(group["lr"])


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate, which groups may scale; one in a tensor keeps its place."""
    for group in optimizer.param_groups:
        scaled = lr * group.get(LR_SCALE, 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled


def can_fuse(model: nn.Module) -> bool:
    """Return whether torch has fused optimizer kernels for the device of the model."""
    return has_fused_kernels(next(model.parameters()).device)


def has_fused_kernels(device: torch.device) -> bool:
    """Return whether torch has fused optimizer kernels for this device."""
    return device.type in {"cuda", "cpu"}
