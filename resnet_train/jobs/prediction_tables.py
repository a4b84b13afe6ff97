"""Tables of predictions, as `resnet-eval --predictions` writes them, read to compare networks image by image."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_train.runtime.files import open_regular

COLUMNS = ("image", "label", "class_1")


@dataclass(frozen=True)
class PredictionTable:
    """Which images a network classifies correctly.

    Attributes:
        path: the CSV file.
        labels: the label of each image, by its file or index.
        correct: bool [N], in the order of `labels`.
    """

    path: Path
    labels: dict[str, str]
    correct: np.ndarray

    @property
    def accuracy(self) -> float:
        """Return the share of the images that are classified correctly."""
        return float(self.correct.mean())


def read_predictions(path: Path) -> PredictionTable:
    """Read a table of predictions.

    Raises:
        ValueError: the file is not such a table, or has an image twice.
    """
    labels: dict[str, str] = {}
    correct: list[bool] = []
    try:
        with open_regular(path, "r", encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise ValueError(f"{path} is not a table of predictions: it has no column {missing[0]!r}")
            for number, row in enumerate(reader, start=2):
                image, label, predicted = (row[name] for name in COLUMNS)
                if image is None or label is None or predicted is None:
                    raise ValueError(f"{path}, line {number} is incomplete")
                if image in labels:
                    raise ValueError(f"{path}, line {number} has the image {image!r} a second time")
                labels[image] = label
                correct.append(label == predicted)
    except (OSError, csv.Error) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if not labels:
        raise ValueError(f"{path} has no images")
    return PredictionTable(path, labels, np.array(correct))


def align(table: PredictionTable, like: PredictionTable) -> np.ndarray:
    """Return whether each image is classified correctly, bool [N], in the order of another table.

    Raises:
        ValueError: the tables have different images or labels.
    """
    if len(table.labels) != len(like.labels):
        raise ValueError(f"{like.path} has {len(like.labels):,} images, but {table.path} has {len(table.labels):,}")
    places = {image: place for place, image in enumerate(table.labels)}
    for image, label in like.labels.items():
        if image not in places:
            raise ValueError(f"{table.path} has no image {image!r}, which {like.path} has")
        if table.labels[image] != label:
            raise ValueError(
                f"the label of {image!r} is {label!r} in {like.path}, but {table.labels[image]!r} in {table.path}"
            )
    return table.correct[[places[image] for image in like.labels]]
