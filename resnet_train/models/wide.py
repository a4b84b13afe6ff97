"""Wide residual networks: few layers, many channels. `wide_resnet<depth>_<widening>`, 6n+4 layers.

Zagoruyko & Komodakis 2016, "Wide Residual Networks" (arXiv:1605.07146), table 1, with basic blocks B(3,3) and without
dropout.
"""

from __future__ import annotations

from resnet_train.models.preact import CIFAR_WIDTHS, PreActBasicBlock, PreActResNet
from resnet_train.models.registry import register_model


def _wide_resnet(depth: int, widening: int, num_classes: int) -> PreActResNet:
    num_blocks = (depth - 4) // 6
    widths = [widening * width for width in CIFAR_WIDTHS]
    return PreActResNet(PreActBasicBlock, [num_blocks] * 3, widths, 16, num_classes, pad=False)


@register_model("wide_resnet")
def wide_resnet16_8(num_classes: int = 10) -> PreActResNet:
    return _wide_resnet(16, 8, num_classes)


@register_model("wide_resnet")
def wide_resnet28_10(num_classes: int = 10) -> PreActResNet:
    return _wide_resnet(28, 10, num_classes)


@register_model("wide_resnet")
def wide_resnet40_4(num_classes: int = 10) -> PreActResNet:
    return _wide_resnet(40, 4, num_classes)
