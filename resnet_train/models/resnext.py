"""ResNeXt: bottlenecks with grouped 3×3 convolutions. `resnext29_<groups>x<width>d`.

Xie et al. 2017, "Aggregated Residual Transformations for Deep Neural Networks" (arXiv:1611.05431), sized as in the
common CIFAR repositories (github.com/kuangliu/pytorch-cifar): a 1×1 stem, and stages that end at twice the width of
their 3×3 convolutions; those of the paper end at 256, 512 and 1024 channels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from resnet_train.models.blocks import conv1x1, init_weights, stage_strides, widening_shortcut
from resnet_train.models.registry import register_model


class ResNeXtBlock(nn.Module):
    """1×1, 3×3 in `groups` groups with the stride, 1×1 up: float [B, in, H, W] → [B, 2·width, H/stride, W/stride]."""

    expansion = 2

    def __init__(self, in_channels: int, width: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, self.expansion * width)
        self.bn3 = nn.BatchNorm2d(self.expansion * width)
        self.shortcut = widening_shortcut("projection", in_channels, self.expansion * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


class ResNeXt(nn.Module):
    """1×1 stem, three stages of three blocks, average pooling, linear: 29 layers.

    Args:
        groups: number of groups of each 3×3 convolution ("cardinality").
        group_width: channels of a group in the first stage, doubled in each later one.
        num_classes: length C of the logits.

    Shape: images float [B, 3, H, W] → logits float [B, C]; H and W at least `stride`.
    """

    stride = 4

    def __init__(self, groups: int, group_width: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        channels, width, stages = 64, groups * group_width, []
        for stage_stride in (1, 2, 2):
            blocks = []
            for stride in stage_strides(3, stage_stride):
                blocks.append(ResNeXtBlock(channels, width, groups, stride))
                channels = ResNeXtBlock.expansion * width
            stages.append(nn.Sequential(*blocks))
            width *= 2
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))  # [B, 64, H, W]
        x = self.layer3(self.layer2(self.layer1(x)))  # [B, C, H/4, W/4]
        x = x.mean(dim=(2, 3))  # [B, C]
        return self.linear(x)


@register_model("resnext")
def resnext29_2x64d(num_classes: int = 10) -> ResNeXt:
    return ResNeXt(groups=2, group_width=64, num_classes=num_classes)


@register_model("resnext")
def resnext29_4x64d(num_classes: int = 10) -> ResNeXt:
    return ResNeXt(groups=4, group_width=64, num_classes=num_classes)
