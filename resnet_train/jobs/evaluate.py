"""Judging a finished model: from a checkpoint to its numbers. The counterpart of `run.py`."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from resnet_train.config import TrainConfig, make_config
from resnet_train.data.augment import Normalize
from resnet_train.data.dataset import ImageDataset, load_dataset, split_indices
from resnet_train.data.loader import EVAL_BATCH_SIZE, eval_loader
from resnet_train.evaluation.evaluate import evaluate
from resnet_train.evaluation.metrics import summarize
from resnet_train.runs.checkpoint import check_parts, last_epoch, read_checkpoint, restore_model
from resnet_train.runs.folder import find_checkpoint
from resnet_train.runtime.device import device_name, memory_format, prepare_machine


def evaluate_checkpoint(
    path: Path | str,
    *,
    dataset: str | None = None,
    data_dir: Path | str | None = None,
    split: str | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    device: str = "auto",
    threads: int = 0,
) -> dict[str, Any]:
    """Judges the model of a checkpoint; what is not given is taken from the checkpoint.

    Returns:
        `top1, top5, loss, n, ci95, per_class` as `summarize` makes them, and `images_per_second, checkpoint, arch,
        epoch, steps_after_epoch, chosen_on, split, title, device`.

    Raises:
        ValueError: no usable checkpoint, unknown data set or split, or data with other classes.
    """
    path = find_checkpoint(Path(path))
    checkpoint = read_checkpoint(path)
    check_parts(checkpoint, path)
    model = restore_model(checkpoint, path)
    about, config = checkpoint["about"], make_config(checkpoint["config"], str(path))
    torch_device = prepare_machine(device, threads)
    data_dir = data_dir or (config.data_dir if dataset in (None, config.dataset) else TrainConfig().data_dir)
    split, images, indices = _load_split(dataset or config.dataset, split, Path(data_dir), config)
    if split != "test" and images.fingerprint != about["fingerprint"]:
        raise ValueError(f"split {split}: {data_dir} does not hold the images this model was trained on")
    images = _with_classes(images, tuple(about["classes"]))
    normalize = Normalize(tuple(about["mean"]), tuple(about["std"]), config.channels_last)
    loader = eval_loader(images.images, images.labels, normalize, torch_device, indices, batch_size)
    model = model.to(torch_device).to(memory_format=memory_format(config.channels_last))
    start = time.perf_counter()
    evaluation = evaluate(model, loader.epoch(0), len(images.classes), torch_device)
    seconds = time.perf_counter() - start
    record, steps_after = last_epoch(checkpoint)
    return {
        **summarize(evaluation, images.classes),
        "images_per_second": evaluation.n / seconds,
        "checkpoint": str(path),
        "arch": about["arch"],
        "epoch": record.get("epoch", 0),
        "steps_after_epoch": steps_after,
        "chosen_on": checkpoint.get("chosen_on"),
        "split": split,
        "title": images.title,
        "device": device_name(torch_device),
    }


def load_model(path: Path | str) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a checkpoint or of a run's folder, for notebooks and scripts.

    Returns:
        The model in evaluation mode on the CPU, from normalized images float [B, 3, H, W] to logits float [B, C]; and
        what the file says of it: `arch, classes, image_size, mean, std` and so on (mean and std on a 0–1 scale).

    Raises:
        ValueError: no usable checkpoint.
    """
    path = find_checkpoint(Path(path))
    checkpoint = read_checkpoint(path)
    check_parts(checkpoint, path)
    return restore_model(checkpoint, path), checkpoint["about"]


def _load_split(
    dataset: str, split: str | None, data_dir: Path, config: TrainConfig
) -> tuple[str, ImageDataset, np.ndarray | None]:
    """The images to judge on: the split's name, the data set it is part of, and its image numbers (None: all)."""
    if split not in (None, "test", "val", "train"):
        raise ValueError(f"unknown split {split!r}; use test, val or train")
    if split in (None, "test"):
        images = load_dataset(dataset, "test", data_dir, config.image_size)
        if images is not None:
            return "test", images, None
        if split == "test" or not config.val_size:
            raise ValueError(f"{data_dir} has no test/ folder")
    images = load_dataset(dataset, "train", data_dir, config.image_size)
    assert images is not None
    train_indices, val_indices = split_indices(images.labels, config.val_size, config.train_size)
    if split == "train":
        return "train", images, train_indices
    if not config.val_size:
        raise ValueError("split val: this model was trained without --val-size")
    return "val", images, val_indices


def _with_classes(images: ImageDataset, classes: tuple[str, ...]) -> ImageDataset:
    """The same images with their labels counted in the checkpoint's order of classes."""
    unknown = sorted(set(images.classes) - set(classes))
    if unknown:
        raise ValueError(
            f"the data has a class {unknown[0]!r} that the checkpoint does not know ({', '.join(classes)})"
        )
    numbers = np.array([classes.index(name) for name in images.classes], dtype=np.int64)
    return replace(images, labels=numbers[images.labels], classes=classes)
