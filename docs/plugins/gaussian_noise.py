"""Add Gaussian noise to the training images, of a random strength for each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from resnet_train.config import AUGMENTATION, add_setting
from resnet_train.data.augment import AUGMENTATIONS, Transform

add_setting(
    "gaussian_noise",
    float,
    0.0,
    "Add noise of a random strength to each image, at most N standard deviations of the data; 0 disables it.",
    panel=AUGMENTATION,
    ge=0,
    le=2,
)
PATTERNS = 256  # of noise; an image gets one of them, shifted


@lru_cache
def noise_patterns(size: int, device: torch.device) -> Tensor:
    """Return the patterns, float [256, size], the same in every run."""
    return torch.randn(PATTERNS, size, generator=torch.Generator().manual_seed(0)).to(device)


@AUGMENTATIONS.register("gaussian_noise")  # the setting that switches it on
@dataclass(frozen=True)
class GaussianNoise(Transform):
    """Add one of 256 patterns of noise, shifted, with a strength from 0 to `gaussian_noise`."""

    gaussian_noise: float
    image_size: int
    normalized: ClassVar[bool] = True  # it takes normalized floats, not uint8 pixels

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray:
        """Return the random choices of an epoch, float32 [N, 3]: pattern, shift in pixels and strength."""
        patterns = rng.integers(0, PATTERNS, num_images)
        shifts = rng.integers(0, 3 * self.image_size**2, num_images)
        return np.stack([patterns, shifts, rng.uniform(0, self.gaussian_noise, num_images)], axis=1).astype(np.float32)

    def __call__(self, images: Tensor, parameters: Tensor) -> Tensor:
        # Nothing is random here, so that a resumed run sees the same images.
        size = images[0].numel()  # with progressive sizes, less than the full one
        noise = noise_patterns(size, images.device)
        positions = (torch.arange(size, device=images.device) + parameters[:, 1:2].long()) % size  # [B, 3·H·W]
        shifted = noise[parameters[:, 0].long()].gather(1, positions).view_as(images)
        return images + parameters[:, 2, None, None, None] * shifted
