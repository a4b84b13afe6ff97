"""TrivialAugment: one random operation of random strength for each image, vectorized by operation.

Müller & Hutter 2021, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation" (arXiv:2103.10158), with the
operations and strengths of the paper's wide space. Each operation equals torchvision's on every image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

NUM_BINS = 31

# (images uint8 [B, 3, H, W], signed strength float32 [B]) → images of the same kind
Operation = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrivialAugment:
    """Applies to uint8 images [B, 3, H, W]: to each one operation, of one of 31 strengths, in one direction."""

    stream: ClassVar[str] = "trivial-augment"
    redraws: ClassVar[bool] = True

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray:
        """float32 [N, 2]: number of the operation, and its signed strength."""
        numbers = rng.integers(0, len(OPERATIONS), size=num_images)
        bins = rng.integers(0, NUM_BINS, size=num_images)
        signs = np.where(rng.random(num_images) < 0.5, 1.0, -1.0)
        table = np.stack([strengths for _, strengths, _ in OPERATIONS])
        signed = np.array([is_signed for _, _, is_signed in OPERATIONS])
        strengths = table[numbers, bins] * np.where(signed[numbers], signs, 1.0)
        return np.stack([numbers, strengths], axis=1).astype(np.float32)

    def __call__(self, images: Tensor, parameters: Tensor | None) -> Tensor:
        assert parameters is not None
        changed = images.clone()
        for number, (operation, _, _) in enumerate(OPERATIONS):
            chosen = (parameters[:, 0] == number).nonzero()[:, 0]
            if len(chosen):
                changed[chosen] = operation(images[chosen], parameters[chosen, 1])
        return changed


# --- Geometry: nearest pixel, black outside ----------------------------------------------------------------------


def _warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Output pixel (x, y), counted from the image's centre, is the input pixel matrices [B, 2, 3] @ (x, y, 1)."""
    batch, _, height, width = images.shape
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=images.device)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=images.device)
    columns, rows = x.expand(height, width), y[:, None].expand(height, width)
    base = torch.stack([columns, rows, torch.ones_like(columns)], dim=2)
    half = torch.tensor([0.5 * width, 0.5 * height], device=images.device)
    theta = matrices.to(images.device, torch.float32).transpose(1, 2) / half
    grid = (base.view(1, height * width, 3).expand(batch, -1, -1) @ theta).view(batch, height, width, 2)
    warped = F.grid_sample(images.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return warped.round().to(torch.uint8)


def _matrices(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def _shear_x(images: Tensor, strength: Tensor) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _warp(images, _matrices([[one, strength, strength * images.shape[2] / 2], [zero, one, zero]]))


def _shear_y(images: Tensor, strength: Tensor) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _warp(images, _matrices([[one, zero, zero], [strength, one, strength * images.shape[3] / 2]]))


def _translate_x(images: Tensor, strength: Tensor) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _warp(images, _matrices([[one, zero, -strength.trunc()], [zero, one, zero]]))


def _translate_y(images: Tensor, strength: Tensor) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _warp(images, _matrices([[one, zero, zero], [zero, one, -strength.trunc()]]))


def _rotate(images: Tensor, strength: Tensor) -> Tensor:
    """Counter-clockwise by `strength` degrees."""
    # float64, which Apple's GPU lacks: at 45 and 90 degrees the last bit decides which pixel is the nearest.
    radians = strength.cpu().double() * (math.pi / 180)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    return _warp(images, _matrices([[cos, -sin, zero], [sin, cos, zero]]))


# --- Colour ------------------------------------------------------------------------------------------------------


def _blend(images: Tensor, degenerate: Tensor, strength: Tensor) -> Tensor:
    """`1 + strength` of the image and the rest of the degenerate one."""
    strength = strength[:, None, None, None]
    return torch.addcmul((1 + strength) * images, -strength, degenerate).clamp(0, 255).to(torch.uint8)


def _gray(images: Tensor) -> Tensor:
    """float [B, 1, H, W]: luminance by ITU-R 601."""
    red, green, blue = images.split(1, dim=1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def _brightness(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, torch.zeros((), device=images.device), strength)


def _color(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, _gray(images).floor(), strength)


def _contrast(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, _gray(images).floor().mean(dim=(1, 2, 3), keepdim=True), strength)


def _sharpness(images: Tensor, strength: Tensor) -> Tensor:
    """Against the image smoothed by 1 1 1 / 1 5 1 / 1 1 1; the border stays."""
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    sharp = images.float()
    inner = sharp[:, :, 1:-1, 1:-1]
    smooth = F.conv2d(sharp, kernel / 13, groups=3).round()
    inner.addcmul_(-strength[:, None, None, None], smooth - inner)
    return sharp.clamp(0, 255).to(torch.uint8)


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    """Keeps the `strength` highest bits."""
    mask = 256 - 2 ** (8 - strength.to(torch.int64))
    return (images.to(torch.int64) & mask[:, None, None, None]).to(torch.uint8)


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    """Inverts pixels from `strength` on."""
    return torch.where(images >= strength[:, None, None, None], 255 - images, images)


def _autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    """Stretches each channel to 0 … 255."""
    low, high = (f(images.flatten(2), dim=2)[..., None, None].float() for f in (torch.amin, torch.amax))
    flat = low == high
    width = torch.where(flat, 1.0, (high - low) * (1 / 255))
    return ((images - torch.where(flat, 0.0, low)) / width).clamp(0, 255).to(torch.uint8)


def _equalize(images: Tensor, strength: Tensor) -> Tensor:
    """Gives each channel a flat histogram."""
    flat = images.flatten(2).to(torch.int64)
    histogram = torch.zeros((*flat.shape[:2], 256), dtype=torch.int64, device=images.device)
    histogram.scatter_add_(2, flat, torch.ones_like(flat))
    cumulative = histogram.cumsum(2)
    # The last filled bin does not count: it is the one that 255 is reached at.
    last = histogram.gather(2, flat.amax(2, keepdim=True))
    step = (cumulative[..., -1:] - last) // 255
    table = (torch.cat([torch.zeros_like(step), cumulative[..., :-1]], 2) + step // 2) // step.clamp(min=1)
    equalized = table.clamp(0, 255).gather(2, flat)
    return torch.where(step == 0, flat, equalized).view_as(images).to(torch.uint8)


def _identity(images: Tensor, strength: Tensor) -> Tensor:
    return images


def _strengths(low: float, high: float) -> np.ndarray:
    return torch.linspace(low, high, NUM_BINS).double().numpy()


_NONE = np.zeros(NUM_BINS)
# Operation, its strengths from bin 0 to 30, and whether it goes either way.
OPERATIONS: tuple[tuple[Operation, np.ndarray, bool], ...] = (
    (_identity, _NONE, False),
    (_shear_x, _strengths(0, 0.99), True),
    (_shear_y, _strengths(0, 0.99), True),
    (_translate_x, _strengths(0, 32), True),
    (_translate_y, _strengths(0, 32), True),
    (_rotate, _strengths(0, 135), True),
    (_brightness, _strengths(0, 0.99), True),
    (_color, _strengths(0, 0.99), True),
    (_contrast, _strengths(0, 0.99), True),
    (_sharpness, _strengths(0, 0.99), True),
    (_posterize, 8 - (np.arange(NUM_BINS) / ((NUM_BINS - 1) / 6)).round(), False),
    (_solarize, _strengths(255, 0), False),
    (_autocontrast, _NONE, False),
    (_equalize, _NONE, False),
)
