"""The ImageNet family with a CIFAR stem: ResNet-18 to ResNet-152 for small images.

He et al. 2016a, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), table 1, with the 7×7 stem and
the pooling replaced by one 3×3 convolution, as in the common CIFAR repositories. The parameter names are those of
github.com/kuangliu/pytorch-cifar, so its checkpoints load unchanged.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from resnet_train.models.blocks import (
    BasicBlock,
    Bottleneck,
    conv3x3,
    init_weights,
    norm_relu,
    require_choice,
    stage_strides,
    widening_shortcut,
)
from resnet_train.models.registry import register_model

Block = type[BasicBlock] | type[Bottleneck]
WIDTHS = (64, 128, 256, 512)


class ResNet(nn.Module):
    """Stem, four stages, global average pooling, one linear layer.

    Args:
        block: residual block of all stages.
        num_blocks: number of blocks in each stage.
        num_classes: length C of the logits.
        stem: "cifar", one 3×3 convolution, or "imagenet", 7×7 with stride 2 and 3×3 max pooling with stride 2.
        norm_order: "conv-bn-relu", or "conv-relu-bn" to swap each norm with the ReLU that follows it.
        zero_init_residual: start the last norm of each block at 0, so that the block starts as the identity (Goyal et
            al. 2017, section 5.1).
        drop_path: probability of dropping the last block's residual; it grows linearly with depth.

    Shape: images float [B, 3, H, W] → logits float [B, C]; H and W at least `stride`.
    """

    def __init__(
        self,
        block: Block,
        num_blocks: tuple[int, int, int, int],
        num_classes: int = 10,
        stem: str = "cifar",
        norm_order: str = "conv-bn-relu",
        zero_init_residual: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        # The stem keeps the size for CIFAR and divides it by 4 for ImageNet.
        require_choice("stem", stem, ("cifar", "imagenet"))
        require_choice("norm_order", norm_order, ("conv-bn-relu", "conv-relu-bn"))
        is_cifar = stem == "cifar"
        self.norm_order = norm_order
        self.stride = 8 if is_cifar else 32
        self.conv1 = conv3x3(3, 64) if is_cifar else nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.Identity() if is_cifar else nn.MaxPool2d(3, stride=2, padding=1)

        # Stochastic depth: the residual of block l of L is dropped with l/L times the probability.
        drops = [drop_path * (number + 1) / sum(num_blocks) for number in range(sum(num_blocks))]

        # The stages: all but the first halve the size in their first block.
        channels, stages = 64, []
        for width, depth, stride in zip(WIDTHS, num_blocks, (1, 2, 2, 2)):
            blocks = []  # those of one stage
            for block_stride in stage_strides(depth, stride):
                out = width * block.expansion
                shortcut = widening_shortcut("projection", channels, out, block_stride)
                blocks.append(block(channels, width, block_stride, shortcut, norm_order, drops.pop(0)))
                channels = out
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

        # The classifier, and the initial weights.
        self.linear = nn.Linear(channels, num_classes)
        init_weights(self)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    nn.init.zeros_(module.last_norm.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(norm_relu(self.conv1(images), self.bn1, self.norm_order))  # [B, 64, H, W] after the CIFAR stem
        x = self.layer1(x)  # [B, C/8, H, W]
        x = self.layer2(x)  # [B, C/4, H/2, W/2]
        x = self.layer3(x)  # [B, C/2, H/4, W/4]
        x = self.layer4(x)  # [B, C, H/8, W/8]
        x = x.mean(dim=(2, 3))  # [B, C], C = 512 or, with bottlenecks, 2048
        return self.linear(x)


@register_model("resnet", options=ResNet)
def resnet18(num_classes: int = 10, **options: Any) -> ResNet:
    return ResNet(BasicBlock, num_blocks=(2, 2, 2, 2), num_classes=num_classes, **options)


@register_model("resnet", options=ResNet)
def resnet34(num_classes: int = 10, **options: Any) -> ResNet:
    return ResNet(BasicBlock, num_blocks=(3, 4, 6, 3), num_classes=num_classes, **options)


@register_model("resnet", options=ResNet)
def resnet50(num_classes: int = 10, **options: Any) -> ResNet:
    return ResNet(Bottleneck, num_blocks=(3, 4, 6, 3), num_classes=num_classes, **options)


@register_model("resnet", options=ResNet)
def resnet101(num_classes: int = 10, **options: Any) -> ResNet:
    return ResNet(Bottleneck, num_blocks=(3, 4, 23, 3), num_classes=num_classes, **options)


@register_model("resnet", options=ResNet)
def resnet152(num_classes: int = 10, **options: Any) -> ResNet:
    return ResNet(Bottleneck, num_blocks=(3, 8, 36, 3), num_classes=num_classes, **options)
