"""Any folder of pictures as one array of small square images."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps
from tqdm import tqdm

log = logging.getLogger(__name__)

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # whatever a file is called: Pillow would start Ghostscript for PostScript
MAX_PIXELS = 1 << 25  # 4 bytes each: 128 MiB while one picture is decoded
MAX_COPIED_PIXELS = 6_000_000  # 15 bytes each to blend a picture with white, 24 for WebP, whose decoder keeps copies
LARGE_PIXELS = 1 << 22
ONE_LARGE_AT_A_TIME = Lock()  # else every core would hold 200 MB
MAX_SKIPPED_SHARE = 0.05


class SourceFile(NamedTuple):
    """A picture, the number of its class, and what tells whether it has changed."""

    path: Path
    label: int
    size: int
    time: int


def find_images(data_dir: Path, split: str) -> tuple[list[SourceFile], tuple[str, ...]]:
    """All pictures of a split, sorted, and the class names: the folders of train/, or of test/ if that is all there is.

    Returns:
        An empty list if the split is "test" and there is no such folder.

    Raises:
        ValueError: the layout is another one, or a class has no pictures to train on.
    """
    if not data_dir.is_dir():
        raise ValueError(f"data_dir {str(data_dir)!r} is not a folder; it must hold train/<class>/* and test/<class>/*")
    train, wanted = data_dir / "train", data_dir / split
    if not wanted.is_dir() and split == "test":
        return [], ()
    if not wanted.is_dir():
        raise ValueError(f"{data_dir} has no folder {split}/; images must lie in {split}/<class>/*")
    classes = _class_names(train if train.is_dir() else wanted)
    files: list[SourceFile] = []
    ignored = 0
    for name in _class_names(wanted):
        if name not in classes:
            raise ValueError(f"{wanted / name} is a class that {train} does not have")
        entries = sorted(os.scandir(wanted / name), key=lambda entry: entry.name)
        pictures = [e for e in entries if e.is_file() and Path(e.name).suffix.lower() in EXTENSIONS]
        ignored += len(entries) - len(pictures)
        found = [
            SourceFile(Path(e.path), classes.index(name), e.stat().st_size, e.stat().st_mtime_ns) for e in pictures
        ]
        if not found and split == "train":
            raise ValueError(f"{wanted / name} holds no images ({', '.join(sorted(EXTENSIONS))})")
        files += found
    if not files:
        raise ValueError(f"{wanted} holds no images in folders named after classes")
    if ignored:
        log.warning(
            "%s: %d entries of class folders are no PNG, JPEG, WebP or BMP files and are ignored", wanted, ignored
        )
    return files, classes


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."))


def fill_from_files(target: Path, files: list[SourceFile], image_size: int) -> list[str]:
    """Decodes all pictures on all cores into `images.npy` and `labels.npy`.

    Returns:
        The unreadable ones that were left out, as `name (reason)`.

    Raises:
        ValueError: more than one and more than 5 % of the pictures can't be read.
    """
    shape = (len(files), 3, image_size, image_size)
    images = np.lib.format.open_memmap(target / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    problems: dict[int, str] = {}

    def decode(number: int) -> None:
        try:
            images[number] = read_image(files[number].path, image_size)
        # Pillow's decoders raise almost anything on a damaged file (SyntaxError, struct.error, IndexError …).
        except Exception as error:
            problems[number] = f"{files[number].path} ({' '.join(str(error).split())[:200] or type(error).__name__})"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(decode, range(len(files)))
        for _ in tqdm(results, total=len(files), desc="decoding images", unit="image", disable=None, leave=False):
            pass
    images.flush()
    skipped = [problems[number] for number in sorted(problems)]
    if len(skipped) > max(1, MAX_SKIPPED_SHARE * len(files)) or len(skipped) == len(files):
        raise ValueError(f"{len(skipped)} of {len(files)} images can't be read: {'; '.join(skipped[:3])} …")
    kept = np.array([number for number in range(len(files)) if number not in problems])
    if skipped:
        compact = images[kept]
        del images
        np.save(target / "images.npy", compact, allow_pickle=False)
    labels = np.array([file.label for file in files], dtype=np.int64)
    np.save(target / "labels.npy", labels[kept], allow_pickle=False)
    return skipped


def read_image(path: Path, image_size: int) -> np.ndarray:
    """One picture, upright, on white, its short side resized to `image_size` and its centre cut out: uint8 [3, S, S].

    Raises:
        ValueError: it has more than 32 million pixels to hold (6 million if it is a WebP or transparent).
        OSError: it can't be decoded.
    """
    with Image.open(path, formats=FORMATS) as image:
        _check_pixels(image, image_size)
        with ONE_LARGE_AT_A_TIME if image.width * image.height > LARGE_PIXELS else nullcontext():
            ImageOps.exif_transpose(image, in_place=True)
            square = ImageOps.fit(_to_rgb(image), (image_size, image_size), method=Image.Resampling.BICUBIC)
    return np.asarray(square).transpose(2, 0, 1)


def _check_pixels(image: ImageFile.ImageFile, image_size: int) -> None:
    """Refuses pictures whose decoding takes more than 200 MB; sets JPEGs to be decoded at a fraction of their size."""
    width, height = image.size
    image.draft("RGB", (image_size, image_size))
    if width * height <= MAX_PIXELS or not _has_several_scans(image):
        width, height = image.size
    limit = min(MAX_PIXELS, MAX_COPIED_PIXELS) if image.format == "WEBP" or image.has_transparency_data else MAX_PIXELS
    if width * height > limit:
        raise ValueError(f"{width} × {height} pixels are more than {limit}")


def _has_several_scans(image: ImageFile.ImageFile) -> bool:
    """Whether it is a JPEG whose decoder keeps all coefficients, whatever the size it shall give."""
    if "progressive" in image.info:
        return True
    if image.format not in {"JPEG", "MPO"}:
        return False
    assert image.fp is not None
    # Pillow has read to the start of the first scan, and seeks before it decodes.
    return b"\xff\xda" in image.fp.read().partition(b"\xff\xd9")[0]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16-bit gray, which Pillow would clip instead of scale
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
