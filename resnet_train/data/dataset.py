"""The data sets: each one function from a split to arrays, registered under its name."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_train.data.cache import open_or_build
from resnet_train.data.download import fetch_archive
from resnet_train.registry import Registry

log = logging.getLogger(__name__)

# Every user of a data set shares its validation split and its subsets, whatever the seed of the run.
SPLIT_SEED = 20260101


@dataclass(frozen=True)
class ImageDataset:
    """One split of a data set.

    Attributes:
        images: uint8 [N, 3, H, W], often memory-mapped.
        labels: int64 [N], each in 0 … len(classes) - 1.
        classes: their names.
        mean, std: of the training pixels per channel, on a 0–1 scale.
        title: what to call it in every output.
        fingerprint: the same for the same images and labels in the same order.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    title: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)


# (split "train" or "test", data_dir, image_size) → the split, or None if the data set has no test images.
LoadSplit = Callable[[str, Path, int], ImageDataset | None]
DATASETS: Registry[LoadSplit] = Registry("data set")


def load_dataset(name: str, split: str, data_dir: Path | str, image_size: int = 32) -> ImageDataset | None:
    """Loads one split of a data set, from its cache where it has one.

    Args:
        name: a name that `DATASETS` knows.
        split: "train" or "test".
        data_dir: where its files are or are downloaded to.
        image_size: side in pixels.

    Returns:
        The split; None if it is "test" and the data set has no test images.

    Raises:
        ValueError: unknown name or split, wrong image size, missing or unusable files.
        ConnectionError: a download failed.
    """
    if split not in {"train", "test"}:
        raise ValueError(f"unknown split {split!r}; use train or test")
    return DATASETS[name](split, Path(data_dir), image_size)


def balanced_order(labels: np.ndarray) -> np.ndarray:
    """int64 [N]: image numbers so that each beginning of the list holds all classes as equally as they last."""
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    return shuffled[np.lexsort((labels[shuffled], rank[shuffled]))]


def split_indices(labels: np.ndarray, val_size: int, train_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The image numbers to train on and to validate on, both sorted; class-balanced, and the same for every seed.

    Raises:
        ValueError: more images asked for than there are.
    """
    if val_size >= len(labels):
        raise ValueError(f"val_size (={val_size}) must be less than the number of training images (={len(labels)})")
    order = balanced_order(labels)
    val, train = order[:val_size], order[val_size:]
    if train_size is not None and train_size > len(train):
        held_out = f" after val_size (={val_size})" if val_size else ""
        raise ValueError(f"train_size (={train_size}) must be at most the {len(train)} training images{held_out}")
    return np.sort(train[:train_size]), np.sort(val)


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images [N, 3, H, W] on a 0–1 scale, exact for any N."""
    histograms = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(images), 1024):
        for channel in range(3):
            pixels = images[start : start + 1024, channel]
            histograms[channel] += np.bincount(pixels.ravel(), minlength=256)
    values = np.arange(256) / 255
    count = histograms.sum(axis=1)
    mean = histograms @ values / count
    std = np.sqrt(np.maximum(histograms @ values**2 / count - mean**2, 1e-12))
    return tuple(mean.round(6).tolist()), tuple(std.round(6).tolist())


@DATASETS.register("cifar10")
def cifar10(split: str, data_dir: Path, image_size: int) -> ImageDataset:
    """CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 images of 10 classes, through torchvision, downloaded on demand."""
    from torchvision.datasets import CIFAR10

    # Channel statistics of the 50,000 training images; the 0.2023 0.1994 0.2010 of many scripts is a mean of stds.
    statistics = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return _torchvision_cifar(CIFAR10, "CIFAR-10", statistics, split, data_dir, image_size)


@DATASETS.register("cifar100")
def cifar100(split: str, data_dir: Path, image_size: int) -> ImageDataset:
    """CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 images of 100 classes, through torchvision, on demand."""
    from torchvision.datasets import CIFAR100

    statistics = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # of the 50,000 training images
    return _torchvision_cifar(CIFAR100, "CIFAR-100", statistics, split, data_dir, image_size)


Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def _torchvision_cifar(
    kind: Any, title: str, statistics: Statistics, split: str, data_dir: Path, image_size: int
) -> ImageDataset:
    """A torchvision CIFAR class as arrays; its constructor checks the MD5 of every file before it is unpickled."""
    if image_size != 32:
        raise ValueError(f"image_size (={image_size}) must be 32 for {title}, whose images have that size")

    def fill(folder: Path) -> dict[str, Any]:
        try:
            source = kind(str(data_dir), train=split == "train", download=False)
        except RuntimeError:  # torchvision's word for missing or damaged files
            fetch_archive(data_dir, kind.filename, kind.tgz_md5)
            source = kind(str(data_dir), train=split == "train", download=False)
        images = np.ascontiguousarray(source.data.transpose(0, 3, 1, 2))
        np.save(folder / "images.npy", images, allow_pickle=False)
        np.save(folder / "labels.npy", np.array(source.targets, dtype=np.int64), allow_pickle=False)
        return {"classes": list(source.classes)}

    cached = open_or_build(data_dir, f"{title.lower()}-{split}", kind.tgz_md5, fill)
    classes = tuple(cached.facts["classes"])
    return ImageDataset(cached.images, cached.labels, classes, *statistics, title, cached.fingerprint)


@DATASETS.register("digits")
def digits(split: str, data_dir: Path, image_size: int) -> ImageDataset:
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels, enlarged; one in five is a test image. No download."""
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    gray, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(gray.reshape(-1, 1, 8, 8) * (255 / 16)).float()
    large = torch.nn.functional.interpolate(small, size=image_size, mode="bilinear")
    images = large.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).numpy()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=SPLIT_SEED)
    mean, std = channel_statistics(images[train])
    chosen = np.sort(train if split == "train" else test)
    classes = tuple(str(digit) for digit in range(10))
    images, labels = images[chosen], labels[chosen].astype(np.int64)
    fingerprint = f"{zlib.crc32(images.tobytes()):08x}-{zlib.crc32(labels.tobytes()):08x}"
    return ImageDataset(images, labels, classes, mean, std, "digits, not CIFAR-10", fingerprint)


@DATASETS.register("folder")
def folder(split: str, data_dir: Path, image_size: int) -> ImageDataset | None:
    """Your own images: train/<class>/* and test/<class>/*, any size, PNG, JPEG, WebP or BMP."""
    from resnet_train.data.image_folder import fill_from_files, find_images

    files, classes = find_images(data_dir, split)
    if not files:
        return None
    listing = "\n".join(f"{path.relative_to(data_dir)} {size} {time}" for path, _, size, time in files)
    fingerprint = hashlib.blake2b(f"{classes}\n{listing}".encode("utf-8", "surrogateescape")).hexdigest()

    def fill(target: Path) -> dict[str, Any]:
        skipped = fill_from_files(target, files, image_size)
        mean, std = channel_statistics(np.load(target / "images.npy", mmap_mode="r", allow_pickle=False))
        return {"mean": mean, "std": std, "skipped": skipped}

    cached = open_or_build(data_dir, f"folder-{split}-{image_size}", fingerprint, fill)
    _report_skipped(cached.facts["skipped"], split)
    mean, std = tuple(cached.facts["mean"]), tuple(cached.facts["std"])
    title = f"folder {data_dir.resolve().name}"
    return ImageDataset(cached.images, cached.labels, classes, mean, std, title, cached.fingerprint)


def _report_skipped(skipped: list[str], split: str) -> None:
    if skipped:
        more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        log.warning("skipped %d unreadable image(s) in %s/: %s%s", len(skipped), split, "; ".join(skipped[:5]), more)
