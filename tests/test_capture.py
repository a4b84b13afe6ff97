"""Steps replayed from a graph equal steps run one by one, shown on a CPU with a stand-in for CUDA graphs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_train.build import has_known_kernels
from resnet_train.config import make_config
from resnet_train.optim.ema import ExponentialMovingAverage
from resnet_train.optim.optimizers import OPTIMIZERS
from resnet_train.plugins import load_plugin, unload
from resnet_train.runtime.capture import EAGER_CALLS
from resnet_train.training import trainer as training
from resnet_train.training.sums import RunningSums
from resnet_train.training.trainer import Trainer
from tests.harness.cli import ON_DIGITS, RunCli
from tests.harness.replay import captured_trainer
from tests.harness.trainers import TINY, assert_same_tensors, tiny_trainer

MOVING = {"nesterov": False, "warmup_epochs": 1.0, "epochs": 2}  # another learning rate in each step
EVERYTHING = {"clip_grad": 0.5, "ema_decay": 0.9, "mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1}
CASES: dict[str, dict[str, Any]] = {
    **{name: {"optimizer": name} for name in OPTIMIZERS.names()},
    **{f"{name} with everything": {"optimizer": name, **EVERYTHING} for name in OPTIMIZERS.names()},
    "accumulation": {"accumulate": 2, "ema_decay": 0.9, "mixup": 0.4},
    "drop path": {"arch": "resnet18", "drop_path": 0.5},
    "bf16": {"amp": "bf16", "ema_decay": 0.9},
    "fp16": {"amp": "fp16", "clip_grad": 0.5},
    "fp16 adamw": {"amp": "fp16", "optimizer": "adamw"},
    "two groups": {"no_decay_norm_bias": True, "optimizer": "muon"},
}


def steps_of(trainer: Trainer, num_steps: int, first: int = 0, nan_at: int = -1) -> None:
    """Do steps of the first two epochs; the images of one of them are NaN."""
    trainer.model.train()
    batches = [batch for epoch in range(2) for batch in trainer.train_loader.epoch(epoch)]
    for step, batch in list(enumerate(batches))[first:num_steps]:
        trainer.train_step(batch._replace(images=batch.images * float("nan")) if step == nan_at else batch)


def assert_same_training(captured: Trainer, eager: Trainer) -> None:
    assert_same_tensors(
        captured.state().model_copy(update={"epoch_seconds": 0.0}),
        eager.state().model_copy(update={"epoch_seconds": 0.0}),
    )


# By default one plain case, and one with every kind of operation.
QUICK = {"sgd", "muon with everything"}


@pytest.mark.parametrize(
    "settings",
    [pytest.param(CASES[name], id=name, marks=[] if name in QUICK else pytest.mark.slow) for name in CASES],
)
def test_replayed_steps_equal_eager_ones(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = MOVING | settings
    captured, eager = captured_trainer(monkeypatch, **settings), tiny_trainer(**settings)
    for trainer in (captured, eager):
        steps_of(trainer, EAGER_CALLS + 6)
    assert len(captured.run_step.graphs) == 1  # type: ignore[attr-defined]
    assert_same_training(captured, eager)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_a_bad_step_in_a_replay_has_its_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = MOVING | {"optimizer": name, "ema_decay": 0.9}
    captured, eager = captured_trainer(monkeypatch, **settings), tiny_trainer(**settings)
    for trainer in (captured, eager):
        steps_of(trainer, EAGER_CALLS + 5, nan_at=EAGER_CALLS + 2)  # in the third replay
    assert captured.read_sums()["bad_step"] == EAGER_CALLS + 2
    assert_same_tensors(captured.optimizer.state_dict(), eager.optimizer.state_dict())
    assert captured.averaged
    assert eager.averaged
    for ours, theirs in ((captured.model, eager.model), (captured.averaged.model, eager.averaged.model)):
        assert_same_tensors(dict(ours.named_parameters()), dict(theirs.named_parameters()))


def test_a_captured_run_equals_an_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"epochs": 6, "ema_decay": 0.9, "image_size": 16, "progressive_sizes": "8:0.5"}
    captured, eager = captured_trainer(monkeypatch, **settings), tiny_trainer(**settings)
    for trainer in (captured, eager):
        trainer.fit()
    assert len(captured.run_step.graphs) == 2  # type: ignore[attr-defined]
    assert len(captured.run_forward.graphs) == 1  # type: ignore[attr-defined]
    assert_same_training(captured, eager)


def test_a_captured_run_is_resumed_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = MOVING | EVERYTHING | {"optimizer": "adamw"}
    whole, stopped, resumed = (captured_trainer(monkeypatch, **settings) for _ in range(3))
    steps_of(whole, 11)
    steps_of(stopped, 5)
    resumed.load_state(stopped.state())
    steps_of(resumed, 11, first=5)
    assert_same_training(resumed, whole)


def number_as_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def new_sums(sums: RunningSums) -> None:
    sums.values = torch.zeros(8, dtype=torch.float64)
    sums.values[-1] = -1


def new_weight(average: ExponentialMovingAverage) -> None:
    average.num_updates += 1
    average.weight = torch.tensor(1 - min(average.decay, average.num_updates / (9 + average.num_updates)))


PLANTED: dict[str, tuple[Any, str, Any]] = {
    "the learning rate is a number": (training, "set_lr", number_as_lr),
    "the sums move": (RunningSums, "reset", new_sums),
    "the weight of the average moves": (ExponentialMovingAverage, "advance", new_weight),
}


@pytest.mark.parametrize("fault", PLANTED.values(), ids=PLANTED)
def test_replays_show_what_a_graph_would_get_wrong(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = MOVING | {"ema_decay": 0.99}
    eager = tiny_trainer(**settings)
    monkeypatch.setattr(*fault)
    captured = captured_trainer(monkeypatch, **settings)
    for trainer in (captured, eager):
        steps_of(trainer, EAGER_CALLS + 3)
        trainer.sums.reset()
        steps_of(trainer, EAGER_CALLS + 6, first=EAGER_CALLS + 3)
    with pytest.raises(AssertionError):
        assert_same_training(captured, eager)


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_a_capture_that_fails_leaves_an_eager_run(
    amp: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    captured, eager = captured_trainer(monkeypatch, amp=amp), tiny_trainer(amp=amp)
    clip = captured.clip_gradients

    def read_and_clip() -> torch.Tensor:
        norm = clip()
        norm.item()
        return norm

    captured.clip_gradients = read_and_clip  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        for trainer in (captured, eager):
            steps_of(trainer, EAGER_CALLS + 4)
    assert [record.getMessage() for record in caplog.records] == [
        "no CUDA graph, each kernel is launched separately: a value of the device was read"
    ]
    assert_same_training(captured, eager)


# Networks and optimizers of a plugin; those below the class look like the package's own.
PLUGIN = """
import functools
import torch
from resnet_train.models import create_model, register_model
from resnet_train.models.cifar_resnet import resnet20
from resnet_train.optim.optimizers import OPTIMIZERS, sgd

class Own(type(create_model("resnet8"))):
    pass

@register_model("own")
def of_a_class(num_classes=10):
    return Own(8, num_classes)

@register_model("own")
def with_a_hook(num_classes=10):
    model = create_model("resnet8", num_classes)
    model.register_forward_hook(lambda *_: None)
    return model

@functools.wraps(resnet20)
def wrapper(num_classes=10):
    return create_model("resnet8", num_classes)
wrapper.__name__ = "wrapped"
register_model("own")(wrapper)

@OPTIMIZERS.register("own_sgd")
def own_sgd(model, *, lr):
    return torch.optim.SGD(model.parameters(), lr=lr)
OPTIMIZERS.register("partial_sgd")(functools.partial(sgd, nesterov=True))
"""


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        ({}, True),
        ({"arch": "resnet18"}, True),
        ({"optimizer": "muon"}, True),
        ({"arch": "of_a_class"}, False),
        ({"arch": "with_a_hook"}, False),
        ({"arch": "wrapped"}, False),
        ({"optimizer": "own_sgd"}, False),
        ({"optimizer": "partial_sgd", "nesterov": False}, True),  # the package's function with another default
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_plugins_are_captured_on_request_only(settings: dict[str, Any], known: bool, tmp_path: Path) -> None:
    path = tmp_path / "own_parts.py"
    path.write_text(PLUGIN)
    load_plugin(path)
    try:
        trainer = tiny_trainer(**settings)
        assert has_known_kernels(make_config({**TINY, **settings}), trainer.model, trainer.optimizer) is known
        assert not trainer.capture  # on a CPU
    finally:
        unload(path.name)


def test_capture_is_refused_without_a_gpu(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", *ON_DIGITS, "--capture", cwd=tmp_path)
    assert outcome.code == 2
    assert outcome.error == "error: capture (=true) works only on one CUDA GPU, not on cpu; leave --capture out"
    assert not (tmp_path / "runs").exists()
