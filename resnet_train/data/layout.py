"""Find the files of a folder that are the pictures of a split, and the class of each."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_train.data.dataset import hold_out
from resnet_train.data.pictures import HEIC_REMEDY

EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".tif", ".tiff", ".gif"),
    *(".bmp", ".ppm", ".pgm", ".pbm", ".pnm"),
)
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
# Folders that systems and programs leave among pictures; hidden ones are always skipped.
LEFT_OUT = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
EXPECTED = "it must hold train/<class>/* and, if you have them, val/<class>/* and test/<class>/*; or <class>/*"


class SourceFile(NamedTuple):
    """A picture, its label, and the size and time that tell whether it has changed."""

    path: Path
    label: int
    size: int
    time: int


@dataclass
class Listing:
    """The pictures of a split.

    Attributes:
        files: The pictures, by class, folder and name.
        classes: The class names, sorted.
        folder: Where they are.
        skipped: Everything else in the class folders: the path and its kind, such as ".txt".
    """

    files: list[SourceFile]
    classes: tuple[str, ...]
    folder: Path
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def to_text(name: str) -> str:
    """Return a file name as text that can be written anywhere: in NFC, with escapes for bytes that are not UTF-8."""
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:  # text of a checkpoint, which has more characters than file names have in this locale
        encoded = name.encode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", encoded.decode("utf-8", "backslashreplace"))


def find_layout(data_dir: Path) -> dict[str, Path]:
    """Return the folder of each split that exists; a flat folder of classes is all training images.

    Raises:
        ValueError: It is not a folder, or a split has two folders.
    """
    if not data_dir.is_dir():
        raise ValueError(f"data_dir {str(data_dir)!r} is not a folder; {EXPECTED}")
    folders = _folders_in(data_dir)
    found: dict[str, Path] = {}
    for split, names in SPLIT_FOLDERS.items():
        matches = [path for path in folders if path.name.lower() in names]
        if len(matches) > 1:
            raise ValueError(f"{data_dir} has both {matches[0].name}/ and {matches[1].name}/; keep one of them")
        if matches:
            found[split] = matches[0]

    # A class may be called train, like the vehicle: it has pictures, not classes, and other classes next to it.
    if found and len(folders) > len(found) and not any(_folders_in(path) for path in found.values()):
        found = {}
    return found or {"train": data_dir}


def find_images(data_dir: Path, split: str, test_size: int = 0) -> Listing | None:
    """Return the pictures of a split, or None if there are no such pictures.

    The classes are the folders of the training images, or those of the split if there is no train/. Without a folder
    of test images, `test_size` of the training images become the test images.

    Raises:
        ValueError: The layout is not as expected, or a class has no training images.
    """
    layout = find_layout(data_dir)
    if split not in layout:
        if split == "train":
            raise ValueError(f"{data_dir} has no folder train/; {EXPECTED}")
        if split == "val" or not test_size or "train" not in layout:
            return None
    if test_size and split == "train" and "test" in layout:
        raise ValueError(f"test_size (={test_size}) has no effect: {data_dir} has a folder {layout['test'].name}/")
    folder = layout.get(split, layout.get("train", data_dir))
    classes = _find_classes(layout.get("train", folder))
    listing = _list_split(folder, tuple(classes), is_train=folder == layout.get("train"))
    if not test_size or split == "val" or "test" in layout:
        return listing
    rest, held = hold_out(np.array([file.label for file in listing.files]), test_size, "test_size")
    listing.files = [listing.files[i] for i in np.sort(rest if split == "train" else held)]
    if split == "test":  # named with the training images
        listing.skipped = []
    return listing


def count_kinds(skipped: list[tuple[Path, str]]) -> str:
    """Return how many files of each kind were skipped, such as `14 skipped: 12 .svg, 2 .txt`."""
    counts = Counter(kind for _, kind in skipped)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    remedy = f"; {HEIC_REMEDY}" if {".heic", ".heif"} & counts.keys() else ""
    return f"{len(skipped)} skipped: {kinds}{remedy}"


def _folders_in(directory: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden and system folders."""
    with os.scandir(directory) as entries:
        names = [e.name for e in entries if e.name[0] != "." and e.name not in LEFT_OUT and _is(e, "dir")]
    return [directory / name for name in sorted(names)]


def _is(entry: os.DirEntry[str], kind: str) -> bool:
    """Return whether an entry, or what it links to, is a "file" or "dir"; a link to itself is neither."""
    try:
        return entry.is_file() if kind == "file" else entry.is_dir()
    except OSError:
        return False


def _find_classes(directory: Path) -> dict[str, list[Path]]:
    """Return the folders of each class, sorted by name; names that differ only in NFC and NFD are one class."""
    classes: dict[str, list[Path]] = {}
    for path in _folders_in(directory):
        classes.setdefault(to_text(path.name), []).append(path)
    return dict(sorted(classes.items()))


def _list_split(folder: Path, classes: tuple[str, ...], *, is_train: bool) -> Listing:
    """Collect the pictures class by class; training classes must not be empty, others may.

    Raises:
        ValueError: A class is unknown, a training class is empty, or there are no pictures.
    """
    listing = Listing([], classes, folder)
    with os.scandir(folder) as entries:
        loose = [Path(e.path) for e in entries if e.name[0] != "." and _is_picture(e.name) and _is(e, "file")]
    listing.skipped = [(path, f"{path.suffix.lower()} outside the class folders") for path in sorted(loose)]
    for name, folders in _find_classes(folder).items():
        if name not in classes:
            raise ValueError(f"{folders[0]} is a class that the training images do not have ({', '.join(classes)})")
        pictures, skipped = _walk(folders, outside={_identity(folder), _identity(folder.parent)})
        listing.skipped += skipped
        if not pictures and is_train:
            found = f"; {count_kinds(skipped)}" if skipped else ""
            raise ValueError(f"{folders[0]} holds no images ({', '.join(sorted(EXTENSIONS))}){found}")
        label = classes.index(name)
        for path in pictures:
            stat = path.stat()
            listing.files.append(SourceFile(path, label, stat.st_size, stat.st_mtime_ns))
    if not listing.files:
        raise ValueError(f"{folder} holds no images in folders named after classes")
    return listing


def _walk(folders: list[Path], outside: set[tuple[int, int]]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Return the pictures in folders and their subfolders, by folder and name, and the path and kind of all else.

    Every folder is entered once, so links that form a loop do no harm.
    """
    pictures: list[Path] = []
    skipped: list[tuple[Path, str]] = []
    entered, pending = set(outside), list(reversed(folders))
    while pending:
        folder = pending.pop()
        if (identity := _identity(folder)) in entered:
            skipped.append((folder, "link to a folder already read"))
            continue
        entered.add(identity)
        subfolders = []
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = Path(entry.path)
                if entry.name[0] == "." or entry.name in LEFT_OUT:
                    skipped.append((path, _hidden_kind(path)))
                elif _is(entry, "dir"):
                    subfolders.append(path)
                elif not _is(entry, "file"):
                    skipped.append((path, "broken link" if entry.is_symlink() else "special file"))
                elif _is_picture(entry.name):
                    pictures.append(path)
                else:
                    skipped.append((path, to_text(path.suffix.lower()) or "without extension"))
        pending += reversed(subfolders)
    return sorted(pictures, key=lambda path: (str(path.parent), path.name)), skipped


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in EXTENSIONS


def _hidden_kind(path: Path) -> str:
    """Return the kind of a hidden file or folder: its name, or what many of them have in common."""
    if path.name.startswith("._"):
        return "._*"
    return f"hidden {to_text(path.suffix.lower())}" if path.suffix else to_text(path.name)
