"""Checkpoints that are whole files with wrong contents: each command refuses them with exit code 2 and one line."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resnet_train.runs.checkpoint import RunCheckpoint, parse, read_checkpoint, read_model, write_checkpoint
from tests.harness.cli import Outcome, RunCli

Change = Callable[[dict[str, Any]], object]
ABOUT = ["arch", "arch_options", "classes", "image_size", "mean", "std", "dataset", "title", "fingerprint"]
OF_EVERY_FILE: dict[str, tuple[str, Change]] = {
    **{f"no {name}": (name, lambda c, name=name: c.pop(name)) for name in ("about", "config", "environment", "model")},
    **{f"no about.{name}": (f"about.{name}", lambda c, name=name: c["about"].pop(name)) for name in ABOUT},
    "about is a list": ("about", lambda c: c.update(about=[1])),
    "config is a list": ("config", lambda c: c.update(config=[1])),
    "config is nothing": ("config", lambda c: c.update(config=None)),
    "environment is text": ("environment", lambda c: c.update(environment="cpu")),
    "model is a list": ("model", lambda c: c.update(model=[])),
    "two means": ("about.mean", lambda c: c["about"].update(mean=[0.5, 0.5])),
    "a mean that is text": ("about.mean", lambda c: c["about"].update(mean=[0.5, 0.5, "white"])),
    "a mean that is infinite": ("about.mean", lambda c: c["about"].update(mean=[0.5, 0.5, math.inf])),
    "std of 0": ("about.std", lambda c: c["about"].update(std=[0.2, 0.0, 0.2])),
    "std that is nan": ("about.std", lambda c: c["about"].update(std=[0.2, math.nan, 0.2])),
    "negative std": ("about.std", lambda c: c["about"].update(std=[0.2, -0.2, 0.2])),
    "four stds": ("about.std", lambda c: c["about"].update(std=[0.2] * 4)),
    "one class": ("about.classes", lambda c: c["about"].update(classes=["a"])),
    "classes that are text": ("about.classes", lambda c: c["about"].update(classes="0123456789")),
    "image size 0": ("about.image_size", lambda c: c["about"].update(image_size=0)),
    "an arch that is a number": ("about.arch", lambda c: c["about"].update(arch=8)),
    "options that are a list": ("about.arch_options", lambda c: c["about"].update(arch_options=[])),
}
STATE = ["scaler", "averaged", "epoch", "step", "sums", "epoch_seconds", "history", "best_epoch", "best_accuracy"]
OF_A_STATE: dict[str, tuple[str, Change]] = {
    **{f"no {name}": (name, lambda c, name=name: c.pop(name)) for name in STATE},
    "seven sums": ("sums", lambda c: c["sums"][0].pop()),
    "sums that are text": ("sums", lambda c: c.update(sums="12345678")),
    "a negative epoch": ("epoch", lambda c: c.update(epoch=-1)),
    "a step that is text": ("step", lambda c: c.update(step="last")),
    "history is no list": ("history", lambda c: c.update(history={"epoch": 1})),
    "a row of the history without its scores": ("history.1.scores", lambda c: c["history"][1].pop("scores")),
    "a score that is text": ("history.1.scores", lambda c: c["history"][1]["scores"]["test"].update(loss="low")),
    "averaged weights without a model": ("averaged.model", lambda c: c.update(averaged={"num_updates": 1})),
    "a row of the history with a wrong value": ("history.0.epoch", lambda c: c["history"][0].update(epoch="first")),
    "a row of the history that is a number": ("history.0", lambda c: c["history"].__setitem__(0, 7)),
}


def damage(trained: tuple[Path, Outcome], file: str, change: Change, target: Path) -> Path:
    contents = read_checkpoint(trained[0] / "checkpoints" / file)
    change(contents)
    write_checkpoint(target, contents)
    return target


def test_a_wrong_value_is_named_with_the_part(trained: tuple[Path, Outcome], run_cli: RunCli, tmp_path: Path) -> None:
    path = damage(trained, "last.pt", lambda c: c.update(step="last"), tmp_path / "some.pt")
    assert run_cli("resnet-info", path, cwd=tmp_path).error.split(": ")[2:] == [
        "step (='last')",
        "Input should be a valid integer",
    ]


@pytest.mark.parametrize("command", ["resnet-eval", "resnet-info"])
@pytest.mark.parametrize(("part", "change"), OF_EVERY_FILE.values(), ids=OF_EVERY_FILE)
def test_a_model_with_a_wrong_part_is_refused_by_name(
    command: str, part: str, change: Change, trained: tuple[Path, Outcome], run_cli: RunCli, tmp_path: Path
) -> None:
    path = damage(trained, "model.pt", change, tmp_path / "some.pt")
    outcome = run_cli(command, path, cwd=tmp_path)
    assert outcome.error.startswith(f"error: {path} is not a complete checkpoint: {part}"), outcome
    assert outcome.stdout == ""


@pytest.mark.parametrize(
    ("part", "change"), [*OF_EVERY_FILE.values(), *OF_A_STATE.values()], ids=[*OF_EVERY_FILE, *OF_A_STATE]
)
def test_a_state_with_a_wrong_part_cannot_be_resumed(
    part: str, change: Change, trained: tuple[Path, Outcome], run_cli: RunCli, tmp_path: Path
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    path = damage(trained, "last.pt", change, tmp_path / "run" / "checkpoints" / "last.pt")
    outcome = run_cli("resnet-train", "--resume", "run", "--epochs", 3, cwd=tmp_path)
    assert outcome.error.startswith("error: run/checkpoints/last.pt is not a complete checkpoint: " + part), outcome
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [".lock", "checkpoints"]
    with pytest.raises(ValueError, match="is not a complete checkpoint"):
        parse(read_checkpoint(path), path, RunCheckpoint)


def test_a_state_without_its_optimizer_is_no_state(
    trained: tuple[Path, Outcome], run_cli: RunCli, tmp_path: Path
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    path = damage(trained, "last.pt", lambda c: c.pop("optimizer"), tmp_path / "run" / "checkpoints" / "last.pt")
    assert "optimizer" in run_cli("resnet-train", "--resume", "run", cwd=tmp_path).error
    error = run_cli("resnet-train", "--resume", path, cwd=tmp_path).error
    assert "holds a model but not the state of a run" in error


@pytest.mark.parametrize("file", ["last.pt", "previous.pt", "model.pt", "best.pt"])
def test_what_the_program_writes_is_complete(file: str, trained: tuple[Path, Outcome]) -> None:
    path = trained[0] / "checkpoints" / file
    read_model(path)
    if file in {"last.pt", "previous.pt"}:
        parse(read_checkpoint(path), path, RunCheckpoint)


@pytest.mark.parametrize("target", ["run", "run/checkpoints/last.pt"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["config"].update(lr=-1), r"lr \(=-1\)"),
        (lambda c: c["config"].update(old=1), "unknown setting 'old'"),
        (lambda c: c["config"].update(epochs="many"), r"epochs \(='many'\)"),
        (lambda c: c["about"].update(arch="resnet9"), None),
    ],
)
def test_an_invalid_config_is_one_line(
    target: str, change: Change, message: str | None, trained: tuple[Path, Outcome], run_cli: RunCli, tmp_path: Path
) -> None:
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "model.pt").unlink()
    damage(trained, "last.pt", change, tmp_path / "run" / "checkpoints" / "last.pt")
    error = run_cli("resnet-eval", target, "--device", "cpu", cwd=tmp_path).error
    if message is None:
        assert "does not hold the network it describes" in error
    else:
        assert re.search(message, error)
        assert re.search(message, run_cli("resnet-train", "--resume", target, cwd=tmp_path).error)


def test_escape_sequences_in_a_file_never_reach_the_terminal(
    trained: tuple[Path, Outcome], run_cli: RunCli, tmp_path: Path
) -> None:
    path = damage(trained, "model.pt", lambda c: c["about"].update(arch="\x1b[2J\x07\x9bresnet8"), tmp_path / "some.pt")
    error = run_cli("resnet-eval", path, cwd=tmp_path).error
    assert error.isprintable()
    assert "resnet8" in error
