"""Images whose label is probably wrong, according to the probabilities of a network that was not trained on them.

Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels".
"""

from __future__ import annotations

import torch
from torch import Tensor


def find_label_errors(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the positions of images for which another class is predicted confidently, least likely label first.

    Confident means at least as sure as it is of that class, on average, for the images that have it as their label.

    Args:
        probabilities: float [N, C].
        labels: int64 [N].

    Returns:
        int64 [M].
    """
    num_classes = probabilities.shape[1]
    self_confidence = probabilities.gather(1, labels[:, None])[:, 0]  # [N], of the label
    sums = torch.zeros(num_classes, dtype=probabilities.dtype).index_add_(0, labels, self_confidence)
    thresholds = sums / torch.bincount(labels, minlength=num_classes)  # [C]; NaN for a class without images
    confidence, predicted = probabilities.max(dim=1)
    found = torch.nonzero((predicted != labels) & (confidence >= thresholds[predicted]))[:, 0]
    return found[self_confidence[found].argsort(stable=True)]
