"""Decoded images on disk: two plain `.npy` files and a description, verified whenever they are opened.

There are no pickles. A cache is named after the fingerprint of its sources, so changed sources get a new cache. It
appears under its name only when it is complete.
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
    """The content of a cache.

    Attributes:
        images: uint8 [N, 3, H, W], memory-mapped and read-only.
        labels: int64 [N].
        fingerprint: The checksums of both as text.
        facts: What `fill` returned (JSON values).
    """

    images: np.ndarray
    labels: np.ndarray
    fingerprint: str
    facts: dict[str, Any]


# Writes images.npy and labels.npy into the given folder and returns the facts.
Fill = Callable[[Path], dict[str, Any]]


def open_or_build(data_dir: Path, name: str, fingerprint: str, fill: Fill) -> CachedArrays:
    """Open the cache of these sources, or build it with `fill`.

    Args:
        data_dir: The cache is in its folder `.resnet_train`, or in the user's cache folder if that can't be written.
        name: What is cached, as `folder-train-32`; older caches of the same name are removed.
        fingerprint: Hexadecimal digest of the sources.
        fill: Writes `images.npy` and `labels.npy` into a folder and returns the facts.

    Raises:
        OSError: No location is writable, or the disk is full.
    """
    # The fast way: a whole cache is there, and no lock is needed.
    root = _writable_root(data_dir)
    folder = root / f"{name}-{fingerprint[:20]}"
    if (cached := _open_if_whole(folder)) is not None:
        if any(root.glob(f"{BUILDING}*")):
            with _builder_lock(root, wait=False):  # taking the lock deletes what a killed builder left
                pass
        return cached

    # Otherwise one process builds it while the others wait.
    with _builder_lock(root):
        if (cached := _open_if_whole(folder)) is not None:  # another process has built it in the meantime
            return cached
        _build(folder, fill)
        _remove_older(folder, name)
    return _open(folder)


def _open_if_whole(folder: Path) -> CachedArrays | None:
    """Return the cache, or None if there is none or it is damaged; a damaged one is deleted."""
    if not folder.is_dir():
        return None
    try:
        return _open(folder)
    except ValueError as damage:
        log.warning("the data cache %s is damaged (%s); rebuilding it", folder, damage)
        shutil.rmtree(folder, ignore_errors=True)
    return None


@contextmanager
def _builder_lock(root: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of the only builder in `root`; whoever takes it deletes what killed builders left half built.

    Where files can't be locked, processes build at the same time and nothing is deleted. If another process holds the
    lock and `wait` is false, continue without it.
    """
    lock = FileLock(root / ".lock", mode=0o666)  # the system releases it when the process ends
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            yield
            return
        log.info("waiting for another process that is building a data cache in %s", root)
        lock.acquire()
    except (OSError, NotImplementedError):  # a network drive without locks, or another user's lock
        yield
        return
    try:
        for abandoned in root.glob(f"{BUILDING}*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        yield
    finally:
        lock.release()


def _writable_root(data_dir: Path) -> Path:
    """Return the folder for caches, and create it."""
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
    """Build the cache in a temporary folder and rename it."""
    # Fill a folder of another name.
    work = Path(tempfile.mkdtemp(prefix=BUILDING, dir=folder.parent))
    try:
        facts = fill(work)

        # Describe the files and the description with checksums.
        checksums = {file: _crc32(work / file) for file in ("images.npy", "labels.npy")}
        content = {"format": FORMAT, "crc32": checksums, "facts": facts}
        (work / "cache.json").write_text(json.dumps({"content": content, "crc32": _json_crc32(content)}))

        # The rename makes the whole cache appear at once.
        try:
            work.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, and its cache is as good
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _open(folder: Path) -> CachedArrays:
    """Open and verify a cache.

    Raises:
        ValueError: A file is missing, or differs in a single bit from what was written.
    """
    try:
        # The description vouches for itself first, then for the files.
        described = json.loads((folder / "cache.json").read_text())
        content = described["content"]
        if described["crc32"] != _json_crc32(content):
            raise ValueError("the checksum of cache.json differs")
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, but this version reads {FORMAT}")
        for file, checksum in content["crc32"].items():
            if _crc32(folder / file) != checksum:
                raise ValueError(f"the checksum of {file} differs")

        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        # Map before copying: a header of a few bytes can claim an array of any size.
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
