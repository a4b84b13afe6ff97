"""Trained networks as files for other programs, one module for each format."""

from resnet_train.export import checkpoint_file, hub_folder, onnx_file, safetensors_file  # noqa: F401 - they register their formats
from resnet_train.export.formats import FORMATS, Files, Format, Forward, Opened, Source

__all__ = ["FORMATS", "Files", "Format", "Forward", "Opened", "Source"]
