"""Checkpoint files: what they hold, how they are written atomically and how they are read.

A checkpoint is a file of `torch.save` with tensors and primitives only, so `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

import errno
import io
import os
import reprlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from resnet_train.records import About, Calibration, EpochRecord, Origin
from resnet_train.runs.archive import read_tensor_file
from resnet_train.runs.folder import SPLITS, RunFolder
from resnet_train.runs.safetensors_file import is_safetensors, read_description
from resnet_train.runtime.files import describe_space, open_regular, replace_file
from resnet_train.training.state import TrainerState

FORMAT = "resnet_train checkpoint"
VERSION = 2
# Errors of file systems without links; exFAT and network drives on Windows, and Android, each have their own. Where the
# folder is not writable, copying fails with the same error.
NO_LINK_ERRORS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EINVAL, errno.EACCES}
RECORD_BYTES = 512  # per tensor: its description, the headers of its record, its alignment


# --- What a file holds -----------------------------------------------------------------------------------------------


class Description(BaseModel):
    """The part of every checkpoint that explains it.

    Attributes:
        about: the network and its data.
        config: all settings as plain values.
        environment: versions and hardware.
        data_path: the absolute path of `data_dir`, which may be relative; None in files of older versions.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    about: About
    config: dict[str, Any]
    environment: dict[str, Any]
    data_path: str | None = None


class ModelCheckpoint(Description):
    """A model: its weights, their epoch, and the split on which that epoch was selected (None if it is the last one).

    The calibration is None if the run held out no validation images, and in files of older versions. The origin is None
    if this package trained the model; for other models the epoch is unknown.
    """

    model: dict[str, Any]
    metrics: EpochRecord | None = None
    chosen_on: str | None = None
    calibration: Calibration | None = None
    origin: Origin | None = None

    @property
    def weights(self) -> dict[str, Any]:
        """Return the weights to evaluate."""
        return self.model

    @property
    def epoch(self) -> int | None:
        """Return the number of finished epochs, None if it is unknown."""
        return self.metrics.epoch if self.metrics else None

    @property
    def steps_after_epoch(self) -> int:
        """Return the number of steps done since the last finished epoch."""
        return 0


class RunCheckpoint(TrainerState, Description):
    """The state of a run, from which it is resumed."""

    chosen_on: None = None

    @property
    def origin(self) -> None:
        """Return None: this package trains the network."""
        return None

    @property
    def metrics(self) -> EpochRecord | None:
        """Return the record of the last finished epoch, if there is one."""
        return self.history[-1] if self.history else None

    @property
    def steps_after_epoch(self) -> int:
        """Return the number of steps done since the last finished epoch."""
        return self.step - (self.history[-1].step if self.history else 0)


AnyCheckpoint = ModelCheckpoint | RunCheckpoint
Kind = TypeVar("Kind", bound=BaseModel)


class Saver:
    """Write checkpoints into a run folder, each with the run's description."""

    def __init__(self, folder: RunFolder, description: Description, *, describes: bool = False) -> None:
        """Write into a locked folder; with `describes`, the first state also replaces the folder's description."""
        self.folder, self.describes = folder, describes
        self.description = {name: _plain(getattr(description, name)) for name in Description.model_fields}

    def save_state(self, state: TrainerState) -> None:
        """Write last.pt and keep the previous one as previous.pt; delete a final model, which is out of date.

        The best model and the description follow, so that neither is ahead of the state if the run is killed.
        """
        # A run that is extended already has a final model.
        self.folder.check_held()
        self.folder.model.unlink(missing_ok=True)
        contents = {**self.description, **dump(state)}
        write_checkpoint(self.folder.last, contents, self.folder.previous, self.folder.check_held)

        # Write what follows the state; if the run is killed in between, resuming it repairs this.
        for split in SPLITS:
            if self.folder.next_best(split).exists():
                replace_file(self.folder.next_best(split), self.folder.best(split))
        if self.describes:
            self.folder.write_description(self.description["config"], self.description["environment"])
            self.describes = False
        if self.folder.unsaved.exists():
            self.folder.unsaved.unlink()

    def save_best(
        self, weights: dict[str, Tensor], split: str, record: EpochRecord, calibration: Calibration | None = None
    ) -> None:
        """Write what becomes best.pt, or best-on-test.pt if it was chosen on the test split, with the next state."""
        self._save_model(self.folder.next_best(split), weights, record, split, calibration)

    def save_final(
        self, weights: dict[str, Tensor], record: EpochRecord, calibration: Calibration | None = None
    ) -> None:
        """Write model.pt, the model after the last epoch."""
        self._save_model(self.folder.model, weights, record, None, calibration)

    def _save_model(
        self,
        path: Path,
        weights: dict[str, Tensor],
        record: EpochRecord,
        chosen_on: str | None,
        calibration: Calibration | None,
    ) -> None:
        contents = {**self.description, "model": weights, "metrics": record.to_plain(), "chosen_on": chosen_on}
        self.folder.check_held()
        write_checkpoint(path, {**contents, "calibration": _plain(calibration)}, check=self.folder.check_held)


def dump(structure: BaseModel) -> dict[str, Any]:
    """Return the fields of a typed structure as tensors and primitives."""
    return {name: _plain(value) for name, value in structure}


def _plain(value: Any) -> Any:
    if isinstance(value, EpochRecord):
        return value.to_plain()
    if isinstance(value, BaseModel):
        return dump(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read and verify a checkpoint, or its export as safetensors; the tensors are on the CPU.

    Raises:
        ValueError: the file is missing, damaged, not a checkpoint of this program, or from a newer version.
    """
    contents = read_description(path) if is_safetensors(path) else read_tensor_file(path)
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of resnet_train")
    version = contents.get("version")
    if version not in (1, VERSION):
        raise ValueError(f"{path} has checkpoint version {version}; this program reads versions 1 and {VERSION}")
    return _resolve_amp(_upgrade(contents) if version == 1 else contents)


def read_model(path: Path) -> AnyCheckpoint:
    """Read any checkpoint that holds a network: a model, or the state of a run.

    Raises:
        ValueError: see `read_checkpoint`, or a part is missing or has the wrong type.
    """
    contents = read_checkpoint(path)
    return parse(contents, path, RunCheckpoint) if "optimizer" in contents else parse(contents, path, ModelCheckpoint)


def parse(contents: dict[str, Any], path: Path, kind: type[Kind]) -> Kind:
    """Return the contents of the file at `path` as a typed structure.

    Raises:
        ValueError: a part is missing or has the wrong type; the message names it.
    """
    # The structure says what is expected; the first error becomes the message.
    fields = {name: value for name, value in contents.items() if name not in ("format", "version")}
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(str(part) for part in detail["loc"])
        value = "" if detail["type"] == "missing" or not where else f" (={reprlib.repr(detail['input'])[:80]})"
        raise ValueError(f"{path} is not a complete checkpoint: {where}{value}: {detail['msg']}") from None


def _upgrade(contents: dict[str, Any]) -> dict[str, Any]:
    """Convert version 1, whose epoch records were flat: `test_accuracy` is now `scores["test"]["accuracy"]`."""

    def nest(record: Any) -> Any:
        """Return a record with the metrics of each split under `scores`; anything but a record as it is."""
        if not isinstance(record, dict):
            return record
        nested: dict[str, Any] = {"scores": {}}
        for name, value in record.items():
            split, underscore, metric = str(name).partition("_")
            if underscore and split in ("train", "val", "test"):
                if value is not None:
                    nested["scores"].setdefault(split, {})[metric] = value
            else:
                nested[name] = value
        return nested

    upgraded = {**contents, "version": VERSION}
    if "metrics" in contents:
        upgraded["metrics"] = nest(contents["metrics"])
    if isinstance(history := contents.get("history"), list):
        upgraded["history"] = [nest(record) for record in history]
    return upgraded


def _resolve_amp(contents: dict[str, Any]) -> dict[str, Any]:
    """Replace `amp: auto`, which earlier versions stored, with what it meant: float32 on CPUs and in evaluations."""
    config, environment = contents.get("config"), contents.get("environment")
    if not isinstance(config, dict) or config.get("amp") != "auto":
        return contents
    trained_on = environment.get("device") if isinstance(environment, dict) else None
    is_mixed = trained_on == "cuda" and "optimizer" in contents
    amp = ("fp16" if contents.get("scaler") else "bf16") if is_mixed else "off"
    return {**contents, "config": {**config, "amp": amp}}


# --- Writing ---------------------------------------------------------------------------------------------------------


def write_checkpoint(
    path: Path, contents: dict[str, Any], previous: Path | None = None, check: Callable[[], None] = lambda: None
) -> None:
    """Write a checkpoint; at every instant `path` is either the old file or the new one, complete.

    Args:
        path: the file to write.
        contents: tensors, strings, numbers, None, and lists, tuples and dicts of them.
        previous: a file that keeps what `path` held before.
        check: called before files are renamed; raises if the folder must not be written to.

    Raises:
        OSError: the system's message, with the path; on a full disk also the needed and the free bytes.
    """
    temporary = _temporary(path)
    try:
        # Write next to the file, then rename, which replaces the old file at once.
        _write(temporary, stamp(contents))
        check()
        if previous is not None and path.exists():
            _keep_as(path, previous)
        replace_file(temporary, path)
        _sync_folder(path.parent)

    # Delete what was written, and report how many bytes a full disk lacks.
    except OSError as error:
        if error.errno is None:  # from `check`: a temporary file at this path would be another run's
            raise
        temporary.unlink(missing_ok=True)  # before the free bytes are counted
        message = (
            f"cannot write {path}: {error.strerror or error}{describe_space(error, path.parent, count_bytes(contents))}"
        )
        raise OSError(error.errno, message) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def encode_checkpoint(contents: dict[str, Any]) -> bytes:
    """Return what `write_checkpoint` writes."""
    stream = io.BytesIO()
    torch.save(stamp(contents), stream)
    return stream.getvalue()


class _ErrorKeeper:
    """Remember the first OSError: torch.save replaces it with a RuntimeError that loses errno and message."""

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


def stamp(contents: dict[str, Any]) -> dict[str, Any]:
    """Return the contents preceded by the format and its version, with which a file starts."""
    return {"format": FORMAT, "version": VERSION, **contents}


def _write(path: Path, contents: dict[str, Any]) -> None:
    """Write a file and flush it to the disk."""
    with open_regular(path, "wb") as file:
        keeper = _ErrorKeeper(file)
        try:
            torch.save(contents, keeper)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise keeper.error or error from None
        file.flush()
        os.fsync(file.fileno())


def count_bytes(contents: Any) -> int:
    """Return about how many bytes a file with these contents takes: its tensors and their headers."""
    # Tensors that share memory are stored once.
    storages: dict[int, int] = {}
    pending = [contents]
    while pending:
        part = pending.pop()
        if isinstance(part, Tensor):
            storage = part.untyped_storage()
            storages[storage.data_ptr() or id(part)] = storage.nbytes()
        elif isinstance(part, dict):
            pending += part.values()
        elif isinstance(part, Iterable) and not isinstance(part, str | bytes):
            pending += part
    return sum(storages.values()) + RECORD_BYTES * len(storages)


def _keep_as(path: Path, previous: Path) -> None:
    """Make `previous` a second name of the file at `path`, atomically."""
    # First make a link next to it, because a link cannot replace a file.
    link = _temporary(previous)
    link.unlink(missing_ok=True)
    try:
        try:
            os.link(path, link)
        except OSError as error:
            if error.errno not in NO_LINK_ERRORS:
                raise
            _copy(path, link)  # the file system has no links
        replace_file(link, previous)
    finally:
        link.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    """Copy a file and flush the copy to the disk."""
    with open_regular(source, "rb") as reader, open_regular(target, "wb") as writer:
        shutil.copyfileobj(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())


def _temporary(path: Path) -> Path:
    """Return a name next to the file. It is always the same, so the next save overwrites what a killed run left."""
    return path.with_name(f".{path.name}.tmp")


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure, where the system supports it: Windows and some network drives do not."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)
