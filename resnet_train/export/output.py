"""Exported files, written next to their destination, checked there, and renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resnet_train.export.formats import Files
from resnet_train.runtime.files import explain_write_errors, open_regular, replace_file, temporary_path


def check_target(target: Path, files: tuple[str, ...], force: bool) -> None:
    """Check that a file, or a folder of these files, can be written and replaces nothing that it should not.

    Raises:
        ValueError: it can't be written, or would replace something.
    """
    if not target.parent.is_dir():
        raise ValueError(f"cannot write {target}: there is no folder {target.parent}")
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not (target.is_dir() if files else target.is_file()):
        expected = "folder" if files else "regular file"
        raise ValueError(f"{target} exists and is not a {expected}; choose another --output")
    if files and (others := sorted({path.name for path in target.iterdir()} - set(files))):
        raise ValueError(f"{target} holds {others[0]}, which no export wrote; choose another --output")
    if not force:
        raise ValueError(f"{target} exists; choose another --output, or replace it with --force")


@contextmanager
def written(target: Path, encoded: bytes | Files, force: bool) -> Iterator[Path]:
    """Write next to `target`, yield the path to check it there, and rename it to `target`.

    If anything is raised, nothing is left and `target` is what it was.

    Raises:
        ValueError: see `check_target`; something may appear at `target` meanwhile.
        OSError: see `explain_write_errors`.
    """
    temporary = temporary_path(target)
    files = tuple(encoded) if isinstance(encoded, dict) else ()
    num_bytes = sum(map(len, encoded.values())) if isinstance(encoded, dict) else len(encoded)
    try:
        with explain_write_errors(target, num_bytes):
            _write(temporary, encoded)
        yield temporary
        check_target(target, files, force)
        with explain_write_errors(target, num_bytes):
            _replace(temporary, target)
    except BaseException:
        with suppress(OSError):  # a read-only file system refuses this as well
            _remove(temporary)
        raise


def _write(path: Path, encoded: bytes | Files) -> None:
    """Write a file, or a new folder of files, and flush it to the disk."""
    if isinstance(encoded, dict):
        path.mkdir()
        for name, content in encoded.items():
            _write(path / name, content)
        return
    with open_regular(path, "wb") as file:
        file.write(encoded)
        file.flush()
        os.fsync(file.fileno())


def _replace(source: Path, target: Path) -> None:
    """Rename a file, or a folder, to the name of another, which it replaces."""
    if not target.is_dir():
        replace_file(source, target)
        return

    # Only an empty folder can be replaced: move the old one away, and back if the new one can't be renamed.
    old = temporary_path(target)
    replace_file(target, old)
    try:
        replace_file(source, target)
    except BaseException:
        if target.exists():  # another export was faster
            _remove(old)
        else:
            replace_file(old, target)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    """Remove a file or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
