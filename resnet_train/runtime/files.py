"""Writing files: opened without following links, with errors that say where, how much and what to do."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from resnet_train.runtime.names import IS_WINDOWS

NO_SPACE_ERRORS = {errno.ENOSPC, errno.EFBIG, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else [])}
SPECIAL_FILE_ERRORS = {errno.ELOOP, errno.ENXIO}  # opening a link with O_NOFOLLOW, a FIFO without a reader
REPLACE_ATTEMPTS, REPLACE_SECONDS = 20, 1.0
KEPT_CHARACTERS = 40  # of a name in a temporary one: 255 bytes are allowed, and a character takes up to 4
# Windows has neither flag: there the file is opened first and looked at afterwards.
SAFE_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def open_regular(path: Path, mode: str, **options: Any) -> IO[Any]:
    """Open a file as `open` does, without following a link and without waiting for the other end of a FIFO.

    Raises:
        ValueError: it is not a regular file.
    """
    try:
        file = open(path, mode, opener=lambda name, flags: os.open(name, flags | SAFE_FLAGS, 0o666), **options)  # noqa: SIM115
    except OSError as error:
        if error.errno in SPECIAL_FILE_ERRORS:
            raise ValueError(special_file_message(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(special_file_message(path))
    return file


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8.

    Raises:
        ValueError, OSError: see `open_regular` and `explain_write_errors`.
    """
    with explain_write_errors(path, len(text.encode())), open_regular(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)


def replace_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; at every instant `path` is either the old file or the new one, complete.

    Raises:
        ValueError, OSError: see `open_regular` and `explain_write_errors`.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError(special_file_message(path))
    with (
        explain_write_errors(path, len(text.encode())),
        replacing(path) as temporary,
        open_regular(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        file.write(text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path next to `path` to write to, and rename what is there to `path`; delete it if anything was raised."""
    temporary = temporary_path(path)
    try:
        yield temporary
        replace_file(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_path(path: Path) -> Path:
    """Return a new path next to `path`, so that processes that write the same file don't share a temporary one."""
    return path.with_name(f".{path.name[:KEPT_CHARACTERS]}.{secrets.token_hex(8)}.tmp")


def replace_file(source: Path, target: Path) -> None:
    """Rename a file to the name of another, which it replaces, or a folder to a free name.

    Windows refuses while a virus scanner, a backup or another program has the file open, usually for an instant, so
    renaming is retried for a second there.
    """
    attempts = REPLACE_ATTEMPTS if IS_WINDOWS else 1
    for remaining in reversed(range(attempts)):
        try:
            source.replace(target)
            return
        except PermissionError:
            if not remaining:
                raise
            time.sleep(REPLACE_SECONDS / attempts)


@contextmanager
def created_folder(folder: Path) -> Iterator[list[str]]:
    """Create a folder, or accept one, and yield the sorted names of what it holds.

    If anything is raised, the folders that were created are removed again as far as they are empty.

    Raises:
        ValueError: it can't be created.
    """
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            names = sorted(path.name for path in folder.iterdir())
        except OSError as error:
            raise ValueError(f"cannot create the folder {folder}: {error.strerror or error}") from None
        yield names
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise


def refuse_special_files(folder: Path) -> None:
    """Check that a folder holds only regular files and folders.

    Raises:
        ValueError: it holds a link, a FIFO, a socket or a device; the message names it.
    """
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                raise ValueError(special_file_message(Path(entry.path)))


def special_file_message(path: Path) -> str:
    """Return the error message for what is not a regular file where a run writes one."""
    return f"{path} is a link or a special file, which a run neither reads nor writes; remove it"


@contextmanager
def explain_write_errors(path: Path, needed_bytes: int) -> Iterator[None]:
    """Raise an OSError again with the path and the reason; on a full disk also the needed and the free bytes."""
    try:
        yield
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}{describe_space(error, path.parent, needed_bytes)}"
        raise OSError(error.errno, message) from error


def describe_space(error: OSError, folder: Path, needed_bytes: int) -> str:
    """Return the needed and free bytes, or that no inode is free, if the error is about space; else an empty string."""
    if error.errno not in NO_SPACE_ERRORS:
        return ""
    free = "an unknown number"
    with suppress(OSError):
        free = f"{shutil.disk_usage(folder).free:,}"
    if has_no_inodes(folder):
        room = f"no inodes are free, though {free} bytes are; {needed_bytes:,} bytes are needed); delete files"
    else:
        room = f"{needed_bytes:,} bytes are needed, {free} are free); make room"
    return f" ({room}, then repeat the command, with --resume for training"


def has_no_inodes(folder: Path) -> bool:
    """Return whether the file system can hold no more files, however small; btrfs counts none and reports 0 of 0."""
    with suppress(OSError, AttributeError):  # Windows has no statvfs
        system = os.statvfs(folder)
        return system.f_files > 0 and system.f_favail == 0
    return False
