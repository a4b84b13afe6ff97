"""Your own images: folders of pictures as one array of small square images."""

from __future__ import annotations

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from pydantic import Field, PositiveFloat
from tqdm import tqdm

from resnet_train.data.cache import CacheSource, Facts, open_or_build
from resnet_train.data.dataset import DATASETS, ImageDataset, channel_statistics
from resnet_train.data.layout import Listing, SourceFile, count_kinds, find_images, to_text
from resnet_train.data.pictures import read_image
from resnet_train.runtime.files import explain_write_errors

log = logging.getLogger(__name__)

NAMED_UNREADABLE = 5  # files named in the warning; train.log has all of them
COPIED_AT_ONCE = 1024  # images


class FolderFacts(Facts):
    """What a cache of pictures also stores.

    Attributes:
        mean, std: Mean and standard deviation of the pixels per channel, on a 0–1 scale.
        unreadable: The files that were skipped, as `path (reason)`.
        unreadable_indices: Their positions among all files.
    """

    mean: tuple[float, ...] = Field(min_length=3, max_length=3)
    std: tuple[PositiveFloat, ...] = Field(min_length=3, max_length=3)
    unreadable: tuple[str, ...]
    unreadable_indices: tuple[int, ...] = ()


@DATASETS.register("folder")
def folder(split: str, data_dir: Path, image_size: int, test_size: int, max_unreadable: float) -> ImageDataset | None:
    """Your own images of any size: train/, val/ and test/ with a folder for each class, or the class folders alone."""
    listing = find_images(data_dir, split, test_size)
    if listing is None:
        return None
    if listing.skipped:
        log.warning("%s: %s", to_text(str(listing.folder)), count_kinds(listing.skipped))

    # The cache belongs to these files: adding, removing, renaming or changing a file changes the fingerprint.
    lines = "\n".join(f"{path.relative_to(data_dir)} {size} {time}" for path, _, size, time in listing.files)
    digest = hashlib.blake2b(f"{listing.classes}\n{lines}".encode("utf-8", "surrogateescape")).hexdigest()
    source = CacheSource(
        dataset="folder",
        split=split,
        image_size=image_size,
        fingerprint=digest,
        num_classes=len(listing.classes),
        classes=listing.classes,
    )

    def fill(target: Path) -> FolderFacts:
        """Write the arrays of a cache, and return what the files say about them."""
        unreadable = fill_from_files(target, listing.files, image_size, max_unreadable)
        mean, std = channel_statistics(np.load(target / "images.npy", mmap_mode="r", allow_pickle=False))
        return FolderFacts(
            classes=listing.classes,
            mean=mean,
            std=std,
            unreadable=tuple(unreadable.values()),
            unreadable_indices=tuple(unreadable),
        )

    cached = open_or_build(data_dir, source, FolderFacts, fill)
    facts = cached.facts
    _check_unreadable(list(facts.unreadable), len(listing.files), max_unreadable)
    if split == "train":
        _check_classes(cached.labels, listing)
    _warn_about_unreadable(facts.unreadable, split)
    skipped = (*facts.unreadable, *(f"{to_text(str(path))} ({kind})" for path, kind in listing.skipped))
    left_out = set(facts.unreadable_indices)
    paths = [file.path.relative_to(data_dir) for index, file in enumerate(listing.files) if index not in left_out]
    return ImageDataset(
        images=cached.images,
        labels=cached.labels,
        classes=listing.classes,
        mean=facts.mean,
        std=facts.std,
        title=f"folder {to_text(data_dir.resolve().name)}",
        fingerprint=cached.fingerprint,
        skipped=skipped,
        files=tuple(paths) if len(paths) == len(cached.labels) else None,  # an older cache may not know
    )


def _warn_about_unreadable(unreadable: tuple[str, ...], split: str) -> None:
    if unreadable:
        more = len(unreadable) - NAMED_UNREADABLE
        named = "; ".join(unreadable[:NAMED_UNREADABLE]) + (f" and {more} more" if more > 0 else "")
        log.warning("skipped %d unreadable image(s) in %s/: %s", len(unreadable), split, named)


def _check_unreadable(unreadable: list[str], num_files: int, max_unreadable: float) -> None:
    """Check that at most a few files are unreadable: many are a mistake that the user must know about.

    Raises:
        ValueError: More are unreadable, and more than one unless none is allowed; or no file can be read.
    """
    limit = max(1, max_unreadable * num_files) if max_unreadable else 0
    if len(unreadable) > limit or len(unreadable) == num_files:
        remedy = "" if len(unreadable) == num_files else f"; --max-unreadable {max_unreadable:g} allows fewer"
        listed = "; ".join(unreadable[:3]) + (" …" if len(unreadable) > 3 else "")
        raise ValueError(f"{len(unreadable)} of {num_files} images can't be read: {listed}{remedy}")


def _check_classes(labels: np.ndarray, listing: Listing) -> None:
    """Raise if a class has lost all of its training images."""
    counts = np.bincount(labels, minlength=len(listing.classes))
    if not counts.all():
        name = listing.classes[int(counts.argmin())]
        raise ValueError(f"class {name!r} has no image that can be read in {listing.folder}; remove its folder")


def fill_from_files(target: Path, files: list[SourceFile], image_size: int, max_unreadable: float) -> dict[int, str]:
    """Decode all pictures on all cores into `images.npy` and `labels.npy`.

    Returns:
        The unreadable files, which are skipped, as `path (reason)` by index, in order.

    Raises:
        ValueError: Too many pictures can't be read.
        OSError: The disk is full.
    """
    problems = _decode(files, image_size, target / "images.npy")
    unreadable = dict(sorted(problems.items()))
    _check_unreadable(list(unreadable.values()), len(files), max_unreadable)
    kept = np.array([index for index in range(len(files)) if index not in problems])
    if unreadable:
        _copy(target / "images.npy", kept, target / "kept.npy")
        (target / "kept.npy").replace(target / "images.npy")  # Windows would refuse if one of them were still mapped
    labels = np.array([file.label for file in files], dtype=np.int64)
    np.save(target / "labels.npy", labels[kept], allow_pickle=False)
    return unreadable


def _decode(files: list[SourceFile], image_size: int, path: Path) -> dict[int, str]:
    """Decode all pictures into an array file; return those that can't be read, as `path (reason)` by index."""
    images = _create_array(path, (len(files), 3, image_size, image_size))
    problems: dict[int, str] = {}

    def decode(index: int) -> None:
        """Decode a picture into its place, or note why it can't be read."""
        try:
            images[index] = read_image(files[index].path, image_size)
        # Pillow's decoders raise almost anything on a damaged file (SyntaxError, struct.error, IndexError …).
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            problems[index] = f"{to_text(str(files[index].path))} ({reason})"

    # Pillow releases the interpreter lock while it decodes, so threads use all cores.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(decode, range(len(files)))
        for _ in tqdm(results, total=len(files), desc="decoding images", unit="image", disable=None, leave=False):
            pass
    images.flush()
    return problems


def _create_array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Create an array file whose bytes are allocated: on a full disk, writing to a mapped hole kills the process."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with explain_write_errors(path, array.nbytes), path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _copy(source: Path, kept: np.ndarray, target: Path) -> None:
    """Write some of the images of an array file to another file, in parts."""
    images = np.load(source, mmap_mode="r", allow_pickle=False)
    compact = _create_array(target, (len(kept), *images.shape[1:]))
    for start in range(0, len(kept), COPIED_AT_ONCE):
        part = slice(start, start + COPIED_AT_ONCE)
        compact[part] = images[kept[part]]
    compact.flush()
