"""scikit-learn's handwritten digits, which are embedded in the package and need no download."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from resnet_train.data.dataset import DATASETS, FACTS, SPLIT_SEED, DatasetFacts, ImageDataset, channel_statistics

DIGITS = FACTS["digits"] = DatasetFacts("digits, not CIFAR-10", num_train=1_437, num_test=360, num_classes=10)


@DATASETS.register("digits")
def digits(split: str, data_dir: Path, image_size: int) -> ImageDataset | None:
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels, enlarged; one in five is a test image. No download."""
    if split == "val":
        return None
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    # Enlarge the gray 8×8 scans with values 0 … 16 and repeat them over three channels.
    gray, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(gray.reshape(-1, 1, 8, 8) * (255 / 16)).float()
    large = torch.nn.functional.interpolate(small, size=image_size, mode="bilinear")
    images = large.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).numpy()

    # The split is stratified and the same for every run.
    train, test = train_test_split(
        np.arange(len(labels)), test_size=DIGITS.num_test, stratify=labels, random_state=SPLIT_SEED
    )
    mean, std = channel_statistics(images[train])
    chosen = np.sort(train if split == "train" else test)
    images, labels = images[chosen], labels[chosen].astype(np.int64)
    classes = tuple(str(digit) for digit in range(DIGITS.num_classes))
    fingerprint = f"{zlib.crc32(images.tobytes()):08x}-{zlib.crc32(labels.tobytes()):08x}"
    return ImageDataset(
        images=images,
        labels=labels,
        classes=classes,
        mean=mean,
        std=std,
        title=DIGITS.title,
        fingerprint=fingerprint,
    )
