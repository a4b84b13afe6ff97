"""Progressive image sizes: smaller images first, which cost less, and the full size at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def size_schedule(stages: Sequence[tuple[int, float]], full_size: int, total_steps: int) -> Callable[[int], int]:
    """From an optimizer step (0-based, since the start) to the side of the images in pixels.

    Howard 2018, DAWNBench (fast.ai, "Training Imagenet in 3 hours for $25"); Tan & Le 2021 (arXiv:2104.00298).

    Args:
        stages: each a side in pixels and the share of the run until which it is used; both rise.
        full_size: the side after the last stage.
        total_steps: of the whole run.
    """
    ends = [(size, round(share * total_steps)) for size, share in stages]
    return lambda step: next((size for size, end in ends if step < end), full_size)
