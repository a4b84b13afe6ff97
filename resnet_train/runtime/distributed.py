"""More than one process, as `torchrun` starts them: which one this is, and what they tell each other.

torch.distributed does the work. Started by anything but torchrun, a run is one process and all of this does nothing.
"""

from __future__ import annotations

import os
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


@dataclass(frozen=True)
class Processes:
    """The processes that train one model together, each on its part of every batch (data parallel).

    Attributes:
        rank: the number of this one, from 0; rank 0 is the one that writes and talks.
        num_ranks: how many there are.
    """

    rank: int = 0
    num_ranks: int = 1

    def share(self, value: Any = None) -> Any:
        """What rank 0 gives, in every process."""
        if self.num_ranks == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def agree(self, *values: int) -> tuple[int, ...]:
        """The largest of each value over all processes: so all see a signal that one of them received."""
        if self.num_ranks == 1:
            return values
        largest = torch.tensor(values)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return tuple(largest.tolist())

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in each of them."""
        if self.num_ranks == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def all_true(self, flag: Tensor) -> Tensor:
        """bool [], true where it is true in every process; stays on the device."""
        if self.num_ranks == 1:
            return flag
        lowest = flag.to(torch.uint8)
        dist.all_reduce(lowest, dist.ReduceOp.MIN)
        return lowest.bool()

    def concatenate(self, rows: Tensor) -> Tensor:
        """Return the rows [N, …] of all processes one after the other, by rank; N may differ between processes."""
        if self.num_ranks == 1:
            return rows
        num_rows = [int(count) for (count,) in self.gather([len(rows)])]
        padded = torch.cat([rows, rows.new_zeros(max(num_rows) - len(rows), *rows.shape[1:])])
        parts = [torch.empty_like(padded) for _ in num_rows]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, num_rows)])

    def gather(self, values: list[float]) -> list[list[float]]:
        """The values of every process, by rank, in each of them."""
        if self.num_ranks == 1:
            return [values]
        rows: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(rows, values)
        return rows

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Rank 0's running statistics of batch norm, in every process."""
        if self.num_ranks > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model to train with: gradients are averaged over all processes while they are computed."""
        if self.num_ranks == 1:
            return model
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


ALONE = Processes()


@contextmanager
def join_processes() -> Iterator[Processes]:
    """The processes that torchrun started, connected (NCCL between GPUs, gloo between CPUs); one alone without it."""
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    # Without a backend named, torch takes one for each kind of device that is here.
    store, rank, num_ranks = next(rendezvous("env://"))
    dist.init_process_group(store=_of_this_start(store), rank=rank, world_size=num_ranks)
    try:
        yield Processes(rank, num_ranks)
    finally:
        dist.destroy_process_group()


def _of_this_start(store: Any) -> Any:
    """The addresses of this start's processes only.

    torchrun keeps its store when it restarts the processes of one machine (torch 2.15): the first ones to be back
    found the addresses of those that had died, and gave up. Between machines every start has a store of its own.
    """
    if os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]:
        return store
    return PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
