"""`--compile` compiles whole networks, once for each size, and never falls back to uncompiled code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from resnet_train import build
from resnet_train.data.loader import eval_loader
from resnet_train.runtime.compilation import compile_mode, compile_networks
from tests.harness.trainers import tiny_data, tiny_trainer
from tests.test_every_network import SMALLEST

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class CountingBackend:
    """A backend of torch.compile that compiles nothing and counts the graphs it is given."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, examples: Any) -> Callable[..., Any]:
        self.num_graphs += 1
        return graph.forward


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingBackend]:
    """Replace the compiler by one that counts."""
    counting, compile_module = CountingBackend(), nn.Module.compile

    def compile_with_counting(module: nn.Module, mode: str, **options: Any) -> None:
        compile_module(module, backend=counting, **options)

    monkeypatch.setattr(nn.Module, "compile", compile_with_counting)
    monkeypatch.setattr("resnet_train.build.can_compile", lambda _: True)
    torch._dynamo.reset()
    yield counting
    torch._dynamo.reset()


def count_graphs(backend: CountingBackend, epochs: int = 2, **settings: Any) -> tuple[int, int]:
    """Return the numbers of graphs that training and evaluation compile."""
    trainer = tiny_trainer(compile=True, epochs=epochs, batch_size=4, **settings)
    trained = evaluated = 0
    for epoch in range(epochs):
        before = backend.num_graphs
        trainer.train_epoch(epoch)
        trained += backend.num_graphs - before
        before = backend.num_graphs
        trainer.record(epoch, *trainer.evaluate(epoch))
        evaluated += backend.num_graphs - before
    return trained, evaluated


@pytest.mark.parametrize(
    "arch",
    [pytest.param(name, marks=[] if name == "resnet20" else pytest.mark.slow) for name in SMALLEST.values()],
)
def test_a_network_is_one_graph_in_training_and_in_evaluation(arch: str, backend: CountingBackend) -> None:
    assert count_graphs(backend, arch=arch, data=tiny_data(12)) == (1, 1)


def test_the_averaged_network_is_compiled_as_well(backend: CountingBackend) -> None:
    assert count_graphs(backend, ema_decay=0.9, amp="bf16") == (1, 1)


def test_the_last_batch_of_an_evaluation_is_a_graph(backend: CountingBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "eval_loader", partial(eval_loader, batch_size=20))  # 48 images are 20, 20 and 8
    assert count_graphs(backend) == (1, 2)


@pytest.mark.parametrize("num_sizes", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_each_image_size_is_a_graph(num_sizes: int, backend: CountingBackend) -> None:
    smaller = ",".join(f"{4 + number}:{(number + 1) / num_sizes}" for number in range(num_sizes - 1))
    found = count_graphs(backend, epochs=3, image_size=16, progressive_sizes=smaller)
    assert found == (num_sizes, 1)


def test_a_network_that_cannot_be_compiled_whole_is_an_error(backend: CountingBackend) -> None:
    class Reading(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.sum().item() if x.sum() > 0 else x

    network = Reading()
    compile_networks([network], "default", num_sizes=1)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        network(torch.ones(2))


@pytest.mark.parametrize(
    ("device", "accumulate", "num_ranks", "capture", "expected"),
    [
        (CUDA, 1, 1, False, "reduce-overhead"),
        (CUDA, 2, 1, False, "default"),  # gradients accumulate
        (CUDA, 1, 2, False, "default"),  # batch norm in several processes
        (CUDA, 1, 1, True, "default"),  # the step is a graph already
        (CPU, 1, 1, False, "default"),
    ],
)
def test_graphs_of_the_compiler_are_used_where_they_are_right(
    device: torch.device, accumulate: int, num_ranks: int, capture: bool, expected: str
) -> None:
    assert compile_mode(device, accumulate, num_ranks, capture) == expected
