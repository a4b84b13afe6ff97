"""What an evaluation writes for each image: a table of predictions, and copies of the wrong images."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from resnet_train.data.dataset import ImageDataset
from resnet_train.evaluation.evaluate import Evaluation
from resnet_train.runtime.files import created_folder, explain_write_errors, open_regular
from resnet_train.runtime.names import safe_names

TOP_K = 5
FIRST_COLUMNS = ["image", "label", "loss"]


def check_predictions_file(path: Path) -> None:
    """Check that a table of predictions can be written here; only an older table is replaced.

    Raises:
        ValueError: another kind of file is there, or the folder does not exist.
    """
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    if os.path.lexists(path):
        with open_regular(path, "rb") as file:
            start = file.read(len(",".join(FIRST_COLUMNS)))
        if start != ",".join(FIRST_COLUMNS).encode():
            raise ValueError(f"{path} exists and is not a table of predictions; choose another name")


def write_predictions(path: Path, evaluation: Evaluation, images: ImageDataset, indices: np.ndarray) -> None:
    """Write one row for each image: its file or index, its label, its loss, and the most likely classes.

    Args:
        path: the CSV file, in UTF-8; file names that are not valid UTF-8 keep their bytes.
        evaluation: the evaluation of the images, in the order of `indices`.
        images: the data set that they are part of.
        indices: int64 [N].
    """
    k = min(TOP_K, len(images.classes))
    top = evaluation.logits.double().softmax(dim=1).topk(k, dim=1)  # [N, k]
    losses = F.cross_entropy(evaluation.logits, evaluation.labels, reduction="none").tolist()
    header = [*FIRST_COLUMNS, *(f"{name}_{rank}" for rank in range(1, k + 1) for name in ("class", "probability"))]
    columns = zip(indices.tolist(), evaluation.labels.tolist(), losses, top.indices.tolist(), top.values.tolist())
    with (
        explain_write_errors(path, 100 * evaluation.n),
        open_regular(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for index, label, loss, classes, probabilities in columns:
            ranked = [
                cell for pair in zip(classes, probabilities) for cell in (images.classes[pair[0]], f"{pair[1]:.6f}")
            ]
            writer.writerow([images.name_of(index), images.classes[label], f"{loss:.6g}", *ranked])


@contextmanager
def empty_folder(folder: Path) -> Iterator[None]:
    """Create a folder, or accept an empty one, so that nothing is overwritten; see `created_folder`.

    Raises:
        ValueError: it holds something, or can't be created.
    """
    with created_folder(folder) as names:
        if names:
            raise ValueError(f"{folder} is not empty; choose another folder, or empty it")
        yield


def copy_wrong_images(
    folder: Path, evaluation: Evaluation, images: ImageDataset, indices: np.ndarray, data_dir: Path
) -> int:
    """Copy the misclassified images to <label>/<predicted>/ and return how many there are.

    A picture file is copied unchanged; an image without a file becomes a PNG named after its index.
    """
    predicted = evaluation.logits.argmax(dim=1)
    names = safe_names(images.classes)
    wrong = torch.nonzero(predicted != evaluation.labels)[:, 0].tolist()
    for position in wrong:
        index = int(indices[position])
        target = folder / names[int(evaluation.labels[position])] / names[int(predicted[position])]
        with explain_write_errors(target, images.images[index].nbytes):
            target.mkdir(parents=True, exist_ok=True)
            if images.files is None:
                picture = Image.fromarray(np.ascontiguousarray(images.images[index].transpose(1, 2, 0)))
                picture.save(target / f"{index:05}.png")
            else:
                _copy(data_dir / images.files[index], target)
    return len(wrong)


def _copy(source: Path, folder: Path) -> None:
    """Copy a file into a folder under its name, or a numbered one if that is taken."""
    target, number = folder / source.name, 1
    while True:
        try:
            with source.open("rb") as reader, target.open("xb") as writer:
                shutil.copyfileobj(reader, writer)
            return
        except FileExistsError:
            number += 1
            target = folder / f"{source.stem}-{number}{source.suffix}"
