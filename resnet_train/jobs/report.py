"""The report of an evaluation: report.json, and a page that shows it."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from resnet_train.config import TrainConfig, is_planned, option_names, to_plain
from resnet_train.data.batch import Batch
from resnet_train.data.dataset import ImageDataset
from resnet_train.data.loader import eval_loader, to_device
from resnet_train.evaluation.calibration import ConfidenceBin, bin_by_confidence
from resnet_train.evaluation.evaluate import Evaluation
from resnet_train.evaluation.explain import draw_overlay, heat_maps
from resnet_train.evaluation.label_errors import find_label_errors
from resnet_train.evaluation.neighbors import compute_features, find_nearest
from resnet_train.jobs.evaluation_result import EvaluationResult
from resnet_train.jobs.split_images import SplitImages, load_training_images
from resnet_train.jobs.subject import Subject
from resnet_train.models import measure_complexity
from resnet_train.report.page import FindingPictures, render_report
from resnet_train.report.pictures import find_mistakes
from resnet_train.runs.checkpoint import RunCheckpoint
from resnet_train.runtime.environment import describe_environment
from resnet_train.runtime.files import created_folder, open_regular, write_text
from resnet_train.runtime.plain import to_plain_values

PAGE, DATA = "report.html", "report.json"
NUM_MISTAKES, NUM_LABEL_ERRORS, NUM_NEIGHBORS = 12, 24, 5
MAX_PNG_SIDE = 64  # pixels; larger pictures are scaled down and become JPEGs, so that the page stays small
JPEG_SIDE, OVERLAY_SIDE = 112, 128
# Where a run is written, and in what form, does not affect what it computes.
NOT_REPRODUCED = {"name", "output_dir"}


@dataclass(frozen=True, kw_only=True)
class Neighbor:
    """A training image: its file or index, its label, and the cosine of its features to those of another image."""

    image: str
    label: str
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A misclassified image.

    Attributes:
        image: its file, or its index in the data set.
        label, predicted: the classes.
        confidence: the probability of the predicted class.
        self_confidence: the probability of the label.
        neighbors: the nearest training images, nearest first; empty if the training images are not here.
    """

    image: str
    label: str
    predicted: str
    confidence: float
    self_confidence: float
    neighbors: tuple[Neighbor, ...]


@dataclass(frozen=True)
class Neighbors:
    """The training images that are nearest to some images.

    Attributes:
        indices: int64 [Q, K], nearest first; K is 0 without training images.
        cosines: float [Q, K].
        training: the data set that they index; None without them.
        missing: why there are none.
    """

    indices: np.ndarray
    cosines: np.ndarray
    training: ImageDataset | None = None
    missing: str | None = None

    def describe(self, row: int) -> tuple[Neighbor, ...]:
        """Return the neighbors of an image."""
        if self.training is None:
            return ()
        images = self.training
        return tuple(
            Neighbor(image=images.name_of(index), label=images.classes[images.labels[index]], cosine=cosine)
            for index, cosine in zip(self.indices[row].tolist(), self.cosines[row].tolist())
        )

    def pixels(self, row: int) -> list[np.ndarray]:
        """Return the images of its neighbors, uint8 [3, H, W] each."""
        return [] if self.training is None else list(self.training.images[self.indices[row]])


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Parameters, and multiply-adds per image, of all networks and views together."""

    params: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """What report.json holds and a page shows.

    Attributes:
        evaluation: the numbers that `resnet-eval --json` prints.
        classes: the names of rows and columns of `confusion`.
        confusion: how many images of the row's class were classified as the column's class.
        mean_precision: the mean over the classes with images, of those that were predicted; None if none was.
        bins: images by confidence.
        mistakes: misclassified images, most confident first.
        label_errors: images whose label is probably wrong, least likely label first.
        num_label_errors: how many such images there are.
        no_neighbors: why the training images could not be compared; None if they were.
        cost: the cost of the network.
        curves: columns of metrics.csv; empty if the checkpoint is not part of a run's folder.
        config: all settings of training.
        changed: those of them that are not the defaults.
        train_command: the command that trains such a network; None if it was not trained by this program.
        command: the command that makes this report.
        train_environment, environment: versions and hardware of training and of this evaluation.
        date: the date of this evaluation, in UTC.
    """

    evaluation: EvaluationResult
    classes: tuple[str, ...]
    confusion: list[list[int]]
    mean_precision: float | None
    bins: tuple[ConfidenceBin, ...]
    mistakes: tuple[Finding, ...]
    label_errors: tuple[Finding, ...]
    num_label_errors: int
    no_neighbors: str | None
    cost: Cost
    curves: dict[str, list[float | None]]
    config: dict[str, Any]
    changed: tuple[str, ...]
    train_command: str | None
    command: str
    train_environment: dict[str, Any]
    environment: dict[str, Any]
    date: str


@contextmanager
def report_folder(folder: Path) -> Iterator[None]:
    """Create the folder of a report, or accept one that holds nothing but an older report; see `created_folder`.

    Raises:
        ValueError: it holds something else, or can't be created.
    """
    with created_folder(folder) as names:
        if others := [name for name in names if name not in (PAGE, DATA)]:
            raise ValueError(f"{folder} holds {others[0]}, which is not part of a report; choose another folder")
        yield


def write_report(
    folder: Path,
    subject: Subject,
    data: SplitImages,
    evaluation: Evaluation,
    result: EvaluationResult,
    command: str,
    batch_size: int,
) -> None:
    """Write report.json and report.html.

    Args:
        folder: the folder, created by `report_folder`.
        subject: what was evaluated.
        data: the images it was evaluated on.
        evaluation, result: the results.
        command: the command that was given.
        batch_size: batch size for the training images, which the mistakes are compared with.
    """
    # Find the images to show and the training images nearest to them.
    probabilities = evaluation.logits.double().softmax(dim=1)
    mistakes, label_errors = (
        find_mistakes(evaluation)[:NUM_MISTAKES],
        find_label_errors(probabilities, evaluation.labels).numpy(),
    )
    num_mistakes = len(mistakes)
    shown = np.concatenate([mistakes, label_errors[:NUM_LABEL_ERRORS]])  # positions in the evaluation
    near = _find_neighbors(subject, data, shown, batch_size)
    findings = _describe_findings(data, evaluation, probabilities, shown, near)
    pictures = _draw_findings(subject, data, evaluation, shown, near, num_mistakes)

    # Write both files.
    report = Report(
        mistakes=findings[:num_mistakes],
        label_errors=findings[num_mistakes:],
        num_label_errors=len(label_errors),
        no_neighbors=near.missing,
        **_report_numbers(subject, data, evaluation, result, probabilities),
        command=command,
    )
    plain = to_plain_values(report)
    write_text(folder / DATA, json.dumps(plain, allow_nan=False, indent=1) + "\n")
    write_text(folder / PAGE, render_report(plain, pictures[:num_mistakes], pictures[num_mistakes:]))


def training_command(config: TrainConfig) -> str:
    """Return the command that trains with these settings, for as many steps as were planned for `minutes`."""
    words = ["resnet-train"]
    for name, value in _changed(config).items():
        if name == "minutes" and is_planned(config):
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, ",".join(f"{part:g}" for part in value) if isinstance(value, list) else str(value)]
    return shlex.join(words)


def evaluation_command(paths: list[Path], options: Mapping[str, Any]) -> str:
    """Return the command that evaluates these checkpoints; options without a value are left out."""
    words = ["resnet-eval", *map(str, paths)]
    for name, value in options.items():
        if value not in (None, False):
            words += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
    return shlex.join(words)


def encode_picture(pixels: np.ndarray, side: int = JPEG_SIDE) -> bytes:
    """Return an image uint8 [3, H, W] as PNG, or scaled down to JPEG if it is larger than a thumbnail."""
    picture, file = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), io.BytesIO()
    if max(picture.size) <= MAX_PNG_SIDE:
        picture.save(file, "PNG")
    else:
        picture.resize((side, side), Image.Resampling.LANCZOS).save(file, "JPEG", quality=88)
    return file.getvalue()


def read_curves(subject: Subject) -> dict[str, list[float | None]]:
    """Return the columns of a run's metrics.csv, or the history in its state; empty for averages and other files."""
    checkpoint, path = subject.checkpoints[0], subject.paths[0]
    rows: list[Mapping[str, Any]] = []
    if len(subject.paths) > 1:
        return {}
    if isinstance(checkpoint, RunCheckpoint):
        rows = [
            {"epoch": r.epoch} | {k.replace("/", "_"): v for k, v in r.scalars().items()} for r in checkpoint.history
        ]
    elif path.absolute().parent.name == "checkpoints":
        with (
            suppress(OSError, ValueError, csv.Error),
            open_regular(path.absolute().parents[1] / "metrics.csv", "r", encoding="utf-8", newline="") as file,
        ):
            rows = list(csv.DictReader(file))
    table = [{name: _to_number(value) for name, value in row.items() if isinstance(name, str)} for row in rows]
    table = [row for row in table if row.get("epoch") is not None]
    return {name: [row.get(name) for row in table] for name in (table[0] if table else {})}


def _to_number(value: Any) -> float | None:
    with suppress(TypeError, ValueError):
        number = float(value)
        return number if np.isfinite(number) else None
    return None


def _changed(config: TrainConfig) -> dict[str, Any]:
    """Return the plain values of the settings that are not the defaults, in the order of `--help`."""
    values, defaults = to_plain(config), to_plain(TrainConfig())
    return {
        name: values[name] for name in option_names() if name not in NOT_REPRODUCED and values[name] != defaults[name]
    }


def _report_numbers(
    subject: Subject, data: SplitImages, evaluation: Evaluation, result: EvaluationResult, probabilities: Tensor
) -> dict[str, Any]:
    """Return the parts of a report that need no pictures."""
    first = subject.checkpoints[0]
    config = subject.config
    precisions = [row.precision for row in result.per_class if row.precision is not None]
    return {
        "evaluation": result,
        "classes": data.images.classes,
        "confusion": evaluation.confusion.tolist(),
        "mean_precision": float(np.mean(precisions)) if precisions else None,
        "bins": bin_by_confidence(probabilities, evaluation.labels),
        "cost": _measure_cost(subject),
        "curves": read_curves(subject),
        "config": to_plain(config),
        "changed": tuple(_changed(config)),
        "train_command": training_command(config) if first.environment else None,
        "train_environment": first.environment,
        "environment": describe_environment(subject.device),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _measure_cost(subject: Subject) -> Cost:
    sizes = [
        measure_complexity(about.arch, len(about.classes), about.image_size, **about.arch_options)
        for about in (checkpoint.about for checkpoint in subject.checkpoints)
    ]
    return Cost(
        params=sum(size.params for size in sizes), macs=sum(size.macs for size in sizes) * subject.views_per_image
    )


def _load_batch(subject: Subject, data: SplitImages, positions: np.ndarray) -> Batch:
    """Return the images at these positions of an evaluation."""
    indices = data.indices[positions]
    pixels = to_device(np.ascontiguousarray(data.images.images[indices]), subject.device)
    return Batch(subject.normalize(pixels), to_device(data.images.labels[indices], subject.device))


def _find_neighbors(subject: Subject, data: SplitImages, positions: np.ndarray, batch_size: int) -> Neighbors:
    """Return the training images nearest to the images at these positions of an evaluation."""
    nothing = np.empty((len(positions), 0))
    if not len(positions):
        return Neighbors(nothing.astype(np.int64), nothing)
    try:
        training, indices = load_training_images(subject, data)
    except (ValueError, OSError) as error:
        return Neighbors(nothing.astype(np.int64), nothing, missing=" ".join(str(error).split()))

    # Compare the features batch by batch.
    network = subject.first_network
    (queries,) = compute_features(network, [_load_batch(subject, data, positions)])
    loader = eval_loader(training.images, training.labels, subject.normalize, subject.device, indices, batch_size)
    bar = tqdm(loader.epoch(0), total=len(loader), desc="nearest training images", unit="", disable=None, leave=False)
    found, cosines = find_nearest(queries, compute_features(network, bar), NUM_NEIGHBORS + 1)

    # A training image is nearest to itself: leave it out.
    nearest = indices[found.numpy()]  # [Q, K + 1]
    own = data.indices[positions] if data.split == "train" else np.full(len(positions), -1)
    keep = np.stack([np.flatnonzero(row)[:NUM_NEIGHBORS] for row in nearest != own[:, None]])  # [Q, K]
    return Neighbors(
        np.take_along_axis(nearest, keep, axis=1), np.take_along_axis(cosines.numpy(), keep, axis=1), training
    )


def _describe_findings(
    data: SplitImages, evaluation: Evaluation, probabilities: Tensor, positions: np.ndarray, near: Neighbors
) -> tuple[Finding, ...]:
    """Return what report.json says about the images at these positions."""
    names = data.images.classes
    findings = []
    for row, position in enumerate(positions.tolist()):
        label, predicted = int(evaluation.labels[position]), int(probabilities[position].argmax())
        findings.append(
            Finding(
                image=data.images.name_of(int(data.indices[position])),
                label=names[label],
                predicted=names[predicted],
                confidence=float(probabilities[position, predicted]),
                self_confidence=float(probabilities[position, label]),
                neighbors=near.describe(row),
            )
        )
    return tuple(findings)


def _draw_findings(
    subject: Subject,
    data: SplitImages,
    evaluation: Evaluation,
    positions: np.ndarray,
    near: Neighbors,
    num_explained: int,
) -> list[FindingPictures]:
    """Return the pictures of the images at these positions, the first `num_explained` with a heat map."""
    overlays: list[bytes | None] = [None] * len(positions)
    images = data.images.images[data.indices[positions]]
    if num_explained:
        batch = _load_batch(subject, data, positions[:num_explained])
        classes = evaluation.logits[positions[:num_explained]].argmax(dim=1).to(subject.device)
        maps = heat_maps(subject.first_network, batch.images, classes).cpu().numpy()
        for row, heat in enumerate(maps):
            overlays[row] = encode_picture(draw_overlay(images[row], heat).transpose(2, 0, 1), OVERLAY_SIDE)
    return [
        FindingPictures(encode_picture(image), overlay, [encode_picture(one) for one in near.pixels(row)])
        for row, (image, overlay) in enumerate(zip(images, overlays))
    ]
