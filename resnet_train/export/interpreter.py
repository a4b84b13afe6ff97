"""Run the instructions of a network with NumPy: the check that they compute what the network computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from resnet_train.export.instructions import Instruction

Maps = np.ndarray  # float32 [B, C, H, W]


def run_instructions(instructions: Sequence[Instruction], pixels: np.ndarray) -> np.ndarray:
    """Return the logits, float32 [B, C], of images uint8 [B, 3, S, S]."""
    slots = {0: pixels.astype(np.float32)}
    for instruction in instructions:
        maps = [slots[source] for source in instruction.sources]
        slots[instruction.target] = OPERATIONS[instruction.op](*maps, **instruction.settings, **instruction.arrays)
    return slots[instructions[-1].target].reshape(len(pixels), -1)


def _windows(maps: Maps, kernel: tuple[int, int], stride: int, padding: int, value: float) -> np.ndarray:
    """Return what each output pixel sees: [B, C, H', W', *kernel]."""
    edge = (padding, padding)
    padded = np.pad(maps, ((0, 0), (0, 0), edge, edge), constant_values=value)
    return sliding_window_view(padded, kernel, axis=(2, 3))[:, :, ::stride, ::stride]


def _convolution(maps: Maps, stride: int, padding: int, groups: int, weight: np.ndarray, bias: np.ndarray) -> Maps:
    windows = _windows(maps, weight.shape[2:], stride, padding, 0)
    parts = zip(np.split(windows, groups, axis=1), np.split(weight, groups))
    sums = [np.tensordot(part, filters, axes=((1, 4, 5), (1, 2, 3))) for part, filters in parts]
    return (np.concatenate(sums, axis=3) + bias).transpose(0, 3, 1, 2)  # from [B, H', W', O]


def _max_pool(maps: Maps, kernel: int, stride: int, padding: int) -> Maps:
    return _windows(maps, (kernel, kernel), stride, padding, -np.inf).max(axis=(4, 5))


def _subsample(maps: Maps, step: int, before: int, after: int) -> Maps:
    return np.pad(maps[:, :, ::step, ::step], ((0, 0), (before, after), (0, 0), (0, 0)))


def _affine(maps: Maps, scale: np.ndarray, shift: np.ndarray) -> Maps:
    return maps * scale[:, None, None] + shift[:, None, None]


def _linear(maps: Maps, weight: np.ndarray, bias: np.ndarray) -> Maps:
    return (maps.reshape(len(maps), -1) @ weight.T + bias)[:, :, None, None]


OPERATIONS: Mapping[str, Callable[..., Maps]] = {
    "convolution": _convolution,
    "affine": _affine,
    "relu": lambda maps: np.maximum(maps, 0),
    "add": np.add,
    "subsample": _subsample,
    "max_pool": _max_pool,
    "mean": lambda maps: maps.mean(axis=(2, 3), keepdims=True),
    "max": lambda maps: maps.max(axis=(2, 3), keepdims=True),
    "linear": _linear,
}
