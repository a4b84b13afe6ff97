"""Evaluate trained models: from checkpoints to their numbers."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from resnet_train.config import TrainConfig, make_config
from resnet_train.data.dataset import ImageDataset, find_data_dir, load_dataset, split_indices
from resnet_train.data.loader import EVAL_BATCH_SIZE
from resnet_train.evaluation.evaluate import Evaluation
from resnet_train.evaluation.metrics import compute_scores, confidence_interval, top5
from resnet_train.jobs.image_files import (
    check_predictions_file,
    copy_wrong_images,
    make_empty_folder,
    write_predictions,
)
from resnet_train.jobs.robustness import RobustnessResult, evaluate_cifar10_c, evaluate_corruptions
from resnet_train.jobs.subject import Subject, load_subject, with_classes
from resnet_train.jobs.trust import CalibrationResult, UnknownResult, measure_calibration, measure_unknown
from resnet_train.records import About
from resnet_train.runs.checkpoint import read_model
from resnet_train.runs.folder import RunFolder, find_best, find_checkpoint
from resnet_train.runs.restore import restore_model
from resnet_train.runtime.device import device_name, prepare_machine
from resnet_train.runtime.precision import eval_precision

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """The numbers of one class; shares are 0–1, and None where they would divide by zero.

    Attributes:
        name: of the class.
        n: images with this label.
        accuracy: share of them that were classified correctly (recall).
        precision: share of the images taken for this class that have its label.
    """

    name: str
    n: int
    accuracy: float | None
    precision: float | None


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """The numbers of a checkpoint on one split, or of several whose probabilities are averaged.

    Attributes:
        checkpoint, arch: what was evaluated; the first of several checkpoints.
        ensemble: all checkpoints whose probabilities were averaged; empty for a single one.
        tta: the test-time augmentation, None without one.
        epoch, steps_after_epoch: how long it was trained.
        chosen_on: the split that this epoch was selected on; None for the final epoch.
        split, title, n: the images.
        top1, loss: accuracy and mean cross-entropy.
        top5: share of labels among the five most likely classes; None below six classes.
        ci95: Wilson's 95 % interval of `top1`.
        scores: every registered metric by name.
        calibration: how far the probabilities can be trusted.
        per_class: one result for each class.
        images_per_second, device: the speed of this evaluation.
        best_epoch, best_top1: of the run's model that was chosen on the validation split, on the same test images; None
            if the checkpoint is not a run's folder or has no such model.
        unknown: how well images of another kind are told apart; None if not asked for.
        robustness: the accuracy on corrupted images, for each source of them that was asked for.
        num_wrong_copied: images that were copied because they were classified wrong; None if not asked for.
    """

    checkpoint: str
    arch: str
    ensemble: tuple[str, ...] = ()
    tta: str | None = None
    epoch: int
    steps_after_epoch: int
    chosen_on: str | None
    split: str
    title: str
    n: int
    top1: float
    top5: float | None
    loss: float
    ci95: tuple[float, float]
    scores: dict[str, float]
    calibration: CalibrationResult
    per_class: tuple[ClassResult, ...]
    images_per_second: float
    device: str
    best_epoch: int | None = None
    best_top1: float | None = None
    unknown: UnknownResult | None = None
    robustness: tuple[RobustnessResult, ...] = ()
    num_wrong_copied: int | None = None


@dataclass(frozen=True)
class SplitImages:
    """The images of an evaluation: `indices` of a data set that was read from `data_dir`."""

    split: str
    images: ImageDataset
    indices: np.ndarray
    data_dir: Path


def evaluate_checkpoint(
    path: Path | str | Sequence[Path | str],
    *,
    dataset: str | None = None,
    data_dir: Path | str | None = None,
    split: str | None = None,
    best: bool = False,
    tta: str | None = None,
    corruptions: bool = False,
    cifar10_c: Path | str | None = None,
    unknown: str | None = None,
    predictions: Path | str | None = None,
    wrong: Path | str | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    device: str = "auto",
    threads: int = 0,
) -> EvaluationResult:
    """Evaluate the model of a checkpoint; what is not given is taken from the checkpoint.

    Args:
        path: a checkpoint, or the folder of a run, which means its final model; of several, probabilities are averaged.
        dataset, data_dir, split: the images.
        best: evaluate the model that the run chose on its validation split.
        tta: average over views of each image, "flip" or "flip-shift".
        corruptions: also evaluate on images that are corrupted here.
        cifar10_c: also evaluate on the files of CIFAR-10-C in this folder.
        unknown: also tell apart the images of this data set or folder, which show none of the classes.
        predictions: write one row for each image to this CSV file.
        wrong: copy the images that are classified wrong to this folder.
        batch_size, device, threads: how to evaluate.

    Raises:
        ValueError: no usable checkpoint, an unknown data set or split, or data with other classes.
    """
    # Load the networks and the images, and check where results go.
    given = [Path(path)] if isinstance(path, str | Path) else [Path(part) for part in path]
    if predictions is not None:
        check_predictions_file(Path(predictions))
    torch_device = prepare_machine(device, threads)
    subject = load_subject([find_best(one) if best else find_checkpoint(one) for one in given], tta, torch_device)
    if unknown is not None and subject.is_average:
        raise ValueError("unknown images are told apart by the outputs of one checkpoint without --tta")
    data = _load_images(subject, dataset, data_dir, split)
    if wrong is not None:
        make_empty_folder(Path(wrong))

    # Evaluate in the format of the training, as the run did.
    if eval_precision(subject.precision, torch_device) is not subject.precision:
        log.info("evaluating in float32, because %s has no units for %s", device_name(torch_device), subject.amp)
    start = time.perf_counter()
    evaluation = subject.evaluate(data.images, data.indices, batch_size)
    seconds = time.perf_counter() - start

    # Write what was asked for each image.
    num_wrong = None
    if predictions is not None:
        write_predictions(Path(predictions), evaluation, data.images, data.indices)
    if wrong is not None:
        num_wrong = copy_wrong_images(Path(wrong), evaluation, data.images, data.indices, data.data_dir)

    # Evaluate on other images.
    robustness = []
    if corruptions:
        robustness.append(evaluate_corruptions(subject, data.images, data.indices, evaluation, batch_size))
    if cifar10_c is not None:
        robustness.append(evaluate_cifar10_c(subject, Path(cifar10_c), evaluation, batch_size))

    # A run that chose a model on its validation split has two numbers to report.
    best_epoch = best_top1 = None
    if len(given) == 1 and given[0].is_dir() and not best and data.split == "test":
        best_epoch, best_top1 = _evaluate_best(given[0], tta, subject, data, batch_size)

    scores, first = compute_scores(evaluation), subject.checkpoints[0]
    return EvaluationResult(
        checkpoint=str(subject.paths[0]),
        arch=" + ".join(dict.fromkeys(checkpoint.about.arch for checkpoint in subject.checkpoints)),
        ensemble=tuple(map(str, subject.paths)) if len(subject.paths) > 1 else (),
        tta=tta,
        epoch=first.epoch,
        steps_after_epoch=first.steps_after_epoch,
        chosen_on=data.split if data.split in subject.chosen_on else first.chosen_on,
        split=data.split,
        title=data.images.title,
        n=evaluation.n,
        top1=scores["accuracy"],
        top5=top5(evaluation),
        loss=evaluation.loss,
        ci95=confidence_interval(int(evaluation.confusion.trace()), evaluation.n),
        scores=scores,
        calibration=measure_calibration(evaluation, subject.calibration, data.split),
        per_class=class_results(evaluation, data.images.classes),
        images_per_second=evaluation.n / seconds,
        device=device_name(torch_device),
        best_epoch=best_epoch,
        best_top1=best_top1,
        unknown=None if unknown is None else measure_unknown(subject, unknown, evaluation, batch_size),
        robustness=tuple(robustness),
        num_wrong_copied=num_wrong,
    )


def _evaluate_best(
    run: Path, tta: str | None, subject: Subject, data: SplitImages, batch_size: int
) -> tuple[int | None, float | None]:
    """Return the epoch and the accuracy of the run's model that was chosen on the validation split, if it has one."""
    if not RunFolder(run).best("val").is_file():
        return None, None
    chosen = load_subject([find_best(run)], tta, subject.device)
    evaluation = chosen.evaluate(data.images, data.indices, batch_size)
    return chosen.checkpoints[0].epoch, compute_scores(evaluation)["accuracy"]


def load_model(path: Path | str) -> tuple[nn.Module, About]:
    """Load the network of a checkpoint or of a run's folder, for notebooks and scripts.

    Returns:
        The model in evaluation mode on the CPU, from normalized images float [B, 3, H, W] to logits float [B, C]; and
        the checkpoint's description of it: `arch`, `classes`, `image_size`, `mean`, `std` (on a 0–1 scale) and so on.

    Raises:
        ValueError: no usable checkpoint.
    """
    path = find_checkpoint(Path(path))
    checkpoint = read_model(path)
    return restore_model(checkpoint, path), checkpoint.about


def class_results(evaluation: Evaluation, classes: tuple[str, ...]) -> tuple[ClassResult, ...]:
    """Return the accuracy and precision of each class."""
    # Rows of the confusion matrix are labels, columns predictions.
    confusion = evaluation.confusion
    correct, support, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    return tuple(
        ClassResult(
            name=name,
            n=int(support[i]),
            accuracy=float(correct[i] / support[i]) if support[i] else None,
            precision=float(correct[i] / predicted[i]) if predicted[i] else None,
        )
        for i, name in enumerate(classes)
    )


def _load_images(subject: Subject, dataset: str | None, data_dir: Path | str | None, split: str | None) -> SplitImages:
    """Load the images to evaluate on; what is not given is taken from the first checkpoint.

    Raises:
        ValueError: there are none, they have other classes, or they are not those of the training.
    """
    checkpoint, path = subject.checkpoints[0], subject.paths[0]
    config = make_config(checkpoint.config, str(path))
    if data_dir is None:
        is_same = dataset in (None, config.dataset)
        data_dir = find_data_dir(config, checkpoint.data_path) if is_same else TrainConfig().data_dir
    split, images, indices = _load_split(dataset or config.dataset, split, Path(data_dir), config)
    for member in subject.checkpoints:
        if indices is not None and images.fingerprint != member.about.fingerprint:
            raise ValueError(f"split {split}: {data_dir} does not hold the images this model was trained on")
    images = with_classes(images, subject.classes)
    return SplitImages(split, images, np.arange(len(images)) if indices is None else indices, Path(data_dir))


def _load_split(
    dataset: str, split: str | None, data_dir: Path, config: TrainConfig
) -> tuple[str, ImageDataset, np.ndarray | None]:
    """Return the split's name, the data set it is part of, and the indices of its images (None: all of them)."""
    if split not in (None, "test", "val", "train"):
        raise ValueError(f"unknown split {split!r}; use test, val or train")
    # Test images, then those that the data set has for validation.
    place = (data_dir, config.image_size, dict(config))
    if split != "train":
        for name in ("test", "val") if split is None else (split,):
            images = load_dataset(dataset, name, *place)
            if images is not None:
                return name, images, None
        if split == "test" or (split is None and not config.val_size):
            raise ValueError(f"{data_dir} has no test images")

    # The other splits are parts of the training images.
    images = load_dataset(dataset, "train", *place)
    assert images is not None
    train_indices, val_indices = split_indices(images.labels, config.val_size, config.train_size)
    if split == "train":
        return "train", images, train_indices
    if not config.val_size:
        raise ValueError("split val: this model was trained without validation images (--val-size)")
    return "val", images, val_indices
