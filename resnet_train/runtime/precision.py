"""Mixed precision: which number format the network computes in."""

from __future__ import annotations

import torch

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(amp: str, device: torch.device) -> torch.dtype | None:
    """The format to autocast to, or None for float32.

    Args:
        amp: "off", "bf16", "fp16", or "auto": bf16 on a CUDA GPU that has it, fp16 on an older one, else off.
            A CPU without bf16 units is ten times slower with it, so "auto" leaves CPUs alone.
    """
    if amp == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return PRECISIONS.get(amp)
