"""Decoded images on disk: two plain `.npy` files and their description, verified whenever they are opened.

No pickles anywhere. A cache is named after the fingerprint of its sources, so a changed source makes a new one; it
appears under its name only when complete.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

FORMAT = 1
BUILDING = ".building-"
CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class CachedArrays:
    """images uint8 [N, 3, H, W], labels int64 [N], their checksums as text, and what else is known (JSON values)."""

    images: np.ndarray
    labels: np.ndarray
    fingerprint: str
    facts: dict[str, Any]


# Fills the two empty files in the folder it is given and returns the facts.
Fill = Callable[[Path], dict[str, Any]]


def open_or_build(data_dir: Path, name: str, fingerprint: str, fill: Fill) -> CachedArrays:
    """Opens the cache of these sources, or builds it with `fill`.

    Args:
        data_dir: the cache lies in its folder `.resnet_train`, or in the user's cache folder if that can't be written.
        name: what is cached, as `folder-train-32`; older caches of the same name are removed.
        fingerprint: hexadecimal digest of the sources.
        fill: writes `images.npy` and `labels.npy` into a folder.

    Raises:
        OSError: no place could be written, or the disk is full.
    """
    root = _writable_root(data_dir)
    folder = root / f"{name}-{fingerprint[:20]}"
    if (cached := _open_if_whole(folder)) is not None:
        if any(root.glob(f"{BUILDING}*")):
            with _only_builder(root, wait=False):  # entering it removes what a killed one left
                pass
        return cached
    with _only_builder(root):
        if (cached := _open_if_whole(folder)) is not None:  # another process was building it meanwhile
            return cached
        _build(folder, fill)
        _remove_older(folder, name)
    return _open(folder)


def _open_if_whole(folder: Path) -> CachedArrays | None:
    """The cache; None if there is none, or a damaged one, which is removed."""
    if not folder.is_dir():
        return None
    try:
        return _open(folder)
    except ValueError as damage:
        log.warning("the data cache %s is damaged (%s); it is made anew", folder, damage)
        shutil.rmtree(folder, ignore_errors=True)
    return None


@contextmanager
def _only_builder(root: Path, *, wait: bool = True) -> Iterator[None]:
    """While one process builds here, others wait; whoever comes to build removes what a killed one left half built.

    Where files cannot be locked, all build at the same time and nothing is removed.
    """
    lock = FileLock(root / ".lock", mode=0o666)  # the system keeps it for a process as long as that lives
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            yield
            return
        log.info("waiting for another process that builds a data cache in %s", root)
        lock.acquire()
    except (OSError, NotImplementedError):  # a network drive without locks, or the lock of another user
        yield
        return
    try:
        for abandoned in root.glob(f"{BUILDING}*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        yield
    finally:
        lock.release()


def _writable_root(data_dir: Path) -> Path:
    beside = data_dir / ".resnet_train"
    try:
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=beside):
            return beside
    except OSError:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        root = home / "resnet_train" / f"{zlib.crc32(str(data_dir.resolve()).encode()):08x}"
        root.mkdir(parents=True, exist_ok=True)
        return root


def _build(folder: Path, fill: Fill) -> None:
    work = Path(tempfile.mkdtemp(prefix=BUILDING, dir=folder.parent))
    try:
        facts = fill(work)
        checksums = {file: _crc32(work / file) for file in ("images.npy", "labels.npy")}
        content = {"format": FORMAT, "crc32": checksums, "facts": facts}
        (work / "cache.json").write_text(json.dumps({"content": content, "crc32": _json_crc32(content)}))
        try:
            work.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was quicker, and its cache is as good
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _open(folder: Path) -> CachedArrays:
    """Raises ValueError if a single bit is not as it was written."""
    try:
        described = json.loads((folder / "cache.json").read_text())
        content = described["content"]
        if described["crc32"] != _json_crc32(content):
            raise ValueError("cache.json has another checksum than it was written with")
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
        for file, checksum in content["crc32"].items():
            if _crc32(folder / file) != checksum:
                raise ValueError(f"{file} has another checksum than it was written with")
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        # Mapped first: a header of a few bytes can ask for an array of any size.
        labels = np.array(np.load(folder / "labels.npy", mmap_mode="r", allow_pickle=False))
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images.npy holds {images.dtype} {images.shape} instead of uint8 [N, 3, H, W]")
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels.npy holds {labels.dtype} {labels.shape} for {len(images)} images")
    except (OSError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    fingerprint = "-".join(f"{content['crc32'][file]:08x}" for file in ("images.npy", "labels.npy"))
    return CachedArrays(images, labels, fingerprint, content["facts"])


def _remove_older(folder: Path, name: str) -> None:
    for other in folder.parent.glob(f"{name}-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _json_crc32(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
