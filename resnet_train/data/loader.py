"""Batches on the training device, from a data set of any size, without worker processes.

Images are addressed by position among the images that a loader uses, see `plan.py`. The two image sources are the only
places where a position becomes an index in the data set.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from resnet_train.data.augment import Transform
from resnet_train.data.batch import Batch
from resnet_train.data.mix import mix_halves
from resnet_train.data.plan import EpochPlan, fixed_plan
from resnet_train.data.progressive import resize
from resnet_train.runtime.device import free_memory_bytes
from resnet_train.runtime.distributed import ALONE, Processes

PREFETCHED_BATCHES = 2
EVAL_BATCH_SIZE = 500
RESIDENT_SHARE = 4  # images stay on the device if they fill at most a quarter of its free bytes

Gathered = tuple[Tensor, Tensor]  # positions int64 [B], images uint8 [B, 3, H, W]


class ResidentImages:
    """Images that live on the training device: a batch is one gather."""

    def __init__(self, images: np.ndarray, indices: np.ndarray, device: torch.device) -> None:
        # All images in their original order need no copy on the host.
        everything = len(indices) == len(images) and bool((np.diff(indices) == 1).all())
        chosen = np.asarray(images if everything else images[indices])
        with warnings.catch_warnings():
            # On a CPU a memory-mapped data set stays in its file: a copy would need its memory twice.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            self.images = torch.from_numpy(chosen).to(device)

    def gather(self, chunks: Sequence[np.ndarray], device: torch.device) -> Iterator[Gathered]:
        """Yield (positions int64 [B], images uint8 [B, 3, H, W]) on the device for each array of positions."""
        for chunk in chunks:
            positions = to_device(chunk, device)
            yield positions, self.images[positions]


class StreamedImages:
    """Images that stay on disk: one thread gathers and pins the next batches ahead of their use."""

    def __init__(self, images: np.ndarray, indices: np.ndarray) -> None:
        self.images, self.indices = images, indices

    def gather(self, chunks: Sequence[np.ndarray], device: torch.device) -> Iterator[Gathered]:
        """Yield (positions int64 [B], images uint8 [B, 3, H, W]) on the device for each array of positions."""

        def read(chunk: np.ndarray) -> Gathered:
            return torch.from_numpy(chunk), pin(torch.from_numpy(self.images[self.indices[chunk]]), device)

        for positions, images in _prefetch(read, chunks):
            yield to_device(positions, device), to_device(images, device)


def _prefetch(read: Callable[[np.ndarray], Gathered], chunks: Sequence[np.ndarray]) -> Iterator[Gathered]:
    """Yield `read(chunk)` for each chunk, computed by one thread a few chunks ahead; its exceptions are raised here."""
    # The queue holds results in order; a full one makes the caller take the oldest.
    ahead: deque[Future[Gathered]] = deque()
    pool = ThreadPoolExecutor(1, "prefetch")
    try:
        for chunk in chunks:
            ahead.append(pool.submit(read, chunk))
            if len(ahead) > PREFETCHED_BATCHES:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:  # also if the consumer stops early
        pool.shutdown(cancel_futures=True)


def pin(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor in memory that a CUDA GPU copies from asynchronously; unchanged for other devices."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(array: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Return the array on the device; the host does not wait for the copy."""
    return pin(torch.as_tensor(array), device).to(device, non_blocking=True)


class BatchLoader:
    """The batches of an epoch, built from its plan.

    Args:
        images: uint8 [M, 3, H, W], a data set; copied to the device if `resident`, else read batch by batch.
        labels: int64 [M].
        batch_size: Images of one step over all ranks.
        normalize: Maps uint8 pixels to floats.
        plan: Maps an epoch to its draws, for N images.
        device: Where the batches are built.
        transforms: The augmentations whose parameters the plan draws.
        indices: The images to use, int64 [N]; None uses all of them.
        resident: Whether to keep the images on the device.
        drop_last: Whether to leave out a last, smaller batch (training).
        num_batches: Batches per epoch, as many as its plan has images for; None is a pass over all images.
        size_at: Maps an optimizer step to the size in pixels that images are scaled down to; None keeps the size.
        chunk_bytes: Build as many batches at once as fill this many bytes; 0 builds them one by one.
        rank: This process takes every num_ranks-th image of each batch, from `rank` on.
        num_ranks: The number of processes.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        batch_size: int,
        normalize: Callable[[Tensor], Tensor],
        plan: Callable[[int], EpochPlan],
        device: torch.device,
        transforms: Sequence[Transform] = (),
        indices: np.ndarray | None = None,
        resident: bool = True,
        drop_last: bool = False,
        num_batches: int | None = None,
        size_at: Callable[[int], int] | None = None,
        chunk_bytes: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        # What to load, and how.
        indices = np.arange(len(labels)) if indices is None else indices
        self.indices, self.num_images = indices, len(indices)
        self.batch_size, self.drop_last, self.num_batches = batch_size, drop_last, num_batches
        self.normalize, self.transforms = normalize, tuple(transforms)
        self.plan, self.device = plan, device
        self.size_at, self.chunk_bytes = size_at, chunk_bytes
        self.image_bytes = 4 * images[0].size if len(images) else 0  # as float32
        self.rank, self.num_ranks = rank, num_ranks

        # All labels are on the device; the images only if they fit.
        self.labels = torch.from_numpy(labels[indices]).to(device)  # [N], by position
        self.source: ResidentImages | StreamedImages = (
            ResidentImages(images, indices, device) if resident else StreamedImages(images, indices)
        )

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        if self.num_batches is not None:
            return self.num_batches
        full, rest = divmod(self.num_images, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def gathered_indices(self) -> np.ndarray:
        """Return the index of each image in the data set, in the order of the joined outputs of all ranks."""
        order = self.indices[self.plan(0).order]
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        return np.concatenate([batch[rank :: self.num_ranks] for rank in range(self.num_ranks) for batch in batches])

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `first_batch` on; they do not depend on where the iteration starts."""
        # Cut the order into batches, and take this rank's share of each.
        plan = self.plan(epoch)
        starts = range(first_batch * self.batch_size, len(self) * self.batch_size, self.batch_size)
        batches = [plan.order[start : start + self.batch_size][self.rank :: self.num_ranks] for start in starts]

        # With progressive sizes, scale each batch to the size of its optimizer step.
        first_step = epoch * len(self) + first_batch
        for step, batch in enumerate(self._build(plan, batches), first_step):
            yield batch if self.size_at is None else batch._replace(images=resize(batch.images, self.size_at(step)))

    def _build(self, plan: EpochPlan, batches: list[np.ndarray]) -> Iterator[Batch]:
        """Yield the batch of each array of positions; several are built at once and split afterwards."""
        # Copy the draws of all images to the device once; a batch then picks its rows there.
        parameters = {stream: to_device(rows, self.device) for stream, rows in plan.parameters.items()}
        mix = plan.mix
        if mix:
            weights, boxes = to_device(mix.weights, self.device), to_device(mix.boxes, self.device)

        # Join batches into chunks: on a GPU one kernel launch then serves many steps.
        num = max(1, self.chunk_bytes // max(1, self.image_bytes * self.batch_size))
        chunks = [batches[start : start + num] for start in range(0, len(batches), num)]
        positions = [np.concatenate(chunk) for chunk in chunks]
        if mix:
            # Partners are gathered and transformed with their images, as the second half of the chunk.
            positions = [np.concatenate([own, mix.partners[own]]) for own in positions]

        # Transform each chunk as a whole, mix its halves, and split it into batches.
        for chunk, (rows, images) in zip(chunks, self.source.gather(positions, self.device)):
            batch = Batch(self._transform(images, rows, parameters), self.labels[rows])
            if mix:
                own = rows[: len(rows) // 2]
                batch = mix_halves(batch, weights[own], boxes[own])
            if len(chunk) == 1:
                yield batch
            else:
                yield from batch.split([len(part) for part in chunk])

    def _transform(self, images: Tensor, rows: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """Augment and normalize images, given their rows of the parameters."""
        # Pixels first, then normalized floats; the order within each kind is that of registration.
        for transform in self.transforms:
            if not transform.normalized:
                images = transform(images, parameters[transform.stream][rows])
        images = self.normalize(images)
        for transform in self.transforms:
            if transform.normalized:
                images = transform(images, parameters[transform.stream][rows])
        return images


def fits_on(device: torch.device, num_bytes: int) -> bool:
    """Return whether images of this size should be kept on the device."""
    return num_bytes * RESIDENT_SHARE <= free_memory_bytes(device)


def eval_loader(
    images: np.ndarray,
    labels: np.ndarray,
    normalize: Callable[[Tensor], Tensor],
    device: torch.device,
    indices: np.ndarray | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    processes: Processes = ALONE,
) -> BatchLoader:
    """Return a loader of every image (of `indices` if given), once over all ranks and only normalized."""
    num_images = len(labels) if indices is None else len(indices)
    return BatchLoader(
        images,
        labels,
        indices=indices,
        batch_size=batch_size,
        normalize=normalize,
        plan=lambda _: fixed_plan(num_images),
        device=device,
        resident=fits_on(device, images.nbytes),
        rank=processes.rank,
        num_ranks=processes.num_ranks,
    )
