"""ResNet-9, the network of the 2019 DAWNBench record: eight convolutions, of which two pairs are residual.

Page 2019, "How to Train Your ResNet" (myrtle.ai), part 8: 6.57 million parameters, 94 % on CIFAR-10 in 24 epochs.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from resnet_train.models.blocks import conv3x3, init_weights
from resnet_train.models.registry import register_model

LOGIT_SCALE = 0.125  # keeps the first logits from saturating the loss (Page 2019)


class ConvNormReLU(nn.Module):
    """3×3 convolution, norm and ReLU; with `pool`, followed by 2×2 max pooling."""

    def __init__(self, in_channels: int, out_channels: int, pool: bool = False) -> None:
        super().__init__()
        self.conv = conv3x3(in_channels, out_channels)
        self.bn = nn.BatchNorm2d(out_channels)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.relu(self.bn(self.conv(x))))


class Residual(nn.Module):
    """x + F(x) with two convolutions and no activation after the addition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNormReLU(channels, channels)
        self.conv2 = ConvNormReLU(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


class ResNet9(nn.Module):
    """Four stages and max pooling: images float [B, 3, H, W] → logits float [B, C]; H and W at least `stride`."""

    stride = 8

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = ConvNormReLU(3, 64)
        self.layer1 = nn.Sequential(ConvNormReLU(64, 128, pool=True), Residual(128))
        self.layer2 = ConvNormReLU(128, 256, pool=True)
        self.layer3 = nn.Sequential(ConvNormReLU(256, 512, pool=True), Residual(512))
        self.linear = nn.Linear(512, num_classes, bias=False)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem(images))))  # [B, 512, H/8, W/8]
        x = x.amax(dim=(2, 3))  # [B, 512]
        return self.linear(x) * LOGIT_SCALE


@register_model("resnet9")
def resnet9(num_classes: int = 10) -> ResNet9:
    return ResNet9(num_classes)
