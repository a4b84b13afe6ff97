"""Batches on the training device, of a data set of any size, without worker processes."""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_train.data.augment import Normalize, Transform
from resnet_train.data.mix import mix_images
from resnet_train.data.plan import EpochPlan, fixed_plan
from resnet_train.runtime.device import free_memory_bytes
from resnet_train.runtime.distributed import ALONE, Processes

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

    def split(self, sizes: int | list[int]) -> list[Batch]:
        """Cuts it into batches of this size or these sizes, one after the other."""
        columns = (None if tensor is None else tensor.split(sizes) for tensor in self)
        present = {name: column for name, column in zip(self._fields, columns) if column is not None}
        return [Batch(**dict(zip(present, parts))) for parts in zip(*present.values())]


class ResidentImages:
    """A data set that lives on the training device: a batch is one gather."""

    def __init__(self, images: np.ndarray, indices: np.ndarray, device: torch.device) -> None:
        everything = len(indices) == len(images) and bool((np.diff(indices) == 1).all())
        chosen = np.asarray(images if everything else images[indices])
        with warnings.catch_warnings():
            # A data set mapped from its file stays there on a CPU: a copy would need its memory twice.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            self.images = torch.from_numpy(chosen).to(device)

    def gather(self, numbers: Sequence[np.ndarray], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """For each array of image numbers: they, int64 [B], and the images, uint8 [B, 3, H, W], on the device."""
        for chosen in numbers:
            rows = to_device(torch.from_numpy(chosen), device)
            yield rows, self.images[rows]


class StreamedImages:
    """A data set that stays on disk: one thread gathers, pins and copies the next batches ahead of their use."""

    def __init__(self, images: np.ndarray, indices: np.ndarray) -> None:
        self.images, self.indices = images, indices

    def gather(self, numbers: Sequence[np.ndarray], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """For each array of image numbers: they, int64 [B], and the images, uint8 [B, 3, H, W], on the device."""

        def read(chosen: np.ndarray) -> tuple[Tensor, Tensor]:
            return torch.from_numpy(chosen), pin(torch.from_numpy(self.images[self.indices[chosen]]), device)

        for chosen, images in _prefetch(read, numbers):
            yield to_device(chosen, device), to_device(images, device)


def pin(tensor: Tensor, device: torch.device) -> Tensor:
    """Memory that a GPU copies from by itself, while the host goes on; the tensor as it is for other devices."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that the host does not wait for."""
    return pin(tensor, device).to(device, non_blocking=True)


Gathered = tuple[Tensor, Tensor]


def _prefetch(read: Callable[[np.ndarray], Gathered], numbers: Sequence[np.ndarray]) -> Iterator[Gathered]:
    """Yields `read(n) for n in numbers`, computed by one thread a few items ahead; its exceptions are raised here."""
    ready: queue.Queue[Gathered | BaseException | None] = queue.Queue(PREFETCHED_BATCHES)
    stopped = threading.Event()

    def put(item: Gathered | BaseException | None) -> None:
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
        size_at: from an optimizer step to the side in pixels the images are scaled down to; None leaves them.
        chunk_bytes: as many batches as fill this many bytes are made at once; 0 makes one by one.
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
        size_at: Callable[[int], int] | None = None,
        chunk_bytes: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        indices = np.arange(len(labels)) if indices is None else indices
        self.num_images = len(indices)
        self.batch_size, self.drop_last = batch_size, drop_last
        self.transforms, self.plan, self.device = tuple(transforms), plan, device
        self.size_at, self.chunk_bytes = size_at, chunk_bytes
        self.image_bytes = 4 * images[0].size if len(images) else 0  # as float32
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
        first_step = epoch * len(self) + first_batch
        for step, batch in enumerate(self._chunks(plan, batches), first_step):
            yield batch if self.size_at is None else batch._replace(images=resize(batch.images, self.size_at(step)))

    def _chunks(self, plan: EpochPlan, batches: list[np.ndarray]) -> Iterator[Batch]:
        """The batches of these image numbers, made many at once and cut apart after."""
        num = max(1, self.chunk_bytes // max(1, self.image_bytes * self.batch_size))
        chunks = [batches[start : start + num] for start in range(0, len(batches), num)]
        numbers = [np.concatenate(chunk) for chunk in chunks]
        if plan.mix:
            # Partners are gathered and transformed together with their images, as the second half of a longer batch.
            numbers = [np.concatenate([chosen, plan.mix.partners[chosen]]) for chosen in numbers]
        parameters = [
            None if rows is None else to_device(torch.from_numpy(rows), self.device) for rows in plan.parameters
        ] or [None] * len(self.transforms)
        mix = (
            [to_device(torch.from_numpy(rows), self.device) for rows in (plan.mix.weights, plan.mix.boxes)]
            if plan.mix
            else None
        )
        for chunk, (chosen, images) in zip(chunks, self.source.gather(numbers, self.device)):
            for transform, rows in zip(self.transforms, parameters):
                images = transform(images, None if rows is None else rows[chosen])
            labels = self.labels[chosen]
            if mix is None:
                made = Batch(images, labels)
            else:
                (own, partner), (label, partner_label) = images.chunk(2), labels.chunk(2)
                weights, boxes = (rows[chosen[: len(own)]] for rows in mix)
                made = Batch(mix_images(own, partner, weights, boxes), label, partner_label, weights)
            yield from made.split([len(batch) for batch in chunk])

    def _on_device(self, array: np.ndarray) -> Tensor:
        return to_device(torch.from_numpy(array), self.device)


def resize(images: Tensor, size: int) -> Tensor:
    """float [B, 3, H, W] → [B, 3, size, size], antialiased, in the same memory order; as they are if that is H."""
    if size == images.shape[-1]:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


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
    processes: Processes = ALONE,
) -> BatchLoader:
    """Every image (of `indices`, if given) once over all processes, normalized and otherwise as it is."""
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
        rank=processes.rank,
        num_ranks=processes.num_ranks,
    )
