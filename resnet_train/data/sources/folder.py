"""Your own images: folders of pictures as one array of small square images."""

from __future__ import annotations

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps
from tqdm import tqdm

from resnet_train.data.cache import open_or_build
from resnet_train.data.dataset import DATASETS, ImageDataset, channel_statistics

log = logging.getLogger(__name__)

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # whatever the file name says: Pillow would run Ghostscript for PostScript
MAX_PIXELS = 1 << 25  # 4 bytes each: 128 MiB while one picture is decoded
MAX_COPIED_PIXELS = 6_000_000  # 15 bytes each to blend a picture with white, 24 for WebP, whose decoder keeps copies
LARGE_PIXELS = 1 << 22
ONE_LARGE_AT_A_TIME = Lock()  # without it, every core could hold 200 MB
MAX_SKIPPED_SHARE = 0.05
NAMED_SKIPPED = 5  # unreadable files named in the warning


class SourceFile(NamedTuple):
    """A picture, its label, and the size and time that tell whether it has changed."""

    path: Path
    label: int
    size: int
    time: int


@DATASETS.register("folder")
def folder(split: str, data_dir: Path, image_size: int) -> ImageDataset | None:
    """Your own images: train/<class>/* and test/<class>/*, any size, PNG, JPEG, WebP or BMP."""
    files, classes = find_images(data_dir, split)
    if not files:
        return None

    # The cache belongs to these files: a file added, removed, renamed or changed gives another fingerprint.
    listing = "\n".join(f"{path.relative_to(data_dir)} {size} {time}" for path, _, size, time in files)
    fingerprint = hashlib.blake2b(f"{classes}\n{listing}".encode("utf-8", "surrogateescape")).hexdigest()

    def fill(target: Path) -> dict[str, Any]:
        skipped = fill_from_files(target, files, image_size)
        mean, std = channel_statistics(np.load(target / "images.npy", mmap_mode="r", allow_pickle=False))
        return {"mean": mean, "std": std, "skipped": skipped}

    cached = open_or_build(data_dir, f"folder-{split}-{image_size}", fingerprint, fill)
    _warn_about_skipped(cached.facts["skipped"], split)
    mean, std = tuple(cached.facts["mean"]), tuple(cached.facts["std"])
    title = f"folder {data_dir.resolve().name}"
    return ImageDataset(
        images=cached.images,
        labels=cached.labels,
        classes=classes,
        mean=mean,
        std=std,
        title=title,
        fingerprint=cached.fingerprint,
    )


def _warn_about_skipped(skipped: list[str], split: str) -> None:
    if skipped:
        more = f" and {len(skipped) - NAMED_SKIPPED} more" if len(skipped) > NAMED_SKIPPED else ""
        named = "; ".join(skipped[:NAMED_SKIPPED])
        log.warning("skipped %d unreadable image(s) in %s/: %s%s", len(skipped), split, named, more)


def find_images(data_dir: Path, split: str) -> tuple[list[SourceFile], tuple[str, ...]]:
    """Return all pictures of a split, sorted, and the class names.

    The classes are the folders of train/, or those of test/ if there is no train/. The list is empty if the split is
    "test" and there is no test/.

    Raises:
        ValueError: The layout is another one, or a class has no training images.
    """
    # Check the layout.
    if not data_dir.is_dir():
        raise ValueError(f"data_dir {str(data_dir)!r} is not a folder; it must hold train/<class>/* and test/<class>/*")
    train, wanted = data_dir / "train", data_dir / split
    if not wanted.is_dir() and split == "test":
        return [], ()
    if not wanted.is_dir():
        raise ValueError(f"{data_dir} has no folder {split}/; images must lie in {split}/<class>/*")
    classes = _class_names(train if train.is_dir() else wanted)

    # Collect the pictures class by class; a training class must not be empty, a test class may.
    files: list[SourceFile] = []
    num_ignored = 0
    for name in _class_names(wanted):
        if name not in classes:
            raise ValueError(f"{wanted / name} is a class that {train} does not have")
        entries = sorted(os.scandir(wanted / name), key=lambda entry: entry.name)
        pictures = [e for e in entries if e.is_file() and Path(e.name).suffix.lower() in EXTENSIONS]
        num_ignored += len(entries) - len(pictures)
        if not pictures and split == "train":
            raise ValueError(f"{wanted / name} holds no images ({', '.join(sorted(EXTENSIONS))})")
        label = classes.index(name)
        files += [SourceFile(Path(e.path), label, e.stat().st_size, e.stat().st_mtime_ns) for e in pictures]
    if not files:
        raise ValueError(f"{wanted} holds no images in folders named after classes")
    if num_ignored:
        log.warning("%s: ignoring %d entries of class folders that are not PNG, JPEG, WebP or BMP", wanted, num_ignored)
    return files, classes


def _class_names(directory: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and entry.name[0] != "."))


def fill_from_files(target: Path, files: list[SourceFile], image_size: int) -> list[str]:
    """Decode all pictures on all cores into `images.npy` and `labels.npy`.

    Returns:
        The unreadable files, which are left out, as `name (reason)`.

    Raises:
        ValueError: More than one and more than 5 % of the pictures can't be read.
    """
    # The array lies on disk, so it may be larger than the memory.
    shape = (len(files), 3, image_size, image_size)
    images = np.lib.format.open_memmap(target / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    problems: dict[int, str] = {}

    def decode(index: int) -> None:
        try:
            images[index] = read_image(files[index].path, image_size)
        # Pillow's decoders raise almost anything on a damaged file (SyntaxError, struct.error, IndexError …).
        except Exception as error:
            name = str(files[index].path).encode("utf-8", "backslashreplace").decode()  # it may not be UTF-8
            problems[index] = f"{name} ({' '.join(str(error).split())[:200] or type(error).__name__})"

    # Pillow releases the interpreter lock while it decodes, so threads use all cores.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(decode, range(len(files)))
        for _ in tqdm(results, total=len(files), desc="decoding images", unit="image", disable=None, leave=False):
            pass
    images.flush()

    # A few unreadable files are left out; many are a mistake that the user must know about.
    skipped = [problems[index] for index in sorted(problems)]
    if len(skipped) > max(1, MAX_SKIPPED_SHARE * len(files)) or len(skipped) == len(files):
        raise ValueError(f"{len(skipped)} of {len(files)} images can't be read: {'; '.join(skipped[:3])} …")
    kept = np.array([index for index in range(len(files)) if index not in problems])
    if skipped:
        compact = images[kept]
        del images
        np.save(target / "images.npy", compact, allow_pickle=False)
    labels = np.array([file.label for file in files], dtype=np.int64)
    np.save(target / "labels.npy", labels[kept], allow_pickle=False)
    return skipped


def read_image(path: Path, image_size: int) -> np.ndarray:
    """Read one picture as uint8 [3, S, S]: upright, on white, short side resized to `image_size`, center cropped.

    Raises:
        ValueError: It has more than 32 million pixels to hold in memory (6 million if it is a WebP or transparent).
        OSError: It can't be decoded.
    """
    with Image.open(path, formats=FORMATS) as image:
        _check_pixels(image, image_size)
        with ONE_LARGE_AT_A_TIME if image.width * image.height > LARGE_PIXELS else nullcontext():
            ImageOps.exif_transpose(image, in_place=True)
            square = ImageOps.fit(_to_rgb(image), (image_size, image_size), method=Image.Resampling.BICUBIC)
    return np.asarray(square).transpose(2, 0, 1)


def _check_pixels(image: ImageFile.ImageFile, image_size: int) -> None:
    """Raise if decoding would take more than 200 MB; let JPEGs be decoded at a fraction of their size."""
    # `draft` lets Pillow decode a JPEG at 1/2, 1/4 or 1/8 of its size.
    width, height = image.size
    image.draft("RGB", (image_size, image_size))
    if width * height <= MAX_PIXELS or not _has_several_scans(image):
        width, height = image.size  # the size it is decoded at
    copied = image.format == "WEBP" or image.has_transparency_data
    limit = min(MAX_PIXELS, MAX_COPIED_PIXELS) if copied else MAX_PIXELS
    if width * height > limit:
        raise ValueError(f"{width} × {height} pixels are more than {limit}")


def _has_several_scans(image: ImageFile.ImageFile) -> bool:
    """Return whether it is a JPEG whose decoder keeps all coefficients, whatever size it decodes at."""
    if "progressive" in image.info:
        return True
    if image.format not in {"JPEG", "MPO"}:
        return False
    assert image.fp is not None
    # Pillow has read up to the start of the first scan, and seeks before it decodes.
    return b"\xff\xda" in image.fp.read().partition(b"\xff\xd9")[0]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16-bit gray, which Pillow would clip instead of scale
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
