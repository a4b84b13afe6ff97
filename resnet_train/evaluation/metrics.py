"""The table of metrics: each is one function from an evaluation to a number.

A registered metric appears in metrics.csv, TensorBoard and `resnet-eval --json` without further code.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from resnet_train.evaluation.calibration import calibration_error
from resnet_train.evaluation.evaluate import Evaluation
from resnet_train.registry import Registry

METRICS: Registry[Callable[[Evaluation], float]] = Registry("metric")
SHARES = ("accuracy", "balanced_accuracy", "macro_f1")  # from 0 to 1
Z95 = 1.959963984540054  # the normal distribution's 97.5th percentile


def compute_scores(evaluation: Evaluation) -> dict[str, float]:
    """Return every registered metric of an evaluation by name."""
    return {name: float(METRICS[name](evaluation)) for name in METRICS.names()}  # checkpoints hold no numpy scalars


@METRICS.register("loss")
def loss(evaluation: Evaluation) -> float:
    """Return the mean cross-entropy, without label smoothing and class weights."""
    return evaluation.loss


@METRICS.register("accuracy")
def accuracy(evaluation: Evaluation) -> float:
    """Return the share of images whose most likely class is their label, 0–1."""
    return float(np.trace(evaluation.confusion) / evaluation.n)


@METRICS.register("balanced_accuracy")
def balanced_accuracy(evaluation: Evaluation) -> float:
    """Return the mean over the classes with images of the share classified correctly (recall), 0–1."""
    confusion = evaluation.confusion
    support = confusion.sum(axis=1)
    present = support > 0
    return float(np.mean(confusion.diagonal()[present] / support[present]))


@METRICS.register("macro_f1")
def macro_f1(evaluation: Evaluation) -> float:
    """Return the mean F1 score over the classes with images, as balanced accuracy is, 0–1."""
    confusion = evaluation.confusion
    support = confusion.sum(axis=1)
    marked = support + confusion.sum(axis=0)  # true positives count twice
    present = support > 0
    return float(np.mean(2 * confusion.diagonal()[present] / marked[present]))


@METRICS.register("ece")
def ece(evaluation: Evaluation) -> float:
    """Return the expected calibration error over 15 bins of confidence, 0–1."""
    return calibration_error(evaluation.logits.softmax(dim=1), evaluation.labels)


def top5(evaluation: Evaluation) -> float | None:
    """Return the share of images whose label is among the five most likely classes; None below six classes."""
    if evaluation.logits.shape[1] < 6:
        return None
    best = evaluation.logits.topk(5, dim=1).indices  # [N, 5]
    return float((best == evaluation.labels[:, None]).sum()) / max(1, evaluation.n)


def confidence_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, `correct` out of `n` (Wilson 1927).

    It says where the accuracy on infinitely many images of the same kind would lie.
    """
    share, z2 = correct / n, Z95**2
    center = share + z2 / (2 * n)
    half_width = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = ((center + sign * half_width) / (1 + z2 / n) for sign in (-1, 1))
    # At the ends Wilson's interval is exactly 0 or 1; rounding would miss it by one bit.
    return (0.0 if correct == 0 else low), (1.0 if correct == n else high)
