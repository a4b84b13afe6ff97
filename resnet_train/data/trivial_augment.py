"""TrivialAugment: one random operation of random strength for each image, vectorized by operation.

Müller & Hutter 2021, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation" (arXiv:2103.10158), with the
operations and strengths of the paper's wide space. Each operation equals torchvision's on every image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

NUM_BINS = 31


class Operation(NamedTuple):
    """One operation of the space.

    Attributes:
        apply: Maps images, uint8 [B, 3, H, W], and signed strengths, float32 [B], to images uint8 [B, 3, H, W].
        strengths: The strength of each bin, float [NUM_BINS].
        signed: Whether the strength gets a random sign.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    strengths: np.ndarray
    signed: bool


def draw_operations(rng: np.random.Generator, num_images: int) -> np.ndarray:
    """Return float32 [N, 2]: for each image the index of an operation and its signed strength."""
    # The sign is drawn for every image, so the draws do not depend on the operation.
    chosen = rng.integers(0, len(OPERATIONS), size=num_images)
    bins = rng.integers(0, NUM_BINS, size=num_images)
    signs = np.where(rng.random(num_images) < 0.5, 1.0, -1.0)

    # Look up the strength of each bin.
    table = np.stack([operation.strengths for operation in OPERATIONS])
    signed = np.array([operation.signed for operation in OPERATIONS])
    strengths = table[chosen, bins] * np.where(signed[chosen], signs, 1.0)
    return np.stack([chosen, strengths], axis=1).astype(np.float32)


def apply_operations(images: Tensor, parameters: Tensor) -> Tensor:
    """Apply to each image, uint8 [B, 3, H, W], the operation and strength of its row of `draw_operations`."""
    # One call for each operation, on the images that drew it.
    changed = images.clone()
    for index, operation in enumerate(OPERATIONS):
        chosen = (parameters[:, 0] == index).nonzero()[:, 0]
        if len(chosen):
            changed[chosen] = operation.apply(images[chosen], parameters[chosen, 1])
    return changed


# --- Geometry: nearest pixel, black outside ----------------------------------------------------------------------


def _warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Set the pixel at (x, y), counted from the center, to the input pixel at matrices [B, 2, 3] @ (x, y, 1)."""
    # The coordinates of all pixels, [H, W, 3].
    batch, _, height, width = images.shape
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=images.device)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=images.device)
    columns, rows = x.expand(height, width), y[:, None].expand(height, width)
    base = torch.stack([columns, rows, torch.ones_like(columns)], dim=2)

    # Where each pixel comes from, scaled to -1 … 1 as `grid_sample` expects.
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
    """Rotate counter-clockwise by `strength` degrees."""
    # In float64 on the CPU (Apple's GPU has none): at 45 and 90 degrees the last bit decides which pixel is nearest.
    radians = strength.cpu().double() * (math.pi / 180)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    return _warp(images, _matrices([[cos, -sin, zero], [sin, cos, zero]]))


# --- Color -------------------------------------------------------------------------------------------------------


def _blend(images: Tensor, degenerate: Tensor, strength: Tensor) -> Tensor:
    """Return (1 + strength) · image - strength · degenerate image."""
    strength = strength[:, None, None, None]
    return torch.addcmul((1 + strength) * images, -strength, degenerate).clamp(0, 255).to(torch.uint8)


def _gray(images: Tensor) -> Tensor:
    """Return float [B, 1, H, W]: the luminance of ITU-R 601."""
    red, green, blue = images.split(1, dim=1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def _brightness(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, torch.zeros((), device=images.device), strength)


def _color(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, _gray(images).floor(), strength)


def _contrast(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, _gray(images).floor().mean(dim=(1, 2, 3), keepdim=True), strength)


def _sharpness(images: Tensor, strength: Tensor) -> Tensor:
    """Blend with the image smoothed by 1 1 1 / 1 5 1 / 1 1 1; the border stays as it is."""
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    sharp = images.float()
    inner = sharp[:, :, 1:-1, 1:-1]
    smooth = F.conv2d(sharp, kernel / 13, groups=3).round()
    inner.addcmul_(-strength[:, None, None, None], smooth - inner)
    return sharp.clamp(0, 255).to(torch.uint8)


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    """Keep the `strength` highest bits."""
    mask = 256 - 2 ** (8 - strength.to(torch.int64))
    return (images.to(torch.int64) & mask[:, None, None, None]).to(torch.uint8)


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    """Invert pixels whose value is at least `strength`."""
    return torch.where(images >= strength[:, None, None, None], 255 - images, images)


def _autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    """Stretch each channel to 0 … 255."""
    # Channels of a single value stay as they are.
    low, high = (f(images.flatten(2), dim=2)[..., None, None].float() for f in (torch.amin, torch.amax))
    flat = low == high
    width = torch.where(flat, 1.0, (high - low) * (1 / 255))
    return ((images - torch.where(flat, 0.0, low)) / width).clamp(0, 255).to(torch.uint8)


def _equalize(images: Tensor, strength: Tensor) -> Tensor:
    """Give each channel a flat histogram."""
    # The histogram of each channel, [B, 3, 256].
    flat = images.flatten(2).to(torch.int64)
    histogram = torch.zeros((*flat.shape[:2], 256), dtype=torch.int64, device=images.device)
    histogram.scatter_add_(2, flat, torch.ones_like(flat))
    cumulative = histogram.cumsum(2)

    # The highest filled bin does not count toward the step, because it maps to 255.
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
OPERATIONS = (
    Operation(_identity, _NONE, signed=False),
    Operation(_shear_x, _strengths(0, 0.99), signed=True),
    Operation(_shear_y, _strengths(0, 0.99), signed=True),
    Operation(_translate_x, _strengths(0, 32), signed=True),
    Operation(_translate_y, _strengths(0, 32), signed=True),
    Operation(_rotate, _strengths(0, 135), signed=True),
    Operation(_brightness, _strengths(0, 0.99), signed=True),
    Operation(_color, _strengths(0, 0.99), signed=True),
    Operation(_contrast, _strengths(0, 0.99), signed=True),
    Operation(_sharpness, _strengths(0, 0.99), signed=True),
    Operation(_posterize, 8 - (np.arange(NUM_BINS) / ((NUM_BINS - 1) / 6)).round(), signed=False),
    Operation(_solarize, _strengths(255, 0), signed=False),
    Operation(_autocontrast, _NONE, signed=False),
    Operation(_equalize, _NONE, signed=False),
)
