"""The numbers of an evaluation, against values worked out by hand."""

from __future__ import annotations

import math
import warnings
from statistics import mean

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch.nn import functional as F

from resnet_train.evaluation.evaluate import Evaluation
from resnet_train.evaluation.metrics import METRICS, compute_scores, confidence_interval
from resnet_train.jobs.evaluation_result import ClassResult, class_results

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


def evaluation_of(confusion: np.ndarray) -> Evaluation:
    """Return an evaluation with this confusion matrix."""
    pairs = [(row, column) for row, column in np.ndindex(confusion.shape) for _ in range(confusion[row, column])]
    labels, predicted = (torch.tensor(column) for column in zip(*pairs))
    return Evaluation(loss=0.5, logits=F.one_hot(predicted, len(confusion)).float(), labels=labels)


def test_the_confusion_matrix_counts_labels_by_prediction() -> None:
    np.testing.assert_array_equal(evaluation_of(CONFUSION).confusion, CONFUSION)


def test_the_table_has_loss_and_accuracy() -> None:
    assert {"loss": 0.5, "accuracy": 17 / 20}.items() <= compute_scores(evaluation_of(CONFUSION)).items()
    assert list(compute_scores(evaluation_of(CONFUSION))) == METRICS.names()


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
def test_balanced_accuracy_and_macro_f1_equal_sklearns(num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    for _ in range(20):
        # Some classes have no label, some are never predicted, some are neither.
        known = rng.choice(num_classes, size=max(1, num_classes - rng.integers(3)), replace=False)
        labels, predicted = rng.choice(known, 50), rng.integers(num_classes, size=50)
        logits = F.one_hot(torch.tensor(predicted), num_classes).float()
        scores = compute_scores(Evaluation(loss=0.5, logits=logits, labels=torch.tensor(labels)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sklearn warns about classes without a label
            expected = balanced_accuracy_score(labels, predicted)
        assert scores["balanced_accuracy"] == pytest.approx(expected, abs=1e-12, rel=0)
        expected = f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
        assert scores["macro_f1"] == pytest.approx(expected, abs=1e-12, rel=0)


def test_classes_have_accuracy_precision_f1_and_count() -> None:
    assert class_results(evaluation_of(CONFUSION), CLASSES) == (
        ClassResult(name="cat", n=4, accuracy=3 / 4, precision=3 / 5, f1=2 / 3),
        ClassResult(name="dog", n=6, accuracy=4 / 6, precision=4 / 5, f1=8 / 11),
        ClassResult(name="eel", n=10, accuracy=1.0, precision=1.0, f1=1.0),
    )


@pytest.mark.parametrize("num_predicted", [0, 1])
def test_a_class_without_images_has_no_numbers(num_predicted: int) -> None:
    confusion = np.array([[2, num_predicted, 1], [0, 0, 0], [0, 0, 3]], dtype=np.int64)
    cat, dog, eel = class_results(evaluation_of(confusion), CLASSES)
    assert (dog.n, dog.accuracy, dog.precision, dog.f1) == (0, None, None, None)
    assert (cat.accuracy, cat.precision) == (2 / (3 + num_predicted), 1.0)
    assert (eel.accuracy, eel.precision) == (1.0, 3 / 4)


def test_averages_leave_out_classes_without_images() -> None:
    evaluation = evaluation_of(np.array([[2, 1, 1], [0, 0, 0], [0, 0, 3]], dtype=np.int64))
    scores, rows = compute_scores(evaluation), class_results(evaluation, CLASSES)
    assert scores["balanced_accuracy"] == pytest.approx(mean(row.accuracy for row in rows if row.accuracy is not None))
    assert scores["macro_f1"] == pytest.approx(mean(row.f1 for row in rows if row.f1 is not None))


def test_a_class_that_is_never_predicted_has_no_precision() -> None:
    confusion = np.array([[0, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=np.int64)
    cat = class_results(evaluation_of(confusion), CLASSES)[0]
    assert (cat.n, cat.accuracy, cat.precision, cat.f1) == (1, 0.0, None, 0.0)
