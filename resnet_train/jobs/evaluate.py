"""Evaluate a trained model: from a checkpoint to its numbers."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from resnet_train.config import TrainConfig, make_config
from resnet_train.data.augment import Normalize
from resnet_train.data.dataset import ImageDataset, find_data_dir, load_dataset, split_indices
from resnet_train.data.layout import to_text
from resnet_train.data.loader import EVAL_BATCH_SIZE, eval_loader
from resnet_train.evaluation.evaluate import Evaluation, compute_logits, evaluate
from resnet_train.evaluation.metrics import compute_scores, confidence_interval, top5
from resnet_train.records import About
from resnet_train.runs.checkpoint import read_model
from resnet_train.runs.folder import RunFolder, find_best, find_checkpoint
from resnet_train.runs.restore import restore_model
from resnet_train.runtime.device import device_name, memory_format, prepare_machine
from resnet_train.runtime.precision import choose_precision, eval_precision

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
    """The numbers of a checkpoint on one split.

    Attributes:
        checkpoint, arch: what was evaluated.
        epoch, steps_after_epoch: how long it was trained.
        chosen_on: the split that this epoch was selected on; None for the final epoch.
        split, title, n: the images.
        top1, loss: accuracy and mean cross-entropy.
        top5: share of labels among the five most likely classes; None below six classes.
        ci95: Wilson's 95 % interval of `top1`.
        scores: every registered metric by name.
        per_class: one result for each class.
        images_per_second, device: the speed of this evaluation.
        best_epoch, best_top1: of the run's model that was chosen on the validation split, on the same test images; None
            if the checkpoint is not a run's folder or has no such model.
    """

    checkpoint: str
    arch: str
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
    per_class: tuple[ClassResult, ...]
    images_per_second: float
    device: str
    best_epoch: int | None = None
    best_top1: float | None = None


def evaluate_checkpoint(
    path: Path | str,
    *,
    dataset: str | None = None,
    data_dir: Path | str | None = None,
    split: str | None = None,
    best: bool = False,
    batch_size: int = EVAL_BATCH_SIZE,
    device: str = "auto",
    threads: int = 0,
) -> EvaluationResult:
    """Evaluate the model of a checkpoint; what is not given is taken from the checkpoint.

    Args:
        path: a checkpoint, or the folder of a run, which means its final model.
        dataset, data_dir, split: the images.
        best: evaluate the model that the run chose on its validation split.
        batch_size, device, threads: how to evaluate.

    Raises:
        ValueError: no usable checkpoint, an unknown data set or split, or data with other classes.
    """
    # Read the checkpoint.
    given = Path(path)
    path = find_best(given) if best else find_checkpoint(given)
    checkpoint = read_model(path)
    model = restore_model(checkpoint, path)
    about, config = checkpoint.about, make_config(checkpoint.config, str(path))

    # Load the images.
    torch_device = prepare_machine(device, threads)
    if data_dir is None:
        is_same = dataset in (None, config.dataset)
        data_dir = find_data_dir(config, checkpoint.data_path) if is_same else TrainConfig().data_dir
    split, images, indices = _load_split(dataset or config.dataset, split, Path(data_dir), config)
    if indices is not None and images.fingerprint != about.fingerprint:
        raise ValueError(f"split {split}: {data_dir} does not hold the images this model was trained on")
    images = _with_classes(images, tuple(about.classes))

    # Evaluate in the format of the training, as the run did.
    precision = choose_precision(config.amp, torch_device)
    if eval_precision(precision, torch_device) is not precision:
        log.info("evaluating in float32, because %s has no units for %s", device_name(torch_device), config.amp)
    normalize = Normalize(tuple(about.mean), tuple(about.std), config.channels_last)
    loader = eval_loader(images.images, images.labels, normalize, torch_device, indices, batch_size)
    order = memory_format(config.channels_last)

    def run(model: nn.Module) -> Evaluation:
        forward = partial(compute_logits, model, precision)
        return evaluate(model, loader.epoch(0), len(images.classes), torch_device, forward=forward)

    model = model.to(torch_device).to(memory_format=order)
    start = time.perf_counter()
    evaluation = run(model)
    seconds = time.perf_counter() - start

    # A run that chose a model on its validation split has two numbers to report.
    best_epoch = best_top1 = None
    if given.is_dir() and not best and split == "test" and RunFolder(given).best("val").is_file():
        best_path = find_best(given)
        chosen = read_model(best_path)
        model = restore_model(chosen, best_path).to(torch_device).to(memory_format=order)
        best_epoch, best_top1 = chosen.epoch, compute_scores(run(model))["accuracy"]

    scores = compute_scores(evaluation)
    return EvaluationResult(
        checkpoint=str(path),
        arch=about.arch,
        epoch=checkpoint.epoch,
        steps_after_epoch=checkpoint.steps_after_epoch,
        chosen_on=checkpoint.chosen_on,
        split=split,
        title=images.title,
        n=evaluation.n,
        top1=scores["accuracy"],
        top5=top5(evaluation),
        loss=evaluation.loss,
        ci95=confidence_interval(int(evaluation.confusion.trace()), evaluation.n),
        scores=scores,
        per_class=class_results(evaluation, images.classes),
        images_per_second=evaluation.n / seconds,
        device=device_name(torch_device),
        best_epoch=best_epoch,
        best_top1=best_top1,
    )


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


def _with_classes(images: ImageDataset, classes: tuple[str, ...]) -> ImageDataset:
    """Return the same images with labels that index the checkpoint's classes."""
    known = [to_text(name) for name in classes]  # older versions stored names as the file system has them
    unknown = sorted(set(images.classes) - set(known))
    if unknown:
        raise ValueError(
            f"the data has a class {unknown[0]!r} that the checkpoint does not know ({', '.join(classes)})"
        )
    new_labels = np.array([known.index(name) for name in images.classes], dtype=np.int64)
    return replace(images, labels=new_labels[images.labels], classes=tuple(known))
