"""An exponential moving average of everything the model learns."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class AverageState(BaseModel):
    """The averaged weights and the number of updates they have seen."""

    model_config = ConfigDict(extra="forbid")

    model: dict[str, Any]
    num_updates: int = Field(ge=0, strict=True)


class ExponentialMovingAverage:
    """A copy of the model whose floats follow the model's slowly (Polyak & Juditsky 1992; Tarvainen & Valpola 2017).

    The running statistics of batch norm are averaged as well, because those of the raw weights do not fit the averaged
    ones. The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates, so that the initial weights are
    forgotten quickly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self.model.requires_grad_(False)
        self.decay, self.num_updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module, bad: Tensor) -> None:
        """Move towards `model`, except where `bad` (bool, 0-d, on the device) is true."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        averages, values = self.model.state_dict().values(), model.state_dict().values()
        is_float = [average.is_floating_point() for average in averages]

        # average += (1 - decay) * (value - average), all tensors at once
        floats = [average for average, chosen in zip(averages, is_float) if chosen]
        differences = torch._foreach_sub([value for value, chosen in zip(values, is_float) if chosen], floats)
        torch._foreach_mul_(differences, torch.where(bad, 0.0, 1 - decay))
        torch._foreach_add_(floats, differences)

        # Counters such as num_batches_tracked are copied.
        for average, value, chosen in zip(averages, values, is_float):
            if not chosen:
                average.copy_(value)

    def state(self) -> AverageState:
        """Return the averaged weights and the number of updates."""
        return AverageState.model_construct(model=self.model.state_dict(), num_updates=self.num_updates)

    def load_state(self, state: AverageState) -> None:
        """Restore what `state` returned."""
        self.model.load_state_dict(state.model)
        self.num_updates = state.num_updates
