"""Mixup and cutmix: two images and their labels become one.

Partners and weights are drawn per image. The partner is another image of the data set with its own crop, flip and so
on, not another image of the batch, so the result does not depend on how a batch is spread over ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resnet_train.data.augment import box_mask
from resnet_train.data.batch import Batch


@dataclass(frozen=True)
class MixPlan:
    """The draws of one epoch, one row per image.

    Attributes:
        partners: int64 [N], the position of each image's partner; a permutation.
        weights: float32 [N], the share of the image itself, 0–1; the rest is its partner's.
        boxes: int64 [N, 4], top, left, height and width of the partner's part; height -1 blends the whole images.
    """

    partners: np.ndarray
    weights: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Mix:
    """Mixup (Zhang et al. 2018, arXiv:1710.09412), cutmix (Yun et al. 2019, arXiv:1905.04899), or one at random.

    Attributes:
        mixup: The weight of a blend is drawn from Beta(mixup, mixup); 0 is off.
        cutmix: The area kept around a pasted box is drawn from Beta(cutmix, cutmix); 0 is off.
        image_size: Side length in pixels.
    """

    mixup: float
    cutmix: float
    image_size: int

    def draw(self, rng: np.random.Generator, num_images: int) -> MixPlan:
        """Draw the partners, weights and boxes of all images for one epoch."""
        # All draws are made even if they are not used, so that one setting does not change the others' draws.
        partners = rng.permutation(num_images)
        coin = rng.random(num_images) < 0.5
        pasted = coin if self.mixup and self.cutmix else np.full(num_images, bool(self.cutmix))
        blend_weights = _beta(rng, self.mixup, num_images)
        boxes = self._boxes(rng, _beta(rng, self.cutmix, num_images))
        boxes[~pasted] = -1

        # The weight is the area kept by the box as clipped at the border, not as drawn (Yun et al., algorithm A1).
        kept = 1 - boxes[:, 2] * boxes[:, 3] / self.image_size**2
        weights = np.where(pasted, kept, blend_weights).astype(np.float32)
        return MixPlan(partners=partners, weights=weights, boxes=boxes)

    def _boxes(self, rng: np.random.Generator, weights: np.ndarray) -> np.ndarray:
        """Draw boxes with an area share of 1 - weight around a random pixel, clipped at the border."""
        side = np.sqrt(1 - weights) * self.image_size
        center = rng.integers(0, self.image_size, size=(len(weights), 2))
        low = np.clip(center - (side // 2).astype(np.int64)[:, None], 0, self.image_size)
        high = np.clip(center + (side // 2).astype(np.int64)[:, None], 0, self.image_size)
        return np.concatenate([low, high - low], axis=1)


def _beta(rng: np.random.Generator, alpha: float, num_images: int) -> np.ndarray:
    return rng.beta(alpha or 1.0, alpha or 1.0, size=num_images)


def mix_images(images: Tensor, partners: Tensor, weights: Tensor, boxes: Tensor) -> Tensor:
    """Return the mix of images and partners, float [B, 3, H, W], by weights, float [B], and boxes, int64 [B, 4]."""
    # Both mixes are computed for all images, because choosing on the host would wait for the device.
    blended = partners.lerp(images, weights[:, None, None, None])
    pasted = torch.where(box_mask(boxes, images)[:, None], partners, images)
    return torch.where((boxes[:, 2] < 0)[:, None, None, None], blended, pasted)


def mix_halves(batch: Batch, weights: Tensor, boxes: Tensor) -> Batch:
    """Mix the first half of the images with their partners, the second half."""
    (images, partners), (labels, partner_labels) = batch.images.chunk(2), batch.labels.chunk(2)
    return Batch(mix_images(images, partners, weights, boxes), labels, partner_labels, weights)
