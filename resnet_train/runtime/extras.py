"""Packages that only some features need, and the extras of this package that install them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

EXTRAS = {  # as in pyproject.toml
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "safetensors": "export",
    "huggingface_hub": "hub",
}


def import_extra(module: str, purpose: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: the module, such as "safetensors.torch".
        purpose: what needs it, for the message.

    Raises:
        ValueError: the package is not installed; the message says how to install it.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise  # the package is installed, but something that it needs is not
        name = package.replace("_", "-")
        raise ValueError(
            f'{purpose} needs {name}, which is not installed: pip install "resnet-train[{EXTRAS[package]}]"'
        ) from None
