"""How far the outputs of a network can be trusted: calibration, and images that show none of its classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from resnet_train.config import TrainConfig
from resnet_train.data.dataset import DATASETS, ImageDataset, load_dataset
from resnet_train.data.picture_files import PictureFile, list_pictures, read_pictures
from resnet_train.evaluation.calibration import (
    calibrate,
    calibration_error,
    calibration_interval,
    cross_calibrate,
    known_scores,
)
from resnet_train.evaluation.evaluate import Evaluation
from resnet_train.jobs.subject import Subject
from resnet_train.records import Calibration


@dataclass(frozen=True, kw_only=True)
class CalibrationResult:
    """How far apart confidence and accuracy are: expected calibration errors over 15 bins, 0–1.

    Attributes:
        n: images that both errors were measured on.
        ece, ece_ci95: the error of the network's probabilities.
        calibrated_ece, calibrated_ci95: the error after division of the logits by a temperature; None if not possible.
        temperatures: the one fitted on the validation images, or those of both halves of the evaluated images.
        fitted_on: the images that they were fitted on.
    """

    n: int
    ece: float
    ece_ci95: tuple[float, float]
    calibrated_ece: float | None
    calibrated_ci95: tuple[float, float] | None
    temperatures: tuple[float, ...]
    fitted_on: str


@dataclass(frozen=True, kw_only=True)
class UnknownResult:
    """How well images that show none of the classes are distinguished from those that do.

    Attributes:
        title, n: these images.
        auroc: the probability that one of them has a lower score than one of the evaluated images.
        found: share of them below the threshold that was stored with the model, 0–1; None if it has none.
        false_alarms: share of the evaluated images below the threshold.
    """

    title: str
    n: int
    auroc: float
    found: float | None
    false_alarms: float | None


def measure_calibration(evaluation: Evaluation, stored: Calibration | None, split: str) -> CalibrationResult:
    """Measure the calibration errors of an evaluation, before and after a temperature.

    Args:
        evaluation: the evaluation of the images of `split`.
        stored: the stored temperature; without it, each half of the images is calibrated with the temperature of the
            other half, so that no image is measured with a temperature that it helped to fit.
        split: "test", "val" or "train".
    """
    logits, labels = evaluation.logits, evaluation.labels
    probabilities = logits.double().softmax(dim=1)
    calibrated, fitted_on = None, "nothing"
    temperatures: tuple[float, ...] = ()
    if stored is not None:
        calibrated, temperatures = calibrate(logits, stored.temperature), (stored.temperature,)
        fitted_on = f"{stored.num_images:,} validation images"
        if split == "val":
            fitted_on += ", which these are"
    elif evaluation.n > 1 and logits.isfinite().all():
        calibrated, temperatures = cross_calibrate(logits, labels)
        fitted_on = f"the other half of the {split} images"
    return CalibrationResult(
        n=evaluation.n,
        ece=calibration_error(probabilities, labels),
        ece_ci95=calibration_interval(probabilities, labels),
        calibrated_ece=None if calibrated is None else calibration_error(calibrated, labels),
        calibrated_ci95=None if calibrated is None else calibration_interval(calibrated, labels),
        temperatures=temperatures,
        fitted_on=fitted_on,
    )


def measure_unknown(subject: Subject, source: str, known: Evaluation, batch_size: int) -> UnknownResult:
    """Measure how well images of another kind are distinguished from those of an evaluation.

    Args:
        subject: a single network, because averaged probabilities have no such score.
        source: a data set, whose test images are used, or a folder of pictures.
        known: the evaluation.
        batch_size: batch size for the other images.

    Raises:
        ValueError: there are no such images.
    """
    from sklearn.metrics import roc_auc_score  # takes 1 s to import

    others = _load_unknown(source, subject.image_size)
    scores = known_scores(known.logits), known_scores(subject.evaluate(others, None, batch_size).logits)
    is_known = np.repeat([1, 0], [len(part) for part in scores])
    threshold = None if subject.calibration is None else subject.calibration.known_from
    rejected = [None if threshold is None else float((part < threshold).double().mean()) for part in scores]
    return UnknownResult(
        title=others.title,
        n=len(others),
        auroc=float(roc_auc_score(is_known, torch.cat(scores).numpy())),
        found=rejected[1],
        false_alarms=rejected[0],
    )


def _load_unknown(source: str, image_size: int) -> ImageDataset:
    """Return the images of a data set or of a folder, with labels that mean nothing."""
    if source in DATASETS:
        images = load_dataset(source, "test", TrainConfig().data_dir, image_size)
        if images is None:
            raise ValueError(f"{source} has no test images")
        pixels, title = images.images, images.title
    elif Path(source).is_dir():
        files = (PictureFile(str(path), path) for path in list_pictures(Path(source)))
        read = (content for _, content in read_pictures(files, image_size))
        found = [content for content in read if isinstance(content, np.ndarray)]
        if not found:
            raise ValueError(f"{source} holds no pictures that can be read")
        pixels, title = np.stack(found), f"folder {Path(source).resolve().name}"
    else:
        raise ValueError(f"{source!r} is neither a data set ({', '.join(DATASETS.names())}) nor a folder of pictures")
    labels = np.zeros(len(pixels), np.int64)
    return ImageDataset(images=pixels, labels=labels, classes=("",), mean=(), std=(), title=title, fingerprint="")
