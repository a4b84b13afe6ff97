"""The optimizers, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_train.registry import Registry

Group = dict[str, Any]
OPTIMIZERS: Registry[Callable[..., Optimizer]] = Registry("optimizer")


def build_optimizer(name: str, model: nn.Module, **settings: Any) -> Optimizer:
    """An optimizer over all parameters of the model, which must already be on its device and in its memory format.

    Args:
        name: a name that `OPTIMIZERS` knows.
        settings: `lr`, `momentum`, `nesterov`, `weight_decay` and `no_decay_norm_bias`; the optimizer's function is
            given those that it takes.

    Raises:
        ValueError: unknown name.
    """
    taken = optimizer_settings(name)
    return OPTIMIZERS[name](model, **{key: value for key, value in settings.items() if key in taken})


def optimizer_settings(name: str) -> tuple[str, ...]:
    """The settings that an optimizer takes."""
    return tuple(key for key in inspect.signature(OPTIMIZERS[name]).parameters if key != "model")


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float, no_decay_norm_bias: bool) -> list[Group]:
    """Parameter groups; with `no_decay_norm_bias` those of norms and all biases are not decayed (He et al. 2019)."""
    parameters = list(parameters)
    if not no_decay_norm_bias:
        return [{"params": parameters, "weight_decay": weight_decay}]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


@OPTIMIZERS.register("sgd")
def sgd(
    model: nn.Module,
    *,
    lr: float,
    momentum: float,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    no_decay_norm_bias: bool = False,
) -> Optimizer:
    """Stochastic gradient descent with momentum (Sutskever et al. 2013), one fused kernel for all parameters."""
    groups = decay_groups(model.parameters(), weight_decay, no_decay_norm_bias)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=_can_fuse(model))


@OPTIMIZERS.register("adamw")
def adamw(model: nn.Module, *, lr: float, weight_decay: float = 0.0, no_decay_norm_bias: bool = False) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); betas 0.9 and 0.999; a usual lr is 0.001."""
    groups = decay_groups(model.parameters(), weight_decay, no_decay_norm_bias)
    return torch.optim.AdamW(groups, lr=lr, fused=_can_fuse(model))


@OPTIMIZERS.register("muon")
def muon(
    model: nn.Module,
    *,
    lr: float,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    no_decay_norm_bias: bool = False,
) -> Optimizer:
    """Momentum made orthogonal (Jordan et al. 2024) for convolutions, AdamW for all else; a usual lr is 0.003."""
    return Muon(model, lr=lr, momentum=momentum, weight_decay=weight_decay, no_decay_norm_bias=no_decay_norm_bias)


class Muon(Optimizer):
    """torch's Muon on convolution weights [out, in, h, w] seen as matrices [out, in·h·w], and AdamW on the rest.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982), so one lr fits both.
    """

    def __init__(
        self, model: nn.Module, *, lr: float, momentum: float, weight_decay: float, no_decay_norm_bias: bool
    ) -> None:
        self.weights = [parameter for parameter in model.parameters() if parameter.ndim == 4]
        rest = decay_groups((p for p in model.parameters() if p.ndim != 4), weight_decay, no_decay_norm_bias)
        super().__init__([{"params": self.weights}, *rest], {"lr": lr})
        # Matrices that share the weights' memory: what torch's Muon does to them it does to the convolutions.
        self.matrices = [nn.Parameter(_as_matrix(weight.detach(), weight)) for weight in self.weights]
        assert all(matrix.data_ptr() == weight.data_ptr() for matrix, weight in zip(self.matrices, self.weights))
        self.inner: tuple[Optimizer, Optimizer] = (
            torch.optim.Muon(
                self.matrices, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW([dict(group) for group in rest], lr=lr),
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates all parameters from their gradients."""
        for matrix, weight in zip(self.matrices, self.weights):
            matrix.grad = None if weight.grad is None else _as_matrix(weight.grad, weight)
        for optimizer in self.inner:
            set_lr(optimizer, self.param_groups[0]["lr"])
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"inner": [optimizer.state_dict() for optimizer in self.inner]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the states of both."""
        for optimizer, state in zip(self.inner, state_dict["inner"]):
            optimizer.load_state_dict(state)


def _as_matrix(tensor: Tensor, weight: Tensor) -> Tensor:
    """[out, in, h, w] → [out, in·h·w] in the memory order of `weight`; the order of columns means nothing to Muon."""
    is_nhwc = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return (tensor.permute(0, 2, 3, 1) if is_nhwc else tensor).flatten(1)


def _can_fuse(model: nn.Module) -> bool:
    """Whether torch has a fused kernel where the parameters are."""
    return all(parameter.device.type in {"cuda", "cpu"} for parameter in model.parameters())


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restores the state, but keeps this machine's choice of fused kernels, which torch would overwrite."""
    kept: list[dict[str, Any]] = [
        {key: group[key] for key in ("fused", "foreach") if key in group} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, kept):
        group |= values
