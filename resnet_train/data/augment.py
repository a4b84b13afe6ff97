"""Augmentation on whole batches, on the training device, with random parameters of its own for every image.

A transform has two halves: `draw` makes the parameters of all images of an epoch with numpy on the CPU, and a call
applies one batch's rows of them with torch on any device. Each is tested against torchvision's per-image functional.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class Transform(Protocol):
    """One step of the way from stored pixels to the network's input."""

    stream: ClassVar[str]  # names the random numbers it draws
    redraws: ClassVar[bool]  # False: draws once for all epochs

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray | None:
        """The parameters of all images for one epoch, first dimension `num_images`; None if it has none."""
        ...

    def __call__(self, images: Tensor, parameters: Tensor | None) -> Tensor:
        """Applies the batch's rows of the parameters to images [B, 3, H, W]."""
        ...


@dataclass(frozen=True)
class RandomCrop:
    """Pads every side and cuts the old size back out at a random place (He et al. 2016a, section 4.2: 4 pixels)."""

    padding: int = 4
    mode: str = "zeros"
    stream: ClassVar[str] = "crop"
    redraws: ClassVar[bool] = True

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray:
        """int64 [N, 2]: top and left of the cut in the padded image."""
        return rng.integers(0, 2 * self.padding + 1, size=(num_images, 2))

    def __call__(self, images: Tensor, parameters: Tensor | None) -> Tensor:
        assert parameters is not None
        height, width = images.shape[-2:]
        padded = _pad(images, self.padding, self.mode)
        rows = parameters[:, :1] + torch.arange(height, device=images.device)
        columns = parameters[:, 1:] + torch.arange(width, device=images.device)
        # Two gathers of whole rows, then of columns: twice as fast on a CPU as one gather of single pixels.
        tall = padded.gather(2, rows[:, None, :, None].expand(-1, padded.shape[1], -1, padded.shape[3]))
        return tall.gather(3, columns[:, None, None, :].expand(-1, padded.shape[1], height, -1))


def _pad(images: Tensor, padding: int, mode: str) -> Tensor:
    sides = (padding, padding, padding, padding)
    if mode == "reflect":
        # float: reflect padding has no uint8 kernel; 8-bit values survive the round trip exactly
        return F.pad(images.float(), sides, mode="reflect").to(images.dtype)
    return F.pad(images, sides)


@dataclass(frozen=True)
class RandomFlip:
    """Mirrors each image left to right by a coin of its own."""

    stream: ClassVar[str] = "flip"
    redraws: ClassVar[bool] = True

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray:
        """bool [N]: mirror this image."""
        return rng.random(num_images) < 0.5

    def __call__(self, images: Tensor, parameters: Tensor | None) -> Tensor:
        assert parameters is not None
        return torch.where(parameters[:, None, None, None], images.flip(-1), images)


@dataclass(frozen=True)
class AlternatingFlip(RandomFlip):
    """Mirrors each image every other epoch, half of them in the even and half in the odd ones.

    Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv:2404.00498), section 3.6.
    """

    redraws: ClassVar[bool] = False

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray:
        """bool [N]: mirror this image; the same coin in all epochs, its side changing with the epoch's parity."""
        return (rng.random(num_images) < 0.5) ^ (epoch % 2 == 1)


@dataclass(frozen=True)
class Normalize:
    """uint8 [B, 3, H, W] to float32 with mean 0 and standard deviation 1 per channel (both given on a 0–1 scale)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels_last: bool = True
    stream: ClassVar[str] = "normalize"
    redraws: ClassVar[bool] = True

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> None:
        """Nothing random here."""
        return

    def __call__(self, images: Tensor, parameters: Tensor | None) -> Tensor:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        scale = images.new_tensor([1 / (255 * s) for s in self.std], dtype=torch.float32)[:, None, None]
        shift = images.new_tensor([-m / s for m, s in zip(self.mean, self.std)], dtype=torch.float32)[:, None, None]
        return images.to(torch.float32, memory_format=layout).mul_(scale).add_(shift)


@dataclass(frozen=True)
class Cutout:
    """Blanks a square around a random pixel, cut off at the image's border; after normalization, so 0 is the mean.

    DeVries & Taylor 2017, "Improved Regularization of Convolutional Neural Networks with Cutout"
    (arXiv:1708.04552), section 3; side 16 for CIFAR-10 and 8 for CIFAR-100.
    """

    size: int
    image_size: int
    stream: ClassVar[str] = "cutout"
    redraws: ClassVar[bool] = True

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray:
        """int64 [N, 2]: top and left of the square, which may lie outside the image."""
        return rng.integers(0, self.image_size, size=(num_images, 2)) - self.size // 2

    def __call__(self, images: Tensor, parameters: Tensor | None) -> Tensor:
        assert parameters is not None
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device) - parameters[:, :1]
        columns = torch.arange(width, device=images.device) - parameters[:, 1:]
        in_rows = (rows >= 0) & (rows < self.size)
        in_columns = (columns >= 0) & (columns < self.size)
        return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)
