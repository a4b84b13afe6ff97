"""What a bug report should say about a machine: versions, hardware and variables, without names and secrets."""

from __future__ import annotations

import getpass
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch

import resnet_train
from resnet_train.runtime.device import free_memory_bytes, select_device
from resnet_train.runtime.environment import describe_environment
from resnet_train.runtime.precision import cpu_capabilities

UNITS = re.compile(r"amx|bf16|fp16|vnni|sve")  # features that decide how fast a CPU multiplies matrices
# Variables that change how a run behaves. No others are shown: they may hold secrets.
VARIABLES = re.compile(r"(RESNET_TRAIN|OMP|GOMP|KMP|MKL|CUDA|NCCL|PYTORCH|TORCH|SLURM)_\w+|PYTHONPATH|LANG|LC_\w+|TERM")
SECRET = re.compile(r"TOKEN|SECRET|KEY|PASS|CREDENTIAL|SLURM_(?!JOB_NUM_NODES|NNODES|NTASKS|GPUS|CPUS)")


def describe_machine() -> dict[str, Any]:
    """Return versions, hardware, threads, folders and variables as plain values."""
    device = select_device("auto")
    units = [name for name, value in sorted(cpu_capabilities().items()) if value is True and UNITS.search(name)]
    variables = {name: _hide_secrets(value) for name, value in sorted(os.environ.items()) if _is_shown(name)}
    return {
        **describe_environment(device),
        "cpu_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_instructions": [torch.backends.cpu.get_cpu_capability(), *units],
        "memory_free_gib": round(free_memory_bytes(torch.device("cpu")) / 2**30, 1),
        "gpus": [_describe_gpu(index) for index in range(torch.cuda.device_count())],
        "cudnn": torch.backends.cudnn.version(),
        "threads_between": torch.get_num_interop_threads(),
        "executable": hide_home(sys.executable),
        "package": hide_home(str(Path(resnet_train.__file__).parent)),
        "working_folder": hide_home(str(Path.cwd())),
        "variables": variables,
    }


def _describe_gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    capability = f"compute capability {properties.major}.{properties.minor}"
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {capability}"


def hide_home(text: str) -> str:
    """Return text with ~ for the home folder and USER for the name of the user."""
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?![^/\\:;])", "~", text)
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # an unknown user, as in some containers
        return text
    return re.sub(rf"(?<![^/\\]){re.escape(user)}(?![^/\\:;])", "USER", text)


def _is_shown(name: str) -> bool:
    return VARIABLES.fullmatch(name) is not None and SECRET.search(name) is None


def _hide_secrets(value: str) -> str:
    """Return the value of a variable without the user, the password and the query of a URL."""
    value = re.sub(r"(?<=//)[^/@\s]*@", "", value)
    return hide_home(value.partition("?")[0])
