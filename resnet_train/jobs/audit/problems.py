"""Pictures that can't be read, or that are unlike the others of their data set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from resnet_train.data.dataset import ImageDataset
from resnet_train.data.layout import find_images, to_text
from resnet_train.data.pictures import Header, read_header
from resnet_train.jobs.audit.result import Problem, Share

MAX_ASPECT = 2.0  # beyond this aspect ratio, the square crop drops more than half of a picture
MAX_SIZE_RATIO = 4.0  # between a picture's short side and the median
RARE_SHARE = 0.01  # share of the pictures up to which a mode is called rare
BLANK_DEVIATION = 2.0  # standard deviation in gray levels (of 255) below which a picture shows nothing
READ_AT_ONCE = 1024


def find_unreadable(split: str, images: ImageDataset, data_dir: Path) -> list[Problem]:
    """Return the picture files of a split that are not among its images, and why."""
    listing = find_images(data_dir, split)
    if listing is None or images.files is None:
        return []
    read = set(images.files)
    missing = [path for path in (file.path for file in listing.files) if path.relative_to(data_dir) not in read]
    return [
        Problem(
            split=split,
            image=path.relative_to(data_dir).as_posix(),
            kind="unreadable",
            detail=text.removeprefix(f"{to_text(str(path))} (").removesuffix(")"),
        )
        for path, text in zip(missing, images.skipped)
    ]


def find_blank(split: str, images: ImageDataset) -> list[Problem]:
    """Return the images whose pixels are nearly all alike."""
    problems = []
    for start in range(0, len(images), READ_AT_ONCE):
        deviations = images.images[start : start + READ_AT_ONCE].std(axis=(2, 3)).max(axis=1)
        for index in np.flatnonzero(deviations < BLANK_DEVIATION).tolist():
            name = images.name_of(start + index)
            problems.append(Problem(split=split, image=name, kind="blank", detail="all pixels are nearly alike"))
    return problems


def read_headers(files: Sequence[Path], data_dir: Path) -> list[Header | None]:
    """Return the header of each picture file, None if it can no longer be read."""

    def read(path: Path) -> Header | None:
        with suppress(OSError, ValueError):
            return read_header(data_dir / path)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(read, files)
        bar = tqdm(results, total=len(files), desc="sizes", unit="image", disable=None, leave=False)
        return list(bar)


def find_odd(split: str, files: Sequence[Path], headers: Sequence[Header | None], image_size: int) -> list[Problem]:
    """Return the pictures whose size, shape or mode is unlike that of the others."""
    known = [(path, header) for path, header in zip(files, headers) if header is not None]
    if not known:
        return []
    modes = Counter(header.mode for _, header in known)
    median = float(np.median([min(header.width, header.height) for _, header in known]))
    problems = []
    for path, header in known:
        short, long = sorted((header.width, header.height))
        size = f"{header.width} × {header.height} pixels"
        findings = []
        if short < image_size <= median:
            findings.append(("size", f"{size}, enlarged to {image_size}"))
        elif not 1 / MAX_SIZE_RATIO <= short / median <= MAX_SIZE_RATIO:
            findings.append(("size", f"{size}, where the short side of most is about {median:g}"))
        if long > MAX_ASPECT * short:
            findings.append(("shape", f"{size}: the square crop drops {1 - short / long:.0%}"))
        if modes[header.mode] <= RARE_SHARE * len(known):
            findings.append(("mode", f"{header.mode}, like {modes[header.mode]:,} of {len(known):,} pictures"))
        problems += [Problem(split=split, image=path.as_posix(), kind=kind, detail=detail) for kind, detail in findings]
    return problems


def count_shares(values: Iterable[str]) -> tuple[Share, ...]:
    """Return how often each value occurs, most frequent first."""
    counts = Counter(values)
    return tuple(Share(name=name, n=n) for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
