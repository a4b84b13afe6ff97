"""Which labels are probably wrong, by the predictions of networks that were not trained on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from resnet_train.evaluation.label_errors import find_label_errors
from resnet_train.jobs.audit.images import AuditImages
from resnet_train.jobs.audit.out_of_fold import OutOfFold


@dataclass(frozen=True)
class LabelRanking:
    """The images whose labels were checked, most doubtful first.

    Attributes:
        numbers: the numbers of the images, int64 [M].
        suggested: the class that the networks give them, int64 [M].
        confidence, self_confidence: the probabilities of that class and of the label, float [M].
        is_error: bool [M], whether the label is probably wrong.
    """

    numbers: np.ndarray
    suggested: np.ndarray
    confidence: np.ndarray
    self_confidence: np.ndarray
    is_error: np.ndarray


def rank_labels(images: AuditImages, predictions: OutOfFold | None) -> LabelRanking:
    """Return the checked images of all splits, most doubtful label first; none without predictions."""
    parts = [] if predictions is None else [_rank_split(images, predictions, split) for split in images.splits]
    empty = LabelRanking(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.float64, np.float64, bool)))
    joined = [np.concatenate(columns) for columns in zip(*(vars(part).values() for part in (empty, *parts)))]
    order = np.argsort(joined[3], kind="stable")
    return LabelRanking(*(column[order] for column in joined))


def _rank_split(images: AuditImages, predictions: OutOfFold, split: str) -> LabelRanking:
    """Return the checked images of a split, in order."""
    known = np.flatnonzero(predictions.known[split])
    labels = images.splits[split].labels[known]
    probabilities = predictions.probabilities[split][known].astype(np.float64)
    is_error = np.zeros(len(known), bool)
    is_error[find_label_errors(torch.from_numpy(probabilities), torch.from_numpy(labels)).numpy()] = True
    return LabelRanking(
        numbers=known + images.starts[split],
        suggested=probabilities.argmax(axis=1),
        confidence=probabilities.max(axis=1),
        self_confidence=probabilities[np.arange(len(known)), labels],
        is_error=is_error,
    )
