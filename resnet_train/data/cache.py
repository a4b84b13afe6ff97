"""Decoded images on disk: two plain `.npy` files and a description, verified whenever they are opened.

There are no pickles. The checksummed description names the data set, split, image size, classes and source, so a cache
that was moved, renamed or made from other images is rebuilt. It appears under its name only when it is complete.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from resnet_train.runtime.files import open_regular, replace_file

log = logging.getLogger(__name__)

FORMAT = 2
BUILDING = ".building-"
FILES = ("images.npy", "labels.npy")
CHUNK_BYTES = 1 << 24
MAX_DESCRIPTION_BYTES = 1 << 28


class CacheSource(BaseModel):
    """What a cache was made from.

    Attributes:
        dataset: The name of the data set.
        split: The split of the data set.
        image_size: Height and width of the images.
        fingerprint: Hexadecimal digest of the sources.
        num_classes: The number of classes.
        classes: The class names, if they are known before the sources are read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    split: str
    image_size: int
    fingerprint: str
    num_classes: int
    classes: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """Return what is cached, such as `folder-train-32`; a newer cache of the same name replaces an older one."""
        return f"{self.dataset}-{self.split}-{self.image_size}"

    @property
    def folder_name(self) -> str:
        """Return the name of the cache's folder, which is different for different sources."""
        return f"{self.name}-{self.fingerprint[:20]}"


class Facts(BaseModel):
    """What is stored with the arrays; a data set that knows more adds fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    classes: tuple[str, ...]


F = TypeVar("F", bound=Facts)


@dataclass(frozen=True)
class CachedArrays(Generic[F]):
    """The content of a cache.

    Attributes:
        images: uint8 [N, 3, H, W], memory-mapped and read-only.
        labels: int64 [N], each in 0 … len(facts.classes) - 1.
        fingerprint: The checksums of both as text.
        facts: What `fill` returned.
    """

    images: np.ndarray
    labels: np.ndarray
    fingerprint: str
    facts: F


def open_or_build(
    data_dir: Path, source: CacheSource, facts_type: type[F], fill: Callable[[Path], F]
) -> CachedArrays[F]:
    """Open the cache of these sources, or build it with `fill`.

    A finished cache is used wherever it is. A new one is built in the folder `.resnet_train` of `data_dir`, or in the
    user's cache folder if that can't be written, or in a temporary folder.

    Args:
        data_dir: The folder of the data.
        source: What is to be cached.
        facts_type: The type that the stored facts must have.
        fill: Writes `images.npy` and `labels.npy` into a folder and returns the facts.

    Raises:
        OSError: No location is writable, or the disk is full.
    """
    places = _places(data_dir)
    for root in places:
        if (cached := _open_if_whole(root / source.folder_name, source, facts_type)) is not None:
            if any(root.glob(f"{BUILDING}*")):
                with _builder_lock(root, wait=False):  # taking the lock deletes what a killed builder left
                    pass
            return cached
    root = next(filter(_is_writable, places), None) or _temporary_place()
    folder = root / source.folder_name
    with _builder_lock(root):
        if (cached := _open_if_whole(folder, source, facts_type)) is not None:  # another process has built it
            return cached
        _build(folder, source, fill)
        for older in root.glob(f"{source.name}-*"):
            if older != folder:
                _remove(older)
    return _open(folder, source, facts_type)


# --- Locations of caches ---------------------------------------------------------------------------------------------


def _places(data_dir: Path) -> list[Path]:
    """Return the folders in which a cache may be, in order of preference."""
    places = [data_dir / ".resnet_train"]
    with suppress(RuntimeError):  # there is no home folder: HOME is not set and the user has no name
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        digest = zlib.crc32(os.fsencode(data_dir.resolve()))
        places.append(home / "resnet_train" / f"{digest:08x}")
    if _temporary_place.cache_info().currsize:
        places.append(_temporary_place())
    return places


def _is_writable(root: Path) -> bool:
    """Create a folder for caches and return whether files can be written to it; links are not followed."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return not root.is_symlink()
    except OSError:
        return False


@cache
def _temporary_place() -> Path:
    """Return a folder for this process, which is deleted when it ends."""
    root = Path(tempfile.mkdtemp(prefix="resnet_train-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    log.warning(
        "neither the data folder nor the cache folder in your home is writable: the decoded images are kept in the "
        "temporary folder %s until the program ends (XDG_CACHE_HOME chooses another place)",
        root,
    )
    return root


def _remove(path: Path) -> None:
    """Delete a folder, or whatever has its name; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def _builder_lock(root: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of the only builder in `root`; whoever takes it deletes what killed builders left unfinished.

    Where files can't be locked, processes build at the same time and nothing is deleted. If another process holds the
    lock and `wait` is false, continue without it.
    """
    path = root / ".lock"
    if path.is_symlink() or (path.exists() and not path.is_file()):
        _remove(path)  # locking would open it and might truncate what a link points to
    lock = FileLock(path, mode=0o666)  # the system releases it when the process ends
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
            _remove(abandoned)
        yield
    finally:
        lock.release()


# --- Writing and reading ---------------------------------------------------------------------------------------------


def _build(folder: Path, source: CacheSource, fill: Callable[[Path], F]) -> None:
    """Build the cache in a temporary folder and rename it."""
    work = folder.with_name(f"{BUILDING}{secrets.token_hex(8)}")
    work.mkdir()  # unlike one of mkdtemp, other users may read it if the umask says so
    try:
        facts = fill(work)
        checksums = {}
        for name in FILES:
            with open_regular(work / name, "rb") as file:
                checksums[name] = _crc32(file)
        content = {
            "format": FORMAT,
            "source": source.model_dump(mode="json"),
            "crc32": checksums,
            "facts": facts.model_dump(mode="json"),
        }
        (work / "cache.json").write_text(json.dumps({"content": content, "crc32": _json_crc32(content)}))
        try:
            replace_file(work, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, and its cache is as good
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _open_if_whole(folder: Path, source: CacheSource, facts_type: type[F]) -> CachedArrays[F] | None:
    """Return the cache, or None if there is none or it can't be used; then it is deleted if possible."""
    if folder.parent.is_symlink() or not os.path.lexists(folder):
        return None
    try:
        return _open(folder, source, facts_type)
    except Exception as damage:  # the parsers of JSON and of array headers raise almost anything
        reason = " ".join(f"{type(damage).__name__}: {damage}".split())[:300]
        log.warning("the data cache %s is damaged (%s); rebuilding it", folder, reason)
        _remove(folder)
    return None


def _open(folder: Path, source: CacheSource, facts_type: type[F]) -> CachedArrays[F]:
    """Open and verify a cache.

    Raises:
        ValueError: A file is not regular, differs in a single bit from what was written, or has other sources.
        Exception: Any other error from a parser.
    """
    if folder.is_symlink():
        raise ValueError("it is a link")

    # Verify the description by its own checksum, then the files by the description.
    with open_regular(folder / "cache.json", "rb") as file:
        described = json.loads(file.read(MAX_DESCRIPTION_BYTES))
    content = described["content"]
    if described["crc32"] != _json_crc32(content):
        raise ValueError("the checksum of cache.json differs")
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}, but this version reads {FORMAT}")
    _check_source(CacheSource.model_validate(content["source"]), source)
    facts = facts_type.model_validate(content["facts"])
    if len(facts.classes) != source.num_classes or source.classes not in (None, facts.classes):
        raise ValueError(f"it has {len(facts.classes)} different classes")

    images, labels = (_map_array(folder / name, content["crc32"][name]) for name in FILES)
    shape = (3, source.image_size, source.image_size)
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise ValueError(f"images.npy holds {images.dtype} {images.shape} instead of uint8 [N, {shape}]")
    if labels.dtype != np.int64 or labels.shape != images.shape[:1] or not len(labels):
        raise ValueError(f"labels.npy holds {labels.dtype} {labels.shape} for {len(images)} images")
    if labels.min() < 0 or labels.max() >= len(facts.classes):
        raise ValueError(f"labels {labels.min()} to {labels.max()} for {len(facts.classes)} classes")
    fingerprint = "-".join(f"{content['crc32'][name]:08x}" for name in FILES)
    return CachedArrays(images, np.array(labels), fingerprint, facts)


def _check_source(found: CacheSource, wanted: CacheSource) -> None:
    """Check that a cache has the wanted sources.

    Raises:
        ValueError: It has others; the message names the first difference.
    """
    for name in CacheSource.model_fields:
        if getattr(found, name) != getattr(wanted, name):
            raise ValueError(f"its {name} is {getattr(found, name)!r} instead of {getattr(wanted, name)!r}")


def _map_array(path: Path, checksum: int) -> np.ndarray:
    """Map an array file into memory after verifying its checksum.

    A header of a few bytes can claim an array of any size. Mapping raises if the file is smaller.
    """
    with open_regular(path, "rb") as file:
        if _crc32(file) != checksum:
            raise ValueError(f"the checksum of {path.name} differs")
        file.seek(0)
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{path.name} has version {version} of the array format")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject or fortran_order:
            raise ValueError(f"{path.name} holds objects or is in Fortran order")
        return np.memmap(file, dtype=dtype, mode="r", offset=file.tell(), shape=shape)


def _crc32(file: IO[bytes]) -> int:
    checksum = 0
    while chunk := file.read(CHUNK_BYTES):
        checksum = zlib.crc32(chunk, checksum)
    return checksum


def _json_crc32(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
