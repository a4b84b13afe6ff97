"""A checkpoint of this program."""

from __future__ import annotations

from pathlib import Path

from resnet_train.export.formats import FORMATS, Format, Opened, Source, open_checkpoint, with_precision
from resnet_train.runs.checkpoint import dump, encode_checkpoint


@FORMATS.register("pt")
class CheckpointFile(Format):
    """A checkpoint of this program with only weights and description."""

    suffix = ".pt"

    def encode(self, source: Source, half: bool = False) -> bytes:
        """Return the file; with `half`, weights are stored as float16."""
        weights = with_precision(source.checkpoint, half)
        return encode_checkpoint({**dump(source.checkpoint), "model": weights})

    def open(self, path: Path, source: Source) -> Opened:
        """Read the file as every command does."""
        return open_checkpoint(path, source)
