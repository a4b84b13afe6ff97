"""A trained network for notebooks and scripts: what it computes, and what its checkpoint says about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from resnet_train.data.picture_files import read_picture
from resnet_train.data.pictures import to_pixels
from resnet_train.jobs.subject import Subject, load_subject
from resnet_train.runs.folder import find_best, find_checkpoint
from resnet_train.runs.foreign import Given
from resnet_train.runtime.device import select_device
from resnet_train.weights import SHIPPED

Picture = Image.Image | np.ndarray | Tensor | str | Path


class TrainedModel(nn.Module):
    """A trained network in evaluation mode: normalized images float [B, 3, S, S] → logits float [B, C].

    Attributes:
        network: the network itself, an instance of its architecture's class.
        path: the checkpoint.
        classes: the class names, in the order of the logits.
        about: what the checkpoint says about the network and its data.
        config: all settings of training.
        calibration: the calibration of the logits on validation images; None without them.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self._subject = subject
        self.network = subject.network
        self.path, self.classes = subject.paths[0], subject.classes
        self.about, self.config = subject.checkpoints[0].about, subject.config
        self.calibration = subject.calibration
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def transform(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """Return pictures as normalized images float [B, 3, S, S] on the device of the network.

        They are prepared as by `resnet-predict`: upright, on white, the short side resized, the center cropped.

        Args:
            pictures: one or several: PIL images, paths, uint8 arrays or tensors (see `as_pixels`); or uint8
                [B, 3, H, W].

        Raises:
            ValueError: a picture can't be read, or its pixels have another type or shape.
        """
        pixels = np.stack([as_pixels(picture, self.about.image_size) for picture in as_list(pictures)])
        subject = self.subject
        return subject.normalize(torch.from_numpy(pixels).to(subject.device))

    @property
    def subject(self) -> Subject:
        """Return the network as it is now, on the device that it was moved to."""
        return replace(self._subject, network=self.network, device=next(self.network.parameters()).device)


def load_model(
    path: Path | str = SHIPPED,
    *,
    best: bool = False,
    device: str = "cpu",
    arch: str | None = None,
    normalize: str | None = None,
) -> TrainedModel:
    """Load the network of a checkpoint.

    Args:
        path: a checkpoint of this package or from other code, or the folder of a run, which means its final model; by
            default the network that comes with the package.
        best: use the model that the run chose on its validation split.
        device: where to load it: cpu, cuda, cuda:1, mps, or auto.
        arch, normalize: for a checkpoint from other code; see `resnet_train.runs.foreign.Given`.

    Raises:
        ValueError: no usable checkpoint, or no such device.
    """
    found = find_best(Path(path)) if best else find_checkpoint(Path(path))
    return TrainedModel(load_subject([found], None, select_device(device), Given(arch=arch, normalize=normalize)))


def as_list(pictures: Picture | Sequence[Picture]) -> list[Picture]:
    """Return one or several pictures as a list; a batch [B, …] of pixels counts as several."""
    if isinstance(pictures, np.ndarray | Tensor):
        return list(pictures) if pictures.ndim == 4 else [pictures]
    if isinstance(pictures, Image.Image | str | Path) or not isinstance(pictures, Iterable):
        return [pictures]
    return list(pictures)


def as_pixels(picture: Picture, image_size: int) -> np.ndarray:
    """Return a picture as uint8 [3, S, S].

    Args:
        picture: a path, a PIL image, or uint8 pixels [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels.
        image_size: S.

    Raises:
        ValueError: it can't be read, or its pixels have another type or shape.
    """
    if isinstance(picture, str | Path):
        pixels = read_picture(Path(picture), image_size)
        if isinstance(pixels, str):
            raise ValueError(f"cannot read {picture}: {pixels}")
        return pixels
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu().numpy()
    if not isinstance(picture, Image.Image | np.ndarray):
        raise ValueError(f"a picture must be a path, a PIL image, an array or a tensor, not {type(picture).__name__}")
    return to_pixels(picture, image_size)
