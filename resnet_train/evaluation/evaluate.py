"""Evaluate a model on a set of images, every image once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_train.data.batch import Batch
from resnet_train.runtime.device import sum_dtype
from resnet_train.runtime.distributed import ALONE, Processes
from resnet_train.runtime.precision import autocast, eval_precision


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation collects; metrics are functions of it.

    Attributes:
        loss: mean cross-entropy, without label smoothing and class weights.
        logits: float32 [N, C] on the CPU, in the order of the images (by rank if there are several processes).
        labels: int64 [N] on the CPU.
    """

    loss: float
    logits: Tensor
    labels: Tensor

    @property
    def n(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @cached_property
    def confusion(self) -> np.ndarray:
        """Return int64 [C, C]: how many images of the row's class were classified as the column's class."""
        num_classes = self.logits.shape[1]
        # Each pair of label and prediction is one cell of the flat matrix.
        cells = self.labels * num_classes + self.logits.argmax(1)
        return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes).numpy()


def compute_logits(model: nn.Module, precision: torch.dtype | None, batch: Batch) -> Tensor:
    """Return the logits [B, C] of a batch, computed in the format of training unless the device would emulate it."""
    device = batch.images.device
    with autocast(device, eval_precision(precision, device)):
        return model(batch.images)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    num_classes: int,
    device: torch.device,
    processes: Processes = ALONE,
    forward: Callable[[Batch], Tensor] | None = None,
) -> Evaluation:
    """Run the model in evaluation mode on every batch and collect its outputs.

    The outputs stay on the device, so the host waits for it only once, at the end. Each process contributes its part of
    the batches, which may be empty; every process gets the result for all images.

    Args:
        forward: maps a batch to the model's logits, which the next call may overwrite; by default in float32.
    """
    forward = forward or partial(compute_logits, model, None)

    # An empty part comes first, because a rank may have no images.
    was_training = model.training
    model.eval()
    loss_sum = torch.zeros((), dtype=sum_dtype(device), device=device)
    logits = [torch.empty(0, num_classes, device=device)]
    labels = [torch.empty(0, dtype=torch.int64, device=device)]

    # Everything stays on the device.
    for batch in batches:
        if len(batch.labels):
            logits.append(forward(batch).to(torch.float32, copy=True))  # [B, C]
            labels.append(batch.labels)  # [B]
            loss_sum += F.cross_entropy(logits[-1], labels[-1], reduction="sum")
    model.train(was_training)

    # One transfer to the host for all images of all processes.
    loss_sum = processes.sum(loss_sum)
    all_logits, all_labels = (processes.concatenate(torch.cat(parts)).cpu() for parts in (logits, labels))
    return Evaluation(loss=float(loss_sum) / max(1, len(all_labels)), logits=all_logits, labels=all_labels)
