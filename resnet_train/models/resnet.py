"""The wide family: ResNet-18 to 152 with ImageNet's widths and a stem for small images.

He et al. 2016a, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), table 1, with the 7×7 stem and
the pooling replaced by one 3×3 convolution, as the CIFAR repositories do it; parameter names are theirs
(github.com/kuangliu/pytorch-cifar), so their checkpoints load unchanged.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from resnet_train.models.blocks import BasicBlock, Bottleneck, conv3x3, init_weights, projection_shortcut
from resnet_train.models.registry import register_model

Block = type[BasicBlock] | type[Bottleneck]


class ResNet(nn.Module):
    """Stem, four stages, global average pooling, one linear layer.

    Args:
        block: the residual block of all stages.
        num_blocks: blocks in each of the four stages.
        num_classes: length C of the logits.

    Shape: images float [B, 3, H, W] → logits float [B, C]; H and W at least 8.
    """

    def __init__(self, block: Block, num_blocks: tuple[int, int, int, int], num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(block, 64, 64, num_blocks[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, num_blocks[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, num_blocks[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, num_blocks[3], stride=2)
        self.linear = nn.Linear(512 * block.expansion, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        x = x.mean(dim=(2, 3))
        return self.linear(x)


def _stage(block: Block, in_channels: int, width: int, num_blocks: int, stride: int) -> nn.Sequential:
    """`num_blocks` blocks; the first one has the stride and, where stride or width change, the projection."""
    out_channels = width * block.expansion
    changes = stride != 1 or in_channels != out_channels
    shortcut = projection_shortcut(in_channels, out_channels, stride) if changes else nn.Sequential()
    blocks = [block(in_channels, width, stride, shortcut)]
    blocks += [block(out_channels, width, 1, nn.Sequential()) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)


@register_model("resnet", stride=8)
def resnet18(num_classes: int = 10) -> ResNet:
    return ResNet(BasicBlock, num_blocks=(2, 2, 2, 2), num_classes=num_classes)


@register_model("resnet", stride=8)
def resnet34(num_classes: int = 10) -> ResNet:
    return ResNet(BasicBlock, num_blocks=(3, 4, 6, 3), num_classes=num_classes)


@register_model("resnet", stride=8)
def resnet50(num_classes: int = 10) -> ResNet:
    return ResNet(Bottleneck, num_blocks=(3, 4, 6, 3), num_classes=num_classes)


@register_model("resnet", stride=8)
def resnet101(num_classes: int = 10) -> ResNet:
    return ResNet(Bottleneck, num_blocks=(3, 4, 23, 3), num_classes=num_classes)


@register_model("resnet", stride=8)
def resnet152(num_classes: int = 10) -> ResNet:
    return ResNet(Bottleneck, num_blocks=(3, 8, 36, 3), num_classes=num_classes)
