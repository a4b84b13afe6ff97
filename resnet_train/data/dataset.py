"""Data sets: their type and registry, and the splits and channel statistics that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_train.config import TrainConfig
from resnet_train.registry import Registry, accepts, call_with

# All runs on a data set share its validation split and its subsets, whatever their seed.
SPLIT_SEED = 20260101


@dataclass(frozen=True, kw_only=True)
class ImageDataset:
    """One split of a data set.

    Attributes:
        images: uint8 [N, 3, H, W], often memory-mapped.
        labels: int64 [N], each in 0 … len(classes) - 1.
        classes: The class names.
        mean: Mean of the training pixels per channel, on a 0–1 scale.
        std: Standard deviation of the training pixels per channel, on a 0–1 scale.
        title: The name of the data set in every output.
        fingerprint: Equal for equal images and labels in the same order.
        skipped: The files that are not among the images, as `path (reason)`.
        files: The picture that each image was read from, relative to the data directory; None if there are no files.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    title: str
    fingerprint: str
    skipped: tuple[str, ...] = ()
    files: tuple[Path, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def name_of(self, index: int) -> str:
        """Return the file of an image, relative to the data directory, or its index if there are no files."""
        return str(index) if self.files is None else self.files[index].as_posix()


@dataclass(frozen=True)
class DatasetFacts:
    """What is known about a data set before it is loaded; no `mean` and `std` if they depend on the image size."""

    title: str
    num_train: int
    num_test: int
    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


# (split, data_dir, image_size, settings that its signature names) → the split, or None if it has no such images.
LoadSplit = Callable[..., ImageDataset | None]
DATASETS: Registry[LoadSplit] = Registry("data set")
FACTS: dict[str, DatasetFacts] = {}  # by name, for data sets whose content is fixed


def load_dataset(
    name: str, split: str, data_dir: Path | str, image_size: int = 32, settings: Mapping[str, Any] | None = None
) -> ImageDataset | None:
    """Load one split of a data set, from its cache if it has one.

    Args:
        name: A name registered in `DATASETS`.
        split: "train", "val" or "test".
        data_dir: Where the files are, or where they are downloaded to.
        image_size: Side length in pixels.
        settings: Other settings, of which the data set takes those that it names; the defaults if not given.

    Returns:
        The split, or None if the data set has no such images. Most have no validation images.

    Raises:
        ValueError: The name or the split is unknown, the image size is wrong, or files are missing or unusable.
        ConnectionError: A download failed.
    """
    if split not in {"train", "val", "test"}:
        raise ValueError(f"unknown split {split!r}; use train, val or test")
    given = dict(TrainConfig()) if settings is None else settings
    return call_with(DATASETS[name], {**given, "data_dir": Path(data_dir)}, split=split, image_size=image_size)


def needs_files(name: str) -> bool:
    """Return whether the images are files that must be in the data directory: neither downloaded nor computed.

    Raises:
        ValueError: there is no such data set.
    """
    return name not in FACTS and accepts(DATASETS[name], "data_dir")


def find_data_dir(config: TrainConfig, data_path: str | None) -> Path:
    """Return the directory of the data of a run, wherever it is resumed or evaluated from.

    Args:
        config: the run's settings, as stored in a checkpoint.
        data_path: the absolute path that `config.data_dir` had; None if the checkpoint does not have it.

    Returns:
        The first of the two that is here; if neither is, the default for a data set that can be downloaded.

    Raises:
        ValueError: neither is here, or the data set is unknown.
    """
    found = [path for path in (Path(data_path or config.data_dir), config.data_dir) if path.is_dir()]
    if found:
        return config.data_dir if found[0] == config.data_dir.absolute() else found[0]
    if not needs_files(config.dataset):
        return TrainConfig().data_dir
    places = dict.fromkeys([str(config.data_dir), *([data_path] if data_path else [])])
    raise ValueError(f"the images are not in {' or '.join(places)}; say where they are with --data-dir")


def split_indices(labels: np.ndarray, val_size: int, train_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted indices of the training and of the validation images, the same for every seed.

    Validation images are held out in proportion to the classes. Training images are drawn class-balanced.

    Raises:
        ValueError: There are fewer images than requested, or a class would keep no training image.
    """
    rest, val = hold_out(labels, val_size)
    if train_size is not None and train_size > len(rest):
        held_out = f" after val_size (={val_size})" if val_size else ""
        raise ValueError(f"train_size (={train_size}) must be at most the {len(rest)} training images{held_out}")
    return np.sort(rest[:train_size]), np.sort(val)


def hold_out(labels: np.ndarray, size: int, option: str = "val_size") -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the remaining images, each prefix as class-balanced as possible, and of those held out.

    Raises:
        ValueError: A class would keep no image; the message names the option.
    """
    if size >= len(labels):
        raise ValueError(f"{option} (={size}) must be less than the number of training images (={len(labels)})")
    counts = np.bincount(labels)
    largest = len(labels) - np.count_nonzero(counts)
    if size > largest:
        raise ValueError(f"{option} (={size}) must be at most {largest}, so that every class keeps a training image")

    # Largest remainder: every class gives its share rounded down, then those with the largest fractions give one more.
    held = counts * size // len(labels)
    while (missing := size - held.sum()) > 0:
        lacking = np.where(held < counts - 1, counts * size - held * len(labels), -len(labels) * len(labels))
        can_give = min(missing, np.count_nonzero(held < counts - 1))
        held[np.argsort(-lacking, kind="stable")[:can_give]] += 1

    # Each class gives its first images in a fixed random order.
    order, rank_in_class = _fixed_order(labels)
    is_held = rank_in_class[order] < held[labels[order]]
    rest = order[~is_held]
    rest = rest[np.lexsort((labels[rest], held[labels[rest]], rank_in_class[rest] - held[labels[rest]]))]
    return rest, order[is_held]


def assign_folds(labels: np.ndarray, groups: np.ndarray, num_folds: int) -> np.ndarray:
    """Return the fold of each image, int64 [N]: folds have equally many images of each class, and groups stay together.

    Args:
        labels: int64 [N].
        groups: int64 [N], the lowest index of the images that are alike, which must not be divided.
        num_folds: the number of folds, at most N.
    """
    order, _ = _fixed_order(labels)
    by_class = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), np.int64)
    folds[by_class] = np.arange(len(labels)) % num_folds
    return folds[groups]


def _fixed_order(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a permutation that is the same for every run, and each image's place in it among those of its class."""
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    rank_in_class = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank_in_class[members] = np.arange(len(members))
    return shuffled, rank_in_class


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation per channel of uint8 images [N, 3, H, W] on a 0–1 scale.

    They come from integer histograms, so they are exact for any number of images.
    """
    # Count the pixels of each value, by channel.
    histograms = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(images), 1024):
        for channel in range(3):
            pixels = images[start : start + 1024, channel]
            histograms[channel] += np.bincount(pixels.ravel(), minlength=256)

    # The lower bound keeps the deviation of a constant channel positive, because images are divided by it.
    values = np.arange(256) / 255
    count = histograms.sum(axis=1)
    mean = histograms @ values / count
    std = np.sqrt(np.maximum(histograms @ values**2 / count - mean**2, 1e-12))
    return tuple(mean.round(6).tolist()), tuple(std.round(6).tolist())
