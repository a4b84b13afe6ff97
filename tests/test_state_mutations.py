"""Well-formed states with wrong values: refused in one line before training, whatever the optimizer."""

from __future__ import annotations

import copy
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resnet_train.optim.optimizers import OPTIMIZERS
from resnet_train.runs.checkpoint import dump, read_checkpoint, write_checkpoint
from resnet_train.training.state import TrainerState
from tests.harness.cli import SMALL, RunCli
from tests.harness.trainers import assert_same_tensors, tiny_trainer

Place = tuple[dict[Any, Any] | list[Any], Any]  # a container and the key of a value in it
FLAGS = {**{name: ["--optimizer", name] for name in OPTIMIZERS.names()}, "fp16": ["--amp", "fp16"]}
SETTINGS = {**{name: {"optimizer": name, "nesterov": False} for name in OPTIMIZERS.names()}, "fp16": {"amp": "fp16"}}

TENSOR_CHANGES: dict[str, Callable[[Tensor], object]] = {
    "one element": lambda t: t.new_ones(1) if t.shape != (1,) else t.new_ones(2),
    "one more dimension": lambda t: t[None].clone(),
    "float64": lambda t: t.double(),
    "int32": lambda t: t.int(),
    "nan": lambda t: torch.full_like(t, math.nan) if t.is_floating_point() else t - 1000,
    "infinite": lambda t: torch.full_like(t, math.inf) if t.is_floating_point() else t + 2**62,
    "a number": lambda _: 1.0,
    "text": lambda _: "tensor",
    "nothing": lambda _: None,
}
# glibc's checks of the heap, which from version 2.34 on need a library to be loaded first.
MALLOC_CHECKS = {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165"}
if any(Path("/lib").glob("*/libc_malloc_debug.so.0")):
    MALLOC_CHECKS["LD_PRELOAD"] = "libc_malloc_debug.so.0"
REACHABLE = {"sums.0", "sums.3", "sums.5", "sums.6"}  # the losses and norms of the running epoch
NUMBERS = [-5, 2**60, -1e300, math.nan, math.inf, "many", None, [1], True]


def places(state: Any) -> Iterator[Place]:
    """Yield where every tensor and number of a state is; hyper-parameters are not read."""
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in items:
        if isinstance(value, dict | list) and key not in ("param_groups", "history"):
            yield from places(value)
        elif isinstance(value, Tensor | int | float):
            yield state, key


def kinds(state: dict[str, Any]) -> dict[str, list[Place]]:
    """Return the places by their part and name, as `optimizer.exp_avg`; parameters of one kind come together."""
    found: dict[str, list[Place]] = {}
    for part, value in state.items():
        if part != "history":
            for container, key in places(value) if isinstance(value, dict | list) else [(state, part)]:
                found.setdefault(f"{part}.{str(key).rpartition('.')[2]}", []).append((container, key))
    return found


def mutations(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield wrong copies of a state: each kind of tensor and number with each wrong value, missing and extra keys."""
    for kind, found in kinds(state).items():
        container, key = found[0]
        is_tensor = isinstance(container[key], Tensor)
        changes = TENSOR_CHANGES if is_tensor else {f"{value!r}": lambda _, value=value: value for value in NUMBERS}
        for name, change in changes.items():
            if kind in REACHABLE and (name == f"{2**60}" or (kind == "sums.6" and state["scaler"])):
                continue  # a diverging run can have any loss and norm; in float16 also an infinite norm
            if container[key] is None and name == "None":
                continue  # as it is: within an epoch there is no calibration
            mutated = copy.deepcopy(state)
            place, place_key = kinds(mutated)[kind][0]
            place[place_key] = change(place[place_key])
            yield f"{kind} is {name}", mutated
        if isinstance(container, dict) and container[key] is not None:
            mutated = copy.deepcopy(state)
            place, place_key = kinds(mutated)[kind][0]
            del place[place_key]
            yield f"{kind} is missing", mutated
            if container is not state:
                mutated = copy.deepcopy(state)
                kinds(mutated)[kind][0][0]["more"] = container[key]
                yield f"{kind} has a neighbor", mutated


# By default one with every kind of state (Muon includes AdamW) and one with a loss scaler, on SGD.
QUICK = {"muon", "fp16"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in SETTINGS],
)
def resumable(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings and the state of a trainer with averaged weights, stopped within its second epoch."""
    settings = {**SETTINGS[request.param], "ema_decay": 0.9, "epochs": 3}
    trainer = tiny_trainer(**settings)
    trainer.epochs = 1
    trainer.fit()
    for batch in trainer.train_loader.epoch(1):
        trainer.train_step(batch)
        if trainer.progress.step == 8:
            break
    return settings, copy.deepcopy(dump(trainer.state()))


def load(settings: dict[str, Any], state: dict[str, Any]) -> TrainerState:
    trainer = tiny_trainer(**settings)
    trainer.load_state(TrainerState.model_validate(copy.deepcopy(state)))
    return trainer.state()


def test_no_wrong_value_of_a_state_is_loaded(resumable: tuple[dict[str, Any], dict[str, Any]]) -> None:
    settings, state = resumable
    assert_same_tensors(dump(load(settings, state)), state)
    trainer = tiny_trainer(**settings)
    loaded, tried = [], 0
    for name, mutated in mutations(state):
        tried += 1
        try:
            trainer.load_state(TrainerState.model_validate(mutated))
        except ValueError:
            continue
        loaded.append(name)
    assert loaded == []
    assert tried > 200


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("epoch", 2),
        ("epoch", 2**60),
        ("step", 9),
        ("lr", math.nan),
        ("lr", -0.1),
        ("grad_norm", math.inf),
        ("scores", {}),
        ("scores", {"train": {"loss": math.nan, "accuracy": 0.5}}),
        ("scores", {"train": {"loss": 1.0, "accuracy": 1.5}}),
        ("scores", {"train": {"loss": 1.0, "accuracy": 0.5}, "test": {"accuracy": -1}}),
        ("more", 1),
    ],
)
def test_a_wrong_record_of_an_epoch_is_refused(
    part: str, value: object, resumable: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    mutated = copy.deepcopy(resumable[1])
    mutated["history"][0][part] = value
    with pytest.raises(ValueError, match="history"):
        TrainerState.model_validate(mutated)


def test_hyper_parameters_come_from_the_config(resumable: tuple[dict[str, Any], dict[str, Any]]) -> None:
    settings, state = resumable
    expected = load(settings, state)
    mutated = copy.deepcopy(state)
    optimizer = mutated["optimizer"].get("rest", mutated["optimizer"])
    for group in optimizer["param_groups"]:
        group |= {"lr": 9.0, "momentum": 0.0, "weight_decay": 5.0, "maximize": True, "fused": None, "betas": (0.0, 0.0)}
    assert_same_tensors(load(settings, mutated), expected)


def test_half_an_optimizer_state_is_refused(resumable: tuple[dict[str, Any], dict[str, Any]]) -> None:
    settings, state = resumable
    for keep in (0, 3):
        mutated = copy.deepcopy(state)
        optimizer = mutated["optimizer"].get("rest", mutated["optimizer"])
        optimizer["state"] = dict(list(optimizer["state"].items())[:keep])
        with pytest.raises(ValueError, match=r"^optimizer(\.rest)?\.state has no"):
            load(settings, mutated)
    mutated = copy.deepcopy(state)
    mutated["optimizer"].get("rest", mutated["optimizer"])["param_groups"][-1]["params"].pop()
    with pytest.raises(ValueError, match=r"param_groups\.\d\.params .* must be a list of"):
        load(settings, mutated)


def test_the_state_keeps_the_strides_of_the_parameters(resumable: tuple[dict[str, Any], dict[str, Any]]) -> None:
    settings, state = resumable
    expected = load(settings, state)
    mutated = copy.deepcopy(state)
    for container, key in places(mutated["optimizer"]):
        if isinstance(container[key], Tensor) and container[key].ndim == 4:
            container[key] = container[key].contiguous()
    trainer = tiny_trainer(**settings)
    trainer.load_state(TrainerState.model_validate(mutated))
    assert_same_tensors(trainer.state(), expected)
    for parameter, values in getattr(trainer.optimizer, "rest", trainer.optimizer).state.items():
        assert all(value.stride() == parameter.stride() for value in values.values() if value.ndim)


@pytest.fixture(scope="module")
def stopped(run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a name in `FLAGS` to a run that is finished after one epoch, with averaged weights."""
    cwd = tmp_path_factory.mktemp("stopped")

    def train(name: str) -> Path:
        if not (cwd / "runs" / name).exists():
            small = [*SMALL, "--no-tensorboard", "--epochs", 1, "--ema-decay", 0.9]
            assert run_cli("resnet-train", *small, *FLAGS[name], "--name", name, cwd=cwd).code == 0
        return cwd / "runs" / name

    return train


def check_refused(folder: Path, contents: dict[str, Any], command: RunCli, cwd: Path, **environment: str) -> None:
    """Resume a run from these contents; it must be refused in one line, with its files as they were."""
    run = cwd / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder, run)
    write_checkpoint(run / "checkpoints" / "last.pt", contents)
    (run / "checkpoints" / "previous.pt").unlink(missing_ok=True)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = command("resnet-train", "--resume", "run", "--epochs", 2, cwd=cwd, **environment)
    lines = [line for line in outcome.stderr.splitlines() if not line.startswith("warning: epochs was")]
    assert outcome.code == 2, outcome
    assert len(lines) == 1, outcome
    assert re.match(r"error: run/checkpoints/last\.pt (does not hold a state|is not a complete)", lines[0])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def momentum_of_one_element(contents: dict[str, Any]) -> None:
    for container, key in places(contents["optimizer"]):
        if isinstance(container[key], Tensor) and container[key].ndim:
            container[key] = torch.ones(1)


@pytest.mark.parametrize("name", FLAGS)
def test_a_momentum_of_one_element_is_refused(
    name: str, stopped: Callable[[str], Path], run_cli: RunCli, tmp_path: Path
) -> None:
    contents = read_checkpoint(stopped(name) / "checkpoints" / "last.pt")
    momentum_of_one_element(contents)
    check_refused(stopped(name), contents, run_cli, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAGS)
def test_every_wrong_state_ends_in_one_line(
    name: str, stopped: Callable[[str], Path], run_cli: RunCli, tmp_path: Path
) -> None:
    contents = read_checkpoint(stopped(name) / "checkpoints" / "last.pt")
    names = set(TrainerState.model_fields)
    description = {name: value for name, value in contents.items() if name not in names}
    state = {name: value for name, value in contents.items() if name in names}
    wrong = list(mutations(state))
    for _, mutated in wrong:
        check_refused(stopped(name), {**description, **mutated}, run_cli, tmp_path)
    assert len(wrong) > 200


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAGS)
def test_a_wrong_state_corrupts_no_memory(
    name: str, stopped: Callable[[str], Path], run_cli_process: RunCli, tmp_path: Path
) -> None:
    contents = read_checkpoint(stopped(name) / "checkpoints" / "last.pt")
    momentum_of_one_element(contents)
    check_refused(stopped(name), contents, run_cli_process, tmp_path, **MALLOC_CHECKS)
