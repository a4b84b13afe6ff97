"""TensorBoard: curves by step, the first augmented batch, the config, and hparams with the final numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from resnet_train.loggers.base import Logger
from resnet_train.records import EpochRecord, EpochTiming, RunInfo, RunResult, StepRecord

SHOWN_IMAGES = 64
IMAGES_PER_ROW = 16


class TensorBoard(Logger):
    """Writes event files into the run folder; a resumed run hides what its checkpoint does not know."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: SummaryWriter | None = None
        self.info: RunInfo | None = None

    def _open(self) -> SummaryWriter:
        assert self.writer is not None, "told before run_started"
        return self.writer

    def run_started(self, info: RunInfo) -> None:
        """Opens the event file; everything after `info.first_step` written before is purged from the view."""
        self.info = info
        self.writer = SummaryWriter(str(self.folder), purge_step=info.first_step and info.first_step + 1)
        if not info.first_step:
            rows = "\n".join(f"| {key} | {value} |" for key, value in info.config.items())
            self.writer.add_text("config", f"| setting | value |\n|---|---|\n{rows}", 0)

    def batch_seen(self, images: torch.Tensor) -> None:
        """The picture of augmented training images."""
        # Four times as large, by repetition: TensorBoard smooths small pictures until nothing can be seen.
        shown = images[:SHOWN_IMAGES].cpu().clamp(0, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
        self._open().add_image("augmented training images", make_grid(shown, nrow=IMAGES_PER_ROW), 0)

    def step_read(self, record: StepRecord) -> None:
        """Curves within an epoch."""
        writer = self._open()
        writer.add_scalar("step/loss", record.loss, record.step)
        writer.add_scalar("step/grad_norm", record.grad_norm, record.step)
        writer.add_scalar("step/lr", record.lr, record.step)

    def epoch_done(self, record: EpochRecord, timing: EpochTiming) -> None:
        """Curves over epochs; the horizontal axis is the step here, too."""
        writer, step = self._open(), record.step
        for split in ("train", "val", "test"):
            loss, accuracy = getattr(record, f"{split}_loss"), getattr(record, f"{split}_accuracy")
            if accuracy is not None:
                writer.add_scalar(f"loss/{split}", loss, step)
                writer.add_scalar(f"accuracy/{split}", accuracy, step)
        writer.add_scalar("epoch/lr", record.lr, step)
        writer.add_scalar("epoch/grad_norm", record.grad_norm, step)
        writer.add_scalar("throughput/images_per_second", timing.images_per_second, step)

    def flush(self) -> None:
        self._open().flush()

    def run_done(self, result: RunResult) -> None:
        """The hparams page compares runs by their settings and final numbers."""
        assert self.info is not None
        hparams = {key: value if isinstance(value, int | float | str) else str(value) for key, value in
                   self.info.config.items()}  # fmt: skip
        final = {
            f"final/{name}": value
            for name in ("train_loss", "val_accuracy", "test_loss", "test_accuracy")
            if (value := getattr(result.final, name)) is not None
        }
        self._open().add_hparams(hparams, final, run_name=".", global_step=result.final.step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
