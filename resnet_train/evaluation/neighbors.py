"""The nearest images of a data set, as a network sees them: by its features before the last layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_train.data.batch import Batch


@torch.inference_mode()
def compute_features(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Tensor]:
    """Yield the inputs of the last linear layer, scaled to length 1, float [B, D].

    Args:
        model: a network in evaluation mode.
        batches: batches of normalized images.
    """
    inputs: list[Tensor] = []
    (*_, last) = (module for module in model.modules() if isinstance(module, nn.Linear))
    handle = last.register_forward_pre_hook(lambda *call: inputs.append(call[1][0]))
    try:
        for batch in batches:
            model(batch.images)
            yield F.normalize(inputs.pop().float(), dim=1)
    finally:
        handle.remove()


@torch.inference_mode()
def find_nearest(queries: Tensor, batches: Iterable[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Find the features with the largest cosine for each query, without keeping all of them.

    Args:
        queries: float [Q, D] of length 1.
        batches: features of length 1, float [B, D] each.
        count: number of features to find for each query.

    Returns:
        Positions in the order of the batches, int64 [Q, K], nearest first, and cosines, float [Q, K]; on the CPU. K is
        less than `count` if there are fewer features.
    """
    cosines = queries.new_empty(len(queries), 0)
    positions = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    start = 0
    for features in batches:
        # Merge the best so far with the batch.
        found = torch.cat([cosines, queries @ features.T], dim=1)
        numbers = torch.arange(start, start + len(features), device=queries.device).expand(len(queries), -1)
        cosines, best = found.topk(min(count, found.shape[1]), dim=1)
        positions = torch.cat([positions, numbers], dim=1).gather(1, best)
        start += len(features)
    return positions.cpu(), cosines.cpu()
