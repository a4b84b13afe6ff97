"""Checkpoint files: written so that a crash leaves the old or the new one, read so that no file can do harm.

A checkpoint is torch's zip format with tensors and primitives only. This is the one place that calls `torch.load`.
"""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path
from typing import IO, Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from resnet_train.models import create_model
from resnet_train.records import EpochRecord

FORMAT = "resnet_train checkpoint"
VERSION = 1
CHUNK_BYTES = 1 << 20


class _HonestFile:
    """Keeps the first OSError of a write, which torch's writer turns into a RuntimeError without its words."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_checkpoint(path: Path, contents: dict[str, Any], previous: Path | None = None) -> None:
    """Writes a checkpoint; at every instant `path` is the old file or the new one, whole.

    Args:
        path: where it goes.
        contents: tensors, strings, numbers, None, and lists, tuples and dicts of them.
        previous: what `path` held until now stays here.

    Raises:
        OSError: the disk's word, with the path.
    """
    temporary = _temporary(path)
    try:
        try:
            with temporary.open("wb") as file:
                honest = _HonestFile(file)
                try:
                    torch.save({"format": FORMAT, "version": VERSION, **contents}, honest)  # type: ignore[arg-type]
                except RuntimeError as error:
                    raise honest.error or error from None
                file.flush()
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                _keep_as(path, previous)
            temporary.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _keep_as(path: Path, previous: Path) -> None:
    """`previous` becomes a second name of the file at `path`, in one step."""
    link = _temporary(previous)
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
        link.replace(previous)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}:
            raise
        path.replace(previous)  # a file system without links: for an instant only `previous` exists
    finally:
        link.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """Beside the file, and always the same name: what a killed process left is overwritten by the next save."""
    return path.with_name(f".{path.name}.tmp")


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads and verifies a checkpoint; its tensors are on the CPU.

    Raises:
        ValueError: the file is missing, damaged, not a checkpoint of this program, or of a newer version.
    """
    _verify_records(path)
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - the one place
    # The unpickler of a hostile or damaged file raises whatever it stumbles over.
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {reason}") from None
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of resnet_train")
    if contents.get("version") != VERSION:
        raise ValueError(f"{path} has checkpoint version {contents.get('version')}; this program reads {VERSION}")
    return contents


def _verify_records(path: Path) -> None:
    """Every record's CRC, and no compressed or overlong records (torch checks neither)."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = path.stat().st_size
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise ValueError(f"{path} is not a checkpoint: it has compressed records")
            if sum(record.file_size for record in records) > size:
                raise ValueError(f"{path} is not a checkpoint: its records are larger than the file")
            for record in records:
                with archive.open(record) as stream:
                    while stream.read(CHUNK_BYTES):
                        pass
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or not a checkpoint: {error}") from None


class About(BaseModel):
    """What a checkpoint says of its network."""

    model_config = ConfigDict(allow_inf_nan=False)

    arch: str
    arch_options: dict[str, Any]
    classes: list[str] = Field(min_length=2)
    image_size: int = Field(ge=1)
    mean: list[float] = Field(min_length=3, max_length=3)
    std: list[Annotated[float, Field(gt=0)]] = Field(min_length=3, max_length=3)
    dataset: str
    title: str
    fingerprint: str


class ModelParts(BaseModel):
    """What every checkpoint holds."""

    model_config = ConfigDict(protected_namespaces=())

    about: About
    config: dict[str, Any]
    environment: dict[str, Any]
    model: dict[str, Any]
    chosen_on: str | None = None
    metrics: EpochRecord | None = None


class StateParts(ModelParts):
    """What the state of a run holds besides."""

    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    averaged: dict[str, Any] | None
    epoch: int = Field(ge=0)
    step: int = Field(ge=0)
    sums: list[float] = Field(min_length=8, max_length=8)
    epoch_seconds: float
    history: list[EpochRecord]
    best_epoch: int
    best_accuracy: float

    @model_validator(mode="after")
    def _must_fit_together(self) -> Self:
        if [record.epoch for record in self.history] != list(range(1, self.epoch + 1)):
            raise ValueError(f"the history does not hold the {self.epoch} finished epochs")
        if self.averaged is not None and not isinstance(self.averaged.get("model"), dict):
            raise ValueError("averaged holds no model")
        return self


def check_parts(contents: dict[str, Any], path: Path, kind: type[ModelParts] = ModelParts) -> None:
    """Checks that everything is there and of the right type.

    Raises:
        ValueError: something is not; the message names it.
    """
    try:
        kind.model_validate(contents)
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(str(part) for part in detail["loc"])
        raise ValueError(f"{path} is not a complete checkpoint: {where}: {detail['msg']}") from None


def restore_model(checkpoint: dict[str, Any], path: Path) -> nn.Module:
    """The network that a checkpoint describes, with its weights, in evaluation mode.

    Raises:
        ValueError: description and weights do not fit together.
    """
    try:
        about = checkpoint["about"]
        model = create_model(about["arch"], len(about["classes"]), **about["arch_options"])
        averaged = checkpoint.get("averaged")  # of a running state; a finished model has nothing but its weights
        model.load_state_dict(averaged["model"] if averaged else checkpoint["model"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not hold the network it describes: {reason}") from None
    return model.eval()


def last_epoch(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The record of the last finished epoch (empty if there is none), and the steps that were done after it."""
    history = checkpoint.get("history")
    record = dict(history[-1]) if history else dict(checkpoint.get("metrics") or {})
    return record, checkpoint.get("step", record.get("step", 0)) - record.get("step", 0)
