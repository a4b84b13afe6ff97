"""Corrupted images at five severities, made from any images: the same bits every time.

Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations". The
strengths are those of CIFAR-10-C; lengths in pixels grow with larger images. Its other corruptions need its files.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from resnet_train.registry import Registry

SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE_SIDE = 32  # side length of the images that the strengths were chosen for

# (images uint8 [B, 3, H, W], severity 1 … 5, the index of each image) → images of the same shape and type.
Corrupt = Callable[[np.ndarray, int, np.ndarray], np.ndarray]
CORRUPTIONS: Registry[Corrupt] = Registry("corruption")


def _to_pixels(values: np.ndarray) -> np.ndarray:
    """Return values on a 0–1 scale as uint8."""
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


@CORRUPTIONS.register("noise")
def noise(images: np.ndarray, severity: int, indices: np.ndarray) -> np.ndarray:
    """Add Gaussian noise that depends on the image's index, the channel and the pixel."""
    deviation = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    stream = zlib.crc32(b"noise")
    draws = [np.random.default_rng([severity, index, stream]).standard_normal(images.shape[1:]) for index in indices]
    return _to_pixels(images / 255 + deviation * np.stack(draws))


@CORRUPTIONS.register("blur")
def blur(images: np.ndarray, severity: int, indices: np.ndarray) -> np.ndarray:
    """Blur with a Gaussian."""
    from scipy.ndimage import gaussian_filter  # takes 0.1 s to import

    pixels = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1] * max(1.0, images.shape[-1] / REFERENCE_SIDE)
    return _to_pixels(gaussian_filter(images / 255, sigma=(0, 0, pixels, pixels), mode="nearest"))


@CORRUPTIONS.register("contrast")
def contrast(images: np.ndarray, severity: int, indices: np.ndarray) -> np.ndarray:
    """Pull every pixel toward the mean of its channel."""
    share = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    values = images / 255
    mean = values.mean(axis=(2, 3), keepdims=True)  # [B, 3, 1, 1]
    return _to_pixels((values - mean) * share + mean)


@CORRUPTIONS.register("brightness")
def brightness(images: np.ndarray, severity: int, indices: np.ndarray) -> np.ndarray:
    """Raise the value of each pixel in HSV, which is its largest channel, and keep hue and saturation."""
    added = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    values = images / 255
    largest = values.max(axis=1, keepdims=True)  # [B, 1, H, W]
    raised = np.minimum(largest + added, 1)
    return _to_pixels(np.where(largest > 0, values * raised / np.maximum(largest, 1e-9), raised))


@CORRUPTIONS.register("jpeg")
def jpeg(images: np.ndarray, severity: int, indices: np.ndarray) -> np.ndarray:
    """Compress as JPEG."""
    quality = (80, 65, 58, 50, 40)[severity - 1]

    def compress(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file, formats=("JPEG",))

    return _each(images, compress)


@CORRUPTIONS.register("pixelate")
def pixelate(images: np.ndarray, severity: int, indices: np.ndarray) -> np.ndarray:
    """Scale down with a box filter and up again."""
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    small = max(1, int(images.shape[-1] * share))

    def shrink(image: Image.Image) -> Image.Image:
        return image.resize((small, small), Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

    return _each(images, shrink)


def _each(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Return uint8 [B, 3, H, W], each image changed by a function of Pillow images."""
    pictures = (change(Image.fromarray(image)) for image in np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
    return np.stack([np.asarray(picture) for picture in pictures]).transpose(0, 3, 1, 2)
