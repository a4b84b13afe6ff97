"""Check a state from a file against the tensors that it will fill, before native code sees it.

Fused kernels check no shapes: a momentum of one element, or with other strides, makes them write beyond their memory.
"""

from __future__ import annotations

import math
import reprlib
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from resnet_train.optim.groups import LR_SCALE, set_lr

# Values that training never makes negative: variances, their averages and counters.
NOT_NEGATIVE = {"running_var", "num_batches_tracked", "exp_avg_sq", "max_exp_avg_sq", "step"}


def check_state(saved: Any, expected: Any, where: str, counts: tuple[int, float] = (0, math.inf)) -> None:
    """Raise unless `saved` has the keys, shapes and types of `expected`, and only values that training can reach.

    Args:
        saved: a nested state of tensors and primitives.
        expected: a state of the object to restore, such as `model.state_dict()`.
        where: the name of the part, for the error message.
        counts: the least and the greatest possible value of integer tensors and of those named "step".

    Raises:
        ValueError: the message is one line with the part and its value.
    """
    if isinstance(expected, Tensor):
        _check_tensor(saved, expected, where, counts)
    elif isinstance(expected, dict):
        # The hyper-parameters of a group are not loaded; only the number of its parameters matters.
        keys = {"params"} if "params" in expected else expected.keys()
        if not isinstance(saved, dict):
            raise ValueError(f"{where} (={reprlib.repr(saved)[:80]}) must be a dictionary")
        if missing := keys - saved.keys():
            raise ValueError(f"{where} has no {min(missing, key=str)!r}")
        if "params" not in expected and (unknown := saved.keys() - keys):
            raise ValueError(f"{where} has an unexpected {min(unknown, key=str)!r}")
        for key in keys:
            check_state(saved[key], expected[key], f"{where}.{key}", counts)
    elif isinstance(expected, list):
        if not isinstance(saved, list) or len(saved) != len(expected):
            raise ValueError(f"{where} (={reprlib.repr(saved)[:80]}) must be a list of {len(expected)}")
        for number, (part, expected_part) in enumerate(zip(saved, expected)):
            check_state(part, expected_part, f"{where}.{number}", counts)
    elif type(saved) is not type(expected) or saved != expected:
        raise ValueError(f"{where} (={reprlib.repr(saved)[:80]}) must be {expected!r}")


def _check_tensor(saved: Any, expected: Tensor, where: str, counts: tuple[int, float]) -> None:
    if not isinstance(saved, Tensor):
        raise ValueError(f"{where} (={reprlib.repr(saved)[:80]}) must be {_describe(expected)}")
    if _describe(saved) != _describe(expected):
        raise ValueError(f"{where} is {_describe(saved)}, but must be {_describe(expected)}")
    if saved.numel() == 0:
        return
    least, greatest = (value.item() for value in saved.aminmax())
    if not (math.isfinite(least) and math.isfinite(greatest)):
        raise ValueError(f"{where} (={least} to {greatest}) must be finite")
    name = where.rpartition(".")[2]
    if name in NOT_NEGATIVE and least < 0:
        raise ValueError(f"{where} (={least}) must not be negative")
    if (name == "step" or not saved.is_floating_point()) and not counts[0] <= least <= greatest <= counts[1]:
        raise ValueError(f"{where} (={least if least < counts[0] else greatest}) must be {_describe_counts(counts)}")


def _describe_counts(counts: tuple[int, float]) -> str:
    """Return the range of counts, for an error message."""
    return f"{counts[0]}" if counts[0] == counts[1] else f"from {counts[0]} to {counts[1]}"


def _describe(tensor: Tensor) -> str:
    """Return what must agree, such as `a float32 tensor [16, 3, 3, 3]`."""
    layout = "" if tensor.layout == torch.strided else f"{str(tensor.layout).removeprefix('torch.')} "
    return f"a {layout}{str(tensor.dtype).removeprefix('torch.')} tensor {list(tensor.shape)}"


def fill(own: Any, saved: Any) -> None:
    """Copy the tensors of a checked state into those of `own`, which keep their place, strides and device."""
    if isinstance(own, Tensor):
        own.copy_(saved)
    elif isinstance(own, dict):
        for key in own.keys() & saved.keys():
            fill(own[key], saved[key])
    elif isinstance(own, list):
        for own_part, part in zip(own, saved):
            fill(own_part, part)


@torch.no_grad()
def load_optimizer_state(
    optimizer: Optimizer, state: dict[str, Any], num_steps: tuple[int, float] = (0, math.inf)
) -> None:
    """Copy a state into the optimizer's own tensors. Hyper-parameters stay unchanged; the file's are ignored.

    Args:
        optimizer: an optimizer that has done no step.
        state: what `state_dict` returned for the same parameters.
        num_steps: the least and the greatest number of steps that the state can have seen.

    Raises:
        ValueError: keys, shapes, types or values are not those of this optimizer.
    """
    # Before the first step there is no state. A loss scaler skips steps, unless the optimizer itself does.
    skips = num_steps[0] == 0 and not getattr(optimizer, "_step_supports_amp_scaling", False)
    if (num_steps[1] == 0 or skips) and _is_like(state, optimizer.state_dict()):
        return

    # torch checks no shapes, so the state is compared with the one that the optimizer itself makes. Its tensors are
    # filled where they are; torch's `load_state_dict` would replace them, and the learning rate.
    _make_state(optimizer)
    made = optimizer.state_dict()
    check_state(state, made, "optimizer", num_steps)
    fill(made, state)


def _make_state(optimizer: Optimizer) -> None:
    """Let the optimizer create its state, by a step with zero gradients and a learning rate of 0."""
    groups = optimizer.param_groups
    parameters = [parameter for group in groups for parameter in group["params"] if parameter.requires_grad]
    gradients, lr = [parameter.grad for parameter in parameters], float(groups[0]["lr"]) / groups[0].get(LR_SCALE, 1.0)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    set_lr(optimizer, 0.0)
    optimizer.step()
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient
    set_lr(optimizer, lr)


def _is_like(state: dict[str, Any], expected: dict[str, Any]) -> bool:
    try:
        check_state(state, expected, "optimizer")
    except ValueError:
        return False
    return True
