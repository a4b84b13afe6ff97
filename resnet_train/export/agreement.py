"""Whether an exported file computes what the network computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BATCH_SIZE = 100


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far apart the outputs of two networks are on the same images.

    Attributes:
        num_images: the number of images that both saw.
        num_equal: images for which both find the same class most likely.
        largest_gap: on the other images, between the first network's logits of the two classes; they are nearly tied.
        largest_logit: the largest logit of the first network, by magnitude.
        largest_difference: the largest difference between their logits.
        tolerance: the difference that is accepted, as a share of the largest logit.
    """

    num_images: int
    num_equal: int
    largest_gap: float
    largest_logit: float
    largest_difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Return whether the logits differ little enough; then the most likely classes are equal, except for ties."""
        return self.largest_difference <= self.tolerance * self.largest_logit  # false for NaN


@torch.inference_mode()
def compare_outputs(
    first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor], images: np.ndarray, tolerance: float
) -> Agreement:
    """Compare two functions from uint8 [N, 3, S, S] to logits float32 [N, C] on these images."""
    # Compute both in batches.
    batches = [torch.from_numpy(images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE)]
    expected = torch.cat([first(batch) for batch in batches])  # [N, C]
    found = torch.cat([second(batch) for batch in batches])
    if found.shape != expected.shape:
        raise ValueError(f"the file returns logits {list(found.shape)} instead of {list(expected.shape)}")

    # Where the most likely classes differ, their logits are nearly equal if all logits agree.
    classes = expected.argmax(dim=1), found.argmax(dim=1)  # [N]
    gaps = expected.amax(dim=1) - expected.gather(1, classes[1][:, None])[:, 0]
    return Agreement(
        num_images=len(images),
        num_equal=int((classes[0] == classes[1]).sum()),
        largest_gap=float(gaps.max()),
        largest_logit=float(expected.abs().max()),
        largest_difference=float((expected - found).abs().max()),
        tolerance=tolerance,
    )
