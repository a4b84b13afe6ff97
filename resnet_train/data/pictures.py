"""One picture file as a small square array, decoded within the memory that all threads share."""

from __future__ import annotations

import bisect
import io
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from threading import Condition, Lock
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, features

# The format of a file is read from its content. Pillow knows more formats, and would run Ghostscript for PostScript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", *(["AVIF"] if features.check("avif") else []))
FORMAT_NAMES = "PNG, JPEG, WebP, AVIF, TIFF, GIF, BMP or PNM"
HEAD_BYTES = 64
HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
HEIC_REMEDY = "HEIC can't be read: convert it to JPEG, for example with `magick mogrify -format jpg *.heic`"
AVIF_REMEDY = "this Pillow has no AVIF decoder: upgrade it (`pip install -U pillow`), or convert the picture to JPEG"

MEMORY_BYTES = 1 << 29  # 512 MiB for all pictures that are being decoded
LARGE_BYTES = 1 << 25  # pictures that take more are decoded one at a time
MAX_PIXELS = 60_000_000  # after a JPEG was reduced while decoding; a larger file is considered a bomb

# Bytes per pixel that Pillow keeps, and that conversion to RGB takes; 4 and 4 for other modes.
KEPT_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2}
COPIED_BYTES = {"1": 1, "L": 0, "P": 4, "I;16": 6, "I;16L": 6, "I;16B": 6}
WEBP_BYTES, AVIF_BYTES = 20, 12  # per pixel in their decoders, which keep several copies


class MemoryBudget:
    """Bytes that threads share: a thread waits until what it needs is free, first come, first served."""

    def __init__(self, num_bytes: int) -> None:
        self.free = num_bytes
        self.turn = Lock()
        self.changed = Condition()

    @contextmanager
    def claim(self, num_bytes: int) -> Iterator[None]:
        """Reserve `num_bytes` of the budget inside the `with` block; wait until they are free."""
        with self.turn, self.changed:
            self.changed.wait_for(lambda: self.free >= num_bytes)
            self.free -= num_bytes
        try:
            yield
        finally:
            with self.changed:
                self.free += num_bytes
                self.changed.notify()


BUDGET = MemoryBudget(MEMORY_BYTES)
# One thread decodes all large pictures in turn: the C library keeps up to 64 MB in the heap of each thread.
LARGE = ThreadPoolExecutor(1, "large picture")


def read_image(path: Path, image_size: int) -> np.ndarray:
    """Read one picture as uint8 [3, S, S]: upright, on white, short side resized to `image_size`, center cropped.

    Raises:
        ValueError: Its format can't be read, or it has more pixels than fit into `MAX_PIXELS` or `MEMORY_BYTES`.
        OSError: It can't be decoded.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        _check_known(head)
        if head.startswith(b"RIFF"):  # the WebP decoder takes its memory when it is opened
            width, height = _webp_size(head)
            num_bytes = WEBP_BYTES * width * height
            decode = partial(_decode, partial(_open, file, head), num_bytes, image_size)
        else:
            image = _open(_without_texts(file) if head.startswith(b"\x89PNG") else file, head)
            decoder_bytes = _decoder_bytes(image, image_size)
            width, height = image.size  # the size it is decoded at
            num_bytes = decoder_bytes + _pixel_bytes(image) * width * height
            decode = partial(_decode, lambda: image, num_bytes, image_size)
        _check_size(width, height, num_bytes)
        return LARGE.submit(decode).result() if num_bytes > LARGE_BYTES else decode()


@dataclass(frozen=True)
class Header:
    """What a picture says about itself before it is decoded: its format, Pillow's name of its mode, and its size."""

    format: str
    mode: str
    width: int
    height: int


def read_header(path: Path) -> Header:
    """Read the header of a picture.

    Raises:
        ValueError: Its format can't be read or its header is damaged.
        OSError: It can't be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if head.startswith(b"RIFF"):  # opening it would decode it
            return Header("WEBP", "RGBA" if _webp_has_alpha(head) else "RGB", *_webp_size(head))
        image = _open(file, head)
        return Header(str(image.format), image.mode, *image.size)


def to_pixels(picture: Image.Image | np.ndarray, image_size: int) -> np.ndarray:
    """Return a picture in memory as uint8 [3, S, S], exactly as `read_image` returns it from a file.

    Args:
        picture: A PIL image, or uint8 pixels [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels.
        image_size: S.

    Raises:
        ValueError: The pixels have another type, range or shape.
    """
    if isinstance(picture, np.ndarray):
        picture = _from_array(picture)
    elif isinstance(picture, ImageFile.ImageFile) and picture.tile and os.path.isfile(picture.filename):  # noqa: PTH113
        # It is not decoded yet: a file is decoded only as far as needed, which differs from decoding and reducing.
        return read_image(Path(os.fsdecode(picture.filename)), image_size)
    upright = ImageOps.exif_transpose(picture)  # a copy, so that the caller's picture stays unchanged
    return np.asarray(_to_square(upright, image_size)).transpose(2, 0, 1)


def _from_array(pixels: np.ndarray) -> Image.Image:
    """Return an array as a PIL image."""
    if pixels.dtype != np.uint8:
        raise ValueError(f"a picture must have uint8 pixels from 0 to 255, not {pixels.dtype}")
    channels = (1, 3, 4)
    if pixels.ndim == 3 and pixels.shape[2] not in channels and pixels.shape[0] in channels:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in channels) or 0 in pixels.shape:
        raise ValueError(f"a picture must be [H, W], [H, W, C] or [C, H, W] with C 1, 3 or 4, not {list(pixels.shape)}")
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


# --- Opening ---------------------------------------------------------------------------------------------------------


def _check_known(head: bytes) -> None:
    """Raise with a remedy if a file has a format that people often have and Pillow can't read."""
    if head[4:8] != b"ftyp":
        return
    brands = {head[8:12], *(head[i : i + 4] for i in range(16, len(head), 4))}
    if brands & {b"avif", b"avis"}:
        if "AVIF" not in FORMATS:
            raise ValueError(AVIF_REMEDY)
    elif brands & HEIC_BRANDS:
        raise ValueError(HEIC_REMEDY)


def _open(file: IO[bytes], head: bytes) -> ImageFile.ImageFile:
    """Open a picture of a known format.

    `Image.open` would do the same, but refuses JPEGs by their pixels that can be reduced while decoding.

    Raises:
        ValueError: Its format is unknown or its header is damaged.
    """
    Image.init()
    reason = ""
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        try:
            if accept is not None and accept(head) in (False, ""):
                continue
            file.seek(0)
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            reason = f": {error}"
    raise ValueError(f"it is not a {FORMAT_NAMES} picture{reason}")


def _webp_size(head: bytes) -> tuple[int, int]:
    """Return the width and height, which the three kinds of WebP store in different places."""
    kind = head[12:16]
    if kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    raise ValueError("it is not a WebP picture")


def _webp_has_alpha(head: bytes) -> bool:
    """Return whether a WebP says that it has transparent pixels."""
    return {b"VP8X": bool(head[20] & 0x10), b"VP8L": bool(head[24] & 0x10)}.get(head[12:16], False)


class _Parts(io.RawIOBase):
    """Parts of a file, read as if they were the whole file."""

    def __init__(self, file: IO[bytes], parts: list[tuple[int, int]]) -> None:
        self.file, self.starts = file, [start for start, _ in parts]
        self.ends = list(accumulate(length for _, length in parts))  # positions in the joined parts
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.ends[-1]}[whence]
        self.position = max(0, base + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from one part, and return the number of bytes; fewer than it takes are no end of the file."""
        part = bisect.bisect_right(self.ends, self.position)
        if part == len(self.ends):
            return 0
        start = self.ends[part - 1] if part else 0
        self.file.seek(self.starts[part] + self.position - start)
        content = self.file.read(min(len(buffer), self.ends[part] - self.position))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


def _without_texts(file: IO[bytes]) -> IO[bytes]:
    """Return a PNG without its text and color profile: Pillow refuses large ones, which are not needed here."""
    num_bytes = os.fstat(file.fileno()).st_size
    parts, position = [(0, 8)], 8
    while position < num_bytes:
        file.seek(position)
        header = file.read(8)
        length = min(12 + int.from_bytes(header[:4], "big"), num_bytes - position)
        if header[4:] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            parts.append((position, length))
        position += length
    return io.BufferedReader(_Parts(file, parts))


# --- Memory ----------------------------------------------------------------------------------------------------------


def _check_size(width: int, height: int, num_bytes: int) -> None:
    """Check that a picture may be decoded.

    Raises:
        ValueError: It has too many pixels, or takes more memory than is available for pictures.
    """
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} × {height} pixels are more than {MAX_PIXELS}, the limit for one picture: reduce it")
    if num_bytes > MEMORY_BYTES:
        raise ValueError(
            f"{width} × {height} pixels are more than fit: they take {num_bytes >> 20} MiB while they are decoded, and "
            f"the limit is {MEMORY_BYTES >> 20} MiB: reduce the picture"
        )


def _pixel_bytes(image: Image.Image) -> int:
    """Return the bytes per pixel for the decoded picture and for a copy that is rotated, converted or premultiplied."""
    kept = KEPT_BYTES.get(image.mode, 4)
    copied = COPIED_BYTES.get(image.mode, 4)
    if image.has_transparency_data and image.mode not in ("RGBA", "LA", "PA"):
        copied = 8
    return kept + max(kept, copied)


def _decoder_bytes(image: ImageFile.ImageFile, image_size: int) -> int:
    """Return the bytes that a decoder keeps besides the picture; let JPEGs be decoded at a fraction of their size."""
    width, height = image.size
    if image.format in ("JPEG", "MPO"):
        several_scans = _has_several_scans(image)
        image.draft("RGB", (image_size, image_size))
        if not several_scans:
            return 0
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} × {height} pixels are more than {MAX_PIXELS} in a progressive JPEG: reduce it")
        sampling = [(across, down) for _, across, down, _ in image.layer]  # type: ignore[attr-defined]
        largest = max(across for across, _ in sampling) * max(down for _, down in sampling)
        return 2 * width * height * sum(across * down for across, down in sampling) // largest  # of coefficients
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits = sum(tags.get(258, (1,)))
        strip, tile = min(tags.get(278, height), height) * width, tags.get(322, 0) * tags.get(323, 0)
        return max(strip, tile) * max(32, bits) // 8
    return AVIF_BYTES * width * height if image.format == "AVIF" else 0


def _has_several_scans(image: ImageFile.ImageFile) -> bool:
    """Return whether it is a JPEG whose decoder keeps all coefficients, whatever size it decodes at."""
    if "progressive" in image.info:
        return True
    assert image.fp is not None
    # Pillow has read up to the start of the first scan, and seeks before it decodes.
    return b"\xff\xda" in image.fp.read().partition(b"\xff\xd9")[0]


# --- Pixels ----------------------------------------------------------------------------------------------------------


def _decode(open_image: Callable[[], ImageFile.ImageFile], num_bytes: int, image_size: int) -> np.ndarray:
    """Return uint8 [3, S, S]; the memory of the picture is free again before the claim to it ends."""
    with BUDGET.claim(num_bytes), closing(open_image()) as image:
        return np.asarray(_to_square(image, image_size)).transpose(2, 0, 1)


def _to_square(image: Image.Image, image_size: int) -> Image.Image:
    """Return the upright picture as RGB [S, S] on white; transparent pixels are blended after it is reduced."""
    ImageOps.exif_transpose(image, in_place=True)
    square = ImageOps.fit(_to_bands(image), (image_size, image_size), method=Image.Resampling.BICUBIC)
    if square.mode in ("RGBA", "LA"):
        white = Image.new("RGBA", square.size, "white")
        square = Image.alpha_composite(white, square.convert("RGBA"))
    return square.convert("RGB")


def _to_bands(image: Image.Image) -> Image.Image:
    """Return the picture in a mode that can be resized: L, RGB, and LA or RGBA if it has transparent pixels.

    Raises:
        ValueError: Its pixels have 32 bits, whose range is unknown.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow would clip, not scale
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits and no fixed range: save it with 8 or 16 bits per channel")
    if image.has_transparency_data:
        return image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
    if image.mode in ("1", "L"):
        return image.convert("L")
    return image if image.mode == "RGB" else image.convert("RGB")
