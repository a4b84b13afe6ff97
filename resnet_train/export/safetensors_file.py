"""A safetensors file whose metadata holds the description of the network."""

from __future__ import annotations

from pathlib import Path

from resnet_train.export.formats import FORMATS, Format, Opened, Source, open_checkpoint, with_precision
from resnet_train.runs.checkpoint import dump, stamp
from resnet_train.runs.safetensors_file import encode_safetensors


@FORMATS.register("safetensors")
class SafetensorsFile(Format):
    """Weights as safetensors with the description as metadata; read by every command here."""

    suffix = ".safetensors"
    modules = ("safetensors",)

    def encode(self, source: Source, half: bool = False) -> bytes:
        """Return the file; with `half`, weights are stored as float16."""
        description = stamp(dump(source.checkpoint))
        del description["model"]
        return encode_safetensors(description, with_precision(source.checkpoint, half))

    def open(self, path: Path, source: Source) -> Opened:
        """Read the file as every command does."""
        return open_checkpoint(path, source)
