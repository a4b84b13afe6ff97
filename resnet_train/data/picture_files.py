"""Picture files without labels, in folders or anywhere: found, and decoded ahead of their use."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_train.data.layout import EXTENSIONS
from resnet_train.data.pictures import read_image

AHEAD = 256  # pictures, as small arrays, that are decoded before they are requested


class PictureFile(NamedTuple):
    """A picture and the name that it is shown under."""

    name: str
    path: Path


def list_pictures(folder: Path) -> list[Path]:
    """Return the pictures in a folder and its subfolders, sorted, without hidden ones."""
    found: list[Path] = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        names = [name for name in files if name[0] != "." and Path(name).suffix.lower() in EXTENSIONS]
        found += [Path(root) / name for name in sorted(names)]
    return found


def read_pictures(files: Iterable[PictureFile], image_size: int) -> Iterator[tuple[PictureFile, np.ndarray | str]]:
    """Yield each file, in order, with its picture, uint8 [3, S, S], or with the reason why it can't be read.

    Threads decode a few hundred pictures ahead, so the memory does not grow with the number of files.
    """
    ahead: deque[tuple[PictureFile, Future[np.ndarray | str]]] = deque()
    pool = ThreadPoolExecutor(os.cpu_count(), "decode")
    try:
        for file in files:
            ahead.append((file, pool.submit(read_picture, file.path, image_size)))
            if len(ahead) > AHEAD:
                first, picture = ahead.popleft()
                yield first, picture.result()
        while ahead:
            first, picture = ahead.popleft()
            yield first, picture.result()
    finally:  # also if the consumer stops early
        pool.shutdown(cancel_futures=True)


def read_picture(path: Path, image_size: int) -> np.ndarray | str:
    """Return a picture, or why it can't be read."""
    try:
        if path.exists() and not path.is_file():  # opening a FIFO would block
            return "it is not a regular file"
        return read_image(path, image_size)
    except OSError as error:
        return error.strerror or " ".join(str(error).split())[:200]
    # Pillow's decoders raise almost anything on a damaged file (SyntaxError, struct.error, IndexError …).
    except Exception as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
