"""Mixed precision: the number format that the network computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(amp: str, device: torch.device) -> torch.dtype | None:
    """Return the format to autocast to, or None for float32.

    Args:
        amp: "off", "bf16", "fp16", or "auto": bf16 on CUDA GPUs that support it, fp16 on older ones, else off.
            CPUs without bf16 units are ten times slower with it, so "auto" is off on CPUs.
    """
    if amp == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return PRECISIONS.get(amp)


def autocast(device: torch.device, precision: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return a context in which the network computes in a format, or one without effect for None."""
    return nullcontext() if precision is None else torch.autocast(device.type, dtype=precision)
