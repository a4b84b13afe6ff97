"""One batch on the training device."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Images and labels, and a second set of labels if images are mixed.

    Attributes:
        images: float [B, 3, H, W].
        labels: int64 [B].
        partner_labels: int64 [B], the labels of the images mixed in; None without mixing.
        weights: float [B], the share of `labels` in the mixed image; None without mixing.
    """

    images: Tensor
    labels: Tensor
    partner_labels: Tensor | None = None
    weights: Tensor | None = None

    def split(self, sizes: int | list[int]) -> list[Batch]:
        """Split into consecutive batches of this size or these sizes."""
        columns = (None if tensor is None else tensor.split(sizes) for tensor in self)
        present = {name: column for name, column in zip(self._fields, columns) if column is not None}
        return [Batch(**dict(zip(present, parts))) for parts in zip(*present.values())]
