"""The device to train on: choosing it, preparing it, its memory and clock."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

import torch

from resnet_train.runtime.ranks import local_rank
from resnet_train.text import counted

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
THREADS_PER_CPU = 4  # more of them only wait for each other, and thousands can't be created
UNKNOWN_MEMORY_BYTES = 4 << 30  # assumed if the system does not report it (Windows)


def select_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is the first available of CUDA, Apple's GPU and the CPU.

    Raises:
        ValueError: the device is not available here.
    """
    # Resolve the name.
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:1 or mps") from None

    # Check that this machine has the device.
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available():
            raise ValueError(f"device {name!r} asked for, but this torch ({torch.__version__}) sees no CUDA GPU")
        if device.index is None and (index := local_rank()) is not None:  # one GPU per process under torchrun
            device = torch.device("cuda", index)
        if device.index is not None and device.index >= count:
            raise ValueError(f"device {name!r} asked for, but there are {count} CUDA GPUs, counted from 0")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("device 'mps' asked for, but there is no Apple GPU here")
    elif device.type != "cpu":
        raise ValueError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:1 or mps")
    return device


def prepare_machine(name: str, threads: int, deterministic: bool = False) -> torch.device:
    """Select the device and set the number of CPU threads and the exactness of kernels.

    Args:
        threads: number of CPU threads; 0 is torch's choice.
        deterministic: use only kernels that always give the same bits, else the fastest ones, including TF32.

    Raises:
        ValueError: the device is not available here, or there are many more threads than CPUs.
    """
    device = select_device(name)
    if device.type == "cuda" and device.index is not None:  # without an index: the current one
        torch.cuda.set_device(device)
    keep_freed_memory(device.type == "cpu")

    # Threads: thousands of them could not be created.
    cpus = os.cpu_count() or 1
    if threads > THREADS_PER_CPU * cpus:
        most = f"{THREADS_PER_CPU * cpus}, {THREADS_PER_CPU} for each of the {cpus} CPUs here"
        raise ValueError(f"threads (={threads}) must be at most {most}")
    if threads:
        torch.set_num_threads(threads)

    # Kernels: the same bits every time, or the fastest.
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_float32_matmul_precision("highest" if deterministic else "high")
    torch.backends.cudnn.allow_tf32 = not deterministic
    return device


def keep_freed_memory(keep: bool) -> None:
    """Make glibc keep freed memory for the next step, or return it to the system as by default.

    Activations are freed in every step: resnet20 at batch size 128 spent 20 % of its time on two CPU cores with 22,000
    page faults per step. Other C libraries are left alone.
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
    """Return a readable name of the device: `NVIDIA H100 80GB HBM3` or `cpu (2 threads)`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({counted(torch.get_num_threads(), 'thread')})" if device.type == "cpu" else device.type


def free_memory_bytes(device: torch.device) -> int:
    """Return the free memory of the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]

    # On a CPU, or with Apple's GPU, which shares its memory, Linux knows how much is available; else take half of it.
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
    """Return the peak memory of this process on the device, or None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed torch's generators for the CPU and the device, a hundred times as fast as `torch.manual_seed`."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work, so that the clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple's GPU, where a sum of 50,000 losses loses 1e-3."""
    return torch.float32 if device.type == "mps" else torch.float64
