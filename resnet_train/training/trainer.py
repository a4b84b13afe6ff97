"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from resnet_train.data.loader import Batch, BatchLoader
from resnet_train.loggers.base import Logger
from resnet_train.models.blocks import DropPath
from resnet_train.optim.ema import AveragedModel
from resnet_train.optim.optimizers import load_optimizer_state, set_lr
from resnet_train.optim.schedules import Schedule
from resnet_train.records import EpochRecord, EpochTiming, Evaluation, StepRecord
from resnet_train.runtime.device import peak_memory_bytes, sum_dtype, synchronize
from resnet_train.training.evaluation import evaluate
from resnet_train.training.signals import Interrupted, SignalWatch


class NotFinite(Exception):
    """Loss or gradient became NaN or infinite; the weights are those before that step."""

    exit_code = 3


class Saver(Protocol):
    """Where the trainer's state goes."""

    def save_state(self, state: dict[str, Any]) -> None:
        """Everything that is needed to go on."""
        ...

    def save_best(self, weights: dict[str, Tensor], split: str, record: EpochRecord) -> None:
        """The best model so far on a split."""
        ...


class RunningSums:
    """The epoch's sums, on the device: added to every step, read by the host only now and then."""

    NAMES = ("loss", "correct", "images", "grad_norm", "steps", "last_loss", "last_grad_norm", "bad_step")

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(len(self.NAMES), dtype=sum_dtype(device), device=device)
        self.values[-1] = -1  # bad_step: the first step whose loss or gradient was not finite

    def add(self, loss: Tensor, correct: Tensor, num_images: int, grad_norm: Tensor, bad_step: Tensor) -> None:
        """Adds one step: its mean loss, correct predictions, number of images and gradient norm."""
        one = torch.ones_like(loss)
        added = torch.stack([loss * num_images, correct, one * num_images, grad_norm, one]).to(self.values.dtype)
        self.values[:5] += added
        self.values[5:] = torch.stack([loss, grad_norm, bad_step]).to(self.values.dtype)

    def read(self) -> dict[str, float]:
        """The values by name; waits for the device."""
        return dict(zip(self.NAMES, self.values.tolist()))


def split_batch(batch: Batch, num_parts: int) -> list[Batch]:
    """Cuts a batch into parts of equal size, one after the other."""
    size = len(batch.labels) // num_parts
    parts = (None if tensor is None else tensor.split(size) for tensor in batch)
    return [Batch(*values) for values in zip(*(part or [None] * num_parts for part in parts))]


@dataclass
class Progress:
    """How far a run has come: everything besides tensors that a checkpoint needs to go on exactly."""

    epoch: int = 0  # finished epochs
    step: int = 0  # optimizer steps since the start
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    best_accuracy: float = -1.0


class Trainer:
    """Trains a model epoch by epoch.

    Args:
        model: from images [B, 3, H, W] to logits [B, C], on the device.
        optimizer, schedule: the schedule gives the factor on `lr` for each step.
        train_loader: batches of an epoch by number.
        eval_loaders: "val", "test" or both; the best model is chosen on "val" if it is there.
        num_classes: C.
        epochs, lr, label_smoothing, clip_grad: as in the config.
        eval_every, save_every, log_every: as in the config.
        logger: takes the records.
        saver: takes the state; None saves nothing.
        accumulate: parts each batch is computed in.
        averaged: follows the model; it is what is evaluated and saved as the result.
        precision: the format to autocast to; float16 brings a loss scaler.
        seed: of drop path.
        interrupted_message: what to tell a user who stopped the run.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        train_loader: BatchLoader,
        eval_loaders: dict[str, BatchLoader],
        num_classes: int,
        epochs: int,
        lr: float,
        logger: Logger,
        saver: Saver | None = None,
        label_smoothing: float = 0.0,
        clip_grad: float = 0.0,
        eval_every: int = 1,
        save_every: int = 1,
        log_every: int = 20,
        accumulate: int = 1,
        averaged: AveragedModel | None = None,
        precision: torch.dtype | None = None,
        seed: int = 0,
        interrupted_message: str = "",
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.train_loader, self.eval_loaders = train_loader, eval_loaders
        self.num_classes, self.epochs, self.lr = num_classes, epochs, lr
        self.label_smoothing, self.clip_grad = label_smoothing, clip_grad
        self.eval_every, self.save_every, self.log_every = eval_every, save_every, log_every
        self.accumulate, self.averaged, self.precision, self.seed = accumulate, averaged, precision, seed
        self.logger, self.saver = logger, saver
        self.interrupted_message = interrupted_message
        self.device = train_loader.device
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.is_stochastic = any(isinstance(module, DropPath) for module in model.modules())
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision is torch.float16)
        self.progress = Progress()
        self.sums = RunningSums(self.device)
        self.signals = SignalWatch()
        self.epoch_seconds, self.epoch_images = 0.0, 0

    # --- The loop ------------------------------------------------------------------------------------------------

    def fit(self) -> EpochRecord:
        """Trains until the last epoch and returns its record.

        Raises:
            NotFinite: loss or gradient was not finite.
            Interrupted: by SIGINT or SIGTERM, after the state was saved.
        """
        with self.signals:
            for epoch in range(self.progress.epoch, self.epochs):
                self.train_epoch(epoch)
                evaluations, eval_seconds = self.evaluate(epoch)
                self.record(epoch, evaluations, eval_seconds)
                self.logger.flush()
                self.save(epoch)
        return self.progress.history[-1]

    def train_epoch(self, epoch: int) -> None:
        """All batches of an epoch that are not done yet."""
        first = self.progress.step - epoch * len(self.train_loader)
        self.logger.epoch_started(epoch + 1, first)
        self.model.train()
        start = time.perf_counter()
        for batch in self.until_interrupted(self.train_loader.epoch(epoch, first)):
            self.train_step(batch)
            self.logger.step_done()
            if self.progress.step % self.log_every == 0:
                self.read_step(epoch)
        self.check_finite(self.sums.read())
        synchronize(self.device)
        self.epoch_seconds = time.perf_counter() - start
        self.epoch_images = (len(self.train_loader) - first) * self.train_loader.batch_size

    def train_step(self, batch: Batch) -> None:
        """One optimizer step: forward, loss, backward, clip, step, average."""
        set_lr(self.optimizer, self.current_lr())
        self.seed_step()
        step_loss = torch.zeros((), device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for part in split_batch(batch, self.accumulate):
            with self.autocast():
                logits = self.model(part.images)
            loss = self.loss(logits.float(), part) / self.accumulate  # float32: bf16 rounds a log-sum-exp to 3 digits
            self.scaler.scale(loss).backward()
            step_loss += loss.detach()
            correct += (logits.detach().argmax(1) == part.labels).sum()
        grad_norm = self.clip_gradients()
        bad_step = self.find_bad_step(step_loss, grad_norm)
        self.step_unless_bad(bad_step)
        self.optimizer.zero_grad(set_to_none=True)
        if self.averaged is not None:
            self.averaged.update(self.model, bad=bad_step >= 0)
        self.sums.add(step_loss, correct, len(batch.labels), grad_norm, bad_step)
        self.progress.step += 1

    def seed_step(self) -> None:
        """Drop path draws from (seed, step) alone, so no generator state has to be saved."""
        if self.is_stochastic:
            torch.manual_seed(int(np.random.SeedSequence([self.seed, self.progress.step]).generate_state(1)[0]))

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision within, if it is on."""
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy; of a mixed image, that of both its labels by their shares."""
        if batch.partner_labels is None or batch.weights is None:
            return F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        own, partner = (
            F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
            for labels in (batch.labels, batch.partner_labels)
        )
        return torch.lerp(partner, own, batch.weights).mean()

    def current_lr(self) -> float:
        """The learning rate of the step that comes next."""
        return self.lr * self.schedule(self.progress.step)

    def clip_gradients(self) -> Tensor:
        """The gradient's L2 norm over all parameters, before it is scaled down to `clip_grad` (if that is not 0)."""
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.clip_grad:
            clip_grads_with_norm_(self.parameters, self.clip_grad, norm)
        return norm

    def find_bad_step(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """The first step, this one included, that was not finite; -1 if there is none. Stays on the device."""
        known = self.sums.values[-1]
        good = torch.isfinite(loss)
        if not self.scaler.is_enabled():  # the scaler tries scales until one overflows: its gradients may be infinite
            good &= torch.isfinite(grad_norm)
        return torch.where((known < 0) & ~good, float(self.progress.step), known)

    def step_unless_bad(self, bad_step: Tensor) -> None:
        """Updates the weights; from the first bad step on they stay as they are until the host learns of it."""
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self.optimizer.defaults.get("fused"):
            # What torch's GradScaler uses, too: the fused kernels skip the update without asking the host.
            self.optimizer.found_inf = (bad_step >= 0).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif float(bad_step) < 0:
            self.optimizer.step()

    def until_interrupted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Passes batches on; once the one in work is done after a signal, saves and raises Interrupted."""
        for batch in batches:
            yield batch
            if self.signals.received is not None:
                self.check_finite(self.sums.read())
                self.logger.flush()
                self.save_state()
                raise Interrupted(self.signals.received, self.interrupted_message)

    # --- Between epochs ------------------------------------------------------------------------------------------

    def evaluate(self, epoch: int) -> tuple[dict[str, Evaluation], float]:
        """The model on each evaluation split, if this epoch is one to evaluate, and the seconds it took."""
        if (epoch + 1) % self.eval_every and epoch + 1 < self.epochs:
            return {}, 0.0
        start = time.perf_counter()
        evaluations = {
            split: evaluate(self.judged_model, self.until_interrupted(loader.epoch(0)), self.num_classes, self.device)
            for split, loader in self.eval_loaders.items()
        }
        return evaluations, time.perf_counter() - start

    def record(self, epoch: int, evaluations: dict[str, Evaluation], eval_seconds: float) -> None:
        """Adds the epoch to the history and tells the loggers."""
        sums = self.sums.read()
        record = EpochRecord(
            epoch=epoch + 1,
            step=self.progress.step,
            lr=self.lr * self.schedule(self.progress.step - 1),
            train_loss=sums["loss"] / sums["images"],
            train_accuracy=sums["correct"] / sums["images"],
            grad_norm=sums["grad_norm"] / sums["steps"],
            **{f"{split}_loss": evaluation.loss for split, evaluation in evaluations.items()},
            **{f"{split}_accuracy": evaluation.top1 for split, evaluation in evaluations.items()},
        )
        timing = EpochTiming(
            epoch=record.epoch,
            step=record.step,
            train_seconds=self.epoch_seconds,
            eval_seconds=eval_seconds,
            images_per_second=self.epoch_images / self.epoch_seconds,
            peak_memory_bytes=peak_memory_bytes(self.device),
        )
        self.progress.epoch = record.epoch
        self.progress.history.append(record)
        self.sums = RunningSums(self.device)
        self.logger.epoch_done(record, timing)

    def save(self, epoch: int) -> None:
        """The state, if this epoch is one to save, and the model, if it is the best so far."""
        record, split = self.progress.history[-1], self.best_split
        accuracy = getattr(record, f"{split}_accuracy")
        is_best = accuracy is not None and accuracy > self.progress.best_accuracy
        if is_best:
            self.progress.best_epoch, self.progress.best_accuracy = record.epoch, accuracy
        if is_best and self.saver is not None:
            self.saver.save_best(self.judged_model.state_dict(), split, record)
        if (epoch + 1) % self.save_every == 0 or epoch + 1 == self.epochs:
            self.save_state()

    @property
    def judged_model(self) -> nn.Module:
        """The model that is evaluated, saved and reported: the averaged one if averaging is on."""
        return self.model if self.averaged is None else self.averaged.model

    @property
    def best_split(self) -> str:
        """The split that chooses the best model: the validation split if there is one."""
        return "val" if "val" in self.eval_loaders else "test"

    # --- Reading and saving --------------------------------------------------------------------------------------

    def read_step(self, epoch: int) -> None:
        """Tells the loggers how the epoch goes; the one place within an epoch that waits for the device."""
        sums = self.sums.read()
        self.check_finite(sums)
        self.logger.step_read(
            StepRecord(
                epoch=epoch + 1,
                step=self.progress.step,
                lr=self.lr * self.schedule(self.progress.step - 1),
                loss=sums["last_loss"],
                mean_loss=sums["loss"] / sums["images"],
                accuracy=sums["correct"] / sums["images"],
                grad_norm=sums["last_grad_norm"],
            )
        )

    def check_finite(self, sums: dict[str, float]) -> None:
        """Raises NotFinite if a step was bad."""
        if sums["bad_step"] >= 0:
            step = int(sums["bad_step"])
            raise NotFinite(
                f"the loss or its gradient is not finite at step {step} (lr {self.lr * self.schedule(step):.4g}); "
                f"the checkpoint before it is kept; try a smaller --lr, --warmup-epochs 5 or --clip-grad 1"
            )

    def save_state(self) -> None:
        """Everything that is needed to go on exactly here."""
        if self.saver is not None:
            self.saver.save_state(self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "sums": self.sums.values.tolist(),
            "history": [record.to_plain() for record in self.progress.history],
            "best_epoch": self.progress.best_epoch,
            "best_accuracy": self.progress.best_accuracy,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was called."""
        self.model.load_state_dict(state["model"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.progress = Progress(
            epoch=state["epoch"],
            step=state["step"],
            history=[EpochRecord(**record) for record in state["history"]],
            best_epoch=state["best_epoch"],
            best_accuracy=state["best_accuracy"],
        )
        self.sums.values.copy_(torch.tensor(state["sums"], dtype=self.sums.values.dtype))
