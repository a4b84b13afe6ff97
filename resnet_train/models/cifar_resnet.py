"""CIFAR ResNets as in the paper: 6n+2 layers, three stages of 16, 32 and 64 channels.

He et al. 2016a, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), section 4.2, with its
parameter-free shortcuts (option A).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from resnet_train.models.blocks import BasicBlock, conv3x3, init_weights, stage_strides, widening_shortcut
from resnet_train.models.registry import ModelEntry, find_model, optional_arguments, register_model, register_pattern

FAMILY = "cifar_resnet"
WIDTHS = (16, 32, 64)


class CifarResNet(nn.Module):
    """3×3 stem, three stages of n basic blocks, global average pooling, one linear layer: 6n+2 weighted layers.

    Args:
        depth: number of weighted layers, 6n+2 for an integer n ≥ 1.
        num_classes: length C of the logits.
        shortcut: how shortcuts add channels: "pad" (option A, the paper's) or "projection" (option B).

    Shape: images float [B, 3, H, W] → logits float [B, C]; H and W at least `stride`.
    """

    stride = 4

    def __init__(self, depth: int, num_classes: int = 10, shortcut: str = "pad") -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth (={depth}) must be 6n+2 for an integer n of at least 1")
        self.conv1 = conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        channels, stages = 16, []
        for width, stride in zip(WIDTHS, (1, 2, 2)):
            blocks = []  # those of one stage
            for block_stride in stage_strides((depth - 2) // 6, stride):
                widening = widening_shortcut(shortcut, channels, width, block_stride)
                blocks.append(BasicBlock(channels, width, block_stride, widening))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))  # [B, 16, H, W]
        x = self.layer1(x)  # [B, 16, H, W]
        x = self.layer2(x)  # [B, 32, H/2, W/2]
        x = self.layer3(x)  # [B, 64, H/4, W/4]
        x = x.mean(dim=(2, 3))  # [B, 64]
        return self.linear(x)


@register_model(FAMILY, options=CifarResNet)
def resnet20(num_classes: int = 10, **options: Any) -> CifarResNet:
    return CifarResNet(depth=20, num_classes=num_classes, **options)


@register_model(FAMILY, options=CifarResNet)
def resnet32(num_classes: int = 10, **options: Any) -> CifarResNet:
    return CifarResNet(depth=32, num_classes=num_classes, **options)


@register_model(FAMILY, options=CifarResNet)
def resnet44(num_classes: int = 10, **options: Any) -> CifarResNet:
    return CifarResNet(depth=44, num_classes=num_classes, **options)


@register_model(FAMILY, options=CifarResNet)
def resnet56(num_classes: int = 10, **options: Any) -> CifarResNet:
    return CifarResNet(depth=56, num_classes=num_classes, **options)


@register_model(FAMILY, options=CifarResNet)
def resnet110(num_classes: int = 10, **options: Any) -> CifarResNet:
    return CifarResNet(depth=110, num_classes=num_classes, **options)


@register_model(FAMILY, options=CifarResNet)
def resnet1202(num_classes: int = 10, **options: Any) -> CifarResNet:
    return CifarResNet(depth=1202, num_classes=num_classes, **options)


@register_pattern(r"resnet[1-9]\d{0,3}")
def any_depth(name: str) -> ModelEntry:
    """Return the entry of any other depth 6n+2, such as resnet8 or resnet14."""
    depth = int(name.removeprefix("resnet"))
    if depth < 8 or depth % 6 != 2:
        below = max(8, depth - (depth - 2) % 6)
        fitting = [f"resnet{d}" for d in (below, below + 6) if d < 10_000 and find_model(f"resnet{d}").family == FAMILY]
        raise ValueError(
            f"unknown architecture {name!r}: a CIFAR ResNet has 6n+2 layers (n blocks of 2 convolutions in each of "
            f"3 stages, a stem and a linear layer); the nearest: {' and '.join(fitting)}"
        )
    return ModelEntry(name, FAMILY, partial(CifarResNet, depth), optional_arguments(CifarResNet))
