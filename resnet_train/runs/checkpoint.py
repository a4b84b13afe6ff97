"""Checkpoint files: written so that a crash leaves the old or the new one, read so that no file can do harm.

A checkpoint is torch's zip format with tensors and primitives only: `torch.load(weights_only=True)` reads it, too.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from resnet_train.models import create_model
from resnet_train.records import EpochRecord
from resnet_train.runs.archive import read_tensor_file

FORMAT = "resnet_train checkpoint"
VERSION = 1
NO_ROOM = {errno.ENOSPC, errno.EFBIG, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else [])}
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}
RECORD_BYTES = 512  # around each tensor: its description, the headers of its record, its alignment


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
        OSError: the disk's word, with the path; of a full disk also the bytes that are needed and free.
    """
    temporary = _temporary(path)
    try:
        _write(temporary, {"format": FORMAT, "version": VERSION, **contents})
        if previous is not None and path.exists():
            _keep_as(path, previous)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)  # before the free bytes are counted
        message = f"cannot write {path}: {error.strerror or error}{_describe_room(error, path, contents)}"
        raise OSError(error.errno, message) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, contents: dict[str, Any]) -> None:
    """Writes a file, down to the disk."""
    with path.open("wb") as file:
        honest = _HonestFile(file)
        try:
            torch.save(contents, honest)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise honest.error or error from None
        file.flush()
        os.fsync(file.fileno())


def _describe_room(error: OSError, path: Path, contents: dict[str, Any]) -> str:
    """What is needed and what there is, if that is what the error is about."""
    if error.errno not in NO_ROOM:
        return ""
    free = "an unknown number"
    with suppress(OSError):
        free = f"{shutil.disk_usage(path.parent).free:,}"
    return f" ({count_bytes(contents):,} bytes are needed, {free} are free); make room, then go on with --resume"


def count_bytes(contents: Any) -> int:
    """How many bytes a file of these contents takes, nearly: its tensors and what stands around each."""
    storages: dict[int, int] = {}
    pending = [contents]
    while pending:
        part = pending.pop()
        if isinstance(part, Tensor):
            storage = part.untyped_storage()
            storages[storage.data_ptr() or id(part)] = storage.nbytes()
        elif isinstance(part, dict):
            pending += part.values()
        elif isinstance(part, list | tuple):
            pending += part
    return sum(storages.values()) + RECORD_BYTES * len(storages)


def _keep_as(path: Path, previous: Path) -> None:
    """`previous` becomes a second name of the file at `path`, in one step."""
    link = _temporary(previous)
    link.unlink(missing_ok=True)
    try:
        try:
            os.link(path, link)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            _copy(path, link)  # a file system without links
        link.replace(previous)
    finally:
        link.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    """Copies a file, down to the disk."""
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())


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
    contents = read_tensor_file(path)
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of resnet_train")
    if contents.get("version") != VERSION:
        raise ValueError(f"{path} has checkpoint version {contents.get('version')}; this program reads {VERSION}")
    return contents


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
    sums: list[Annotated[list[float], Field(min_length=8, max_length=8)]] = Field(min_length=1)  # a row a process
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
        build = partial(create_model, about["arch"], len(about["classes"]), **about["arch_options"])
        averaged = checkpoint.get("averaged")  # of a running state; a finished model has nothing but its weights
        weights = averaged["model"] if averaged else checkpoint["model"]
        with torch.device("meta"), _at_most(len(weights)):
            sketch = build()  # no memory for a network that the weights do not fill
        sketch.load_state_dict(weights, assign=True)
        model = build()
        model.load_state_dict(weights)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not hold the network it describes: {reason}") from None
    return model.eval()


@contextmanager
def _at_most(num_parameters: int) -> Iterator[None]:
    """Networks built within may not have more parameters: a description of a few bytes can ask for ten thousand layers.

    Raises:
        ValueError: one has more.
    """
    left = num_parameters

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= parameter is not None
        if left < 0:
            raise ValueError(f"it has more parameters than the {num_parameters} weights in the file")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def last_epoch(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The record of the last finished epoch (empty if there is none), and the steps that were done after it."""
    history = checkpoint.get("history")
    record = dict(history[-1]) if history else dict(checkpoint.get("metrics") or {})
    return record, checkpoint.get("step", record.get("step", 0)) - record.get("step", 0)
