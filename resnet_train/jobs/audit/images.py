"""The images of all splits of a data set, numbered consecutively."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from resnet_train.config import TrainConfig
from resnet_train.data.dataset import ImageDataset, load_dataset
from resnet_train.jobs.audit.result import ImageReference

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class AuditImages:
    """The images of each split: those of the first come first."""

    splits: dict[str, ImageDataset]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def starts(self) -> dict[str, int]:
        """Return the number of the first image of each split."""
        ends = np.cumsum([0, *map(len, self.splits.values())]).tolist()
        return dict(zip(self.splits, ends))

    @cached_property
    def labels(self) -> np.ndarray:
        """Return int64 [N]."""
        return np.concatenate([images.labels for images in self.splits.values()])

    @cached_property
    def split_numbers(self) -> np.ndarray:
        """Return the position of each image's split, int64 [N]."""
        return np.repeat(np.arange(len(self.splits)), [len(images) for images in self.splits.values()])

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names."""
        return next(iter(self.splits.values())).classes

    def locate(self, number: int) -> tuple[str, int]:
        """Return the split of an image and its index there."""
        split = list(self.splits)[int(self.split_numbers[number])]
        return split, number - self.starts[split]

    def refer(self, number: int) -> ImageReference:
        """Return the split, the name and the label of an image."""
        split, index = self.locate(number)
        images = self.splits[split]
        return ImageReference(split=split, image=images.name_of(index), label=images.classes[images.labels[index]])

    def pixels(self, number: int) -> np.ndarray:
        """Return an image, uint8 [3, H, W]."""
        split, index = self.locate(number)
        return self.splits[split].images[index]


def load_audit_images(dataset: str, data_dir: Path, image_size: int) -> AuditImages:
    """Load every split that exists, however many files can't be read.

    Raises:
        ValueError: there are no images, or they are arranged differently.
        ConnectionError: a download failed.
    """
    settings = {**dict(TrainConfig()), "max_unreadable": 1.0}
    found = {split: load_dataset(dataset, split, data_dir, image_size, settings) for split in SPLITS}
    return AuditImages({split: images for split, images in found.items() if images is not None})
