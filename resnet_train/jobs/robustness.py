"""The accuracy of a network on corrupted images, generated here or read from CIFAR-10-C."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from resnet_train.data.dataset import ImageDataset
from resnet_train.data.sources.cifar10_tests import find_cifar10_c, open_cifar10_c
from resnet_train.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from resnet_train.evaluation.evaluate import Evaluation
from resnet_train.evaluation.metrics import accuracy
from resnet_train.jobs.subject import Subject, with_classes


@dataclass(frozen=True, kw_only=True)
class CorruptionResult:
    """The accuracies under one corruption, 0–1, by severity from 1 to 5."""

    name: str
    accuracies: tuple[float, ...]
    mean: float


@dataclass(frozen=True, kw_only=True)
class RobustnessResult:
    """The accuracies under several corruptions, 0–1.

    Attributes:
        source: where the corrupted images come from.
        clean_accuracy: the accuracy on the original images.
        mean_accuracy: the mean over all corruptions and severities.
        corruptions: one result for each.
    """

    source: str
    clean_accuracy: float
    mean_accuracy: float
    corruptions: tuple[CorruptionResult, ...]


def evaluate_corruptions(
    subject: Subject, images: ImageDataset, indices: np.ndarray, clean: Evaluation, batch_size: int
) -> RobustnessResult:
    """Evaluate on these images with each registered corruption at each severity."""

    def evaluate(name: str, severity: int) -> Evaluation:
        def change(pixels: np.ndarray, chunk: np.ndarray) -> np.ndarray:
            return CORRUPTIONS[name](pixels, severity, chunk)

        return subject.evaluate_changed(images, indices, batch_size, change)

    return _fill_table("generated here", CORRUPTIONS.names(), evaluate, clean)


def evaluate_cifar10_c(subject: Subject, folder: Path, clean: Evaluation, batch_size: int) -> RobustnessResult:
    """Evaluate on the files of CIFAR-10-C.

    Raises:
        ValueError: these are not its files, or the classes are different.
    """

    def evaluate(name: str, severity: int) -> Evaluation:
        part = open_cifar10_c(folder, name, subject.image_size)[severity - 1]
        return subject.evaluate(with_classes(part, subject.classes), None, batch_size)

    return _fill_table("CIFAR-10-C", find_cifar10_c(folder), evaluate, clean)


def _fill_table(
    source: str, names: Iterable[str], evaluate: Callable[[str, int], Evaluation], clean: Evaluation
) -> RobustnessResult:
    """Evaluate each corruption at each severity, with a progress bar."""
    cells = [(name, severity) for name in names for severity in SEVERITIES]
    found: dict[str, list[float]] = {}
    for name, severity in tqdm(cells, desc="corruptions", unit="", disable=None, leave=False):
        found.setdefault(name, []).append(accuracy(evaluate(name, severity)))
    rows = [
        CorruptionResult(name=name, accuracies=tuple(values), mean=float(np.mean(values)))
        for name, values in found.items()
    ]
    return RobustnessResult(
        source=source,
        clean_accuracy=accuracy(clean),
        mean_accuracy=float(np.mean([row.mean for row in rows])),
        corruptions=tuple(rows),
    )
