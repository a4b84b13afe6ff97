"""TensorBoard: curves of all splits in one chart, pictures, the config, and what distinguishes the run from others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from torch.utils.tensorboard import summary

from resnet_train.config import TrainConfig, changed_settings, make_config
from resnet_train.loggers.base import MAX_POINTS
from resnet_train.loggers.events import RUN, EventCut, EventFile, find_curve
from resnet_train.records import RunInfo, Scalars

ALWAYS_SHOWN = ("arch", "lr", "seed")


class TensorBoard(EventCut):
    """Write event files into the run folder. When a run is resumed, older ones are first cut to its checkpoint.

    TensorBoard draws one line per folder, and puts the lines with the same tag into one chart. So each split has a
    folder, and train, validation and test accuracy share a chart. Their axis is the epoch. The axis of the run's
    folder itself is the optimizer step.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.writers: dict[str, EventFile] = {}  # by split
        self.step, self.epoch = 0, 0
        self.info: RunInfo | None = None
        self.log_interval = 1

    def start(self, info: RunInfo) -> None:
        """Cut the event files to what the checkpoint contains, and open a new one for each split."""
        # One event file for each split and each start of the run.
        super().start(info)
        self.info, self.step, self.epoch = info, info.first_step, len(info.history)
        is_resumed = info.first_step > 0
        for split in (RUN, *info.splits):
            self.writers[split] = EventFile(self.folder / split)
            self.writers[split].add_start(self._position(split) + 1 if is_resumed else 0)

        # In long runs with small batches, leave out points that no screen could show.
        log_every = int(info.config.get("log_every", 1))
        self.log_interval = log_every * -(-info.epochs * info.steps_per_epoch // (log_every * MAX_POINTS))

        # Log the settings of a new run.
        if not is_resumed:
            rows = "\n".join(f"| {key} | {_to_utf8(str(value))} |" for key, value in info.config.items())
            table = summary.text("config", f"| setting | value |\n|---|---|\n{rows}")
            self.writers[RUN].add_summary(table, 0)
            self.writers[RUN].add_summary(hparams_pb(describe_settings(info.config), trial_id=info.name), 0)

        # Fill in the epochs that were trained without TensorBoard, or whose event files were deleted.
        for record in info.history:
            self._add_epoch(record.scalars(), record.epoch)

    def tick(self, step: int) -> None:
        """Remember the step."""
        self.step = step

    def log(self, scalars: Scalars, *, step: int, epoch: int | None = None) -> None:
        """Add a point to each curve: over the step within an epoch, over the epoch after it."""
        if epoch is not None:
            self.epoch = epoch
            self._add_epoch(scalars, epoch)
        elif step % self.log_interval == 0:
            for name, value in scalars.items():
                if (curve := find_curve(name, within_epoch=True)) is not None:
                    self.writers[curve[0]].add_scalar(curve[1], value, step)
        if epoch == self._info.epochs:
            *_, end = summary.hparams({}, {})
            self.writers[RUN].add_summary(end, step)
        self._write()

    def _add_epoch(self, scalars: Scalars, epoch: int) -> None:
        """Add the points of an epoch that the curves do not have."""
        for name, value in scalars.items():
            if (curve := find_curve(name, within_epoch=False)) is not None:
                writer, tag = self.writers[curve[0]], curve[1]
                if epoch > writer.last_steps.get(tag, 0):
                    writer.add_scalar(tag, value, epoch)

    def _position(self, split: str) -> int:
        """Return where the run is on the axis of a split's folder."""
        return self.step if split == RUN else self.epoch

    def log_picture(self, name: str, picture: np.ndarray, *, split: str, epoch: int) -> None:
        """Add a picture."""
        self.writers[split].add_summary(summary.image(f"pictures/{name}", picture, dataformats="HWC"), epoch)

    def flush(self) -> None:
        """Mark that everything so far belongs to the state that is saved next, and write it to disk."""
        for split, writer in self.writers.items():
            writer.add_checkpoint(self._position(split))
        self._write()

    def _write(self) -> None:
        for writer in self.writers.values():
            writer.flush()

    def close(self) -> None:
        """Close the event files."""
        for writer in self.writers.values():
            writer.close()

    @property
    def _info(self) -> RunInfo:
        assert self.info is not None, "start was not called"
        return self.info


def describe_settings(plain: dict[str, Any]) -> dict[str, int | float | str]:
    """Return the settings that distinguish a run from others, each as a number or a string.

    TensorBoard shows a switch that some runs lack as off, so switches are strings.
    """
    config = make_config(plain)
    names = [*ALWAYS_SHOWN, *(name for name in changed_settings(TrainConfig(), config) if name not in ALWAYS_SHOWN)]
    shown = {name: plain.get(name, getattr(config, name)) for name in names}
    return {name: _as_hparam(value) for name, value in shown.items()}


def _to_utf8(text: str) -> str:
    """Return text with escapes for what is not UTF-8, as in file names; protocol buffers can't hold such text."""
    return text.encode("utf-8", "backslashreplace").decode()


def _as_hparam(value: Any) -> int | float | str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(f"{part:g}" for part in value)
    return value if isinstance(value, int | float) else _to_utf8(str(value))
