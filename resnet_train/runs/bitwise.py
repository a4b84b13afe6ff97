"""Compare nested tensors and primitives bit for bit, and name the first part that differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class Difference(Exception):
    """Two files of a run do not agree; the message says where."""


def compare_states(expected: Any, found: Any, where: str, source: str) -> int:
    """Compare nested values bit for bit and return the number of tensors.

    Raises:
        Difference: the message names the first part that differs, what it is, and what it is in `source`.
    """
    count = 0
    for path, one, other in _pairs(expected, found, ""):
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            count += 1
            if one.shape != other.shape or one.dtype != other.dtype:
                raise Difference(f"{where}{path} is {_describe(other)}, but {_describe(one)} in {source}")
            if (index := _first_difference(one, other)) is not None:
                shown = f"[{', '.join(map(str, index))}]" if index else ""
                values = other[index].item(), one[index].item()
                raise Difference(f"{where}{path}{shown} is {values[0]!r}, but {values[1]!r} in {source}")
        elif type(one) is not type(other) or repr(one) != repr(other):
            raise Difference(f"{where}{path} is {_shown(other)}, but {_shown(one)} in {source}")
    return count


def _pairs(expected: Any, found: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the parts at the same place in two nested values, with that place."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            if key not in expected or key not in found:
                yield f"{path}.{key}", expected.get(key, MISSING), found.get(key, MISSING)
            else:
                yield from _pairs(expected[key], found[key], f"{path}.{key}")
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple) and len(expected) == len(found):
        for number, (one, other) in enumerate(zip(expected, found)):
            yield from _pairs(one, other, f"{path}.{number}")
    else:
        yield path, expected, found


class _Missing:
    def __repr__(self) -> str:
        return "missing"


MISSING = _Missing()


def _first_difference(one: Tensor, other: Tensor) -> tuple[int, ...] | None:
    """Return the index of the first element whose bits differ, None if none do."""
    ours, theirs = (tensor.detach().cpu().contiguous().reshape(-1) for tensor in (one, other))
    unlike = ours.view(torch.uint8) != theirs.view(torch.uint8)
    if not unlike.any():
        return None
    first = unlike.nonzero()[0, 0] // ours.element_size()
    return tuple(int(part) for part in torch.unravel_index(first, one.shape)) if one.shape else ()


def _describe(tensor: Tensor) -> str:
    return f"a {str(tensor.dtype).removeprefix('torch.')} tensor {list(tensor.shape)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
