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


NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)  # Jordan's coefficients, as in torch.optim.Muon; five steps
NUM_STEPS = 5


class Muon(Optimizer):
    """Muon on convolution weights [out, in, h, w] seen as matrices [out, in·h·w], and AdamW on the rest.

    The same updates as torch.optim.Muon's, but for all matrices of one shape at once, and without a question to the
    host: `found_inf` skips an update on the device, as in torch's fused optimizers. Muon's steps are scaled to the
    size of AdamW's (Liu et al. 2025, arXiv:2502.16982), so one lr fits both.
    """

    def __init__(
        self, model: nn.Module, *, lr: float, momentum: float, weight_decay: float, no_decay_norm_bias: bool
    ) -> None:
        weights = [parameter for parameter in model.parameters() if parameter.ndim == 4]
        rest = decay_groups((p for p in model.parameters() if p.ndim != 4), weight_decay, no_decay_norm_bias)
        super().__init__([{"params": weights}, *rest], {"lr": lr})
        self.momentum, self.weight_decay = momentum, weight_decay
        self.shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for weight in weights:
            self.shapes.setdefault(_as_matrix(weight.detach(), weight).shape, []).append(weight)
        self.buffers = [weights[0].new_zeros(len(same), *shape) for shape, same in self.shapes.items()]
        self.rest = torch.optim.AdamW([dict(group) for group in rest], lr=lr, fused=_can_fuse(model))
        self._step_supports_amp_scaling = _can_fuse(model)  # torch's name for optimizers that heed `found_inf`

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates all parameters from their gradients; none where `found_inf` is 1."""
        lr = self.param_groups[0]["lr"]
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for weights, buffer in zip(self.shapes.values(), self.buffers):
            self._step_of_one_shape(weights, buffer, lr, found_inf)
        set_lr(self.rest, lr)
        self.rest.found_inf = found_inf  # type: ignore[attr-defined]
        self.rest.step()

    def _step_of_one_shape(
        self, weights: list[nn.Parameter], buffer: Tensor, lr: float, found_inf: Tensor | None
    ) -> None:
        gradients = torch.stack([_as_matrix(weight.grad, weight) for weight in weights if weight.grad is not None])
        averaged = buffer.lerp(gradients, 1 - self.momentum)
        step_size = 0.2 * lr * max(buffer.shape[1:]) ** 0.5
        updates = orthogonalize(gradients.lerp(averaged, self.momentum)).to(buffer.dtype) * -step_size
        decay = torch.full((), 1 - lr * self.weight_decay, device=buffer.device)
        if found_inf is not None:
            bad = found_inf > 0
            averaged, decay = torch.where(bad, buffer, averaged), torch.where(bad, 1.0, decay)
            updates = torch.where(bad, 0.0, updates)
        buffer.copy_(averaged)
        matrices = [_as_matrix(weight.detach(), weight) for weight in weights]
        torch._foreach_mul_(matrices, decay)
        torch._foreach_add_(matrices, list(updates.unbind()))

    def state_dict(self) -> dict[str, Any]:
        """Muon's momentum and AdamW's state."""
        return {"momentum": [buffer.clone() for buffer in self.buffers], "rest": self.rest.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores both."""
        for buffer, saved in zip(self.buffers, state_dict["momentum"], strict=True):
            if buffer.shape != saved.shape:
                raise ValueError(f"a momentum has the shape {tuple(saved.shape)} instead of {tuple(buffer.shape)}")
            buffer.copy_(saved)
        load_optimizer_state(self.rest, state_dict["rest"])


def orthogonalize(matrices: Tensor) -> Tensor:
    """[n, rows, columns] → the nearest matrices with all singular values about 1, by Newton-Schulz iteration.

    In bfloat16 on a GPU, as torch does it; in float32 on a CPU.
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NUM_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


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
