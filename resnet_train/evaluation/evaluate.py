"""Judging a model on a set of images: every image once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from resnet_train.data.batch import Batch
from resnet_train.records import Evaluation
from resnet_train.runtime.device import sum_dtype
from resnet_train.runtime.distributed import ALONE, Processes


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    num_classes: int,
    device: torch.device,
    processes: Processes = ALONE,
) -> Evaluation:
    """Loss, top-1, top-5 and the confusion matrix; the model is in evaluation mode while this runs.

    All sums stay on the device, so the host waits for it once, at the end. Each process brings its part of the
    batches, which may be empty; all get the result for all images.
    """
    was_training = model.training
    model.eval()
    loss_sum = torch.zeros((), dtype=sum_dtype(device), device=device)
    in_top5 = torch.zeros((), dtype=torch.int64, device=device)
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
    one = torch.ones((), dtype=torch.int64, device=device)
    for batch in batches:
        labels = batch.labels
        if not len(labels):
            continue
        logits = model(batch.images).float()
        loss_sum += F.cross_entropy(logits, labels, reduction="sum")
        confusion.index_add_(0, labels * num_classes + logits.argmax(1), one.expand(len(labels)))
        if num_classes > 5:
            in_top5 += (logits.topk(5, dim=1).indices == labels[:, None]).sum()
    model.train(was_training)
    loss_sum, in_top5, confusion = (processes.sum(total) for total in (loss_sum, in_top5, confusion))
    matrix = confusion.view(num_classes, num_classes).cpu().numpy()
    n = max(1, int(matrix.sum()))
    return Evaluation(float(loss_sum) / n, float(in_top5) / n if num_classes > 5 else None, matrix)
