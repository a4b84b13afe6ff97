"""The images of an evaluation, and those that a network was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_train.config import TrainConfig
from resnet_train.data.dataset import ImageDataset, find_data_dir, load_dataset, split_indices
from resnet_train.data.sources.cifar import no_downloads
from resnet_train.jobs.subject import Subject, with_classes
from resnet_train.runs.checkpoint import AnyCheckpoint
from resnet_train.runs.needed_plugins import naming_missing_plugins


@dataclass(frozen=True)
class SplitImages:
    """The images of an evaluation: `indices` of the data set named `dataset` that was read from `data_dir`."""

    split: str
    images: ImageDataset
    indices: np.ndarray
    dataset: str
    data_dir: Path


def load_images(subject: Subject, dataset: str | None, data_dir: Path | str | None, split: str | None) -> SplitImages:
    """Load the images to evaluate on; what is not given is taken from the first checkpoint.

    Raises:
        ValueError: there are none, they have other classes, or they are not the images used in training.
    """
    checkpoint, path = subject.checkpoints[0], subject.paths[0]
    config = subject.config
    with naming_missing_plugins(checkpoint.environment, path):
        if data_dir is None:
            is_same = dataset in (None, config.dataset)
            data_dir = find_data_dir(config, checkpoint.data_path) if is_same else TrainConfig().data_dir
        split, images, indices = _load_split(dataset or config.dataset, split, Path(data_dir), config)
    for member in subject.checkpoints:
        if indices is not None and images.fingerprint != member.about.fingerprint:
            raise ValueError(f"split {split}: {data_dir} does not hold the images this model was trained on")
    if not names_are_assumed(checkpoint, images):
        images = with_classes(images, subject.classes)
    indices = np.arange(len(images)) if indices is None else indices
    return SplitImages(split, images, indices, dataset or config.dataset, Path(data_dir))


def names_are_assumed(checkpoint: AnyCheckpoint, images: ImageDataset) -> bool:
    """Return whether a checkpoint from other code, which has no class names, has as many classes as these images."""
    return checkpoint.origin is not None and len(checkpoint.about.classes) == len(images.classes)


def _load_split(
    dataset: str, split: str | None, data_dir: Path, config: TrainConfig
) -> tuple[str, ImageDataset, np.ndarray | None]:
    """Return the split's name, the data set it is part of, and the indices of its images (None: all of them)."""
    if split not in (None, "test", "val", "train"):
        raise ValueError(f"unknown split {split!r}; use test, val or train")
    # The test images, then the data set's own validation images.
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
    if split is None and dataset != config.dataset:
        raise ValueError(f"{data_dir} has no test images; move its classes into a folder test/ to evaluate on them")
    train_indices, val_indices = split_indices(images.labels, config.val_size, config.train_size)
    if split == "train":
        return "train", images, train_indices
    if not config.val_size:
        raise ValueError("split val: this model was trained without validation images (--val-size)")
    return "val", images, val_indices


def load_training_images(subject: Subject, data: SplitImages) -> tuple[ImageDataset, np.ndarray]:
    """Load the data set that the first checkpoint was trained on, and the indices of its training images.

    Args:
        subject: the checkpoints.
        data: the images of an evaluation; the training images may be next to them.

    Raises:
        ValueError, OSError: they are not found.
    """
    checkpoint, config = subject.checkpoints[0], subject.config
    is_same = data.dataset == config.dataset
    data_dir = data.data_dir if is_same else find_data_dir(config, checkpoint.data_path)
    with no_downloads():
        images = load_dataset(config.dataset, "train", data_dir, config.image_size, dict(config))
    if images is None or images.fingerprint != checkpoint.about.fingerprint:
        raise ValueError(f"{data_dir} does not hold the images that the network was trained on")
    indices, _ = split_indices(images.labels, config.val_size, config.train_size)
    return with_classes(images, subject.classes), indices
