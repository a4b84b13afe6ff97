"""Trained networks as files for other programs, one module for each format."""

# Importing a format registers it.
from resnet_train.export import checkpoint_file, html_page, hub_folder, onnx_file, safetensors_file  # noqa: F401
from resnet_train.export.formats import FORMATS, Files, Format, Forward, Opened, Source

__all__ = ["FORMATS", "Files", "Format", "Forward", "Opened", "Source"]
