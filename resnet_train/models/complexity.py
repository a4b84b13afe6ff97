"""The size of a network: parameters and multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from resnet_train.models.registry import create_model


@dataclass(frozen=True)
class Complexity:
    """Number of trainable parameters, and of multiply-adds in convolutions and linear layers for one image."""

    params: int
    macs: int


def measure_complexity(name: str, num_classes: int = 10, image_size: int = 32, **options: object) -> Complexity:
    """Return the size of a network, computed on torch's meta device without memory or arithmetic.

    As in the tables of papers, norms, activations, additions and biases do not count as multiply-adds.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = create_model(name, num_classes, **options).eval()
        model(torch.empty(1, 3, image_size, image_size))
    params = sum(parameter.numel() for parameter in model.parameters())
    return Complexity(params, counter.get_total_flops() // 2)  # two operations per multiply-add
