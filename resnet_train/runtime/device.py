"""Which device to train on, and what it can do."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
UNKNOWN_MEMORY_BYTES = 4 << 30  # assumed where the system does not say (Windows)


def select_device(name: str) -> torch.device:
    """The device of this name; "auto" is the first of CUDA, Apple's GPU and the CPU that is there.

    Raises:
        ValueError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available():
            raise ValueError(f"device {name!r} asked for, but this torch ({torch.__version__}) sees no CUDA GPU")
        if device.index is None and "LOCAL_RANK" in os.environ:  # torchrun: a GPU for each process of this machine
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if device.index is not None and device.index >= count:
            raise ValueError(f"device {name!r} asked for, but there are {count} CUDA GPUs, counted from 0")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("device 'mps' asked for, but there is no Apple GPU here")
    elif device.type != "cpu":
        raise ValueError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:1 or mps")
    return device


def prepare_machine(name: str, threads: int, deterministic: bool = False) -> torch.device:
    """Chooses the device, sets the number of CPU threads (0: as torch has it) and how exact kernels must be.

    Args:
        deterministic: only kernels that give the same bits each time; else the quickest ones, TF32 included.

    Raises:
        ValueError: there is no such device here.
    """
    device = select_device(name)
    if device.type == "cuda" and device.index is not None:  # `cuda` alone is the current one
        torch.cuda.set_device(device)
    keep_freed_memory(device.type == "cpu")
    if threads:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_float32_matmul_precision("highest" if deterministic else "high")
    torch.backends.cudnn.allow_tf32 = not deterministic
    return device


def keep_freed_memory(keep: bool) -> None:
    """Whether the C library keeps freed memory for the next step, or gives it back to the system and asks anew.

    Activations are freed in every step: resnet20 at batch 128 faulted 22,000 pages in again each time, 20 % of its time
    on two CPU cores. `keep=False` is what glibc comes to by itself. Nothing happens with other C libraries.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30 if keep else 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1 if keep else 64 << 20)


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return the memory order of images and weights: NHWC if `channels_last`, else NCHW."""
    return torch.channels_last if channels_last else torch.contiguous_format


def device_name(device: torch.device) -> str:
    """The device as a person calls it: `NVIDIA H100 80GB HBM3` or `cpu (2 threads)`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else device.type


def free_memory_bytes(device: torch.device) -> int:
    """Memory that is free on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:  # noqa: PTH123 - not a file on disk
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return UNKNOWN_MEMORY_BYTES


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most memory this process has held on the device so far; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def synchronize(device: torch.device) -> None:
    """Waits until everything given to the device is done, so that a clock read after it is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def sum_dtype(device: torch.device) -> torch.dtype:
    """The widest float the device adds in: sums over 50,000 losses lose 1e-3 in float32; Apple's GPU has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
