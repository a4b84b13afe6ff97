"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import _profiler_enabled  # type: ignore[attr-defined]
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.profiler import record_function

from resnet_train.data.batch import Batch
from resnet_train.data.loader import BatchLoader
from resnet_train.evaluation.evaluate import evaluate
from resnet_train.loggers.base import Logger
from resnet_train.optim.ema import AveragedModel
from resnet_train.optim.optimizers import load_optimizer_state, set_lr
from resnet_train.optim.schedules import Schedule
from resnet_train.records import EpochRecord, EpochTiming, Evaluation, StepRecord
from resnet_train.runtime.device import peak_memory_bytes, sum_dtype
from resnet_train.runtime.distributed import ALONE, Processes
from resnet_train.training.signals import Interrupted, SignalWatch

log = logging.getLogger(__name__)

REMEDY = "start a new run with a smaller --lr, --warmup-epochs 5 or --clip-grad 1 (--resume would repeat this one)"


class NotFinite(Exception):
    """Loss, gradient or weights became NaN or infinite. Nothing of it was saved."""

    exit_code = 3


class Saver(Protocol):
    """Where the trainer's state goes."""

    def save_state(self, state: dict[str, Any]) -> None:
        """Everything that is needed to go on."""
        ...

    def save_best(self, weights: dict[str, Tensor], split: str, record: EpochRecord) -> None:
        """The best model so far on a split."""
        ...


def mark(phase: str) -> AbstractContextManager[Any]:
    """Name a part of a training step for `torch.profiler`. Without a profiler nothing is recorded.

    `record_function` alone takes as long as two small operations even when no profiler runs.
    """
    return record_function(phase) if _profiler_enabled() else nullcontext()


class RunningSums:
    """The epoch's sums, on the device: added to every step, read by the host only now and then."""

    NAMES = ("loss", "correct", "images", "grad_norm", "steps", "last_loss", "last_grad_norm", "bad_step")
    PARTS = 3  # the first three are of this process's part of the batches; the others are of whole batches or means

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(len(self.NAMES), dtype=sum_dtype(device), device=device)
        self.values[-1] = -1  # bad_step: the first step whose loss or gradient was not finite

    def add(self, loss: Tensor, correct: Tensor, num_images: int, grad_norm: Tensor, bad_step: Tensor) -> None:
        """Adds one step: its mean loss, correct predictions, number of images and gradient norm."""
        one = torch.ones_like(loss)
        # A gradient that overflowed in float16 was skipped: it has no part in the mean.
        counts = torch.isfinite(grad_norm)
        norm = torch.where(counts, grad_norm, 0.0)
        added = torch.stack([loss * num_images, correct, one * num_images, norm, one * counts]).to(self.values.dtype)
        self.values[:5] += added
        self.values[5:] = torch.stack([loss, grad_norm, bad_step]).to(self.values.dtype)

    @property
    def bad_step(self) -> Tensor:
        """The first step that was not finite, -1 if there is none; on the device."""
        return self.values[-1]

    def read(self, processes: Processes) -> dict[str, float]:
        """The values of all processes by name; waits for the device."""
        totals = processes.sum(self.values).tolist()
        totals[self.PARTS :] = [total / processes.num_ranks for total in totals[self.PARTS :]]
        return dict(zip(self.NAMES, totals))

    def load(self, rows: list[list[float]], processes: Processes) -> None:
        """Goes back to what each process had; if there were more or fewer of them, rank 0 takes over all parts."""
        if len(rows) == processes.num_ranks:
            mine = rows[processes.rank]
        else:
            parts = [sum(column) for column in zip(*rows)][: self.PARTS]
            mine = ([0.0] * self.PARTS if processes.rank else parts) + rows[0][self.PARTS :]
        self.values.copy_(torch.tensor(mine, dtype=self.values.dtype))


def count_correct(logits: Tensor, batch: Batch) -> Tensor:
    """How many images were classified right; a mixed image counts by the share of the label that was found."""
    predicted = logits.argmax(1)
    own = (predicted == batch.labels).float()
    if batch.partner_labels is None or batch.weights is None:
        return own.sum()
    return torch.lerp((predicted == batch.partner_labels).float(), own, batch.weights).sum()


@dataclass
class Progress:
    """How far a run has come: everything besides tensors that a checkpoint needs to go on exactly."""

    epoch: int = 0  # finished epochs
    step: int = 0  # optimizer steps since the start
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    best_accuracy: float = -1.0

    def add(self, record: EpochRecord, best_split: str) -> None:
        """One more finished epoch; it is the best if no other was as good on that split."""
        self.epoch = record.epoch
        self.history.append(record)
        accuracy = getattr(record, f"{best_split}_accuracy")
        if accuracy is not None and accuracy > self.best_accuracy:
            self.best_epoch, self.best_accuracy = record.epoch, accuracy


class Trainer:
    """Trains a model epoch by epoch.

    Args:
        model: from images [B, 3, H, W] to logits [B, C], on the device.
        optimizer, schedule: the schedule gives the factor on `lr` for each step.
        train_loader: batches of an epoch by number.
        eval_loaders: "val", "test" or both; the best model is chosen on "val" if it is there.
        num_classes: C.
        epochs, lr, label_smoothing, clip_grad: as in the config.
        eval_every, save_every, save_every_minutes, log_every: as in the config.
        accumulate: parts each batch is computed in.
        averaged: follows the model; it is what is evaluated and saved as the result.
        precision: the format to autocast to; float16 brings a loss scaler.
        seed: of drop path and dropout.
        processes: those that train this model together.
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
        label_smoothing: float = 0.0,
        clip_grad: float = 0.0,
        eval_every: int = 1,
        save_every: int = 1,
        save_every_minutes: float = 0.0,
        log_every: int = 20,
        accumulate: int = 1,
        averaged: AveragedModel | None = None,
        precision: torch.dtype | None = None,
        seed: int = 0,
        processes: Processes = ALONE,
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.train_loader, self.eval_loaders = train_loader, eval_loaders
        self.num_classes, self.epochs, self.lr = num_classes, epochs, lr
        self.label_smoothing, self.clip_grad = label_smoothing, clip_grad
        self.eval_every, self.save_every, self.log_every = eval_every, save_every, log_every
        self.accumulate, self.averaged, self.precision, self.seed = accumulate, averaged, precision, seed
        self.save_seconds, self.saved_at = 60 * save_every_minutes, time.monotonic()
        self.attach(Logger())
        self.device = train_loader.device
        self.processes, self.network = processes, processes.parallel(model, self.device)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision is torch.float16)
        self.progress = Progress()
        self.sums = RunningSums(self.device)
        self.signals = SignalWatch()
        self.epoch_seconds = 0.0  # of training in the running epoch, those before a resume included

    def attach(self, logger: Logger, saver: Saver | None = None, interrupted_message: str = "") -> None:
        """Who is told: of records, of the state (None saves nothing), and what a user who stopped the run reads."""
        self.logger, self.saver, self.interrupted_message = logger, saver, interrupted_message

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
        start = time.perf_counter() - self.epoch_seconds
        for batch in self.until_stopped(self.train_loader.epoch(epoch, first)):
            self.train_step(batch)
            self.logger.step_done()
            if self.progress.step % self.log_every == 0:
                self.read_step(epoch)
            self.epoch_seconds = time.perf_counter() - start
        self.check_finite(self.read_sums())
        self.check_weights()
        self.epoch_seconds = time.perf_counter() - start

    def train_step(self, batch: Batch) -> None:
        """One optimizer step: forward, loss, backward, clip, step, average."""
        set_lr(self.optimizer, self.lr_at(self.progress.step))
        self.seed_step()
        step_loss = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device)
        parts = batch.split(len(batch.labels) // self.accumulate)
        for number, part in enumerate(parts, 1):
            with self.averaging_gradients(number == len(parts)):
                with mark("forward"):
                    with self.autocast():
                        logits = self.network(part.images)
                    loss = self.loss(logits.float(), part) / len(parts)  # float32: bf16 keeps 3 digits of a log-sum-exp
                with mark("backward"):
                    self.scaler.scale(loss).backward()
            step_loss += loss.detach()
            correct += count_correct(logits.detach(), part)
        grad_norm = self.clip_gradients()
        bad_step = self.find_bad_step(step_loss, grad_norm)
        with mark("optimizer"):
            self.step_unless_bad(bad_step)
        self.optimizer.zero_grad(set_to_none=True)
        if self.averaged is not None:
            self.averaged.update(self.model, bad=bad_step >= 0)
        self.sums.add(step_loss, correct, len(batch.labels), grad_norm, bad_step)
        self.progress.step += 1

    def seed_step(self) -> None:
        """Drop path and dropout draw from (seed, step, rank) alone, so no generator state has to be saved."""
        entropy = [self.seed, self.progress.step, self.processes.rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def averaging_gradients(self, is_last_part: bool) -> AbstractContextManager[Any]:
        """Several processes average their gradients once a step, with its last part."""
        if is_last_part or not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()

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

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.lr * self.schedule(step)

    def clip_gradients(self) -> Tensor:
        """The gradient's L2 norm over all parameters, before it is scaled down to `clip_grad` (if that is not 0)."""
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.clip_grad:
            clip_grads_with_norm_(self.parameters, self.clip_grad, norm)
        return norm

    def find_bad_step(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """The first step, this one included, that was not finite; -1 if there is none. Stays on the device."""
        known = self.sums.bad_step
        good = torch.isfinite(loss)
        if not self.scaler.is_enabled():  # the scaler tries scales until one overflows: its gradients may be infinite
            good &= torch.isfinite(grad_norm)
        return torch.where((known < 0) & ~self.processes.all_true(good), float(self.progress.step), known)

    def step_unless_bad(self, bad_step: Tensor) -> None:
        """Updates the weights; from the first bad step on they stay as they are until the host learns of it."""
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif getattr(self.optimizer, "_step_supports_amp_scaling", False):
            # What torch's GradScaler uses, too: the fused kernels skip the update without asking the host.
            self.optimizer.found_inf = (bad_step >= 0).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif float(bad_step) < 0:
            self.optimizer.step()

    def until_stopped(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Passes batches on; between two of them saves if it is time to, and raises Interrupted after a signal."""
        for batch in batches:
            yield batch
            stop, save = self.processes.agree(self.signals.stop, self.signals.save or self.save_is_due())
            if stop or save:
                self.check_finite(self.read_sums())
                self.check_weights()
                self.logger.flush()
                self.save_state()
            if stop:
                raise Interrupted(stop, self.interrupted_message)

    def save_is_due(self) -> bool:
        """Whether the last save is longer ago than `save_every_minutes`."""
        return 0 < self.save_seconds <= time.monotonic() - self.saved_at

    # --- Between epochs ------------------------------------------------------------------------------------------

    def evaluate(self, epoch: int) -> tuple[dict[str, Evaluation], float]:
        """The model on each evaluation split, if this epoch is one to evaluate, and the seconds it took."""
        if (epoch + 1) % self.eval_every and epoch + 1 < self.epochs:
            return {}, 0.0
        start = time.perf_counter()
        self.processes.broadcast_buffers(self.eval_model)
        evaluations = {split: self.evaluate_on(loader) for split, loader in self.eval_loaders.items()}
        for split, evaluation in evaluations.items():
            self.check_evaluation(epoch, split, evaluation.loss)
        return evaluations, time.perf_counter() - start

    def evaluate_on(self, loader: BatchLoader) -> Evaluation:
        """The model on one split."""
        batches = self.until_stopped(loader.epoch(0))
        return evaluate(self.eval_model, batches, self.num_classes, self.device, self.processes)

    def record(self, epoch: int, evaluations: dict[str, Evaluation], eval_seconds: float) -> None:
        """Adds the epoch to the history and tells the loggers."""
        sums = self.read_sums()
        record = EpochRecord(
            epoch=epoch + 1,
            step=self.progress.step,
            lr=self.lr_at(self.progress.step - 1),
            train_loss=sums["loss"] / sums["images"],
            train_accuracy=sums["correct"] / sums["images"],
            grad_norm=sums["grad_norm"] / max(1.0, sums["steps"]),
            **{f"{split}_loss": evaluation.loss for split, evaluation in evaluations.items()},
            **{f"{split}_accuracy": evaluation.top1 for split, evaluation in evaluations.items()},
        )
        timing = EpochTiming(
            epoch=record.epoch,
            step=record.step,
            train_seconds=self.epoch_seconds,
            eval_seconds=eval_seconds,
            images_per_second=sums["images"] / self.epoch_seconds,
            peak_memory_bytes=peak_memory_bytes(self.device),
        )
        self.progress.add(record, self.best_split)
        self.sums, self.epoch_seconds = RunningSums(self.device), 0.0
        self.logger.epoch_done(record, timing)

    def save(self, epoch: int) -> None:
        """The state, if this epoch is one to save, and the model, if it is the best so far."""
        if self.saver is not None and self.progress.best_epoch == epoch + 1:
            self.saver.save_best(self.eval_model.state_dict(), self.best_split, self.progress.history[-1])
        if (epoch + 1) % self.save_every == 0 or epoch + 1 == self.epochs:
            self.save_state()

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated, saved and reported: the averaged one if averaging is on."""
        return self.model if self.averaged is None else self.averaged.model

    @property
    def best_split(self) -> str:
        """The split that chooses the best model: the validation split if there is one."""
        return "val" if "val" in self.eval_loaders else "test"

    # --- Reading and saving --------------------------------------------------------------------------------------

    def read_sums(self) -> dict[str, float]:
        """The epoch's sums over all processes by name; waits for the device."""
        return self.sums.read(self.processes)

    def read_step(self, epoch: int) -> None:
        """Tells the loggers how it goes; the host waits for the device here (with unfused optimizers, always)."""
        sums = self.read_sums()
        self.check_finite(sums)
        self.logger.step_read(
            StepRecord(
                epoch=epoch + 1,
                step=self.progress.step,
                lr=self.lr_at(self.progress.step - 1),
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
                f"the loss or its gradient is not finite at step {step} (lr {self.lr_at(step):.4g}); {REMEDY}"
            )

    def check_evaluation(self, epoch: int, split: str, loss: float) -> None:
        """An early loss that overflows may come back; one at the end is no result: raises NotFinite."""
        if math.isfinite(loss):
            return
        message = f"the {split} loss after epoch {epoch + 1} is not finite"
        if epoch + 1 == self.epochs:
            raise NotFinite(f"{message}; {REMEDY}")
        log.warning(message)

    def check_weights(self) -> None:
        """Raises NotFinite if a weight or a running statistic is: a loss can stay finite while they overflow."""
        floats = [tensor for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
        if not torch.stack([torch.isfinite(tensor).all() for tensor in floats]).all():
            raise NotFinite(f"weights or running statistics are not finite at step {self.progress.step}; {REMEDY}")

    def save_state(self) -> None:
        """Everything that is needed to go on exactly here."""
        state = {**self.state_dict(), "sums": self.processes.gather(self.sums.values.tolist())}
        if self.saver is not None:
            self.saver.save_state(state)
        self.signals.save, self.saved_at = False, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "sums": [self.sums.values.tolist()],  # a row for each process
            "epoch_seconds": self.epoch_seconds,
            "history": [record.to_plain() for record in self.progress.history],
            "best_epoch": self.progress.best_epoch,
            "best_accuracy": self.progress.best_accuracy,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was called.

        Raises:
            ValueError: the state is of another run: its step lies outside its epoch.
        """
        steps = len(self.train_loader)
        if not state["epoch"] * steps <= state["step"] <= (state["epoch"] + 1) * steps:
            raise ValueError(f"step {state['step']} does not follow {state['epoch']} epochs of {steps} steps")
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
        self.epoch_seconds = state["epoch_seconds"]
        self.sums.load(state["sums"], self.processes)
