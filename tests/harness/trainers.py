"""Small trainers for the tests of the training loop, built as `resnet-train` builds them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from pydantic import BaseModel
from torch import nn

from resnet_train import build
from resnet_train.config import make_config
from resnet_train.data.dataset import ImageDataset, split_indices
from resnet_train.loggers.base import Logger
from resnet_train.models import measure_complexity
from resnet_train.runtime.distributed import ALONE, Processes
from resnet_train.training.trainer import Saver, Trainer

CPU = torch.device("cpu")
NUM_CLASSES = 3
TINY = {
    "arch": "resnet8",
    "image_size": 8,
    "crop_padding": 1,
    "epochs": 2,
    "batch_size": 8,
    "lr": 0.05,
    "nesterov": True,
    "amp": "off",
    "save_every": 1,
}
cached_complexity = cache(measure_complexity)  # the deepest networks take seconds


def tiny_images(num_images: int = 48, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return random uint8 images [N, 3, size, size] whose brightness tells their class, and the labels [N]."""
    rng = np.random.default_rng(7)
    labels = np.arange(num_images) % NUM_CLASSES
    images = rng.integers(0, 80, size=(num_images, 3, size, size)) + 80 * labels[:, None, None, None]
    return images.astype(np.uint8), labels.astype(np.int64)


def tiny_data(
    num_images: int = 48, size: int = 8, *, val_size: int = 0, train_size: int | None = None
) -> build.RunData:
    """Return tiny images as the data of a run; the test images are the training images."""
    images, labels = tiny_images(num_images, size)
    dataset = ImageDataset(
        images=images,
        labels=labels,
        classes=tuple("abc"),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        title="tiny",
        fingerprint="tiny",
    )
    train_indices, val_indices = split_indices(labels, val_size, train_size)
    return build.RunData(train=dataset, test=dataset, train_indices=train_indices, val_indices=val_indices)


def unequal_data(num_images: int = 48) -> build.RunData:
    """Return tiny images of which the second class trains on half and the third on a quarter as many as the first."""
    data = tiny_data(num_images)
    kept = [i for i in range(num_images) if i // NUM_CLASSES % (1 << data.train.labels[i]) == 0]
    return replace(data, train_indices=np.array(kept))


def tiny_trainer(
    *,
    model: nn.Module | None = None,
    data: build.RunData | None = None,
    processes: Processes = ALONE,
    logger: Logger | None = None,
    saver: Saver | None = None,
    **settings: Any,
) -> Trainer:
    """Build a trainer of a resnet8 on tiny images, 6 steps an epoch, the way `resnet-train` builds it.

    Args:
        model: trained instead of the network that the settings name.
        data: the images; those of `tiny_data` if None.
        settings: as in the config; `TINY` has the defaults.
    """
    config = make_config({**TINY, **settings})
    if data is None:
        data = tiny_data(size=config.image_size, val_size=config.val_size, train_size=config.train_size)
    create_model = build.create_model if model is None else lambda *_, **__: model
    with patch.object(build, "create_model", create_model):
        trainer = build.build_trainer(config, data, CPU, processes)
    trainer.attach([logger] if logger else [], saver, "")
    return trainer


def assert_same_tensors(left: object, right: object, where: str = "") -> None:
    """Nested states are equal, tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same_tensors(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, BaseModel):
        assert_same_tensors(dict(left), dict(right), where)
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for number, (a, b) in enumerate(zip(left, right)):
            assert_same_tensors(a, b, f"{where}[{number}]")
    else:
        assert left == right, f"{where}: {left} is not {right}"
