"""Muon: orthogonalized momentum for convolutions, AdamW for all other parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_train.optim.groups import can_fuse, parameter_groups, share_lr

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)  # Jordan's coefficients, as in torch.optim.Muon


class Muon(Optimizer):
    """Orthogonalized momentum (Jordan et al. 2024) for convolutions, AdamW for the rest; a usual lr is 0.003.

    A convolution weight [out, in, h, w] is treated as a matrix [out, in·h·w]. The updates equal those of
    torch.optim.Muon, but all matrices of one shape are updated at once and without a host-device synchronization:
    `found_inf` skips an update on the device, as in torch's fused optimizers. The updates are scaled to the size of
    AdamW's (Liu et al. 2025, arXiv:2502.16982), so one lr fits both.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        no_decay_norm_bias: bool,
        head_lr_scale: float = 1.0,
        ns_steps: int = 5,
    ) -> None:
        # Torch's interface sees all groups; AdamW updates those after the convolutions. Either may be frozen.
        weights = [parameter for parameter in model.parameters() if parameter.ndim == 4 and parameter.requires_grad]
        rest = parameter_groups(model, weight_decay, no_decay_norm_bias, head_lr_scale, only=lambda p: p.ndim != 4)
        super().__init__([*([{"params": weights}] if weights else []), *rest], {"lr": lr})
        self.momentum, self.weight_decay, self.ns_steps = momentum, weight_decay, ns_steps
        self.device, groups = next(model.parameters()).device, [dict(group) for group in rest]
        self.rest: torch.optim.AdamW | None = None
        if groups:
            on_cuda = self.device.type == "cuda"
            self.rest = torch.optim.AdamW(groups, lr=lr, fused=can_fuse(model), capturable=on_cuda)
        self._step_supports_amp_scaling = can_fuse(model)  # torch's flag for optimizers that respect `found_inf`
        share_lr(self, *([self.rest] if self.rest else []))

        # The momentum of all matrices of one shape is a single buffer.
        self.shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for weight in weights:
            self.shapes.setdefault(_as_matrix(weight.detach(), weight).shape, []).append(weight)
        self.buffers = [weights[0].new_zeros(len(same), *shape) for shape, same in self.shapes.items()]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters from their gradients, or none if `found_inf` is 1."""
        lr = torch.as_tensor(self.param_groups[0]["lr"], device=self.device)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        bad = torch.zeros((), dtype=torch.bool, device=self.device) if found_inf is None else found_inf > 0
        decay = torch.where(bad, 1.0, (1 - lr * self.weight_decay).float())
        scale = lr * -0.2
        for weights, buffer in zip(self.shapes.values(), self.buffers):
            self._step_of_one_shape(weights, buffer, scale, decay, bad)
        if self.rest is not None:
            self.rest.found_inf = found_inf  # type: ignore[attr-defined]
            self.rest.step()

    def _step_of_one_shape(
        self, weights: list[nn.Parameter], buffer: Tensor, scale: Tensor, decay: Tensor, bad: Tensor
    ) -> None:
        # Nesterov momentum: average the gradients, then look one step ahead.
        gradients = torch.stack([_as_matrix(weight.grad, weight) for weight in weights if weight.grad is not None])
        averaged = buffer.lerp(gradients, 1 - self.momentum)  # [n, rows, columns]
        directions = orthogonalize(gradients.lerp(averaged, self.momentum), self.ns_steps).to(buffer.dtype)
        updates = directions * (scale * max(buffer.shape[1:]) ** 0.5)

        # Gradients that are not finite leave momentum and weights unchanged.
        averaged = torch.where(bad, buffer, averaged)
        updates = torch.where(bad, 0.0, updates)

        # Decay the weights and add the updates.
        buffer.copy_(averaged)
        matrices = [_as_matrix(weight.detach(), weight) for weight in weights]
        torch._foreach_mul_(matrices, decay)
        torch._foreach_add_(matrices, list(updates.unbind()))

    def state_dict(self) -> dict[str, Any]:
        """Return the momentum and the state of AdamW; `load_optimizer_state` restores them."""
        return {"momentum": list(self.buffers), "rest": {} if self.rest is None else self.rest.state_dict()}


def orthogonalize(matrices: Tensor, num_steps: int = 5) -> Tensor:
    """Return matrices [n, rows, columns] with the same singular vectors and all singular values near 1.

    Five steps of a Newton-Schulz iteration are enough; fewer leave small singular values small. It runs in bfloat16 on
    a GPU, as in torch, and in float32 on a CPU.
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(num_steps):
        gram = x @ x.mT  # [n, rows, rows]
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


def _as_matrix(tensor: Tensor, weight: Tensor) -> Tensor:
    """View [out, in, h, w] as [out, in·h·w] in the memory order of `weight`; Muon doesn't depend on column order."""
    is_nhwc = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return (tensor.permute(0, 2, 3, 1) if is_nhwc else tensor).flatten(1)
