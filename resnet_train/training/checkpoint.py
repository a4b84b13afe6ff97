"""Checkpoint files: written so that a crash leaves the old or the new one, read so that no file can do harm.

A checkpoint is torch's zip format with tensors and primitives only. This is the one place that calls `torch.load`.
"""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from resnet_train.models import create_model

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


def restore_model(checkpoint: dict[str, Any], path: Path) -> nn.Module:
    """The network that a checkpoint describes, with its weights, in evaluation mode.

    Raises:
        ValueError: description and weights do not fit together.
    """
    try:
        about = checkpoint["about"]
        model = create_model(about["arch"], len(about["classes"]), **about["arch_options"])
        model.load_state_dict(checkpoint["model"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not hold the network it describes: {reason}") from None
    return model.eval()
