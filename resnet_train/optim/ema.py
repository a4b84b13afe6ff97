"""Averaged weights: an exponential moving average of everything the model learns."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class AveragedModel:
    """A copy of the model whose floats follow the model's slowly (Polyak & Juditsky 1992; Tarvainen & Valpola 2017).

    The batch norms' running statistics are averaged, too: those of the raw weights do not fit the averaged ones.
    The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates, so that the start is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self.model.requires_grad_(False)
        self.decay, self.num_updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module, bad: Tensor) -> None:
        """Moves towards the model; not at all where `bad` (bool, 0-dimensional, on the device) is true."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        averages, values = _floats(self.model), _floats(model)
        differences = torch._foreach_sub(values, averages)
        torch._foreach_mul_(differences, torch.where(bad, 0.0, 1 - decay))
        torch._foreach_add_(averages, differences)
        for average, value in zip(_integers(self.model), _integers(model)):
            average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """The average and how many updates it has seen."""
        return {"model": self.model.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was called."""
        self.model.load_state_dict(state["model"])
        self.num_updates = state["num_updates"]


def _floats(model: nn.Module) -> list[Tensor]:
    return [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]


def _integers(model: nn.Module) -> list[Tensor]:
    return [tensor for tensor in model.state_dict().values() if not tensor.is_floating_point()]
