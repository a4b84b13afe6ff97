"""The residual blocks and shortcuts all families are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError if an option of a network has another value than these."""
    if value not in choices:
        raise ValueError(f"{name} (={value!r}) must be one of {', '.join(choices)}")


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """3×3 convolution that keeps the size (divided by the stride); no bias, as a norm follows."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """1×1 convolution; no bias, as a norm follows."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


class PadShortcut(nn.Module):
    """The shortcut without parameters: take every stride-th pixel, fill the new channels with zeros.

    He et al. 2016a, section 3.3, option A. The zeros are split evenly before and after the old channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        new = out_channels - in_channels
        self.stride = stride
        self.padding = (0, 0, 0, 0, new // 2, new - new // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


def projection_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The shortcut that is learned: 1×1 convolution and norm (He et al. 2016a, section 3.3, option B)."""
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


def widening_shortcut(kind: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The shortcut of a block: nothing where the shape stays, else "pad" or "projection".

    Raises:
        ValueError: another kind.
    """
    require_choice("shortcut", kind, ("pad", "projection"))
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    make = PadShortcut if kind == "pad" else projection_shortcut
    return make(in_channels, out_channels, stride)


class DropPath(nn.Module):
    """Drops a block's residual for some images of a batch and scales the others up, while training.

    Huang et al. 2016, "Deep Networks with Stochastic Depth" (arXiv:1603.09382), per image instead of per batch.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, residual: Tensor) -> Tensor:
        if not self.training:
            return residual
        kept = torch.rand(len(residual), 1, 1, 1, device=residual.device) >= self.probability
        return residual * (kept / (1 - self.probability)).to(residual.dtype)


def drop_path_or_identity(probability: float) -> nn.Module:
    """Nothing at all if nothing is dropped."""
    return DropPath(probability) if probability else nn.Identity()


def norm_relu(x: Tensor, norm: nn.Module, norm_order: str) -> Tensor:
    """The norm and the activation after a convolution, in the order of the paper or the other way round."""
    return F.relu(norm(x)) if norm_order == "conv-bn-relu" else norm(F.relu(x))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions (He et al. 2016a, figure 5 left): float [B, in, H, W] → [B, width, H/stride, W/stride].

    Args:
        in_channels, width, stride: of the first convolution.
        shortcut: what the input passes through beside them.
        norm_order: "conv-bn-relu", or "conv-relu-bn": the norm with a ReLU behind it goes behind that ReLU.
        drop_path: probability of leaving the residual out.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        shortcut: nn.Module,
        norm_order: str = "conv-bn-relu",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut
        self.drop_path = drop_path_or_identity(drop_path)
        self.norm_order = norm_order

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm that ends the residual."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        out = norm_relu(self.conv1(x), self.bn1, self.norm_order)
        out = self.bn2(self.conv2(out))
        return F.relu(self.drop_path(out) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1 down, 3×3 with the stride, 1×1 up (He et al. 2016a, figure 5 right): → [B, 4·width, H/stride, W/stride].

    The stride sits in the 3×3, where no activation is thrown away unseen; the paper's text has it in the first 1×1.
    Arguments as for `BasicBlock`.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        shortcut: nn.Module,
        norm_order: str = "conv-bn-relu",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, self.expansion * width)
        self.bn3 = nn.BatchNorm2d(self.expansion * width)
        self.shortcut = shortcut
        self.drop_path = drop_path_or_identity(drop_path)
        self.norm_order = norm_order

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm that ends the residual."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        out = norm_relu(self.conv1(x), self.bn1, self.norm_order)
        out = norm_relu(self.conv2(out), self.bn2, self.norm_order)
        out = self.bn3(self.conv3(out))
        return F.relu(self.drop_path(out) + self.shortcut(x))


def stage_strides(num_blocks: int, stride: int) -> list[int]:
    """The stride of each block of a stage: only the first one shrinks the image."""
    return [stride] + [1] * (num_blocks - 1)


@torch.no_grad()
def init_weights(model: nn.Module) -> None:
    """He initialization (He et al. 2015, fan-out) of every convolution; norms start as the identity."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def set_bn_momentum(model: nn.Module, momentum: float) -> None:
    """The weight of the newest batch in the running statistics of every batch norm."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
