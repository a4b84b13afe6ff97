"""Communication between the processes that `torchrun` starts, through torch.distributed.

Without torchrun a run is one process, and all of this does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from resnet_train.runtime import ranks


@dataclass(frozen=True)
class Processes:
    """The processes that train one model together, each on its part of every batch (data parallel).

    Attributes:
        rank: the rank of this process, from 0. Rank 0 writes files and messages.
        num_ranks: number of processes.
    """

    rank: int = 0
    num_ranks: int = 1

    def share(self, value: Any = None) -> Any:
        """Return the value of rank 0 in every process."""
        if self.num_ranks == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def agree(self, *values: int) -> tuple[int, ...]:
        """Return the maximum of each value over all processes, so that all see a signal that one received."""
        if self.num_ranks == 1:
            return values
        largest = torch.tensor(values)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return tuple(largest.tolist())

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.num_ranks == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def all_true(self, flag: Tensor) -> Tensor:
        """Return whether a flag, bool [], is true in every process; without a host-device synchronization."""
        if self.num_ranks == 1:
            return flag
        lowest = flag.to(torch.uint8)
        dist.all_reduce(lowest, dist.ReduceOp.MIN)
        return lowest.bool()

    def concatenate(self, rows: Tensor) -> Tensor:
        """Return the rows [N, …] of all processes one after the other, by rank; N may differ between processes."""
        if self.num_ranks == 1:
            return rows
        # Pad all parts to the same length, gather them, and cut the padding off.
        num_rows = [int(count) for (count,) in self.gather([len(rows)])]
        padded = torch.cat([rows, rows.new_zeros(max(num_rows) - len(rows), *rows.shape[1:])])
        parts = [torch.empty_like(padded) for _ in num_rows]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, num_rows)])

    def gather(self, values: list[float]) -> list[list[float]]:
        """Return the values of every process, by rank."""
        if self.num_ranks == 1:
            return [values]
        rows: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(rows, values)
        return rows

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy the running statistics of rank 0 to every process."""
        if self.num_ranks > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the model to train with: its gradients are averaged over all processes."""
        if self.num_ranks == 1:
            return model
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


ALONE = Processes()


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Connect the processes that torchrun started, with NCCL between GPUs and gloo between CPUs.

    Within another such context, for one of several runs, the processes are already connected.
    """
    if dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
        return
    if not dist.is_torchelastic_launched() or ranks.num_ranks() == 1:
        yield ALONE
        return
    store, rank, num_ranks = next(rendezvous("env://"))

    # When torchrun restarts the processes of one machine, it keeps its store (torch 2.15). Without a prefix, the first
    # processes to restart would find the addresses of those that died. Across machines every start has a new store.
    if ranks.is_one_machine():
        store = PrefixStore(f"start {ranks.num_restarts()}", store)

    # Without a named backend, torch uses one for each kind of device.
    dist.init_process_group(store=store, rank=rank, world_size=num_ranks)
    try:
        yield Processes(rank, num_ranks)
    finally:
        dist.destroy_process_group()
