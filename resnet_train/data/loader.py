"""Batches on the training device, of a data set of any size, without worker processes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resnet_train.data.augment import Normalize, Transform
from resnet_train.data.mix import mix_images
from resnet_train.data.plan import EpochPlan, fixed_plan
from resnet_train.runtime.device import free_memory_bytes

PREFETCHED_BATCHES = 2
EVAL_BATCH_SIZE = 500
RESIDENT_SHARE = 4  # images stay on the device if they fill at most one in four of its free bytes


class Batch(NamedTuple):
    """One batch on the training device.

    Attributes:
        images: float [B, 3, H, W].
        labels: int64 [B].
        partner_labels, weights: if images are mixed, int64 [B] and float [B]; the weight is the share of `labels`.
    """

    images: Tensor
    labels: Tensor
    partner_labels: Tensor | None = None
    weights: Tensor | None = None


class ResidentImages:
    """A data set that lives on the training device: a batch is one gather."""

    def __init__(self, images: np.ndarray, indices: np.ndarray, device: torch.device) -> None:
        everything = len(indices) == len(images) and bool((np.diff(indices) == 1).all())
        chosen = images if everything else images[indices]  # the whole array is read in one sweep, without a copy
        self.images = torch.from_numpy(np.array(chosen)).to(device)

    def gather(self, numbers: Sequence[np.ndarray], device: torch.device) -> Iterator[Tensor]:
        """uint8 [B, 3, H, W] for each array of image numbers."""
        for chosen in numbers:
            yield self.images[torch.from_numpy(chosen).to(device, non_blocking=True)]


class StreamedImages:
    """A data set that stays on disk: one thread gathers, pins and copies the next batches ahead of their use."""

    def __init__(self, images: np.ndarray, indices: np.ndarray) -> None:
        self.images, self.indices = images, indices

    def gather(self, numbers: Sequence[np.ndarray], device: torch.device) -> Iterator[Tensor]:
        """uint8 [B, 3, H, W] for each array of image numbers."""

        def read(chosen: np.ndarray) -> Tensor:
            batch = torch.from_numpy(self.images[self.indices[chosen]])
            return batch.pin_memory() if device.type == "cuda" else batch

        for batch in _prefetch(read, numbers):
            yield batch.to(device, non_blocking=True)


def _prefetch(read: Callable[[np.ndarray], Tensor], numbers: Sequence[np.ndarray]) -> Iterator[Tensor]:
    """Yields `read(n) for n in numbers`, computed by one thread a few items ahead; its exceptions are raised here."""
    ready: queue.Queue[Tensor | BaseException | None] = queue.Queue(PREFETCHED_BATCHES)
    stopped = threading.Event()

    def put(item: Tensor | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for chosen in numbers:
                if stopped.is_set():
                    return
                put(read(chosen))
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


class BatchLoader:
    """Makes the batches of an epoch from its plan.

    Args:
        images: uint8 [N, 3, H, W]; copied to the device if `resident`, else read batch by batch.
        labels: int64 [N].
        indices: the image numbers that are used, all if None; plans count within them.
        batch_size: images a batch over all processes together.
        transforms: from uint8 to what the network sees, in this order.
        plan: from an epoch's number to its `EpochPlan`.
        device: where the batches are.
        resident: keep all images on the device.
        drop_last: leave out the last, smaller batch (training), or give it, too (evaluation).
        rank, num_ranks: this process takes every num_ranks-th image of each batch, from `rank` on.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        batch_size: int,
        transforms: Sequence[Transform],
        plan: Callable[[int], EpochPlan],
        device: torch.device,
        indices: np.ndarray | None = None,
        resident: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        indices = np.arange(len(labels)) if indices is None else indices
        self.num_images = len(indices)
        self.batch_size, self.drop_last = batch_size, drop_last
        self.transforms, self.plan, self.device = tuple(transforms), plan, device
        self.rank, self.num_ranks = rank, num_ranks
        self.labels = torch.from_numpy(np.array(labels[indices])).to(device)
        self.source: ResidentImages | StreamedImages = (
            ResidentImages(images, indices, device) if resident else StreamedImages(images, indices)
        )

    def __len__(self) -> int:
        """Batches an epoch."""
        full, rest = divmod(self.num_images, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from `first_batch` on: the same ones whether or not those before were asked for."""
        plan = self.plan(epoch)
        starts = range(first_batch * self.batch_size, len(self) * self.batch_size, self.batch_size)
        batches = [plan.order[start : start + self.batch_size][self.rank :: self.num_ranks] for start in starts]
        # Partners are gathered and transformed together with their images, as the second half of a longer batch.
        numbers = [np.concatenate([b, plan.mix.partners[b]]) for b in batches] if plan.mix else batches

        def on_device(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(self.device, non_blocking=True)

        parameters = [None if p is None else on_device(p) for p in plan.parameters] or [None] * len(self.transforms)
        weights, boxes = (on_device(plan.mix.weights), on_device(plan.mix.boxes)) if plan.mix else (None, None)
        for chosen, images in zip(map(on_device, numbers), self.source.gather(numbers, self.device)):
            for transform, rows in zip(self.transforms, parameters):
                images = transform(images, None if rows is None else rows[chosen])
            labels = self.labels[chosen]
            if weights is None or boxes is None:
                yield Batch(images, labels)
            else:
                (own, partner), (label, partner_label) = images.chunk(2), labels.chunk(2)
                rows = chosen[: len(own)]
                mixed = mix_images(own, partner, weights[rows], boxes[rows])
                yield Batch(mixed, label, partner_label, weights[rows])


def fits_on(device: torch.device, num_bytes: int) -> bool:
    """Whether images of this size are kept on the device."""
    return num_bytes * RESIDENT_SHARE <= free_memory_bytes(device)


def eval_loader(
    images: np.ndarray,
    labels: np.ndarray,
    normalize: Normalize,
    device: torch.device,
    indices: np.ndarray | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
) -> BatchLoader:
    """Every image (of `indices`, if given) once, normalized and otherwise as it is."""
    num_images = len(labels) if indices is None else len(indices)
    return BatchLoader(
        images,
        labels,
        indices=indices,
        batch_size=batch_size,
        transforms=[normalize],
        plan=lambda _: fixed_plan(num_images),
        device=device,
        resident=fits_on(device, images.nbytes),
    )
