"""What is evaluated: the network of a checkpoint, or the average of several, on any images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from resnet_train.config import TrainConfig
from resnet_train.data.augment import Normalize
from resnet_train.data.batch import Batch
from resnet_train.data.dataset import ImageDataset
from resnet_train.data.layout import to_text
from resnet_train.data.loader import eval_loader, to_device
from resnet_train.evaluation.averaging import TTA_VIEWS, Average, Rescale, keep
from resnet_train.evaluation.evaluate import Evaluation, compute_logits, evaluate
from resnet_train.records import Calibration
from resnet_train.registry import nearest
from resnet_train.runs.checkpoint import AnyCheckpoint
from resnet_train.runs.foreign import NOTHING, Given, read_network
from resnet_train.runs.needed_plugins import read_settings
from resnet_train.runs.restore import restore_model
from resnet_train.runtime.device import memory_format
from resnet_train.runtime.precision import choose_precision

Change = Callable[
    [np.ndarray, np.ndarray], np.ndarray
]  # from images uint8 [B, 3, H, W] and their indices to such images


@dataclass(frozen=True)
class Subject:
    """A network, and how to prepare images for it.

    Attributes:
        paths, checkpoints: what it was loaded from.
        network: maps normalized images to logits, on the device and in evaluation mode.
        normalize: maps uint8 pixels to normalized images.
        device: where it runs.
        precision: the number format of training, which it computes in; None is float32.
        calibration: the calibration of its outputs on validation images; None if there is none.
    """

    paths: tuple[Path, ...]
    checkpoints: tuple[AnyCheckpoint, ...]
    network: nn.Module
    normalize: Normalize
    device: torch.device
    precision: torch.dtype | None
    calibration: Calibration | None

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names."""
        return tuple(self.checkpoints[0].about.classes)

    @property
    def image_size(self) -> int:
        """Return the side length of the images in pixels."""
        return self.checkpoints[0].about.image_size

    @property
    def config(self) -> TrainConfig:
        """Return the training settings of the first checkpoint."""
        return read_settings(self.checkpoints[0], self.paths[0])

    @property
    def is_average(self) -> bool:
        """Return whether its outputs are averages of probabilities."""
        return isinstance(self.network, Average)

    @property
    def first_network(self) -> nn.Module:
        """Return the network of the first checkpoint alone."""
        return self.network.networks[0] if isinstance(self.network, Average) else self.network

    @property
    def views_per_image(self) -> int:
        """Return how many times each network sees an image."""
        return len(self.network.views) if isinstance(self.network, Average) else 1

    @property
    def chosen_on(self) -> set[str]:
        """Return the splits that an epoch was selected on."""
        return {checkpoint.chosen_on for checkpoint in self.checkpoints if checkpoint.chosen_on}

    def evaluate(self, images: ImageDataset, indices: np.ndarray | None, batch_size: int) -> Evaluation:
        """Evaluate on these images of a data set that has the same classes; None means all of them."""
        loader = eval_loader(images.images, images.labels, self.normalize, self.device, indices, batch_size)
        return self._evaluate(loader.epoch(0))

    def evaluate_changed(
        self, images: ImageDataset, indices: np.ndarray, batch_size: int, change: Change
    ) -> Evaluation:
        """Evaluate on these images after a change of their pixels."""

        def batches() -> Iterator[Batch]:
            for start in range(0, len(indices), batch_size):
                chunk = indices[start : start + batch_size]
                pixels = to_device(np.ascontiguousarray(change(images.images[chunk], chunk)), self.device)
                yield Batch(self.normalize(pixels), to_device(images.labels[chunk], self.device))

        return self._evaluate(batches())

    def compute_logits(self, images: Tensor) -> Tensor:
        """Return the logits [B, C] of normalized images, as an evaluation computes them."""
        return compute_logits(self.network, self.precision, Batch(images, torch.empty(0)))

    def _evaluate(self, batches: Iterable[Batch]) -> Evaluation:
        forward = partial(compute_logits, self.network, self.precision)
        return evaluate(self.network, batches, len(self.classes), self.device, forward=forward)


def load_subject(paths: Sequence[Path], tta: str | None, device: torch.device, given: Given = NOTHING) -> Subject:
    """Load one checkpoint, or several; probabilities are averaged over checkpoints and over the views of `tta`.

    Args:
        paths: checkpoints of this package or from other code.
        tta: a key of `TTA_VIEWS`.
        device: where to run.
        given: what is said about the checkpoints from other code.

    Raises:
        ValueError: a checkpoint is not usable, they don't fit together, or there is no such `tta`.
    """
    if tta is not None and tta not in TTA_VIEWS:
        raise ValueError(f"unknown tta {tta!r}; use {' or '.join(TTA_VIEWS)}{nearest(tta, TTA_VIEWS)}")
    checkpoints = [read_network(path, given) for path in paths]
    networks = [restore_model(checkpoint, path) for checkpoint, path in zip(checkpoints, paths)]
    first = checkpoints[0].about
    for number, (checkpoint, path) in enumerate(zip(checkpoints, paths)):
        about = checkpoint.about
        for name in ("classes", "image_size"):
            if (value := getattr(about, name)) != getattr(first, name):
                raise ValueError(
                    f"{path} has {name} {value}, but {paths[0]} has {getattr(first, name)}: "
                    f"their probabilities can't be averaged"
                )
        if (about.mean, about.std) != (first.mean, first.std):
            rescale = Rescale((first.mean, first.std), (about.mean, about.std))
            networks[number] = nn.Sequential(rescale, networks[number])

    # The calibration of one network does not apply to averages.
    is_average = len(networks) > 1 or tta is not None
    network = Average(networks, TTA_VIEWS[tta] if tta else (keep,)) if is_average else networks[0]
    config = read_settings(checkpoints[0], paths[0])
    return Subject(
        paths=tuple(paths),
        checkpoints=tuple(checkpoints),
        network=network.to(device).to(memory_format=memory_format(config.channels_last)).eval(),
        normalize=Normalize(tuple(first.mean), tuple(first.std), config.channels_last),
        device=device,
        precision=choose_precision(config.amp, device),
        calibration=None if is_average else checkpoints[0].calibration,
    )


def with_classes(images: ImageDataset, classes: tuple[str, ...]) -> ImageDataset:
    """Return the same images with labels that index the checkpoint's classes.

    Raises:
        ValueError: the images have another class.
    """
    known = [to_text(name) for name in classes]  # older versions stored names as the file system spells them
    unknown = sorted(set(images.classes) - set(known))
    if unknown:
        raise ValueError(
            f"the data has a class {unknown[0]!r} that the checkpoint does not know ({', '.join(classes)})"
        )
    new_labels = np.array([known.index(name) for name in images.classes], dtype=np.int64)
    return replace(images, labels=new_labels[images.labels], classes=tuple(known))
