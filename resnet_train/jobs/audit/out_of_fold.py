"""Predict training images with networks not trained on them, from short runs that each leave out a part."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from resnet_train.build import RunData, build_trainer, check_config
from resnet_train.config import TrainConfig, make_config, option_metadata, to_plain, with_length
from resnet_train.data.augment import Normalize
from resnet_train.data.dataset import ImageDataset
from resnet_train.data.loader import eval_loader
from resnet_train.evaluation.averaging import TTA_VIEWS, Average
from resnet_train.evaluation.evaluate import compute_logits, evaluate
from resnet_train.loggers.base import Logger
from resnet_train.loggers.time_left import FIXED_SHARE
from resnet_train.runtime.files import explain_write_errors, open_regular, replacing
from resnet_train.training.trainer import Trainer

log = logging.getLogger(__name__)

FORMAT = 1  # version of the fold files
FOLDS_FOLDER = "folds"
MIN_STEPS = 400  # per training run, so that a network learns something even from few images
MIN_BATCHES = 8  # per epoch: few images come in small batches
VIEWS = "flip"
CONTINUE = "finished folds are kept; continue with the same command"

Predictions = dict[str, np.ndarray]  # probabilities float32 [N, C] by split


@dataclass(frozen=True)
class OutOfFold:
    """What networks predict for images that they were not trained on.

    Attributes:
        probabilities: float32 [N, C] for each split; for splits other than "train" they are means over all networks.
        known: bool [N] for each split; False if no network has seen any image of that class.
        num_folds, epochs: the training runs.
    """

    probabilities: Predictions
    known: dict[str, np.ndarray]
    num_folds: int
    epochs: int


def plan_training(config: TrainConfig, num_images: int) -> TrainConfig:
    """Return the settings for training on `num_images` images: smaller batches and more epochs if they are few."""
    values = {**to_plain(config), "tensorboard": False, "save_every_minutes": 0, "val_size": 0, "train_size": None}
    batch_size = max(2, min(config.batch_size, num_images // MIN_BATCHES))
    values["batch_size"] = max(config.accumulate, batch_size // config.accumulate * config.accumulate)
    planned = make_config(values)
    steps = max(1, num_images // planned.batch_size)
    epochs = max(config.epochs, math.ceil(MIN_STEPS / steps))
    return with_length(planned, epochs, steps)


def predict_out_of_fold(
    splits: dict[str, ImageDataset], folds: np.ndarray, config: TrainConfig, folder: Path, device: torch.device
) -> OutOfFold:
    """Train a network for each fold on the images of the others, and predict the fold and the other splits with it.

    Args:
        splits: "train", and "val" or "test" if there are such images.
        folds: int64 [N], the fold of each training image.
        config: settings of the training runs; few images get smaller batches and more epochs.
        folder: folder of finished folds, which are read, not trained again.
        device: the device to train on.

    Raises:
        Interrupted: by a signal; finished folds are kept.
        NotFinite: a training run diverged.
    """
    # Train the folds that are not done.
    num_folds = int(folds.max()) + 1
    config = plan_training(config, int(min(np.count_nonzero(folds != fold) for fold in range(num_folds))))
    check_config(config)
    paths = [folder / f"fold-{fold + 1}-of-{num_folds}.npz" for fold in range(num_folds)]
    keys = [_make_key(splits, folds == fold, config) for fold in range(num_folds)]
    parts: list[Predictions] = []
    found = [_read_fold(path, key) for path, key in zip(paths, keys)]
    num_left = found.count(None)
    if 0 < num_left < num_folds:
        log.info("%d of %d training runs are already done", num_folds - num_left, num_folds)
    with _open_bar(num_left) as bar:
        for fold, part in enumerate(found):
            if part is None:
                bar.set_description(f"training {fold + 1}/{num_folds}")
                part = _predict_fold(splits, folds == fold, config, device, bar)
                _write_fold(paths[fold], keys[fold], part)
            parts.append(part)
    return _join(parts, splits, folds, config.epochs)


def _join(parts: list[Predictions], splits: dict[str, ImageDataset], folds: np.ndarray, epochs: int) -> OutOfFold:
    """Put the predictions of all folds together."""
    labels, num_classes = splits["train"].labels, len(splits["train"].classes)
    others = [split for split in splits if split != "train"]
    probabilities = {split: np.mean([part[split] for part in parts], axis=0) for split in others}
    probabilities["train"] = np.empty((len(labels), num_classes), np.float32)
    has_images = np.bincount(labels, minlength=num_classes) > 0
    known = {split: has_images[images.labels] for split, images in splits.items()}
    for fold, part in enumerate(parts):
        held = folds == fold
        probabilities["train"][held] = part["train"]
        is_seen = np.bincount(labels[~held], minlength=num_classes) > 0
        known["train"][held] = is_seen[labels[held]]
    return OutOfFold(probabilities, known, len(parts), epochs)


def _predict_fold(
    splits: dict[str, ImageDataset], held: np.ndarray, config: TrainConfig, device: torch.device, bar: tqdm
) -> Predictions:
    """Train on all images but those held out, and return probabilities for the held-out images and the other splits."""
    # Nothing is evaluated or saved in between.
    train = splits["train"]
    data = RunData(train=train, test=None, train_indices=np.flatnonzero(~held), val_indices=np.empty(0, np.int64))
    trainer = build_trainer(config, data, device)
    trainer.attach([_FoldBar(bar, trainer, config.image_size)], None, CONTINUE)
    trainer.fit()

    # Average the probabilities of each image and its reflection.
    network = Average([trainer.eval_model], TTA_VIEWS[VIEWS]).eval()
    forward = partial(compute_logits, network, trainer.precision)
    normalize = Normalize(train.mean, train.std, config.channels_last)
    predictions = {}
    for split, images in splits.items():
        indices = np.flatnonzero(held) if split == "train" else np.arange(len(images))
        loader = eval_loader(images.images, images.labels, normalize, device, indices)
        found = evaluate(network, loader.epoch(0), len(train.classes), device, forward=forward)
        predictions[split] = found.logits.softmax(dim=1).numpy()
    return predictions


def _open_bar(num_folds: int) -> tqdm:
    layout = "{desc} {bar} {percentage:3.0f} %  {remaining} left"
    return tqdm(total=num_folds, bar_format=layout, disable=None if num_folds else True, leave=False)


class _FoldBar(Logger):
    """Advance a bar by a fold; each step counts what it costs, which depends on the size of its images."""

    def __init__(self, bar: tqdm, trainer: Trainer, full_size: int) -> None:
        loader = trainer.train_loader
        sizes = [loader.size_at(step) if loader.size_at else full_size for step in range(trainer.epochs * len(loader))]
        costs = FIXED_SHARE + (1 - FIXED_SHARE) * (np.array(sizes) / full_size) ** 2
        self.shares, self.bar = costs / costs.sum(), bar

    def tick(self, step: int) -> None:
        """Advance the bar by the step."""
        self.bar.update(self.shares[step - 1])


# --- Finished folds --------------------------------------------------------------------------------------------------


def _make_key(splits: dict[str, ImageDataset], held: np.ndarray, config: TrainConfig) -> str:
    """Return a digest of everything that the predictions of a fold depend on."""
    settings = {name: value for name, value in to_plain(config).items() if option_metadata(name)["on_resume"] != "free"}
    parts: list[Any] = [FORMAT, settings, {split: images.fingerprint for split, images in splits.items()}]
    digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode())
    digest.update(np.packbits(held).tobytes())
    return digest.hexdigest()


def _read_fold(path: Path, key: str) -> Predictions | None:
    """Return the predictions of a finished fold; None if there is none or it has other images or settings."""
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), open_regular(path, "rb") as file:
        found = np.load(file, allow_pickle=False)
        if str(found["key"]) == key:
            return {name: found[name] for name in found.files if name != "key"}
    return None


def _write_fold(path: Path, key: str, predictions: Predictions) -> None:
    """Write the predictions of a fold; the file appears under its name only when it is complete."""
    arrays: dict[str, Any] = {"key": np.array(key), **predictions}
    with explain_write_errors(path, sum(part.nbytes for part in predictions.values())):
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary, open_regular(temporary, "wb") as file:
            np.savez(file, **arrays)
