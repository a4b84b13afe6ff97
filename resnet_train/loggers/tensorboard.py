"""TensorBoard: curves of all splits in one chart, pictures, the config, and what distinguishes the run from others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from resnet_train.config import TrainConfig, changed_settings, make_config
from resnet_train.loggers.base import EVENT_BYTES, MAX_POINTS, Logger
from resnet_train.records import RunInfo, Scalars
from resnet_train.runtime.files import check_room, open_regular

RUN = ""  # the run's folder itself, beside those of the splits
ALWAYS_SHOWN = ("arch", "lr", "seed")


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
    """Write event files into the run folder. A resumed run hides the events after its checkpoint.

    TensorBoard draws one line for each folder, and puts the lines of one tag into one chart. So each split has a
    folder, and train, validation and test accuracy share a chart. Their axis is the epoch. The axis of the run's
    folder itself is the optimizer step.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writers: dict[str, SummaryWriter] = {}  # by split
        self.held: list[_HeldFile] = []
        self.info: RunInfo | None = None
        self.log_interval = 1

    def start(self, info: RunInfo) -> None:
        """Open an event file for each split, which hides everything after the state that the run resumes from."""
        # One event file for each split and each start of the run.
        self.info = info
        is_resumed = info.first_step > 0
        self._open(RUN, purge_from=info.first_step + 1 if is_resumed else 0)
        for split in info.splits:
            self._open(split, purge_from=len(info.history) + 1 if is_resumed else 0)

        # Of long runs with small batches, leave out points that no screen could show.
        log_every = int(info.config.get("log_every", 1))
        self.log_interval = log_every * -(-info.epochs * info.steps_per_epoch // (log_every * MAX_POINTS))

        # A new run also shows its settings.
        if not is_resumed:
            rows = "\n".join(f"| {key} | {_to_utf8(str(value))} |" for key, value in info.config.items())
            self.writers[RUN].add_text("config", f"| setting | value |\n|---|---|\n{rows}", 0)
            settings = hparams_pb(describe_settings(info.config), trial_id=info.name)
            self.writers[RUN]._get_file_writer().add_summary(settings, 0)

    def _open(self, split: str, *, purge_from: int) -> None:
        """Open the event file of a split; what older files of its folder have from `purge_from` on is hidden."""
        writer = SummaryWriter(str(self.folder / split), purge_step=purge_from)
        self.writers[split] = writer
        file = writer._get_file_writer().event_writer._general_file_writer
        if hasattr(file, "fs"):  # TensorFlow's writer, if it is installed, keeps the file open itself
            file.fs = held = _HeldFile(Path(os.fsdecode(file.filename)))
            self.held.append(held)

    def log(self, scalars: Scalars, *, step: int, epoch: int | None = None) -> None:
        """Add a point to each curve: over the step within an epoch, over the epoch after it."""
        check_room(self.folder, EVENT_BYTES * len(scalars))
        for name, value in scalars.items():
            split, slash, metric = name.partition("/")
            if epoch is None and not slash and step % self.log_interval == 0:
                self.writers[RUN].add_scalar(f"step/{name}", value, step)
            elif epoch is not None and split == "timing":
                self.writers["train"].add_scalar(name, value, epoch)
            elif epoch is not None and slash:
                self.writers[split].add_scalar(f"epoch/{metric}", value, epoch)
        if epoch == self._info.epochs:
            *_, end = hparams({}, {})
            self.writers[RUN]._get_file_writer().add_summary(end, step)

    def log_picture(self, name: str, picture: np.ndarray, *, split: str, epoch: int) -> None:
        """Add a picture."""
        check_room(self.folder, picture.nbytes)
        self.writers[split].add_image(f"pictures/{name}", picture, epoch, dataformats="HWC")

    def flush(self) -> None:
        """Write pending events to disk."""
        for writer in self.writers.values():
            writer.flush()

    def close(self) -> None:
        """Close the event files."""
        for writer in self.writers.values():
            writer.close()
        for held in self.held:
            held.file.close()

    @property
    def _info(self) -> RunInfo:
        assert self.info is not None, "start was not called"
        return self.info


def describe_settings(plain: dict[str, Any]) -> dict[str, int | float | str]:
    """Return the settings that distinguish a run from others: a number or a text each.

    TensorBoard shows a switch that some runs lack as off, so switches are texts.
    """
    config = make_config(plain)
    names = [*ALWAYS_SHOWN, *(name for name in changed_settings(TrainConfig(), config) if name not in ALWAYS_SHOWN)]
    shown = {name: plain.get(name, getattr(config, name)) for name in names}
    return {name: _as_hparam(value) for name, value in shown.items()}


def _to_utf8(text: str) -> str:
    """Return a text with escapes for what is not UTF-8, as in file names; protocol buffers hold no such text."""
    return text.encode("utf-8", "backslashreplace").decode()


def _as_hparam(value: Any) -> int | float | str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(f"{part:g}" for part in value)
    return value if isinstance(value, int | float) else _to_utf8(str(value))
