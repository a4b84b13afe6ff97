"""The numbers of an evaluation, against values worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from resnet_train.evaluation.metrics import confidence_interval, summarize
from resnet_train.records import Evaluation

CLASSES = ("cat", "dog", "eel")
# rows: what the image shows; columns: what it was taken for
CONFUSION = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 10]], dtype=np.int64)


# Wilson's formula by hand: z = 1.959964, center = (p + z²/2n) / (1 + z²/n), half-width =
# z / (1 + z²/n) * sqrt(p(1 - p)/n + z²/4n²).
@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        (0, 1, 0.0, 0.793450),
        (1, 1, 0.206550, 1.0),
        (0, 10, 0.0, 0.277533),
        (5, 10, 0.236593, 0.763407),
        (10, 10, 0.722467, 1.0),
        (90, 100, 0.825635, 0.944770),
        (9500, 10000, 0.945553, 0.954102),
    ],
)
def test_the_interval_is_wilsons(correct: int, n: int, low: float, high: float) -> None:
    found = confidence_interval(correct, n)
    assert found == pytest.approx((low, high), abs=2e-6)
    z, p = 1.959963984540054, correct / n
    center, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert found == pytest.approx(((center - half) / (1 + z * z / n), (center + half) / (1 + z * z / n)), abs=1e-12)


def test_top_1_and_n_come_from_the_confusion_matrix() -> None:
    evaluation = Evaluation(loss=0.5, top5=None, confusion=CONFUSION)
    assert evaluation.n == 20
    assert evaluation.top1 == 17 / 20


def test_classes_have_accuracy_precision_and_number() -> None:
    numbers = summarize(Evaluation(loss=0.5, top5=0.99, confusion=CONFUSION), CLASSES)
    assert numbers["per_class"] == [
        {"name": "cat", "n": 4, "accuracy": 3 / 4, "precision": 3 / 5},
        {"name": "dog", "n": 6, "accuracy": 4 / 6, "precision": 4 / 5},
        {"name": "eel", "n": 10, "accuracy": 1.0, "precision": 1.0},
    ]
    assert (numbers["top1"], numbers["top5"], numbers["loss"], numbers["n"]) == (17 / 20, 0.99, 0.5, 20)
    assert numbers["ci95"] == list(confidence_interval(17, 20))


def test_a_class_without_images_has_no_accuracy() -> None:
    confusion = np.array([[2, 0, 1], [0, 0, 0], [0, 0, 3]], dtype=np.int64)
    cat, dog, eel = summarize(Evaluation(0.5, None, confusion), CLASSES)["per_class"]
    assert (dog["n"], dog["accuracy"], dog["precision"]) == (0, None, None)
    assert (cat["accuracy"], cat["precision"]) == (2 / 3, 1.0)
    assert (eel["accuracy"], eel["precision"]) == (1.0, 3 / 4)


def test_a_class_that_is_never_predicted_has_no_precision() -> None:
    confusion = np.array([[0, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=np.int64)
    cat = summarize(Evaluation(0.5, None, confusion), CLASSES)["per_class"][0]
    assert (cat["n"], cat["accuracy"], cat["precision"]) == (1, 0.0, None)


def test_the_summary_is_json() -> None:
    numbers = summarize(Evaluation(0.5, None, CONFUSION), CLASSES)
    assert list(numbers) == ["top1", "top5", "loss", "n", "ci95", "per_class"]
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
