"""Classify pictures: any files, in batches, with calibrated probabilities."""

from __future__ import annotations

import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image

from resnet_train.data.layout import EXTENSIONS, to_text
from resnet_train.data.picture_files import PictureFile, list_pictures, read_pictures
from resnet_train.evaluation.calibration import calibrate, known_scores
from resnet_train.evaluation.explain import draw_overlay, heat_maps
from resnet_train.jobs.subject import Subject, load_subject
from resnet_train.runs.folder import EXPORTED, RunFolder, find_best, find_checkpoint
from resnet_train.runs.foreign import Given
from resnet_train.runtime.device import prepare_machine
from resnet_train.runtime.files import explain_write_errors
from resnet_train.runtime.names import safe_names

BATCH_SIZE = 100
TOP_K = 3
STDIN = "-"
# The first bytes of a picture on stdin: PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF. No file name starts like this.
PICTURE_START = re.compile(
    rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP|GIF8[79]a|II\*\0|MM\0\*|BM....\0\0\0\0|....ftyp", re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class ClassProbability:
    """A class and its probability, 0–1."""

    name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a network predicts for a picture.

    Attributes:
        image: the file.
        top: the most likely classes, most likely first.
        calibrated: whether the probabilities were calibrated on validation images.
        unknown: whether it is unlike 95 % of the validation images; None if the checkpoint has no threshold.
    """

    image: str
    top: tuple[ClassProbability, ...]
    calibrated: bool
    unknown: bool | None


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A picture that can't be read, and why."""

    image: str
    reason: str


class Predictor:
    """A network with everything that is needed to classify pictures.

    Args:
        path: a checkpoint, or the folder of a run, which means its final model.
        best: use the model that the run chose on its validation split.
        device, threads: where to run.
        arch, normalize: see `resnet_train.runs.foreign.Given`; for checkpoints from other code.

    Raises:
        ValueError: no usable checkpoint.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        best: bool = False,
        device: str = "auto",
        threads: int = 0,
        arch: str | None = None,
        normalize: str | None = None,
    ) -> None:
        torch_device = prepare_machine(device, threads)
        found = find_best(Path(path)) if best else find_checkpoint(Path(path))
        self.subject: Subject = load_subject([found], None, torch_device, Given(arch=arch, normalize=normalize))

    @property
    def is_calibrated(self) -> bool:
        """Return whether the checkpoint has a temperature and a threshold."""
        return self.subject.calibration is not None

    def predict(
        self,
        files: Iterable[PictureFile],
        *,
        top: int = TOP_K,
        batch_size: int = BATCH_SIZE,
        explain: Path | None = None,
    ) -> Iterator[Prediction | Unreadable]:
        """Yield a prediction for each file, in order; memory does not grow with their number.

        Args:
            files: pictures of any size.
            top: number of classes for each picture.
            batch_size: pictures per batch.
            explain: write an overlay of each picture to this folder, which exists; no file in it is overwritten.
        """
        overlays = None if explain is None else Overlays(explain)
        pictures = read_pictures(files, self.subject.image_size)
        while batch := list(itertools.islice(pictures, batch_size)):
            arrays = [content for _, content in batch if isinstance(content, np.ndarray)]
            predicted = iter(predict_pixels(self.subject, np.stack(arrays), top, overlays) if arrays else [])
            for file, content in batch:
                if isinstance(content, str):
                    yield Unreadable(image=file.name, reason=content)
                    continue
                classes, unknown, overlay = next(predicted)
                if overlays is not None and overlay is not None:
                    overlays.write(file.name, overlay)
                yield Prediction(image=file.name, top=classes, calibrated=self.is_calibrated, unknown=unknown)


def predict_pixels(
    subject: Subject, pixels: np.ndarray, top: int, overlays: Overlays | None = None
) -> list[tuple[tuple[ClassProbability, ...], bool | None, np.ndarray | None]]:
    """Return the classes, whether each is unknown, and the overlay if wanted, for uint8 [B, 3, S, S]."""
    calibration = subject.calibration
    images = subject.normalize(torch.from_numpy(pixels).to(subject.device))
    with torch.inference_mode():
        logits = subject.compute_logits(images).float().cpu()  # [B, C]
    probabilities = calibrate(logits, calibration.temperature if calibration else 1.0)
    best = probabilities.topk(min(top, len(subject.classes)), dim=1)
    ranked = [
        tuple(ClassProbability(name=subject.classes[c], probability=p) for c, p in zip(classes, values))
        for classes, values in zip(best.indices.tolist(), best.values.tolist())
    ]
    unknown: Sequence[bool | None] = [None] * len(pixels)
    if calibration is not None:
        unknown = (known_scores(logits) < calibration.known_from).tolist()
    drawn: Sequence[np.ndarray | None] = [None] * len(pixels)
    if overlays is not None:
        maps = heat_maps(subject.network, images, best.indices[:, 0].to(subject.device)).cpu().numpy()
        drawn = [draw_overlay(image, heat) for image, heat in zip(pixels, maps)]
    return list(zip(ranked, unknown, drawn))


class Overlays:
    """A folder of overlays, each named after its picture."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def write(self, name: str, overlay: np.ndarray) -> None:
        """Write an overlay; the number before the name keeps equal names apart."""
        self.count += 1
        (stem,) = safe_names([Path(name).stem])
        path = self.folder / f"{self.count:05}-{stem}.png"
        with explain_write_errors(path, overlay.nbytes), path.open("xb") as file:
            Image.fromarray(overlay).save(file, "PNG")


def is_picture_source(argument: str) -> bool:
    """Return whether an argument names pictures (a file, a folder of them, stdin) rather than a checkpoint or a run."""
    path = Path(argument)
    if path.is_dir():
        return not RunFolder(path).checkpoints.is_dir() and not (path / EXPORTED).is_file()
    if argument == STDIN or path.suffix.lower() in EXTENSIONS:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return PICTURE_START.match(file.read(16)) is not None


@contextmanager
def open_sources(arguments: Sequence[str]) -> Iterator[tuple[Iterable[PictureFile], int | None]]:
    """Yield the pictures that a user named, and how many there are, None if that is not known yet.

    Args:
        arguments: files; folders, including their subfolders; or ``-``: a picture on stdin, or file names, one per
            line.

    Raises:
        ValueError: a folder holds no pictures, or stdin is empty.
    """
    if list(arguments) == [STDIN]:
        with _open_stdin(sys.stdin.buffer) as found:
            yield found
        return
    files: list[PictureFile] = []
    for argument in arguments:
        path = Path(argument)
        found_files = [PictureFile(to_text(str(one)), one) for one in list_pictures(path)] if path.is_dir() else None
        if found_files == []:
            raise ValueError(f"{argument} holds no pictures")
        files += found_files or [PictureFile(to_text(argument), path)]
    yield files, len(files)


@contextmanager
def _open_stdin(stream: IO[bytes]) -> Iterator[tuple[Iterable[PictureFile], int | None]]:
    """Yield the picture on stdin, or the files whose names are on its lines."""
    start = stream.peek(16)[:16] if hasattr(stream, "peek") else b""
    if not start:
        raise ValueError("stdin is empty; it must hold a picture, or file names, one per line")
    if not PICTURE_START.match(start):
        names = (line.rstrip(b"\r\n") for line in stream)
        yield (PictureFile(to_text(os.fsdecode(name)), Path(os.fsdecode(name))) for name in names if name), None
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdin"
        path.write_bytes(stream.read())
        yield [PictureFile(STDIN, path)], 1
