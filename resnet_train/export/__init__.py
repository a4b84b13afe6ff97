"""Trained networks as files for other programs, one module for each format."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

# Importing a format registers it.
from resnet_train.export import checkpoint_file, html_page, hub_folder, onnx_file, safetensors_file  # noqa: F401
from resnet_train.export.formats import FORMATS, Files, Format, Forward, Opened, Source

__all__ = ["FORMATS", "Files", "Format", "Forward", "Opened", "Source"]


class _Package(ModuleType):
    """The package, callable as `resnet_train.export`: importing it must not hide the function of that name."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Export a checkpoint; see `resnet_train.api.export`."""
        return import_module("resnet_train.api").export(*arguments, **options)


sys.modules[__name__].__class__ = _Package
