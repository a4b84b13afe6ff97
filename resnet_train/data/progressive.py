"""Progressive image sizes: small images at first, which cost less, and the full size at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F


def size_schedule(stages: Sequence[tuple[int, float]], full_size: int, total_steps: int) -> Callable[[int], int]:
    """Return a function from an optimizer step (0-based, counted from the start) to the image size in pixels.

    Howard 2018, DAWNBench (fast.ai, "Training Imagenet in 3 hours for $25"); Tan & Le 2021 (arXiv:2104.00298).

    Args:
        stages: Pairs of a size in pixels and the share of the run at which it ends; both increase.
        full_size: The size after the last stage.
        total_steps: The number of steps of the whole run.
    """
    ends = stage_ends(stages, full_size, total_steps)
    return lambda step: next((size for size, end in ends if step < end), full_size)


def stage_ends(stages: Sequence[tuple[int, float]], full_size: int, total_steps: int) -> tuple[tuple[int, int], ...]:
    """Return each size in pixels with the step at which it ends; the full size comes last."""
    return *((size, round(share * total_steps)) for size, share in stages), (full_size, total_steps)


def resize(images: Tensor, size: int) -> Tensor:
    """Scale float [B, 3, H, W] to [B, 3, size, size] with antialiasing, in the same memory format; no copy if equal."""
    if size == images.shape[-1]:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
