"""Squeeze-and-excitation ResNets: CIFAR ResNets whose blocks weight their channels by the content of the image.

Hu et al. 2018, "Squeeze-and-Excitation Networks" (arXiv:1709.01507), section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_train.config import NETWORK_OPTIONS, add_setting
from resnet_train.models import register_model
from resnet_train.models.blocks import BasicBlock
from resnet_train.models.cifar_resnet import CifarResNet

add_setting(
    "se_reduction",
    int | None,
    None,
    "se_resnet20, se_resnet56: the excitation has 1/N of the channels of its block; 16 if not given.",
    panel=NETWORK_OPTIONS,
    ge=1,
    le=64,
)


class Excitation(nn.Module):
    """Multiply each channel with a weight from 0 to 1 that depends on all of them: [B, C, H, W] → [B, C, H, W]."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze, self.excite = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.squeeze(x.mean(dim=(2, 3))))  # [B, C/N]
        weights = torch.sigmoid(self.excite(hidden))  # [B, C]
        return x * weights[:, :, None, None]


class SEResNet(CifarResNet):
    """A CIFAR ResNet with an excitation at the end of the residual of each block."""

    def __init__(self, depth: int, num_classes: int = 10, shortcut: str = "pad", se_reduction: int = 16) -> None:
        super().__init__(depth, num_classes, shortcut)
        for block in self.modules():
            if isinstance(block, BasicBlock):
                block.bn2 = nn.Sequential(block.bn2, Excitation(block.bn2.num_features, se_reduction))


@register_model("squeeze-and-excitation ResNets, Hu et al. 2018", options=SEResNet)
def se_resnet20(num_classes: int = 10, **options: Any) -> SEResNet:
    return SEResNet(20, num_classes, **options)


@register_model("squeeze-and-excitation ResNets, Hu et al. 2018", options=SEResNet)
def se_resnet56(num_classes: int = 10, **options: Any) -> SEResNet:
    return SEResNet(56, num_classes, **options)
