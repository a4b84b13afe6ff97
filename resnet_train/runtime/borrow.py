"""What a job changes in its process, restored when it is done."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from resnet_train.runtime.device import keep_freed_memory

VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "KINETO_LOG_LEVEL")  # environment variables that a job sets


@contextmanager
def borrow_process() -> Iterator[None]:
    """Restore torch's threads and choice of kernels, warning filters, the environment and how memory is kept."""
    # What `prepare_machine` and the profiler change.
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    precision = torch.get_float32_matmul_precision()
    benchmark, tf32 = cudnn.benchmark, cudnn.allow_tf32
    variables = {name: os.environ.get(name) for name in VARIABLES}
    try:
        with warnings.catch_warnings():  # scipy adds filters when it is imported
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        torch.set_float32_matmul_precision(precision)
        cudnn.benchmark, cudnn.allow_tf32 = benchmark, tf32
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        keep_freed_memory(False)


@contextmanager
def borrow_generators() -> Iterator[None]:
    """Restore the state of torch's random generators."""
    on_cpu = torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(on_cpu)
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
