"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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
from resnet_train.evaluation.calibration import fit_calibration
from resnet_train.evaluation.evaluate import Evaluation, compute_logits, evaluate
from resnet_train.evaluation.metrics import METRICS, compute_scores
from resnet_train.loggers.base import Logger
from resnet_train.optim.ema import ExponentialMovingAverage
from resnet_train.optim.groups import frozen_norms, set_lr
from resnet_train.optim.schedules import Schedule
from resnet_train.optim.state import check_state, load_optimizer_state
from resnet_train.records import Calibration, EpochRecord, EpochTiming
from resnet_train.runtime.capture import Captured
from resnet_train.runtime.device import peak_memory_bytes, seed_generators, sum_dtype
from resnet_train.runtime.distributed import ALONE, Processes
from resnet_train.runtime.precision import autocast
from resnet_train.text import counted
from resnet_train.training.signals import Interrupted, SignalWatch
from resnet_train.training.state import Progress, TrainerState
from resnet_train.training.sums import TRAIN_METRICS, RunningSums, count_correct, mean_scores

log = logging.getLogger(__name__)

REMEDY = "start a new run with a smaller --lr, --warmup-epochs 5 or --clip-grad 1 (--resume would repeat this one)"

# The state is saved less often in long runs: a kill then loses at most a twentieth of the run so far.
SAVE_SHARE, MIN_SAVE_SECONDS = 0.05, 30.0

MAX_SCALE = torch.finfo(torch.float32).max  # limit of the loss scale, which multiplies the loss on the device


class NotFinite(Exception):
    """The loss, the gradient or the weights became NaN or infinite; nothing of that step was saved."""


class Saver(Protocol):
    """Where checkpoints go."""

    def save_state(self, state: TrainerState) -> None:
        """Save everything that is needed to resume."""
        ...

    def save_best(
        self, weights: dict[str, Tensor], split: str, record: EpochRecord, calibration: Calibration | None
    ) -> None:
        """Save the best model so far on a split."""
        ...


def mark(phase: str) -> AbstractContextManager[Any]:
    """Name a phase of a training step for `torch.profiler`; without a profiler, do nothing.

    `record_function` alone takes as long as two small operations even when no profiler runs.
    """
    return record_function(phase) if _profiler_enabled() else nullcontext()


def list_scalars() -> tuple[str, ...]:
    """Return the names of all scalars that an epoch of any run can have, in the order of CSV columns."""
    evaluated = (f"{split}/{name}" for split in ("val", "test") for name in METRICS.names())
    return ("lr", *(f"train/{metric}" for metric in TRAIN_METRICS), "grad_norm", *evaluated)


@dataclass(kw_only=True, eq=False)
class Trainer:
    """Train a model epoch by epoch.

    Attributes:
        model: maps images float [B, 3, H, W] to logits float [B, C], on the device.
        optimizer, schedule: the schedule gives the factor on `lr` for each step.
        train_loader: yields the batches of an epoch, given its index.
        eval_loaders: "val", "test" or both; the best model is chosen on "val" if it is present.
        num_classes: C.
        epochs, lr, label_smoothing, clip_grad, accumulate: as in the config.
        class_weights: float [C], the weight of each class in the training loss; None if all are equal.
        eval_every, save_every, save_every_minutes, log_every: as in the config.
        averaged: if given, the moving average that is evaluated and saved as the result.
        precision: the format to autocast to; float16 comes with a loss scaler.
        capture: whether to replay training steps and evaluations from CUDA graphs.
        weights: what the run started from, if not from new weights; their batch counters continue.
        seed: the seed of drop path and dropout.
        processes: the ranks that train this model together.
        loggers, saver: where records and checkpoints go; `attach` sets them.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    train_loader: BatchLoader
    eval_loaders: dict[str, BatchLoader]
    num_classes: int
    epochs: int
    lr: float
    label_smoothing: float
    clip_grad: float
    accumulate: int
    eval_every: int
    save_every: int | None
    save_every_minutes: float
    log_every: int
    seed: int
    capture: bool = False
    weights: Path | None = None
    class_weights: Tensor | None = None
    averaged: ExponentialMovingAverage | None = None
    precision: torch.dtype | None = None
    processes: Processes = ALONE
    loggers: Sequence[Logger] = ()
    saver: Saver | None = None
    interrupted_message: str = ""

    def __post_init__(self) -> None:
        self.device = self.train_loader.device
        self.network = self.processes.parallel(self.model, self.device)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.frozen_norms = frozen_norms(self.model)
        self.scaler = self.new_scaler()
        self.progress = Progress()
        self.sums = RunningSums(self.device)
        self.step_number = torch.zeros((), dtype=sum_dtype(self.device), device=self.device)
        self.run_step: Callable[[Batch], None] = self.step
        self.run_forward: Callable[[Batch], Tensor] = self.forward
        if self.capture:
            pool = torch.cuda.graph_pool_handle()
            self.run_step = Captured(self.step, pool=pool, recover=self.forget_step)
            self.run_forward = Captured(self.forward, pool=pool)
        self.signals = SignalWatch(announces=self.processes.rank == 0)
        self.best_weights: dict[str, Tensor] | None = None  # from an epoch that is better than the best file
        self.best_calibration: Calibration | None = None
        self.started_at = self.saved_at = time.monotonic()
        self.evaluations: dict[str, Evaluation] = {}  # the last of each split
        self.epoch_seconds = 0.0  # training time of the current epoch, including the part before a resume

    def attach(self, loggers: Sequence[Logger], saver: Saver | None, interrupted_message: str) -> None:
        """Set the loggers, the saver (None saves nothing) and the message for a user who stops the run."""
        self.loggers, self.saver, self.interrupted_message = loggers, saver, interrupted_message

    # --- The loop ------------------------------------------------------------------------------------------------

    def fit(self) -> EpochRecord:
        """Train until the last epoch and return its record.

        Raises:
            NotFinite: a loss, gradient or weight was not finite.
            Interrupted: by SIGINT, SIGTERM or SIGHUP, after the state was saved.
        """
        try:
            with self.signals:
                for epoch in range(self.progress.epoch, self.epochs):
                    self.train_epoch(epoch)
                    evaluations, eval_seconds = self.evaluate(epoch)
                    self.record(epoch, evaluations, eval_seconds)
                    self.flush_loggers()
                    self.save(epoch)
        except NotFinite:
            self.save_best()  # it is from an epoch that was finite
            raise
        return self.progress.history[-1]

    def train_epoch(self, epoch: int) -> None:
        """Train on the batches of an epoch that are not done yet."""
        # A resumed run continues after the batches that are already done, and adds to the time they took.
        first = self.progress.step - epoch * len(self.train_loader)
        self.model.train()
        for norm in self.frozen_norms:
            norm.eval()
        start = time.perf_counter() - self.epoch_seconds

        # The host waits for the device when it logs, every `log_every` steps.
        for batch in self.until_stopped(self.train_loader.epoch(epoch, first)):
            self.train_step(batch)
            for logger in self.loggers:
                logger.tick(self.progress.step)
            if self.progress.step % self.log_every == 0:
                self.log_step()
            self.epoch_seconds = time.perf_counter() - start

        # Weights that are not finite end the run before they are evaluated or saved.
        self.check_finite(self.read_sums())
        self.check_weights()
        self.epoch_seconds = time.perf_counter() - start

    def train_step(self, batch: Batch) -> None:
        """Do one optimizer step: write the numbers that vary, run the step, count it."""
        set_lr(self.optimizer, self.lr_at(self.progress.step))
        self.step_number.fill_(self.progress.step)
        self.seed_step()
        if self.averaged is not None:
            self.averaged.advance()
        self.run_step(batch)
        self.progress.step += 1

    def step(self, batch: Batch) -> None:
        """Run the step: forward, loss, backward, clip, update, average. It changes nothing but tensors, in place."""
        # Forward and backward, part by part; the gradients of the parts add up to that of the whole batch.
        losses, corrects = [], []
        class_weights = self.scaled_class_weights(batch)
        parts = batch.split(len(batch.labels) // self.accumulate) if self.accumulate > 1 else [batch]
        for index, part in enumerate(parts):
            with self.averaging_gradients(is_last_part=index == len(parts) - 1):
                with mark("forward"):
                    with autocast(self.device, self.precision):
                        logits = self.network(part.images)  # [B, C]
                    # In float32: bfloat16 would round the log-sum-exp to three digits.
                    loss = self.loss(logits.float(), part, class_weights) / len(parts)
                with mark("backward"):
                    self.scaler.scale(loss).backward()
            losses.append(loss.detach())
            corrects.append(count_correct(logits.detach(), part))
        step_loss, correct = sum(losses[1:], losses[0]), sum(corrects[1:], corrects[0])

        # Update, unless the loss or the gradient is not finite; the host learns of that at its next read.
        grad_norm = self.clip_gradients()
        bad_step = self.find_bad_step(step_loss, grad_norm)
        with mark("optimizer"):
            self.step_unless_bad(bad_step)
        self.optimizer.zero_grad(set_to_none=True)

        # Average the weights, and add the step to the sums of the epoch.
        if self.averaged is not None:
            self.averaged.update(bad=bad_step >= 0)
        self.sums.add(step_loss, correct, len(batch.labels), grad_norm, bad_step)

    def forget_step(self) -> None:
        """Drop what an unfinished step left in Python objects: gradients, and the scaler's records of them."""
        self.optimizer.zero_grad(set_to_none=True)
        state, self.scaler = self.scaler.state_dict(), self.new_scaler()
        self.scaler.load_state_dict(state)

    def new_scaler(self) -> torch.amp.GradScaler:
        """Return a loss scaler, which is without effect unless training in float16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision is torch.float16)

    def seed_step(self) -> None:
        """Seed drop path and dropout from (seed, step, rank), so that no generator state has to be saved."""
        entropy = [self.seed, self.progress.step, self.processes.rank]
        seed_generators(self.device, int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def averaging_gradients(self, is_last_part: bool) -> AbstractContextManager[Any]:
        """Return a context in which ranks average their gradients for the last part, and only add them up before."""
        if is_last_part or not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()

    def scaled_class_weights(self, batch: Batch) -> Tensor | None:
        """Return the class weights, divided by the mean weight of the images of the whole batch.

        So the mean over any equal parts and ranks is `sum(weight * loss) / sum(weight)` of the whole batch, as in
        `torch.nn.CrossEntropyLoss(weight)`. The weight of a mixed image is the weighted mean over its two labels.
        """
        if self.class_weights is None:
            return None
        image_weights = self.class_weights[batch.labels]  # [B]
        if batch.partner_labels is not None and batch.weights is not None:
            image_weights = torch.lerp(self.class_weights[batch.partner_labels], image_weights, batch.weights)
        return self.class_weights / (self.processes.sum(image_weights.mean()) / self.processes.num_ranks)

    def loss(self, logits: Tensor, batch: Batch, class_weights: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy; that of a mixed image is the weighted mean over its two labels."""
        # Each image has a weight, so the mean is taken last.
        cross_entropy = partial(
            F.cross_entropy, logits, weight=class_weights, label_smoothing=self.label_smoothing, reduction="none"
        )
        if batch.partner_labels is not None and batch.weights is not None:
            own, partner = cross_entropy(batch.labels), cross_entropy(batch.partner_labels)
            return torch.lerp(partner, own, batch.weights).mean()
        if class_weights is not None:
            return cross_entropy(batch.labels).mean()
        return cross_entropy(batch.labels, reduction="mean")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return self.lr * self.schedule(step)

    def clip_gradients(self) -> Tensor:
        """Clip the L2 norm of the gradient to `clip_grad` (0: no limit) and return the norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.clip_grad:
            clip_grads_with_norm_(self.parameters, self.clip_grad, norm)
        return norm

    def find_bad_step(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Return the first step up to this one that was not finite, -1 if there is none; stays on the device."""
        known = self.sums.bad_step
        if self.scaler.is_enabled():  # the scaler raises the scale until gradients overflow: infinity is normal
            good = torch.isfinite(loss)
        else:
            good = torch.isfinite(torch.stack([loss, grad_norm])).all()
        return torch.where((known < 0) & ~self.processes.all_true(good), self.step_number, known)

    def step_unless_bad(self, bad_step: Tensor) -> None:
        """Update the weights, unless this step or an earlier one was bad."""
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif getattr(self.optimizer, "_step_supports_amp_scaling", False):
            # As torch's GradScaler does: the fused kernels skip the update without a host-device synchronization.
            self.optimizer.found_inf = (bad_step >= 0).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif float(bad_step) < 0:
            self.optimizer.step()

    def until_stopped(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches; after each, save if a save is due, and after a signal save and raise Interrupted."""
        for batch in batches:
            yield batch

            # All ranks stop and save after the same batch, whichever of them received the signal.
            stop, save = self.processes.agree(self.signals.stop, self.signals.save or self.save_is_due())
            if stop or save:
                self.check_finite(self.read_sums())
                self.check_weights()
                self.flush_loggers()
                self.save_state()
            if stop:
                raise Interrupted(stop, self.interrupted_message)

    def save_is_due(self) -> bool:
        """Return whether the last save is older than `save_every_minutes` or, if that is less, a share of the run."""
        now = time.monotonic()
        seconds = min(60 * self.save_every_minutes, max(MIN_SAVE_SECONDS, SAVE_SHARE * (now - self.started_at)))
        return 0 < seconds <= now - self.saved_at

    # --- Between epochs ------------------------------------------------------------------------------------------

    def evaluate(self, epoch: int) -> tuple[dict[str, Evaluation], float]:
        """Evaluate the model on each split every `eval_every` epochs and after the last; return the seconds it took."""
        if (epoch + 1) % self.eval_every and epoch + 1 < self.epochs:
            return {}, 0.0

        # Every rank evaluates its part of the images with the running statistics of rank 0.
        start = time.perf_counter()
        self.processes.broadcast_buffers(self.eval_model)
        evaluations = {split: self.evaluate_on(loader) for split, loader in self.eval_loaders.items()}
        self.evaluations = evaluations
        for split, evaluation in evaluations.items():
            self.check_evaluation(epoch, split, evaluation.loss)
        return evaluations, time.perf_counter() - start

    def evaluate_on(self, loader: BatchLoader) -> Evaluation:
        """Evaluate the model on one split."""
        batches = self.until_stopped(loader.epoch(0))
        return evaluate(self.eval_model, batches, self.num_classes, self.device, self.processes, self.run_forward)

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits [B, C] of the model that is evaluated, computed in the number format of training."""
        return compute_logits(self.eval_model, self.precision, batch)

    def record(self, epoch: int, evaluations: dict[str, Evaluation], eval_seconds: float) -> None:
        """Append the epoch to the history and log it."""
        # The record is a function of config and seed; times and memory differ from run to run.
        sums = self.read_sums()
        scores = {split: compute_scores(evaluation) for split, evaluation in evaluations.items()}
        record = EpochRecord(
            epoch=epoch + 1,
            step=self.progress.step,
            lr=self.lr_at(self.progress.step - 1),
            grad_norm=sums["grad_norm"] / max(1.0, sums["steps"]),
            scores={"train": mean_scores(sums), **scores},
        )
        timing = EpochTiming(
            train_seconds=self.epoch_seconds,
            eval_seconds=eval_seconds,
            images_per_second=sums["images"] / self.epoch_seconds,
            peak_memory_bytes=peak_memory_bytes(self.device),
        )

        # Finish the epoch: clear its sums and its time.
        self.progress.add(record, self.best_split)
        self.sums.reset()
        self.epoch_seconds = 0.0

        for logger in self.loggers:
            logger.log({**record.scalars(), **timing.scalars()}, step=record.step, epoch=record.epoch)

    def save(self, epoch: int) -> None:
        """Keep the model if it is the best so far, and save the state if a save is due."""
        if self.saver is not None and self.progress.best_epoch == epoch + 1:
            self.best_calibration = self.fit_calibration()
            self.best_weights = {name: value.clone() for name, value in self.eval_model.state_dict().items()}
        is_chosen = epoch + 1 == self.epochs or (self.save_every and (epoch + 1) % self.save_every == 0)
        if is_chosen or any(self.processes.agree(self.save_is_due())):
            self.save_state()

    def save_best(self) -> None:
        """Save the best model if its file does not hold it yet."""
        if self.saver is not None and self.best_weights is not None:
            record = self.progress.history[self.progress.best_epoch - 1]
            self.saver.save_best(self.best_weights, self.best_split, record, self.best_calibration)
            self.best_weights = None

    def fit_calibration(self) -> Calibration | None:
        """Return the calibration of the model as last evaluated on the validation images, None without them."""
        return fit_calibration(self.evaluations["val"]) if "val" in self.evaluations else None

    @property
    def eval_model(self) -> nn.Module:
        """Return the model that is evaluated, saved and reported: the averaged one if averaging is on."""
        return self.model if self.averaged is None else self.averaged.model

    @property
    def best_split(self) -> str:
        """Return the split that selects the best model: the validation split if there is one."""
        return "val" if "val" in self.eval_loaders else "test"

    # --- Reading and saving --------------------------------------------------------------------------------------

    def read_sums(self) -> dict[str, float]:
        """Return the epoch's sums over all ranks by name; waits for the device."""
        return self.sums.read(self.processes)

    def log_step(self) -> None:
        """Log the last step and the means of the epoch so far; the host waits for the device here."""
        sums = self.read_sums()
        self.check_finite(sums)
        scalars = {
            "loss": sums["last_loss"],
            "grad_norm": sums["last_grad_norm"],
            "lr": self.lr_at(self.progress.step - 1),
            **{f"train/{metric}": value for metric, value in mean_scores(sums).items()},
        }
        for logger in self.loggers:
            logger.log(scalars, step=self.progress.step)

    def flush_loggers(self) -> None:
        """Write everything that was logged to disk, so that the files never lag behind a checkpoint."""
        for logger in self.loggers:
            logger.flush()

    def check_finite(self, sums: dict[str, float]) -> None:
        """Raise NotFinite if the loss or gradient of a step was not finite."""
        if sums["bad_step"] >= 0:
            step = int(sums["bad_step"])
            raise NotFinite(
                f"the loss or its gradient is not finite at step {step} (lr {self.lr_at(step):.4g}); {REMEDY}"
            )

    def check_evaluation(self, epoch: int, split: str, loss: float) -> None:
        """Warn if an evaluation loss is not finite; after the last epoch, raise NotFinite."""
        if math.isfinite(loss):
            return
        message = f"the {split} loss after epoch {epoch + 1} is not finite"
        if epoch + 1 == self.epochs:
            raise NotFinite(f"{message}; {REMEDY}")
        log.warning(message)

    def check_weights(self) -> None:
        """Raise NotFinite if a weight or running statistic is not finite: they can overflow under a finite loss."""
        floats = [tensor for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
        if not torch.stack([torch.isfinite(tensor).all() for tensor in floats]).all():
            raise NotFinite(f"weights or running statistics are not finite at step {self.progress.step}; {REMEDY}")

    def save_state(self) -> None:
        """Save the best model and the state; every rank takes part."""
        state = self.state()
        self.save_best()
        if self.saver is not None:
            self.saver.save_state(state)
        self.signals.save, self.saved_at = False, time.monotonic()

    def state(self) -> TrainerState:
        """Return the state; every rank takes part."""
        return TrainerState.model_construct(
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            averaged=None if self.averaged is None else self.averaged.state(),
            sums=self.processes.gather(self.sums.values.tolist()),
            epoch_seconds=self.epoch_seconds,
            calibration=self.fit_calibration() if self._is_evaluated else None,
            **{**vars(self.progress), "history": list(self.progress.history)},
        )

    @property
    def _is_evaluated(self) -> bool:
        """Return whether the last evaluation was of the current model."""
        last = self.progress.history[-1] if self.progress.history else None
        return last is not None and last.step == self.progress.step and "val" in last.scores

    def load_state(self, state: TrainerState) -> None:
        """Restore a state once every part of it is known to fit.

        Raises:
            ValueError: a part belongs to another run, is incomplete or holds what training cannot reach.
        """
        # Check how far the run has come.
        steps = len(self.train_loader)
        epochs = f"{counted(state.epoch, 'epoch')} of {counted(steps, 'step')}"
        if not state.epoch * steps <= state.step <= (state.epoch + 1) * steps:
            raise ValueError(f"step (={state.step}) does not follow {epochs}")
        if state.history and state.history[-1].step != state.epoch * steps:
            raise ValueError(f"history (=to step {state.history[-1].step}) does not end after {epochs}")
        done, skips = state.step - state.epoch * steps, self.scaler.is_enabled()
        self.sums.check(state.sums, done, done * self.train_loader.batch_size, skips)

        # Check each tensor against the network, and the optimizer's against those that it would create itself.
        counts = self._possible_counts(state)
        check_state(state.model, self.model.state_dict(), "model", counts)
        self._check_averaged(state)
        scaler = self._check_scaler(state)
        set_lr(self.optimizer, self.lr_at(max(0, state.step - 1)))  # a save before the next step writes it
        load_optimizer_state(self.optimizer, state.optimizer, (0 if skips else state.step, state.step))

        # Everything fits: copy it.
        self.model.load_state_dict(state.model)
        self.scaler.load_state_dict(scaler)
        if self.averaged is not None and state.averaged is not None:
            self.averaged.load_state(state.averaged)
        self.progress = state.progress
        self.epoch_seconds = state.epoch_seconds
        self.sums.load(state.sums, self.processes)

    def _possible_counts(self, state: TrainerState) -> tuple[int, float]:
        """Return the least and the greatest number of batches that the norms can have seen."""
        return 0, state.step * self.accumulate if self.weights is None else math.inf

    def _check_averaged(self, state: TrainerState) -> None:
        """Raise unless the averaged weights, if there are any, fit this network and were updated at every step."""
        if (self.averaged is None) != (state.averaged is None):
            raise ValueError(f"averaged must be {'absent' if self.averaged is None else 'present'}, as ema_decay says")
        if self.averaged is None or state.averaged is None:
            return
        counts = self._possible_counts(state)
        check_state(state.averaged.model, self.averaged.model.state_dict(), "averaged.model", counts)
        if state.averaged.num_updates != state.step:
            raise ValueError(f"averaged.num_updates (={state.averaged.num_updates}) must be {state.step}, as step is")

    def _check_scaler(self, state: TrainerState) -> dict[str, Any]:
        """Return the state of the loss scaler; only its scale and its counter may differ from a new one's."""
        own = self.scaler.state_dict()
        scale, growth = state.scaler.get("scale"), state.scaler.get("_growth_tracker")
        if own and (type(scale) is not float or not 0 < scale <= MAX_SCALE):
            raise ValueError(f"scaler.scale (={scale!r}) must be a positive finite number")
        if own and (type(growth) is not int or not 0 <= growth < own["growth_interval"]):
            raise ValueError(f"scaler._growth_tracker (={growth!r}) must be from 0 to {own['growth_interval'] - 1}")
        expected = own | ({"scale": scale, "_growth_tracker": growth} if own else {})
        check_state(state.scaler, expected, "scaler")
        return expected
