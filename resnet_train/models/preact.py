"""Pre-activation networks: norm and ReLU before each convolution, nothing after the addition.

He et al. 2016b, "Identity Mappings in Deep Residual Networks" (arXiv:1603.05027). The last block is followed by a norm
and a ReLU (see the appendix), which many implementations omit (option `final_norm`). Zagoruyko & Komodakis 2016, "Wide
Residual Networks" (arXiv:1605.07146), is the same network with wider stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from resnet_train.models.blocks import PadShortcut, conv1x1, conv3x3, init_weights, stage_strides
from resnet_train.models.registry import register_model


class PreActBasicBlock(nn.Module):
    """Two 3×3 convolutions, each after its norm and ReLU: float [B, in, H, W] → [B, width, H/stride, W/stride].

    If the shape changes, the shortcut starts after the first ReLU (He et al. 2016b, figure 4e and appendix).
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        return out + shortcut


class PreActBottleneck(nn.Module):
    """1×1 down, 3×3 with the stride, 1×1 up, each after its norm and ReLU: → [B, 4·width, H/stride, W/stride]."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, self.expansion * width)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        return out + shortcut


Block = type[PreActBasicBlock] | type[PreActBottleneck]


class PreActResNet(nn.Module):
    """3×3 stem without a norm, stages of pre-activation blocks, a last norm and ReLU, average pooling, linear.

    Args:
        block: residual block of all stages.
        num_blocks, widths: those of each stage. The first stage keeps the size, all others halve it.
        stem_channels: channels of the stem.
        num_classes: length C of the logits.
        pad: add channels to shortcuts as zeros instead of with a 1×1 convolution.
        final_norm: end with a norm and a ReLU, as in the paper, or with the last addition, as many implementations do.

    Shape: images float [B, 3, H, W] → logits float [B, C]; H and W at least `stride`.
    """

    def __init__(
        self,
        block: Block,
        num_blocks: Sequence[int],
        widths: Sequence[int],
        stem_channels: int,
        num_classes: int,
        pad: bool,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        # The stem has no norm, because the first block starts with one.
        self.stride = 2 ** (len(widths) - 1)
        self.conv1 = conv3x3(3, stem_channels)

        # The stages: all but the first halve the size in their first block.
        channels, stages = stem_channels, []
        for number, (depth, width) in enumerate(zip(num_blocks, widths)):
            blocks = []  # those of one stage
            for stride in stage_strides(depth, 1 if number == 0 else 2):
                out = width * block.expansion
                shortcut: nn.Module | None = None
                if stride != 1 or channels != out:
                    shortcut = _widening_shortcut(channels, out, stride, pad)
                blocks.append(block(channels, width, stride, shortcut))
                channels = out
            stages.append(nn.Sequential(*blocks))

        # Name them layer1, layer2 … as in the other families.
        self.layers = [f"layer{number + 1}" for number in range(len(stages))]
        for name, stage in zip(self.layers, stages):
            self.add_module(name, stage)

        # The last norm and the classifier.
        self.bn = nn.BatchNorm2d(channels) if final_norm else None
        self.linear = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images)
        for name in self.layers:
            x = self.get_submodule(name)(x)
        if self.bn is not None:
            x = F.relu(self.bn(x))  # [B, C, H/stride, W/stride]
        x = x.mean(dim=(2, 3))  # [B, C]
        return self.linear(x)


def _widening_shortcut(in_channels: int, out_channels: int, stride: int, pad: bool) -> nn.Module:
    """Build a padding or a 1×1 convolution; no norm, because the input comes from one."""
    if pad:
        return PadShortcut(in_channels, out_channels, stride)
    return nn.Sequential(conv1x1(in_channels, out_channels, stride))


IMAGENET_WIDTHS, CIFAR_WIDTHS = (64, 128, 256, 512), (16, 32, 64)


def _imagenet_sized(
    block: Block, num_blocks: tuple[int, int, int, int], num_classes: int, **options: Any
) -> PreActResNet:
    return PreActResNet(block, num_blocks, IMAGENET_WIDTHS, 64, num_classes, pad=False, **options)


def _cifar_sized(block: Block, depth: int, num_classes: int, pad: bool, **options: Any) -> PreActResNet:
    return PreActResNet(block, (depth, depth, depth), CIFAR_WIDTHS, 16, num_classes, pad=pad, **options)


@register_model("preact_resnet", options=PreActResNet)
def preact_resnet18(num_classes: int = 10, **options: Any) -> PreActResNet:
    return _imagenet_sized(PreActBasicBlock, (2, 2, 2, 2), num_classes, **options)


@register_model("preact_resnet", options=PreActResNet)
def preact_resnet34(num_classes: int = 10, **options: Any) -> PreActResNet:
    return _imagenet_sized(PreActBasicBlock, (3, 4, 6, 3), num_classes, **options)


@register_model("preact_resnet", options=PreActResNet)
def preact_resnet50(num_classes: int = 10, **options: Any) -> PreActResNet:
    return _imagenet_sized(PreActBottleneck, (3, 4, 6, 3), num_classes, **options)


@register_model("preact_resnet", options=PreActResNet)
def preact_resnet101(num_classes: int = 10, **options: Any) -> PreActResNet:
    return _imagenet_sized(PreActBottleneck, (3, 4, 23, 3), num_classes, **options)


@register_model("preact_resnet", options=PreActResNet)
def preact_resnet152(num_classes: int = 10, **options: Any) -> PreActResNet:
    return _imagenet_sized(PreActBottleneck, (3, 8, 36, 3), num_classes, **options)


@register_model("preact_cifar_resnet", options=PreActResNet)
def preact_resnet110(num_classes: int = 10, **options: Any) -> PreActResNet:
    """Build 6n+2 layers of basic blocks with parameter-free shortcuts, like the ResNet-110 of the first paper."""
    return _cifar_sized(PreActBasicBlock, 18, num_classes, pad=True, **options)


@register_model("preact_cifar_resnet", options=PreActResNet)
def preact_resnet164(num_classes: int = 10, **options: Any) -> PreActResNet:
    """Build 9n+2 layers of bottlenecks."""
    return _cifar_sized(PreActBottleneck, 18, num_classes, pad=False, **options)


@register_model("preact_cifar_resnet", options=PreActResNet)
def preact_resnet1001(num_classes: int = 10, **options: Any) -> PreActResNet:
    """Build 9n+2 layers of bottlenecks."""
    return _cifar_sized(PreActBottleneck, 111, num_classes, pad=False, **options)
