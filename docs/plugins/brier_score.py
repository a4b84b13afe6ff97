"""The Brier score: a column in metrics.csv, a curve in TensorBoard and a number in `resnet-eval --json`."""

from __future__ import annotations

import torch

from resnet_train.evaluation.evaluate import Evaluation
from resnet_train.evaluation.metrics import METRICS


@METRICS.register("brier")
def brier(evaluation: Evaluation) -> float:
    """Return the mean squared distance of the probabilities from the truth, from 0 to 2 (Brier 1950)."""
    probabilities = evaluation.logits.softmax(dim=1)  # [N, C]
    truth = torch.nn.functional.one_hot(evaluation.labels, probabilities.shape[1])
    return float((probabilities - truth).square().sum(dim=1).mean())
