"""Augmentation on whole batches, on the training device, with random parameters of its own for every image.

A transform has two halves: `draw` makes the parameters of all images of an epoch with numpy on the CPU, and a call
applies one batch's rows of them with torch on any device. Each is tested against torchvision's per-image functional.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
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
        scale, shift = _scale_and_shift(self.mean, self.std, images.device)
        return images.to(torch.float32, memory_format=layout).mul_(scale).add_(shift)


@lru_cache
@torch.inference_mode(False)  # made in an evaluation, they serve a training, too
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Both [3, 1, 1], made once: copied to a GPU for each batch they would stop the host each time."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std)], device=device)
    return scale[:, None, None], shift[:, None, None]


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
        boxes = torch.cat([parameters, torch.full_like(parameters, self.size)], dim=1)
        return images.masked_fill(inside(boxes, images)[:, None], 0.0)


@dataclass(frozen=True)
class RandomErasing:
    """Blanks a rectangle of random area and shape in some images; after normalization, so 0 is the mean.

    Zhong et al. 2020, "Random Erasing Data Augmentation" (arXiv:1708.04896), algorithm 1, with torchvision's bounds.
    """

    probability: float
    image_size: int
    stream: ClassVar[str] = "random-erasing"
    redraws: ClassVar[bool] = True

    MIN_AREA: ClassVar[float] = 0.02  # shares of the image
    MAX_AREA: ClassVar[float] = 0.33
    MIN_ASPECT: ClassVar[float] = 0.3  # height over width; the largest is its inverse

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray:
        """int64 [N, 4]: top, left, height and width; height 0 erases nothing."""
        erased = rng.random(num_images) < self.probability
        area = self.image_size**2 * rng.uniform(self.MIN_AREA, self.MAX_AREA, num_images)
        aspect = np.exp(rng.uniform(np.log(self.MIN_ASPECT), -np.log(self.MIN_ASPECT), num_images))
        # The largest rectangle, 0.33 of the area at 3.33 : 1, is 1.05 images high: cut to the image, not drawn again.
        height = np.minimum(np.sqrt(area * aspect).round(), self.image_size).astype(np.int64)
        width = np.minimum(np.sqrt(area / aspect).round(), self.image_size).astype(np.int64)
        top = (rng.random(num_images) * (self.image_size - height + 1)).astype(np.int64)
        left = (rng.random(num_images) * (self.image_size - width + 1)).astype(np.int64)
        return np.stack([top, left, np.where(erased, height, 0), width], axis=1)

    def __call__(self, images: Tensor, parameters: Tensor | None) -> Tensor:
        assert parameters is not None
        return images.masked_fill(inside(parameters, images)[:, None], 0.0)


def inside(boxes: Tensor, images: Tensor) -> Tensor:
    """bool [B, H, W]: the pixels within each image's box, int64 [B, 4] of top, left, height and width."""
    top, left, height, width = (boxes[:, i : i + 1] for i in range(4))
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    in_rows = (rows >= top) & (rows < top + height)
    in_columns = (columns >= left) & (columns < left + width)
    return in_rows[:, :, None] & in_columns[:, None, :]
