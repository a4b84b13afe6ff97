"""CUDA graphs: run a function step by step a few times, record its kernels, then launch all of them at once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from resnet_train.plugins import GROUP as PLUGINS

log = logging.getLogger(__name__)

EAGER_CALLS = 3  # per shape, in which cuDNN chooses algorithms, and optimizers and the loss scaler create state

# Code that is known to launch the same kernels in every step; a replay would silently repeat what a plugin decides in
# Python, such as a random choice.
CAPTURABLE = ("resnet_train", "torch")

Inputs = TypeVar("Inputs", bound=Any)  # a named tuple of tensors and None, such as a `Batch`
Output = TypeVar("Output")


def is_capturable(part: nn.Module | Optimizer, constructor: Callable[..., object]) -> bool:
    """Return whether a network or an optimizer and its constructor are only this package's and torch's code.

    The constructor counts as well, because it can add hooks to modules of torch, or replace their methods.
    """
    members = part.modules() if isinstance(part, nn.Module) else [part]
    while isinstance(constructor, partial):
        constructor = constructor.func
    return all(_is_known(_module_of(code)) for code in (constructor, *map(type, members)))


def _module_of(code: object) -> str:
    """Return the name of the module that defines a class or a function; `functools.wraps` copies another's."""
    if isinstance(code, FunctionType):
        return str(code.__globals__.get("__name__"))
    return code.__module__ if isinstance(code, type) else ""


def _is_known(module: str) -> bool:
    # A plugin's file is a module of this package by name.
    return module.partition(".")[0] in CAPTURABLE and not module.startswith(f"{PLUGINS}.")


class Captured(Generic[Inputs, Output]):
    """A function of tensors whose kernels are recorded once for each shape and replayed from then on.

    The function must launch the same kernels in every call. It may read and change only tensors that keep their place;
    numbers that vary are written to such tensors before the call. The next replay overwrites what it returned.

    Args:
        function: What to capture.
        recover: Undo what a capture that failed left behind in Python objects, as a capture runs no kernel.
        pool: The memory that graphs share; its contents are needed only during a replay.
    """

    def __init__(
        self, function: Callable[[Inputs], Output], *, pool: Any, recover: Callable[[], None] = lambda: None
    ) -> None:
        self.function, self.pool, self.recover = function, pool, recover
        self.num_calls: Counter[object] = Counter()
        self.graphs: dict[object, tuple[torch.cuda.CUDAGraph, Inputs, Output]] = {}
        self.works = True

    def __call__(self, inputs: Inputs) -> Output:
        """Run the function, from its graph as soon as there is one for inputs of these shapes."""
        shapes = tuple(None if tensor is None else tensor.shape for tensor in inputs)
        self.num_calls[shapes] += 1
        if not self.works or self.num_calls[shapes] <= EAGER_CALLS:
            return self.function(inputs)
        if shapes not in self.graphs:
            try:
                self.graphs[shapes] = self.capture(inputs)
            except RuntimeError as error:
                log.warning("no CUDA graph, each kernel is launched separately: %s", " ".join(str(error).split())[:200])
                self.works = False
                self.recover()
                return self.function(inputs)

        graph, own, output = self.graphs[shapes]
        for place, tensor in zip(own, inputs):
            if tensor is not None:
                place.copy_(tensor)
        graph.replay()
        return output

    def capture(self, inputs: Inputs) -> tuple[torch.cuda.CUDAGraph, Inputs, Output]:
        """Return a graph of one call, the tensors that it reads its inputs from, and those it leaves its output in."""
        own = type(inputs)(*(None if tensor is None else tensor.clone() for tensor in inputs))
        graph = torch.cuda.CUDAGraph()
        # The thread that reads images ahead may pin memory meanwhile, which the default mode forbids in all threads.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            output = self.function(own)
        return graph, own, output
