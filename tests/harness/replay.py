"""A stand-in for CUDA graphs on a CPU: record the operations of a function and repeat them on the very same tensors.

Like a CUDA graph, a replay has the numbers of the recording and reads and writes the tensors of the recording.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resnet_train.training.trainer import Trainer
from tests.harness.trainers import tiny_trainer


class HostSync(RuntimeError):
    """The host would wait for a value of the device."""


class Kernels(TorchDispatchMode):
    """List the names of the operations that compute something; views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not function.is_view and function.namespace != "profiler":
            self.names.append(function.name())
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Keep each operation with its tensors, and what the tensors from outside held before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}  # by the address of the storage
        self.made: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._local_scalar_dense.default:
            raise HostSync("a value of the device was read")
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.made | self.before.keys():
                    self.before[storage._cdata] = storage, storage.clone()
        results = function(*args, **kwargs)
        if function.namespace != "profiler":
            self.calls.append((function, args, kwargs, results))
            self.made |= {t.untyped_storage()._cdata for t in tree_leaves(results) if isinstance(t, Tensor)}
            self.made -= self.before.keys()
        return results


class FakeGraph:
    """A `torch.cuda.CUDAGraph` of operations on a CPU."""

    def __init__(self) -> None:
        self.operations = Operations()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Record what is done within, and undo it: a capture launches no kernel."""
        generator = torch.get_rng_state()
        try:
            with self.operations:
                yield
        finally:
            torch.set_rng_state(generator)
            for storage, before in self.operations.before.values():
                storage.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat the operations, and leave their results where they were at the recording."""
        for function, args, kwargs, results in self.operations.calls:
            repeated = function(*args, **kwargs)
            if not function.is_view:
                for old, new in zip(tree_leaves(results), tree_leaves(repeated)):
                    if isinstance(old, Tensor) and old is not new:
                        old.copy_(new)


def captured_trainer(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Trainer:
    """Build a tiny trainer on the CPU that captures its steps and evaluations in fake graphs."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: graph.capture())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    trainer = tiny_trainer(**settings)
    trainer.capture = True
    trainer.__post_init__()
    return trainer
