"""How large a network is: parameters and multiply-adds of one image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnet_train.models.registry import create_model


@dataclass(frozen=True)
class Complexity:
    """Trainable parameters, and the multiply-adds of convolutions and linear layers for one image."""

    params: int
    macs: int


def measure_complexity(name: str, num_classes: int = 10, image_size: int = 32, **options: object) -> Complexity:
    """Counts on torch's meta device: no memory and no arithmetic, so resnet1202 takes a second, too.

    A multiply-add is one weight applied to one pixel; norms, activations, additions and biases are not counted, as in
    the papers' tables.
    """
    with torch.device("meta"):
        model = create_model(name, num_classes, **options).eval()
        images = torch.empty(1, 3, image_size, image_size)
    macs = 0

    def count(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        weight = module.weight
        assert isinstance(weight, Tensor)
        pixels = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        macs += weight.numel() * pixels

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(images)
    return Complexity(sum(parameter.numel() for parameter in model.parameters()), macs)
