"""Mixed precision: the number format that the network computes in."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)

PRECISIONS = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}

MATRIX_UNITS = "amx_bf16"
VECTOR_UNITS = ("avx512_bf16", "arm_bf16")  # some CPUs with these are slower in bf16
MIN_GAIN = 1.1  # repeated probes agree within 5 %
PROBE_SECONDS = 0.5


def choose_precision(amp: str, device: torch.device) -> torch.dtype | None:
    """Return the format to autocast to, or None for float32; `amp` as in the config."""
    return PRECISIONS[resolve_amp(amp, device)[0]]


def resolve_amp(amp: str, device: torch.device) -> tuple[str, str]:
    """Return "off", "bf16" or "fp16", and why if `amp` is "auto".

    On a CUDA GPU "auto" is bf16, or fp16 on older ones. On a CPU it is bf16 if the CPU multiplies matrices in bf16
    (AMX). If it has only vector instructions for bf16, a probe decides. Emulated bf16 is ten times slower than float32.
    """
    if amp != "auto":
        return amp, ""
    if device.type == "cuda":
        has_bf16 = has_units(torch.bfloat16, device)
        return ("bf16", "the GPU computes in bf16") if has_bf16 else ("fp16", "the GPU has no bf16")
    if device.type != "cpu":
        return "off", f"bf16 is not used on {device.type}"
    if cpu_capabilities().get(MATRIX_UNITS):
        return "bf16", "this CPU has AMX"
    if not has_units(torch.bfloat16, device):
        return "off", "this CPU has no bf16 units"
    gain = probe_bf16()
    return "bf16" if gain >= MIN_GAIN else "off", f"a probe trains {gain:.2f} times as fast in bf16"


def warn_if_slow(amp: str, device: torch.device) -> None:
    """Warn about a format ("off", "bf16" or "fp16") in which the device trains slowly.

    These are formats that it emulates, and float16 on a CPU: even with AVX512-FP16, a step took 3.8 s instead of 0.03 s
    in float32 (resnet20, batch size 8, torch 2.14). float16 with AMX-FP16 was not measured.
    """
    precision = PRECISIONS[amp]
    is_half_on_cpu = precision is torch.float16 and device.type == "cpu" and not cpu_capabilities().get("amx_fp16")
    if is_half_on_cpu or not has_units(precision, device):
        kind = "CPU" if device.type == "cpu" else "GPU"
        log.warning("training with amp (=%s) is slow on this %s; --amp auto uses the fastest format", amp, kind)


def precision_name(precision: torch.dtype | None) -> str:
    """Return the name of a format: `float32`, `bfloat16` or `float16`."""
    return str(precision or torch.float32).removeprefix("torch.")


def has_units(precision: torch.dtype | None, device: torch.device) -> bool:
    """Return whether the device computes in this format natively instead of emulating it."""
    if precision is None or device.type == "mps":
        return True
    if device.type == "cuda":
        return precision is torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    units = (MATRIX_UNITS, *VECTOR_UNITS) if precision is torch.bfloat16 else ("amx_fp16", "avx512_fp16", "arm_fp16")
    return any(cpu_capabilities().get(name) for name in units)


def cpu_capabilities() -> Mapping[str, Any]:
    """Return the instruction sets of this CPU by torch's names."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    return {
        MATRIX_UNITS: torch.cpu._is_amx_tile_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
    }


@cache
def probe_bf16() -> float:
    """Return how many times as fast this CPU trains two convolutions in bf16 as in float32; takes half a second."""
    with torch.random.fork_rng(devices=[]):
        layers = [nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()) for _ in range(2)]
        block = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        images = torch.randn(32, 64, 16, 16).to(memory_format=torch.channels_last)

    def step(precision: torch.dtype | None) -> float:
        start = time.perf_counter()
        with autocast(torch.device("cpu"), precision):
            out = block(images)
        out.float().sum().backward()
        return time.perf_counter() - start

    # Take the fastest step of each format: other processes only make steps slower.
    formats = [partial(step, precision) for precision in (None, torch.bfloat16)]
    for measure in formats:
        measure()
    deadline = time.perf_counter() + PROBE_SECONDS
    seconds = [[measure() for measure in formats]]
    while time.perf_counter() < deadline:
        seconds.append([measure() for measure in formats])
    in_float32, in_bf16 = map(min, zip(*seconds))
    return in_float32 / in_bf16


def autocast(device: torch.device, precision: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return a context for mixed precision, or one without effect if `precision` is None."""
    return nullcontext() if precision is None else torch.autocast(device.type, dtype=precision)


def eval_precision(precision: torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """Return the format to evaluate in: that of training, or None (float32) where the device would emulate it."""
    return precision if has_units(precision, device) else None
