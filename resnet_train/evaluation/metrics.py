"""The numbers of an evaluation, with how sure they are."""

from __future__ import annotations

from typing import Any

from scipy.stats import binomtest

from resnet_train.records import Evaluation


def confidence_interval(correct: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): where the accuracy on endless images like these would lie."""
    interval = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def summarize(evaluation: Evaluation, classes: tuple[str, ...]) -> dict[str, Any]:
    """`top1, top5, loss, n, ci95, per_class` as JSON values; shares are 0–1, those of nothing are None."""
    confusion = evaluation.confusion
    correct, support, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    per_class = [
        {
            "name": name,
            "n": int(support[i]),
            "accuracy": float(correct[i] / support[i]) if support[i] else None,
            "precision": float(correct[i] / predicted[i]) if predicted[i] else None,
        }
        for i, name in enumerate(classes)
    ]
    return {
        "top1": evaluation.top1,
        "top5": evaluation.top5,
        "loss": evaluation.loss,
        "n": evaluation.n,
        "ci95": list(confidence_interval(int(correct.sum()), evaluation.n)),
        "per_class": per_class,
    }
