"""Safetensors files: read safely, whoever made them, and written with the description of a checkpoint as metadata.

Such a file is the length of its header (8 bytes), the header (JSON: type, shape and offsets of each tensor, and
metadata, which are strings by name), and the bytes of the tensors. The package `safetensors` checks that every tensor
lies within the file and that each byte belongs to one tensor; the size and the metadata of the header are checked here
first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from resnet_train.runs.archive import MAX_VALUES, check_extent
from resnet_train.runtime.extras import import_extra
from resnet_train.runtime.seal import is_intact, seal
from resnet_train.text import one_line

KEY = "resnet_train"  # the only key in the metadata, because the package does not keep the order of keys
LENGTH_BYTES = 8  # the header's length, little-endian
# A tensor takes about 100 bytes of the header. Parsing takes up to 30 bytes of memory for each.
MAX_HEADER_BYTES = 2_000_000


def is_safetensors(path: Path) -> bool:
    """Return whether a regular file starts like a safetensors file; no archive has a { at this place."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            start = file.read(LENGTH_BYTES + 1)
    except OSError:
        return False
    return start.endswith(b"{") and start[:2] != b"PK" and len(start) > LENGTH_BYTES


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file, on the CPU, and its metadata.

    Raises:
        ValueError: the file is missing, is not a regular file, is damaged, or the package safetensors is not installed.
    """
    return _parse(_read(path), path)


def read_description(path: Path) -> dict[str, Any]:
    """Return the contents of a checkpoint from a file that `encode_safetensors` made.

    Raises:
        ValueError: see `read_safetensors`; or the file was made by another program, or was changed.
    """
    data = _read(path)
    weights, metadata = _parse(data, path)
    if KEY not in metadata:
        raise ValueError(f"{path} is not a checkpoint of resnet_train: its metadata has no {KEY!r}")
    try:
        description = json.loads(metadata[KEY], object_pairs_hook=_without_duplicates)
        check_extent(description, MAX_VALUES)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}") from None
    if not isinstance(description, dict) or not is_intact(data, description.pop("sha256", None)):
        raise ValueError(f"{path} is damaged: it does not have the SHA-256 that its metadata gives")
    if "optimizer" in description:
        raise ValueError(f"{path} describes the state of a run, which is not stored as safetensors")
    return {**description, "model": weights}


def encode_safetensors(description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> bytes:
    """Return a file with these weights; the description, of plain values, becomes metadata.

    Raises:
        ValueError: the package safetensors is not installed.
    """
    save = import_extra("safetensors.torch", "safetensors").save

    def encode(digest: str) -> bytes:
        return save(dict(weights), metadata={KEY: json.dumps({"sha256": digest, **description})})

    return seal(encode)


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # opening a FIFO would block
            raise ValueError(f"cannot read {path}: it is not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None


def _parse(data: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata in the bytes of the file at `path`."""
    load = import_extra("safetensors.torch", str(path)).load
    try:
        metadata = _read_metadata(data)
        return load(data), metadata
    except Exception as error:  # torch and safetensors raise many kinds on wrong shapes and types
        raise ValueError(f"{path} is damaged or not a safetensors file: {one_line(error)}") from None


def _read_metadata(data: bytes) -> dict[str, str]:
    """Return the metadata of a file.

    Raises:
        ValueError: the header is too long, is not a JSON object, or names something twice.
    """
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, len(data) - LENGTH_BYTES):
        raise ValueError(f"its header has {length:,} bytes, more than {MAX_HEADER_BYTES:,}")
    header = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length], object_pairs_hook=_without_duplicates)
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata does not map names to strings")
    return metadata


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; readers disagree about which of two equal names counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name appears twice")
    return found
