"""Versions and hardware, for environment.json and checkpoints."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from resnet_train import __version__
from resnet_train.runtime.device import device_name

PACKAGES = ("torch", "torchvision", "numpy", "typer", "tensorboard", "pydantic", "pillow", "scikit-learn")


def describe_environment(device: torch.device) -> dict[str, object]:
    """Return versions, device and number of threads as JSON values."""
    return {
        "resnet_train": __version__,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "device": device.type,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    if sys.platform == "linux":
        try:
            with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - a device file
                for line in file:
                    if line.startswith("model name"):
                        return line.split(":", 1)[1].strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()
