"""Residual blocks, shortcuts and initialization shared by the families."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError if an option of a network is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} (={value!r}) must be one of {', '.join(choices)}")


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Build a 3×3 convolution that keeps the size (divided by the stride); no bias, because a norm follows."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Build a 1×1 convolution; no bias, because a norm follows."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


class PadShortcut(nn.Module):
    """A shortcut without parameters: take every stride-th pixel and fill the new channels with zeros.

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
    """Build a learned shortcut: 1×1 convolution and norm (He et al. 2016a, section 3.3, option B)."""
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


def widening_shortcut(kind: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Build the shortcut of a block: the identity if the shape stays the same, else "pad" or "projection".

    Raises:
        ValueError: `kind` is neither.
    """
    require_choice("shortcut", kind, ("pad", "projection"))
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    make = PadShortcut if kind == "pad" else projection_shortcut
    return make(in_channels, out_channels, stride)


class DropPath(nn.Module):
    """Drop the residual of a block for random images of a batch and scale up the others, while training.

    Huang et al. 2016, "Deep Networks with Stochastic Depth" (arXiv:1603.09382), per image instead of per batch.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, residual: Tensor) -> Tensor:
        if not self.training:
            return residual
        # Scaling up the residuals that are kept preserves the expected value.
        kept = torch.rand(len(residual), 1, 1, 1, device=residual.device) >= self.probability
        return residual * (kept / (1 - self.probability)).to(residual.dtype)


def drop_path_or_identity(probability: float) -> nn.Module:
    """Build a DropPath, or an identity for probability 0."""
    return DropPath(probability) if probability else nn.Identity()


def norm_relu(x: Tensor, norm: nn.Module, norm_order: str) -> Tensor:
    """Apply a norm and a ReLU after a convolution, in this order, or in reverse for "conv-relu-bn"."""
    return F.relu(norm(x)) if norm_order == "conv-bn-relu" else norm(F.relu(x))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions (He et al. 2016a, figure 5 left): float [B, in, H, W] → [B, width, H/stride, W/stride].

    Args:
        in_channels, width, stride: those of the first convolution.
        shortcut: what the input passes through in parallel.
        norm_order: "conv-bn-relu", or "conv-relu-bn" to swap each norm with the ReLU that follows it.
        drop_path: probability of dropping the residual.
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
        """Return the norm that ends the residual."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        out = norm_relu(self.conv1(x), self.bn1, self.norm_order)
        out = self.bn2(self.conv2(out))
        return F.relu(self.drop_path(out) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1 down, 3×3 with the stride, 1×1 up (He et al. 2016a, figure 5 right): → [B, 4·width, H/stride, W/stride].

    The stride is in the 3×3, which sees every activation; the paper puts it in the first 1×1.
    The arguments are those of `BasicBlock`.
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
        """Return the norm that ends the residual."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        out = norm_relu(self.conv1(x), self.bn1, self.norm_order)
        out = norm_relu(self.conv2(out), self.bn2, self.norm_order)
        out = self.bn3(self.conv3(out))
        return F.relu(self.drop_path(out) + self.shortcut(x))


def stage_strides(num_blocks: int, stride: int) -> list[int]:
    """Return the stride of each block of a stage; only the first one downsamples."""
    return [stride] + [1] * (num_blocks - 1)


@torch.no_grad()
def init_weights(model: nn.Module) -> None:
    """Initialize convolutions as in He et al. 2015 (fan-out); torch creates norms as the identity."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def set_bn_momentum(model: nn.Module, momentum: float) -> None:
    """Set the weight of the newest batch in the running statistics of all batch norms."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
