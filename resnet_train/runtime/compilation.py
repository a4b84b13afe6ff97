"""Compiling networks with torch.compile."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable

import torch
from torch import nn

# Versions of a compiled network besides one per image size: evaluation, its last batches, both networks.
OTHER_VERSIONS = 16


def can_compile(device: torch.device) -> bool:
    """Return whether torch.compile has what it needs: a C++ compiler, or Triton and a C compiler for a GPU."""
    if device.type == "cuda":
        found = any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
        return found and importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))


def compile_mode(device: torch.device, accumulate: int, num_ranks: int, capture: bool) -> str:
    """Return the mode of torch.compile: "reduce-overhead" launches kernels from CUDA graphs, "default" does not.

    These graphs raise or give wrong gradients if gradients accumulate (pytorch #169545, #96693), are ten times slower
    with batch norm in several processes (#139207), and can't be part of the graph of a whole step.
    """
    graphs = device.type == "cuda" and accumulate == 1 and num_ranks == 1 and not capture
    return "reduce-overhead" if graphs else "default"


def compile_networks(networks: Iterable[nn.Module], mode: str, num_sizes: int) -> None:
    """Compile networks in place, when they are first called.

    Each image size gets code for exactly this size: at the second one torch would switch to slower code for any size.
    A network that can't be compiled as a whole raises an error, where torch would silently run it uncompiled.
    """
    from torch._dynamo import config  # takes 1 s to import

    # Beyond this number of versions torch stops compiling; by default after 8.
    config.recompile_limit = max(config.recompile_limit, num_sizes + OTHER_VERSIONS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 2 * config.recompile_limit)
    # Small networks lose more than they gain by splitting to overlap communication; not measured on GPUs.
    config.optimize_ddp = False
    for network in networks:
        network.compile(mode=mode, fullgraph=True, dynamic=False)  # torch.compile(network) would prefix the weights
