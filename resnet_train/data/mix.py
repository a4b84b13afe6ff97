"""Mixup and cutmix: two images and their labels made into one.

Partners and weights are drawn per image. The partner is an image of the data set with its own crop, flip and so on,
not another image of the batch, so what is seen does not depend on how the batch is spread over processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resnet_train.data.augment import inside


@dataclass(frozen=True)
class MixPlan:
    """One epoch's draws, one row an image.

    Attributes:
        partners: int64 [N], the image number each image is mixed with; all different.
        weights: float32 [N], the share of the image itself, 0–1; the rest is its partner's.
        boxes: int64 [N, 4], top, left, height and width of the partner's part; height -1 blends the whole images.
    """

    partners: np.ndarray
    weights: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Mix:
    """Mixup (Zhang et al. 2018, arXiv:1710.09412), cutmix (Yun et al. 2019, arXiv:1905.04899), or a coin between them.

    Args:
        mixup, cutmix: parameter α of Beta(α, α), which the weight is drawn from; 0 is off.
        image_size: side in pixels.
    """

    mixup: float
    cutmix: float
    image_size: int

    def draw(self, rng: np.random.Generator, num_images: int) -> MixPlan:
        """Partners, weights and boxes of all images for one epoch."""
        partners = rng.permutation(num_images)
        coin = rng.random(num_images) < 0.5
        cuts = np.full(num_images, bool(self.cutmix)) if not (self.mixup and self.cutmix) else coin
        blended = _beta(rng, self.mixup, num_images)
        boxes = self._boxes(rng, _beta(rng, self.cutmix, num_images))
        boxes[~cuts] = -1
        # The share of the box as it is, cut off at the border, not as it was drawn (Yun et al., algorithm A1).
        kept = 1 - boxes[:, 2] * boxes[:, 3] / self.image_size**2
        return MixPlan(partners, np.where(cuts, kept, blended).astype(np.float32), boxes)

    def _boxes(self, rng: np.random.Generator, weights: np.ndarray) -> np.ndarray:
        """Boxes of the share 1 - weight around a random pixel, cut off at the border."""
        side = np.sqrt(1 - weights) * self.image_size
        center = rng.integers(0, self.image_size, size=(len(weights), 2))
        low = np.clip(center - (side // 2).astype(np.int64)[:, None], 0, self.image_size)
        high = np.clip(center + (side // 2).astype(np.int64)[:, None], 0, self.image_size)
        return np.concatenate([low, high - low], axis=1)


def _beta(rng: np.random.Generator, alpha: float, num_images: int) -> np.ndarray:
    """Draws from Beta(α, α); the numbers of the stream are used up even if it is off."""
    return rng.beta(alpha or 1.0, alpha or 1.0, size=num_images)


def mix_images(images: Tensor, partners: Tensor, weights: Tensor, boxes: Tensor) -> Tensor:
    """Both float [B, 3, H, W], weights float [B], boxes int64 [B, 4] → the mixed images."""
    share = weights[:, None, None, None]
    blended = partners.lerp(images, share)
    cut = torch.where(inside(boxes, images)[:, None], partners, images)
    return torch.where((boxes[:, 2] < 0)[:, None, None, None], blended, cut)
