"""What needs a CUDA GPU: `pytest -m gpu` on a machine with one."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from resnet_train import build
from resnet_train.data.loader import StreamedImages
from resnet_train.optim.optimizers import OPTIMIZERS
from resnet_train.training.trainer import Trainer
from tests.harness import trainers
from tests.harness.trainers import assert_same_tensors, tiny_trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
    pytest.mark.filterwarnings("default:.*torch.jit.script_method:DeprecationWarning"),  # in torch's own compiler
    pytest.mark.filterwarnings("default:Synchronization debug mode:UserWarning"),
]
EVERYTHING = {"clip_grad": 0.5, "ema_decay": 0.9, "mixup": 0.4, "accumulate": 2, "epochs": 4}
CASES: dict[str, dict[str, Any]] = {
    **{name: {"optimizer": name, **EVERYTHING} for name in OPTIMIZERS.names()},
    "drop path": {"arch": "resnet18", "drop_path": 0.5, "epochs": 4},
    "bf16": {"amp": "bf16", "epochs": 4},
    "fp16": {"amp": "fp16", "epochs": 4},
    "fp16 adamw": {"amp": "fp16", "optimizer": "adamw", "epochs": 4},
    "two groups": {"optimizer": "muon", "no_decay_norm_bias": True, "epochs": 4},
    "compiled": {"compile": True, "epochs": 4},
}


@pytest.fixture(autouse=True)
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Build tiny trainers on the GPU, with kernels that always give the same bits."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(trainers, "CPU", torch.device("cuda", 0))
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def steps_of(trainer: Trainer, num_steps: int, first: int = 0) -> Trainer:
    """Do steps of the first four epochs and return the trainer."""
    trainer.model.train()
    batches = [batch for epoch in range(4) for batch in trainer.train_loader.epoch(epoch)]
    for batch in batches[first:num_steps]:
        trainer.train_step(batch)
    return trainer


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_captured_steps_equal_eager_ones(settings: dict[str, Any]) -> None:
    settings = {"nesterov": False, **settings}
    captured, eager = (steps_of(tiny_trainer(capture=capture, **settings), 20) for capture in (True, False))
    assert captured.run_step.graphs  # type: ignore[attr-defined]
    assert_same_tensors(captured.state(), eager.state())


def test_a_run_on_one_gpu_is_captured_if_not_told_otherwise() -> None:
    trainer = steps_of(tiny_trainer(), 6)
    assert trainer.run_step.graphs  # type: ignore[attr-defined]
    assert not tiny_trainer(capture=False).capture


def test_a_step_that_reads_a_value_is_not_captured(caplog: pytest.LogCaptureFixture) -> None:
    captured, eager = (tiny_trainer(capture=capture, nesterov=False, epochs=4) for capture in (True, False))
    for trainer in (captured, eager):
        trainer.model.register_forward_hook(lambda _model, _inputs, logits: logits.sum().item() and None)
    with caplog.at_level(logging.WARNING):
        steps_of(captured, 20)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "no CUDA graph, each kernel is launched separately"
    ]
    assert_same_tensors(captured.state(), steps_of(eager, 20).state())


def test_batches_that_are_streamed_are_those_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"epochs": 4, "cutout": 2, "mixup": 0.4, "trivial_augment": True}
    resident = steps_of(tiny_trainer(**settings), 20)
    monkeypatch.setattr(build, "fits_on", lambda *_: False)
    monkeypatch.setattr(build, "CUDA_CHUNK_BYTES", 1 << 12)
    streamed = steps_of(tiny_trainer(**settings), 20)
    assert isinstance(streamed.train_loader.source, StreamedImages)
    assert_same_tensors(streamed.state(), resident.state())


def test_a_step_with_nan_is_skipped_in_a_replay() -> None:
    trainer = tiny_trainer(nesterov=False, epochs=4)
    steps_of(trainer, 6)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    batch = next(trainer.train_loader.epoch(0))
    trainer.train_step(batch._replace(images=batch.images * float("nan")))
    trainer.train_step(batch)
    assert trainer.read_sums()["bad_step"] == 6
    assert_same_tensors(dict(trainer.model.named_parameters()), before)


def test_a_captured_run_is_resumed_exactly() -> None:
    settings = EVERYTHING | {"capture": True}
    whole, stopped = steps_of(tiny_trainer(**settings), 20), steps_of(tiny_trainer(**settings), 5)
    resumed = tiny_trainer(**settings)
    resumed.load_state(stopped.state())
    assert_same_tensors(steps_of(resumed, 20, first=5).state(), whole.state())


def test_the_sums_of_two_captured_epochs_are_those_of_eager_ones() -> None:
    captured, eager = (tiny_trainer(capture=capture, epochs=6) for capture in (True, False))
    for trainer in (captured, eager):
        trainer.fit()
    assert captured.run_step.graphs  # type: ignore[attr-defined]
    assert captured.run_forward.graphs  # type: ignore[attr-defined]
    assert captured.progress.history == eager.progress.history


@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_a_step_waits_for_nothing(optimizer: str) -> None:
    trainer = steps_of(tiny_trainer(optimizer=optimizer, nesterov=False, ema_decay=0.9, clip_grad=1.0), 2)
    batch = next(trainer.train_loader.epoch(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
