"""Other test images for networks trained on CIFAR-10, from files that the user has: CIFAR-10.1 and CIFAR-10-C.

Recht et al. 2018, "Do CIFAR-10 Classifiers Generalize to CIFAR-10?" (github.com/modestyachts/CIFAR-10.1).
Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness" (zenodo.org/records/2535967).
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from resnet_train.data.dataset import DATASETS, ImageDataset
from resnet_train.data.sources.cifar import CIFAR10, IMAGE_SIZE

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_1_VERSIONS = ("v6", "v4")  # the newer one first
NUM_SEVERITIES = 5


@DATASETS.register("cifar10.1")
def cifar10_1(split: str, data_dir: Path, image_size: int) -> ImageDataset | None:
    """CIFAR-10.1 (Recht et al. 2018): 2,000 newer test images for CIFAR-10 networks, from your own .npy files."""
    if split == "val":
        return None
    if split != "test":
        raise ValueError("cifar10.1 has only test images; train on cifar10")
    _check_size(image_size, "CIFAR-10.1")
    versions = [version for version in CIFAR10_1_VERSIONS if (data_dir / f"cifar10.1_{version}_data.npy").is_file()]
    if not versions:
        raise ValueError(f"{data_dir} has no file cifar10.1_v6_data.npy; say where it is with --data-dir")
    images = _open_images(data_dir / f"cifar10.1_{versions[0]}_data.npy")
    labels = _open_labels(data_dir / f"cifar10.1_{versions[0]}_labels.npy", len(images))
    return _dataset(images, labels, f"CIFAR-10.1 {versions[0]}")


def find_cifar10_c(folder: Path) -> list[str]:
    """Return the names of the corruptions whose files are in a folder of CIFAR-10-C.

    Raises:
        ValueError: there are none.
    """
    names = sorted(path.stem for path in folder.glob("*.npy") if path.stem != "labels")
    if not names or not (folder / "labels.npy").is_file():
        raise ValueError(f"{folder} does not hold CIFAR-10-C: labels.npy and a file such as gaussian_noise.npy")
    return names


def open_cifar10_c(folder: Path, name: str, image_size: int) -> list[ImageDataset]:
    """Return the images of one corruption of CIFAR-10-C, one data set for each severity, mildest first.

    Raises:
        ValueError: the files are not those of CIFAR-10-C.
    """
    _check_size(image_size, "CIFAR-10-C")
    images = _open_images(folder / f"{name}.npy")
    labels = _open_labels(folder / "labels.npy", len(images))
    if len(images) % NUM_SEVERITIES:
        raise ValueError(f"{folder / name}.npy holds {len(images)} images, which is not a multiple of 5 severities")
    parts = zip(np.split(images, NUM_SEVERITIES), np.split(labels, NUM_SEVERITIES))
    return [_dataset(part, part_labels, f"CIFAR-10-C {name}") for part, part_labels in parts]


def _check_size(image_size: int, title: str) -> None:
    if image_size != IMAGE_SIZE:
        raise ValueError(f"image_size (={image_size}) must be {IMAGE_SIZE} for {title}")


def _open_images(path: Path) -> np.ndarray:
    """Return uint8 [N, 3, 32, 32], memory-mapped."""
    images = _open_array(path)
    if images.dtype != np.uint8 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3) or not len(images):
        raise ValueError(f"{path} holds {images.dtype} {images.shape} instead of uint8 [N, 32, 32, 3]")
    return images.transpose(0, 3, 1, 2)


def _open_labels(path: Path, num_images: int) -> np.ndarray:
    """Return int64 [N], each in 0 … 9."""
    labels = _open_array(path)
    if labels.dtype.kind not in "iu" or labels.shape != (num_images,):
        raise ValueError(f"{path} holds {labels.dtype} {labels.shape} for {num_images} images")
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise ValueError(f"{path} holds labels from {labels.min()} to {labels.max()} instead of 0 to 9")
    return labels.astype(np.int64)


def _open_array(path: Path) -> np.ndarray:
    """Return the array in a .npy file; such a file can hold a pickle or claim any size, which is refused."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, OverflowError, SyntaxError, RecursionError) as error:
        raise ValueError(f"{path} is not a file of numbers: {' '.join(str(error).split())[:200]}") from None


def _dataset(images: np.ndarray, labels: np.ndarray, title: str) -> ImageDataset:
    fingerprint = f"{zlib.crc32(images.tobytes()):08x}-{zlib.crc32(labels.tobytes()):08x}"
    return ImageDataset(
        images=images,
        labels=labels,
        classes=CLASSES,
        mean=CIFAR10.mean,
        std=CIFAR10.std,
        title=title,
        fingerprint=fingerprint,
    )
