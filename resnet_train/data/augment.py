"""Augmentation of whole batches on the training device, with random parameters for every image.

A transform has two halves: `draw` draws the parameters of all images of an epoch with numpy on the CPU, and a call
applies one batch's rows of them with torch on any device. Each is tested against torchvision's per-image functional.

To add an augmentation, add a class here and a setting of the same name to the config.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_train.data.trivial_augment import apply_operations, draw_operations
from resnet_train.registry import Registry, call_with
from resnet_train.runtime.device import memory_format


class Transform(ABC):
    """A random change of every image of a batch.

    Attributes:
        stream: Name of its random numbers; by default the class name, such as "random-erasing" for `RandomErasing`.
        redraws: False if the parameters drawn in epoch 0 serve all epochs.
        normalized: False if it takes uint8 pixels, True if it takes normalized floats.
    """

    stream: ClassVar[str] = ""
    redraws: ClassVar[bool] = True
    normalized: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.stream = cls.stream or re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    @abstractmethod
    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray:
        """Return the parameters of all images for one epoch, one row per image."""

    @abstractmethod
    def __call__(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return the transformed images [B, 3, H, W], given their rows of the parameters."""


# Each is registered under the setting that switches it on, and takes the settings that its signature names. They are
# applied in this order: first those on pixels, then, after normalization, those on normalized floats.
AUGMENTATIONS: Registry[Callable[..., Transform]] = Registry("augmentation")
OFF = (0, None, "none")  # False equals 0


def build_transforms(settings: Mapping[str, Any]) -> list[Transform]:
    """Build the augmentations that `settings` switch on, in the order of registration."""
    names = [name for name in AUGMENTATIONS.names() if settings[name] not in OFF]
    return [call_with(AUGMENTATIONS[name], settings) for name in names]


# --- On uint8 pixels ---------------------------------------------------------------------------------------------


@AUGMENTATIONS.register("trivial_augment")
@dataclass(frozen=True)
class TrivialAugment(Transform):
    """Apply one of 14 operations to each image, with one of 31 strengths, in one direction."""

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray:
        """Return float32 [N, 2]: the index of the operation and its signed strength."""
        return draw_operations(rng, num_images)

    def __call__(self, images: Tensor, parameters: Tensor) -> Tensor:
        return apply_operations(images, parameters)


@AUGMENTATIONS.register("crop_padding")
@dataclass(frozen=True)
class RandomCrop(Transform):
    """Pad every side and crop the original size at a random place (He et al. 2016a, section 4.2: 4 pixels)."""

    crop_padding: int = 4
    padding_mode: str = "zeros"
    stream: ClassVar[str] = "crop"

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray:
        """Return int64 [N, 2]: top and left of the crop in the padded image."""
        return rng.integers(0, 2 * self.crop_padding + 1, size=(num_images, 2))

    def __call__(self, images: Tensor, parameters: Tensor) -> Tensor:
        # The pixels of each crop, by row and column of the padded image.
        height, width = images.shape[-2:]
        padded = _pad(images, self.crop_padding, self.padding_mode)
        rows = parameters[:, :1] + torch.arange(height, device=images.device)  # [B, H]
        columns = parameters[:, 1:] + torch.arange(width, device=images.device)  # [B, W]

        # Two gathers of whole rows, then of columns: twice as fast on a CPU as one gather of single pixels.
        tall = padded.gather(2, rows[:, None, :, None].expand(-1, padded.shape[1], -1, padded.shape[3]))
        return tall.gather(3, columns[:, None, None, :].expand(-1, padded.shape[1], height, -1))


def _pad(images: Tensor, padding: int, mode: str) -> Tensor:
    sides = (padding, padding, padding, padding)
    if mode == "reflect":
        # Reflection has no uint8 kernel; 8-bit values survive the round trip through float exactly.
        return F.pad(images.float(), sides, mode="reflect").to(images.dtype)
    return F.pad(images, sides)


@dataclass(frozen=True)
class RandomFlip(Transform):
    """Mirror each image left to right with probability 1/2."""

    stream: ClassVar[str] = "flip"

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray:
        """Return bool [N]: whether to mirror the image."""
        return rng.random(num_images) < 0.5

    def __call__(self, images: Tensor, parameters: Tensor) -> Tensor:
        return torch.where(parameters[:, None, None, None], images.flip(-1), images)


@dataclass(frozen=True)
class AlternatingFlip(RandomFlip):
    """Mirror each image in every other epoch: a random half of them in even epochs, the others in odd ones.

    Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv:2404.00498), section 3.6.
    """

    redraws: ClassVar[bool] = False

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray:
        """Return bool [N]: whether to mirror the image; every epoch inverts the previous one."""
        return (rng.random(num_images) < 0.5) ^ (epoch % 2 == 1)


@AUGMENTATIONS.register("flip")
def build_flip(flip: str) -> RandomFlip:
    """Return the horizontal flip of this name."""
    return {"random": RandomFlip, "alternating": AlternatingFlip}[flip]()


# --- Normalization -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Normalize:
    """Turn uint8 [B, 3, H, W] into float32 with mean 0 and deviation 1 per channel (given on a 0–1 scale)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels_last: bool = True

    def __call__(self, images: Tensor) -> Tensor:
        # (pixel / 255 - mean) / std as one product and one sum, in place.
        scale, shift = scale_and_shift(self.mean, self.std, images.device)
        pixels = images.to(torch.float32, memory_format=memory_format(self.channels_last))
        return pixels.mul_(scale).add_(shift)


def denormalize(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Return normalized images [B, 3, H, W] on a 0–1 scale again."""
    return images * images.new_tensor(std)[:, None, None] + images.new_tensor(mean)[:, None, None]


@lru_cache
@torch.inference_mode(False)  # tensors created in an evaluation must be usable in training
def scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return factor and offset, [3, 1, 1]; cached per device, because a copy for every batch would stall the host."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std)], device=device)
    return scale[:, None, None], shift[:, None, None]


# --- On normalized floats, where 0 is the mean -------------------------------------------------------------------


@AUGMENTATIONS.register("cutout")
@dataclass(frozen=True)
class Cutout(Transform):
    """Blank a square of side `cutout` around a random pixel, clipped at the border of the image.

    DeVries & Taylor 2017, "Improved Regularization of Convolutional Neural Networks with Cutout"
    (arXiv:1708.04552), section 3; side 16 for CIFAR-10 and 8 for CIFAR-100.
    """

    cutout: int
    image_size: int
    normalized: ClassVar[bool] = True

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray:
        """Return int64 [N, 2]: top and left of the square, which may lie partly outside the image."""
        return rng.integers(0, self.image_size, size=(num_images, 2)) - self.cutout // 2

    def __call__(self, images: Tensor, parameters: Tensor) -> Tensor:
        # 0 is the mean color, because the images are normalized.
        boxes = torch.cat([parameters, torch.full_like(parameters, self.cutout)], dim=1)  # [B, 4]
        return images.masked_fill(box_mask(boxes, images)[:, None], 0.0)


@AUGMENTATIONS.register("random_erasing")
@dataclass(frozen=True)
class RandomErasing(Transform):
    """Blank a rectangle of random area and aspect ratio with probability `random_erasing`.

    Zhong et al. 2020, "Random Erasing Data Augmentation" (arXiv:1708.04896), algorithm 1, with torchvision's bounds.
    """

    random_erasing: float
    image_size: int
    normalized: ClassVar[bool] = True

    MIN_AREA: ClassVar[float] = 0.02  # shares of the image
    MAX_AREA: ClassVar[float] = 0.33
    MIN_ASPECT: ClassVar[float] = 0.3  # height over width; the largest is its inverse

    def draw(self, rng: np.random.Generator, num_images: int, epoch: int) -> np.ndarray:
        """Return int64 [N, 4]: top, left, height and width; height 0 erases nothing."""
        # Draw whether to erase, the area and the aspect ratio.
        erased = rng.random(num_images) < self.random_erasing
        area = self.image_size**2 * rng.uniform(self.MIN_AREA, self.MAX_AREA, num_images)
        aspect = np.exp(rng.uniform(np.log(self.MIN_ASPECT), -np.log(self.MIN_ASPECT), num_images))

        # The largest rectangle, 0.33 of the area at 3.33 : 1, is 1.05 images high: clip it instead of drawing again.
        height = np.minimum(np.sqrt(area * aspect).round(), self.image_size).astype(np.int64)
        width = np.minimum(np.sqrt(area / aspect).round(), self.image_size).astype(np.int64)

        # Every place within the image is equally likely.
        top = (rng.random(num_images) * (self.image_size - height + 1)).astype(np.int64)
        left = (rng.random(num_images) * (self.image_size - width + 1)).astype(np.int64)
        return np.stack([top, left, np.where(erased, height, 0), width], axis=1)

    def __call__(self, images: Tensor, parameters: Tensor) -> Tensor:
        return images.masked_fill(box_mask(parameters, images)[:, None], 0.0)


def box_mask(boxes: Tensor, images: Tensor) -> Tensor:
    """Return bool [B, H, W]: the pixels inside each image's box, int64 [B, 4] of top, left, height and width."""
    # Rows and columns separately: their product is the rectangle.
    top, left, height, width = (boxes[:, i : i + 1] for i in range(4))
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    in_rows = (rows >= top) & (rows < top + height)
    in_columns = (columns >= left) & (columns < left + width)
    return in_rows[:, :, None] & in_columns[:, None, :]
