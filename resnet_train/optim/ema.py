"""An exponential moving average of everything the model learns."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from resnet_train.optim.groups import frozen_names


class AverageState(BaseModel):
    """The averaged weights and the number of updates they have seen."""

    model_config = ConfigDict(extra="forbid")

    model: dict[str, Any]
    num_updates: int = Field(ge=0, strict=True)


class ExponentialMovingAverage:
    """A copy of the model whose floats follow the model's slowly (Polyak & Juditsky 1992; Tarvainen & Valpola 2017).

    The running statistics of batch norm are also averaged, because those of the raw weights do not fit the averaged
    ones. The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates, so that the initial weights are
    forgotten quickly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self.model.requires_grad_(False)
        self.decay, self.num_updates = decay, 0

        # Training changes these tensors in place, so they are listed once. Frozen ones stay unchanged, to the bit.
        frozen = frozen_names(model)
        self.values, self.averages = _split_floats(model, frozen), _split_floats(self.model, frozen)
        self.weight = torch.zeros((), device=self.averages[0][0].device)

    def advance(self) -> None:
        """Count an update, and write its weight to the device."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.weight.fill_(1 - decay)
        self.num_updates += 1

    @torch.no_grad()
    def update(self, bad: Tensor) -> None:
        """Move toward the model, except where `bad` (bool, 0-d, on the device) is true."""
        (values, counts), (averages, average_counts) = self.values, self.averages

        # average += weight * (value - average), all tensors at once; counters such as num_batches_tracked are copied.
        differences = torch._foreach_sub(values, averages)
        torch._foreach_mul_(differences, torch.where(bad, 0.0, self.weight))
        torch._foreach_add_(averages, differences)
        if counts:
            torch._foreach_copy_(average_counts, counts)

    def state(self) -> AverageState:
        """Return the averaged weights and the number of updates."""
        return AverageState.model_construct(model=self.model.state_dict(), num_updates=self.num_updates)

    def load_state(self, state: AverageState) -> None:
        """Restore what `state` returned."""
        self.model.load_state_dict(state.model)
        self.num_updates = state.num_updates


def _split_floats(model: nn.Module, frozen: set[str]) -> tuple[list[Tensor], list[Tensor]]:
    """Return what the model learns or counts: its floating-point tensors, and the others."""
    tensors = [tensor for name, tensor in model.state_dict().items() if name not in frozen]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
