"""TensorBoard: curves, the first augmented batch, the config, and hyper-parameters with the final numbers."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from resnet_train.loggers.base import EVENT_BYTES, NUM_SHOWN_IMAGES, Logger
from resnet_train.records import RunInfo, Scalars
from resnet_train.runtime.files import check_room, open_regular

IMAGES_PER_ROW = 16


class _HeldFile:
    """Keep the event file open for TensorBoard's writer.

    TensorBoard itself opens the path again for each write, and would write into another run's folder if this run's was
    moved.
    """

    def __init__(self, path: Path) -> None:
        self.file = open_regular(path, "ab", buffering=0)

    def append(self, filename: bytes, content: bytes, binary_mode: bool) -> None:
        """Append to the file, wherever it is now."""
        self.file.write(content)


class TensorBoard(Logger):
    """Write event files into the run folder. A resumed run hides the events after its checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: SummaryWriter | None = None
        self.held: _HeldFile | None = None
        self.info: RunInfo | None = None

    def start(self, info: RunInfo) -> None:
        """Open an event file, which purges everything after `info.first_step` from the view."""
        # One event file for each start of the run.
        self.info = info
        self.writer = SummaryWriter(str(self.folder), purge_step=info.first_step and info.first_step + 1)
        file = self.writer._get_file_writer().event_writer._general_file_writer
        if hasattr(file, "fs"):  # TensorFlow's writer, if it is installed, keeps the file open itself
            file.fs = self.held = _HeldFile(Path(os.fsdecode(file.filename)))

        # A new run also shows its settings.
        if not info.first_step:
            rows = "\n".join(f"| {key} | {value} |" for key, value in info.config.items())
            self.writer.add_text("config", f"| setting | value |\n|---|---|\n{rows}", 0)

    def log(self, scalars: Scalars, *, step: int, epoch: int | None = None) -> None:
        """Add a point to each curve; after the last epoch, fill the page that compares runs."""
        writer, info = self._started()
        check_room(self.folder, EVENT_BYTES * len(scalars))
        for name, value in scalars.items():
            writer.add_scalar(_tag(name, within_epoch=epoch is None), value, step)
        if epoch == info.epochs:
            settings = {k: v if isinstance(v, int | float | str) else str(v) for k, v in info.config.items()}
            final = {f"final/{name.replace('/', '_')}": scalars[name] for name in info.scalar_names if name in scalars}
            writer.add_hparams(settings, final, run_name=".", global_step=step)

    def log_images(self, name: str, images: torch.Tensor, *, step: int) -> None:
        """Add one picture of at most 64 images."""
        # Enlarge four times by repetition: TensorBoard blurs small pictures beyond recognition.
        shown = images[:NUM_SHOWN_IMAGES].cpu().clamp(0, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
        self._started()[0].add_image(name, make_grid(shown, nrow=IMAGES_PER_ROW), step)

    def flush(self) -> None:
        """Write pending events to disk."""
        self._started()[0].flush()

    def close(self) -> None:
        """Close the event file."""
        if self.writer is not None:
            self.writer.close()
        if self.held is not None:
            self.held.file.close()

    def _started(self) -> tuple[SummaryWriter, RunInfo]:
        assert self.writer is not None, "start was not called"
        assert self.info is not None
        return self.writer, self.info


def _tag(name: str, *, within_epoch: bool) -> str:
    """Return the tag of a curve: the metric before its split, so that all splits of a metric share a group."""
    if within_epoch:
        return f"step/{name.replace('/', '_')}"
    group, slash, rest = name.partition("/")
    return f"{rest}/{group}" if slash and group != "timing" else name if slash else f"epoch/{name}"
