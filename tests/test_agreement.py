"""The files beside a checkpoint follow it when the run is resumed, wherever it was killed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from resnet_train.recipes import read_yaml
from resnet_train.runs.agreement import follow_checkpoint
from resnet_train.runs.checkpoint import RunCheckpoint, parse, read_checkpoint, read_model, write_checkpoint
from resnet_train.runs.folder import RunFolder
from tests.harness.cli import Outcome, RunCli
from tests.harness.trainers import assert_same_tensors


@pytest.fixture
def run(trained: tuple[Path, Outcome], tmp_path: Path) -> Iterator[RunFolder]:
    """Return a locked copy of a run of two epochs, the first of which is the best one."""
    folder = RunFolder(Path(shutil.copytree(trained[0], tmp_path / "run")))
    folder.lock()
    for path in (folder.previous, folder.last):  # whichever epoch was better
        contents = read_checkpoint(path)
        for record, accuracy in zip(contents["history"], (0.9, 0.1)):
            record["scores"]["val"]["accuracy"] = accuracy
        write(path, contents | {"best_epoch": 1, "best_accuracy": 0.9})
    make_model(folder, folder.best("val"), 1)
    make_model(folder, folder.model, 2)
    yield folder
    folder.unlock()


def write(path: Path, contents: dict[str, object]) -> None:
    write_checkpoint(path, {name: value for name, value in contents.items() if name not in ("format", "version")})


def make_model(folder: RunFolder, path: Path, epoch: int) -> None:
    """Write the model of an epoch."""
    state = state_of(folder.previous if epoch == 1 else folder.last)
    description = {name: getattr(state, name) for name in ("config", "environment", "data_path")}
    chosen_on = None if path == folder.model else "val"
    record = state.history[-1].to_plain() if epoch <= 2 else {**state.history[-1].to_plain(), "epoch": epoch}
    model = {"about": state.about.model_dump(), "model": state.weights, "metrics": record, "chosen_on": chosen_on}
    write_checkpoint(path, {**description, **model})


def state_of(path: Path) -> RunCheckpoint:
    return parse(read_checkpoint(path), path, RunCheckpoint)


def epoch_of(path: Path) -> int | None:
    return read_model(path).epoch if path.exists() else None


def test_a_best_model_ahead_of_the_state_is_dropped(run: RunFolder) -> None:
    make_model(run, run.next_best("val"), 3)
    follow_checkpoint(run, state_of(run.last))
    assert (epoch_of(run.best("val")), epoch_of(run.next_best("val"))) == (1, None)


def test_a_best_model_that_waited_for_the_state_is_taken(run: RunFolder) -> None:
    run.best("val").replace(run.next_best("val"))
    make_model(run, run.best("val"), 3)
    follow_checkpoint(run, state_of(run.last))
    assert (epoch_of(run.best("val")), epoch_of(run.next_best("val"))) == (1, None)


def test_a_lost_best_model_is_that_of_the_state_if_it_is_its_epoch(run: RunFolder) -> None:
    run.best("val").unlink()
    state = state_of(run.previous)
    follow_checkpoint(run, state)
    assert epoch_of(run.best("val")) == 1
    assert_same_tensors(read_model(run.best("val")).weights, state.weights)


def test_a_best_model_of_an_unknown_epoch_is_removed(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    make_model(run, run.best("val"), 3)
    follow_checkpoint(run, state_of(run.last))
    assert epoch_of(run.best("val")) is None
    assert "best.pt is not from epoch 1, the best one" in caplog.text


@pytest.mark.parametrize(("name", "kept"), [("last", True), ("previous", False)])
def test_a_final_model_stays_only_if_the_state_is_its_epoch(name: str, kept: bool, run: RunFolder) -> None:
    follow_checkpoint(run, state_of(run.checkpoints / f"{name}.pt"))
    assert run.model.exists() == kept


def test_a_run_that_starts_over_leaves_no_model(run: RunFolder) -> None:
    follow_checkpoint(run, None)
    assert not any(path.exists() for path in (run.best("val"), run.model))


def test_resuming_the_state_before_sets_the_last_one_aside(run: RunFolder) -> None:
    last = run.last.read_bytes()
    follow_checkpoint(run, state_of(run.previous), run.previous)
    assert not run.last.exists()
    assert (run.checkpoints / "replaced.pt").read_bytes() == last


def test_the_description_changes_with_the_first_save(run_cli: RunCli, run: RunFolder) -> None:
    (run.path / "config.yaml").write_text("epochs: 9\n")
    follow_checkpoint(run, state_of(run.last))
    assert read_yaml(run.path / "config.yaml")["epochs"] == 2
    run.unlock()
    assert run_cli("resnet-train", "--resume", run.path, "--epochs", 3, cwd=run.path).code == 0
    assert read_yaml(run.path / "config.yaml")["epochs"] == 3
