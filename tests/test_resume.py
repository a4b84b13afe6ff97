"""Resuming in odd situations: names, locks, killed processes, missing or damaged files, other images, more epochs."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet_train import build
from resnet_train.config import make_config
from resnet_train.recipes import read_yaml
from resnet_train.runs import checkpoint, resume
from resnet_train.runs.checkpoint import read_checkpoint, write_checkpoint
from resnet_train.runs.folder import RunFolder
from resnet_train.training.trainer import Trainer
from tests.harness.cli import SMALL, Outcome, RunCli, epochs_shown

QUICK = [*SMALL, "--no-tensorboard"]
EMPTY = "has no checkpoint to resume from; start it with its settings and --resume auto"


@pytest.fixture(scope="module")
def finished(run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs/exp, finished after one epoch. Read only."""
    cwd = tmp_path_factory.mktemp("finished")
    assert run_cli("resnet-train", *QUICK, "--epochs", 1, "--name", "exp", cwd=cwd).code == 0
    return cwd


@pytest.fixture
def exp(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of that run: <tmp_path>/runs/exp."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    return tmp_path / "runs" / "exp"


def epochs_of(folder: Path) -> list[str]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [row["epoch"] for row in csv.DictReader(file)]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cut_after(epochs: int, *arguments: object, run_cli: RunCli, cwd: Path) -> Outcome:
    """Run until the evaluation after these epochs, which fails as in a power failure."""

    def evaluate_or_fail(trainer: Trainer, number: int) -> object:
        if number == epochs:
            raise OSError("the power is out")
        return evaluate(trainer, number)

    evaluate = Trainer.evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "evaluate", evaluate_or_fail)
        outcome = run_cli("resnet-train", *arguments, cwd=cwd)
    assert (outcome.code, outcome.stderr.splitlines()[-1]) == (1, "error: the power is out")
    return outcome


# --- Which run it is -------------------------------------------------------------------------------------------------


def test_a_given_name_means_exactly_that_run(exp: Path, run_cli: RunCli, tmp_path: Path) -> None:
    shutil.copytree(exp, exp.with_name("exp-2"))
    before = files_below(exp.with_name("exp-2"))
    outcome = run_cli("resnet-train", *QUICK, "--epochs", 1, "--name", "exp", "--resume", "auto", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert "runs/exp is finished; nothing to do" in outcome.stderr
    assert files_below(exp.with_name("exp-2")) == before


def test_a_given_name_does_not_match_a_numbered_run(exp: Path, run_cli: RunCli, tmp_path: Path) -> None:
    exp.rename(exp.with_name("exp-2"))
    outcome = run_cli("resnet-train", *QUICK, "--name", "exp", "--resume", "auto", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert outcome.stderr.splitlines()[0].endswith(" runs/exp")
    assert epochs_of(exp.with_name("exp-2")) == ["1"]


def test_without_a_name_the_newest_unfinished_run_is_resumed(exp: Path, run_cli: RunCli, tmp_path: Path) -> None:
    shutil.rmtree(exp)
    cut_after(1, *QUICK, run_cli=run_cli, cwd=tmp_path)
    (first,) = (tmp_path / "runs").iterdir()
    for number in ("-2", "-10"):
        shutil.copytree(first, first.with_name(first.name + number))
    last = first.with_name(f"{first.name}-10")
    for _ in range(2):
        outcome = run_cli("resnet-train", *QUICK, "--resume", "auto", cwd=tmp_path)
        assert outcome.code == 0, outcome
        assert f"resuming runs/{last.name}: " in outcome.stderr
        assert epochs_of(last) == ["1", "2"]
        last = first.with_name(f"{first.name}-2")
    assert epochs_of(first) == ["1"]


@pytest.mark.parametrize("content", ["nothing", "checkpoints", "config"])
def test_a_run_that_was_never_saved_to_is_started_over(content: str, run_cli: RunCli, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "exp"
    folder.mkdir(parents=True)
    if content == "checkpoints":
        (folder / "checkpoints").mkdir()
    elif content == "config":
        (folder / "config.yaml").write_text("lr: 99\n")
        (folder / "metrics.csv").write_text("epoch\n")
    outcome = run_cli("resnet-train", *QUICK, "--name", "exp", "--resume", "auto", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert outcome.stderr.startswith("runs/exp has no checkpoint yet; starting from step 0\n")
    assert epochs_shown(outcome.stderr) == ["1/2", "2/2"]
    assert epochs_of(folder) == ["1", "2"]
    assert make_config(read_yaml(folder / "config.yaml")).lr == 0.1
    assert (folder / "checkpoints" / "model.pt").exists()


def test_a_run_that_was_never_saved_to_is_named_with_the_way_out(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "runs" / "exp").mkdir(parents=True)
    error = run_cli("resnet-train", *QUICK, "--name", "exp", cwd=tmp_path).error
    assert error.endswith("continue it with --resume auto, which restarts it")


@pytest.mark.parametrize("target", ["runs/exp", "runs", "."])
def test_a_folder_without_a_checkpoint_is_refused_and_left_alone(target: str, run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "runs" / "exp" / "checkpoints").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert run_cli("resnet-train", "--resume", target, cwd=tmp_path).error.endswith(EMPTY)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("target", [".", "checkpoints/last.pt", "../exp", "checkpoints/.."])
def test_a_run_can_be_resumed_from_inside_its_folder(target: str, exp: Path, run_cli: RunCli) -> None:
    outcome = run_cli("resnet-train", "--resume", target, "--epochs", 2, cwd=exp)
    assert outcome.code == 0, outcome
    assert epochs_of(exp) == ["1", "2"]
    assert {path.name for path in exp.parent.iterdir()} == {"exp"}


def test_a_moved_run_is_resumed_where_it_is(exp: Path, run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = exp.rename(tmp_path / "elsewhere" / "other")
    outcome = run_cli("resnet-train", "--resume", "elsewhere/other", "--epochs", 2, cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert epochs_of(moved) == ["1", "2"]
    config = make_config(read_yaml(moved / "config.yaml"))
    assert (config.name, config.output_dir) == ("other", Path("elsewhere"))


# --- Resume continues this experiment or none ------------------------------------------------------------------------


def accuracy_of(folder: Path) -> str:
    return (folder / "metrics.csv").read_text().splitlines()[-1]


def test_auto_never_takes_a_run_with_other_settings_for_this_one(run_cli: RunCli, tmp_path: Path) -> None:
    baseline = [*QUICK, "--epochs", 1]
    assert run_cli("resnet-train", *baseline, cwd=tmp_path).code == 0
    assert run_cli("resnet-train", *baseline, "--cutout", 4, cwd=tmp_path).code == 0
    plain, cutout = sorted((tmp_path / "runs").iterdir(), key=lambda path: "cutout" in path.name)
    before = files_below(cutout)
    for line, folder in ((baseline, plain), ([*baseline, "--cutout", 4], cutout)):
        again = run_cli("resnet-train", *line, "--resume", "auto", cwd=tmp_path)
        assert again.code == 0, again
        assert again.stderr == f"runs/{folder.name} is finished; nothing to do (a larger --epochs extends it)\n"
        assert again.stdout.endswith(f"runs/{folder.name}\n")

    # Even under the same name: only the state says what was trained.
    shutil.rmtree(plain)
    cutout.rename(plain)
    outcome = run_cli("resnet-train", *baseline, "--resume", "auto", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert outcome.stderr.splitlines()[1].strip() == f"runs/{plain.name}-2"
    assert {name: data for name, data in files_below(plain).items() if name != ".lock"} == {
        name: data for name, data in before.items() if name != ".lock"
    }


@pytest.mark.parametrize("change", [["--seed", 1], ["--epochs", 3], ["--no-channels-last"]])
def test_auto_refuses_a_chosen_name_of_another_experiment(
    change: list[object], exp: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    before = files_below(exp)
    line = [*QUICK, "--epochs", 1, *change, "--name", "exp", "--resume", "auto"]
    error = run_cli("resnet-train", *line, cwd=tmp_path).error
    assert error.startswith("error: runs/exp is a run with different settings (")
    assert str(change[0]).removeprefix("--no-").strip("-").replace("-", "_") in error
    assert error.endswith("or extend it with --resume runs/exp --epochs 3") == (change[0] == "--epochs")
    assert files_below(exp) == before


def test_auto_ignores_settings_that_leave_the_result_alone(run_cli: RunCli, tmp_path: Path) -> None:
    cut_after(1, *QUICK, "--save-every", 1, run_cli=run_cli, cwd=tmp_path)
    free = ["--threads", 1, "--eval-every", 2, "--log-every", 3, "--save-every", 2, "--data-dir", "elsewhere"]
    outcome = run_cli("resnet-train", *QUICK, *free, "--resume", "auto", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert "resuming runs/" in outcome.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_auto_finds_this_experiment_under_another_name(run_cli: RunCli, tmp_path: Path) -> None:
    cut_after(1, *QUICK, "--name", "other", run_cli=run_cli, cwd=tmp_path)
    outcome = run_cli("resnet-train", *QUICK, "--resume", "auto", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert outcome.stderr.startswith("resuming runs/other: ")


@pytest.mark.parametrize("name", [[], ["--name", "exp"]], ids=["default name", "chosen name"])
def test_a_finished_run_whose_states_were_deleted_is_left_alone(
    name: list[str], exp: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    for file in ("last.pt", "previous.pt"):
        (exp / "checkpoints" / file).unlink(missing_ok=True)
    before = files_below(exp)
    outcome = run_cli("resnet-train", *QUICK, "--epochs", 1, *name, "--resume", "auto", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert outcome.stderr == "runs/exp is finished; nothing to do\n"
    assert files_below(exp) == before
    assert [path.name for path in exp.parent.iterdir()] == ["exp"]


@pytest.mark.parametrize("left", ["metrics", "notes", "link", "a folder", "damaged model"])
def test_auto_writes_into_no_folder_but_those_of_killed_starts(left: str, run_cli: RunCli, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "exp"
    (folder / "checkpoints").mkdir(parents=True)
    if left == "metrics":
        (folder / "metrics.csv").write_text("epoch\n1\n")
    elif left == "notes":
        (folder / "checkpoints" / "notes.txt").write_text("mine")
    elif left == "link":
        (folder / "train.log").symlink_to(tmp_path / "elsewhere")
    elif left == "a folder":
        (folder / "config.yaml").mkdir()
    else:
        (folder / "checkpoints" / "model.pt").write_text("damaged")
    before = sorted(tmp_path.rglob("*"))
    line = [*QUICK, "--epochs", 1, "--name", "exp", "--resume", "auto"]
    error = run_cli("resnet-train", *line, cwd=tmp_path).error
    reason = "runs/exp/train.log is a link" if left == "link" else "run runs/exp already exists; choose another --name"
    assert error.startswith(f"error: {reason}")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_state_given_by_its_path_is_the_one_resumed(run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli("resnet-train", *QUICK, "--name", "exp", cwd=tmp_path).code == 0
    expected = accuracy_of(tmp_path / "runs" / "exp")
    outcome = run_cli("resnet-train", "--resume", "runs/exp/checkpoints/previous.pt", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert outcome.stderr.startswith("resuming /")
    assert epochs_shown(outcome.stderr) == ["2/2"]
    assert accuracy_of(tmp_path / "runs" / "exp") == expected


def incomplete(contents: dict[str, Any]) -> None:
    del contents["optimizer"]


def refused(contents: dict[str, Any]) -> None:
    contents["model"].popitem()


@pytest.mark.parametrize("change", [incomplete, refused])
def test_an_unusable_last_state_falls_back_to_the_previous_one(
    change: Callable[[dict[str, Any]], None], run_cli: RunCli, tmp_path: Path
) -> None:
    assert run_cli("resnet-train", *QUICK, "--name", "exp", cwd=tmp_path).code == 0
    folder = RunFolder(tmp_path / "runs" / "exp")
    expected = accuracy_of(folder.path)
    for path in (folder.last, folder.previous):
        contents = read_checkpoint(path)
        contents["config"]["epochs"] = 3  # unfinished
        if path == folder.last:
            change(contents)
        write_checkpoint(path, contents)
    outcome = run_cli("resnet-train", "--resume", "runs/exp", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert re.match(r"warning: runs/exp/checkpoints/last\.pt .*; falling back to .*previous\.pt\n", outcome.stderr)
    assert epochs_of(folder.path) == ["1", "2", "3"]
    assert (folder.path / "metrics.csv").read_text().splitlines()[-2].split(",")[:2] == expected.split(",")[:2]
    assert (folder.checkpoints / "damaged.pt").exists()


def test_a_resume_that_fails_early_changes_no_checkpoint(exp: Path, run_cli: RunCli, tmp_path: Path) -> None:
    last = exp / "checkpoints" / "last.pt"
    contents = read_checkpoint(last)
    contents["model"].popitem()
    write_checkpoint(last, contents)
    before = files_below(exp)
    outcome = run_cli("resnet-train", "--resume", "runs/exp", "--epochs", 2, cwd=tmp_path)
    assert outcome.code == 2, outcome
    assert "runs/exp/checkpoints/last.pt does not hold a state of this run" in outcome.stderr
    assert files_below(exp) == before


def test_another_number_of_processes_is_a_warning(exp: Path, run_cli: RunCli, tmp_path: Path) -> None:
    last = exp / "checkpoints" / "last.pt"
    contents = read_checkpoint(last)
    contents["sums"] *= 2
    write_checkpoint(last, contents)
    outcome = run_cli("resnet-train", "--resume", "runs/exp", "--epochs", 2, cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert "warning: the number of processes was 2 and is now 1: the result will differ" in outcome.stderr


# --- Flags beside --resume -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [["--name", "new"], ["--output-dir", "new"]])
def test_a_run_given_by_its_path_has_its_name_and_place(flag: list[str], exp: Path, run_cli: RunCli) -> None:
    before = files_below(exp)
    error = run_cli("resnet-train", "--resume", exp, *flag, cwd=exp.parent).error
    assert error == f"error: {flag[0]} cannot be combined with --resume PATH"
    assert files_below(exp) == before


@pytest.mark.parametrize("mode", ["--dry-run", "--print-config"])
@pytest.mark.parametrize("target", ["auto", "runs/exp"])
def test_resume_does_not_go_with_what_trains_nothing(
    mode: str, target: str, exp: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    before = files_below(exp)
    error = run_cli("resnet-train", "--resume", target, mode, cwd=tmp_path).error
    assert error == "error: --resume cannot be combined with --dry-run or --print-config"
    assert files_below(exp) == before


def test_given_settings_are_compared_with_the_runs_own(run_cli: RunCli, tmp_path: Path) -> None:
    own = ["--shortcut", "projection", "--warmup-epochs", 300, "--no-tensorboard", "--image-size", 8, "--cutout", 16]
    start = [*QUICK, *own, "--epochs", 400, "--name", "exp"]

    cut_after(1, *start, run_cli=run_cli, cwd=tmp_path)
    # warmup_epochs 300 does not fit into the default 200 epochs, nor the shortcut to the default network
    outcome = cut_after(1, "--resume", "runs/exp", *own, run_cli=run_cli, cwd=tmp_path)
    assert outcome.stderr.startswith("resuming runs/exp: ")
    error = run_cli("resnet-train", "--resume", "runs/exp", "--shortcut", "pad", cwd=tmp_path).error
    assert error.startswith("error: shortcut (=pad) cannot change when a run is resumed (it was projection);")


def test_the_memory_order_must_stay(exp: Path, run_cli: RunCli) -> None:
    error = run_cli("resnet-train", "--resume", exp, "--epochs", 2, "--no-channels-last", cwd=exp.parent).error
    assert error.startswith("error: channels_last (=False) cannot change when a run is resumed (it was True);")


# --- More epochs -----------------------------------------------------------------------------------------------------


def test_more_epochs_stretch_the_schedule_with_a_warning(exp: Path, run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", "--resume", "runs/exp", "--epochs", 3, cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert "warning: epochs was 1 and is now 3: the lr schedule is stretched over all of them" in outcome.stderr
    with (exp / "metrics.csv").open(newline="") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates[1] > rates[2] > 0
    assert rates[1] == pytest.approx(0.1 * (1 + np.cos(np.pi * 3 / 6)) / 2)


def test_fewer_epochs_are_refused_even_if_they_are_not_done_yet(run_cli: RunCli, tmp_path: Path) -> None:
    cut_after(1, *QUICK, "--epochs", 3, "--name", "long", run_cli=run_cli, cwd=tmp_path)
    error = run_cli("resnet-train", "--resume", "runs/long", "--epochs", 2, cwd=tmp_path).error
    assert error == "error: epochs (=2) must not be less than at the start of the run (=3)"


def test_an_extended_run_has_no_model_until_it_ends(exp: Path, run_cli: RunCli, tmp_path: Path) -> None:
    extend = ["--resume", "runs/exp", "--epochs", 3]
    model, last = exp / "checkpoints" / "model.pt", exp / "checkpoints" / "last.pt"
    cut_after(1, *extend, run_cli=run_cli, cwd=tmp_path)  # nothing was saved, so the model is still that of last.pt
    assert read_checkpoint(model)["metrics"]["epoch"] == read_checkpoint(last)["epoch"] == 1
    cut_after(2, *extend, run_cli=run_cli, cwd=tmp_path)
    assert read_checkpoint(last)["epoch"] == 2
    assert not model.exists()
    assert run_cli("resnet-train", *extend, cwd=tmp_path).code == 0
    assert read_checkpoint(model)["metrics"]["epoch"] == 3


# --- Killed processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--name", "exp"], ["--name", "exp", "--ema-decay", 0.5], []], ids=str)
def test_a_final_model_that_a_kill_prevented_is_written(
    arguments: list[object], run_cli: RunCli, tmp_path: Path
) -> None:
    arguments = [*QUICK, *arguments]
    assert run_cli("resnet-train", *arguments, cwd=tmp_path).code == 0
    (path,) = tmp_path.glob("runs/*/checkpoints/model.pt")
    expected = read_checkpoint(path)
    path.unlink()
    outcome = run_cli("resnet-train", *arguments, "--resume", "auto", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert f"{path.parts[-3]} is finished; nothing to do" in outcome.stderr
    written = read_checkpoint(path)
    assert written["metrics"] == expected["metrics"]
    assert written["about"] == expected["about"]
    assert written["model"].keys() == expected["model"].keys()
    assert all((written["model"][name] == tensor).all() for name, tensor in expected["model"].items())


def test_the_lock_is_taken_before_the_state_is_read(
    exp: Path, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = []
    read_state = resume._read_state

    def read_while_watched(folder: RunFolder) -> object:
        with pytest.raises(ValueError, match="is being written by process"):
            RunFolder(folder.path).lock()
        locked.append(folder.path)
        return read_state(folder)

    monkeypatch.setattr(resume, "_read_state", read_while_watched)
    for target in (["--resume", "runs/exp"], [*QUICK, "--epochs", 1, "--name", "exp", "--resume", "auto"]):
        assert run_cli("resnet-train", *target, cwd=tmp_path).code == 0
    assert [path.name for path in locked] == ["exp", "exp"]


def test_a_refused_resume_gives_the_lock_back(exp: Path, run_cli: RunCli) -> None:
    assert run_cli("resnet-train", "--resume", exp, "--lr", 3, cwd=exp.parent).code == 2
    folder = RunFolder(exp)
    folder.lock()
    folder.unlock()


# --- Damaged files ---------------------------------------------------------------------------------------------------


def test_a_damaged_state_never_becomes_the_previous_one(run_cli: RunCli, tmp_path: Path) -> None:
    arguments = [*QUICK, "--name", "exp"]
    assert run_cli("resnet-train", *arguments, cwd=tmp_path).code == 0
    folder = tmp_path / "runs" / "exp" / "checkpoints"
    damaged = (folder / "last.pt").read_bytes()[:-1000]
    (folder / "last.pt").write_bytes(damaged)
    cut_after(1, *QUICK, "--name", "exp", "--resume", "auto", run_cli=run_cli, cwd=tmp_path)
    assert (folder / "damaged.pt").read_bytes() == damaged
    assert read_checkpoint(folder / "previous.pt")["epoch"] == 1
    assert not (folder / "last.pt").exists()
    outcome = run_cli("resnet-train", *arguments, "--resume", "auto", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert [read_checkpoint(folder / f"{name}.pt")["epoch"] for name in ("last", "previous")] == [2, 1]


# --- Other images ----------------------------------------------------------------------------------------------------


def write_pictures(folder: Path, seed: int) -> None:
    """Two classes of four pictures each for training, and of two for testing."""
    rng = np.random.default_rng(seed)
    for split, each in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            for number in range(each):
                path = folder / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def test_other_training_images_are_refused(run_cli: RunCli, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_pictures(tmp_path / f"pictures{seed}", seed)
    shutil.copytree(tmp_path / "pictures0", tmp_path / "copy")
    on_folder = ["--dataset", "folder", "--arch", "resnet8", "--image-size", 8, "--device", "cpu", "--no-tensorboard"]
    start = [*on_folder, "--batch-size", 4, "--val-size", 2, "--epochs", 1, "--name", "exp"]
    assert run_cli("resnet-train", *start, "--data-dir", "pictures0", cwd=tmp_path).code == 0
    exp = tmp_path / "runs" / "exp"
    assert read_checkpoint(exp / "checkpoints" / "last.pt")["about"]["fingerprint"]

    again = ["--resume", "runs/exp", "--epochs", 2, "--data-dir"]
    before = files_below(exp)
    refused = run_cli("resnet-train", *again, "pictures1", cwd=tmp_path)
    message = "error: pictures1 does not hold the training images that runs/exp was started with"
    assert (refused.code, refused.stderr.splitlines()[-1]) == (2, message)
    assert files_below(exp) == before
    for split in ("val", "train"):
        judge = ["runs/exp", "--split", split, "--device", "cpu", "--data-dir"]
        error = run_cli("resnet-eval", *judge, "pictures1", cwd=tmp_path).error
        assert error == f"error: split {split}: pictures1 does not hold the images this model was trained on"
        assert run_cli("resnet-eval", *judge, "copy", cwd=tmp_path).code == 0
    assert run_cli("resnet-eval", "runs/exp", "--device", "cpu", "--data-dir", "pictures1", cwd=tmp_path).code == 0
    outcome = run_cli("resnet-train", *again, "copy", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert epochs_of(exp) == ["1", "2"]


def test_a_finished_run_needs_no_images(exp: Path, run_cli: RunCli, tmp_path: Path) -> None:
    last = exp / "checkpoints" / "last.pt"
    contents = read_checkpoint(last)
    contents["config"] |= {"dataset": "folder", "data_dir": "gone"}
    write_checkpoint(last, contents)
    outcome = run_cli("resnet-train", "--resume", "runs/exp", cwd=tmp_path)
    assert outcome.code == 0, outcome


def test_a_run_finds_its_images_from_another_folder(run_cli: RunCli, tmp_path: Path) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    write_pictures(home / "pictures", 0)
    away.mkdir()
    on_folder = ["--dataset", "folder", "--arch", "resnet8", "--image-size", 8, "--device", "cpu", "--no-tensorboard"]
    start = [*on_folder, "--batch-size", 4, "--data-dir", "pictures", "--name", "exp", "--epochs"]
    assert run_cli("resnet-train", *start, 1, cwd=home).code == 0
    run = home / "runs" / "exp"
    expected = run_cli("resnet-eval", run, "--device", "cpu", "--json", cwd=home)
    found = run_cli("resnet-eval", run, "--device", "cpu", "--json", cwd=away)
    assert json.loads(found.stdout)["top1"] == json.loads(expected.stdout)["top1"]
    outcome = run_cli("resnet-train", "--resume", run, "--epochs", 2, cwd=away)
    assert outcome.code == 0, outcome

    (home / "pictures").rename(home / "moved")
    for line in (["resnet-eval", run, "--device", "cpu"], ["resnet-train", "--resume", run, "--epochs", 3]):
        error = run_cli(*line, cwd=away).error
        assert error == f"error: the images are not in {home / 'pictures'}; say where they are with --data-dir"
        assert run_cli(*line, "--data-dir", home / "moved", cwd=away).code == 0


def test_changed_test_images_are_noticed_on_resume(run_cli: RunCli, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 0)
    on_folder = ["--dataset", "folder", "--arch", "resnet8", "--image-size", 8, "--device", "cpu", "--no-tensorboard"]
    start = [*on_folder, "--batch-size", 4, "--data-dir", "pictures", "--epochs", 1]
    assert run_cli("resnet-train", *start, cwd=tmp_path).code == 0
    (run,) = (tmp_path / "runs").iterdir()
    (tmp_path / "pictures" / "test" / "cat" / "0.png").unlink()
    outcome = run_cli("resnet-train", "--resume", run, "--epochs", 2, cwd=tmp_path)
    message = f"pictures does not hold the test images that {run} was started with"
    assert (outcome.code, outcome.stderr.splitlines()[-1].endswith(message)) == (2, True), outcome

    # The same settings on other images are another experiment.
    outcome = run_cli("resnet-train", *start, "--resume", "auto", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert outcome.stderr.splitlines()[1].strip() == f"runs/{run.name}-2"

    # Files of older versions do not know their test images.
    last = run / "checkpoints" / "last.pt"
    contents = read_checkpoint(last)
    del contents["about"]["test_fingerprint"], contents["data_path"]
    write_checkpoint(last, contents)
    assert run_cli("resnet-train", "--resume", run, "--epochs", 2, cwd=tmp_path).code == 0


# --- Times -----------------------------------------------------------------------------------------------------------


def test_an_epochs_time_survives_a_stop_in_its_evaluation(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate_after_a_signal(trainer: Trainer, number: int) -> object:
        trainer.signals.stop = 15
        return evaluate(trainer, number)

    evaluate = Trainer.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", evaluate_after_a_signal)
        stopped = run_cli("resnet-train", *QUICK, "--epochs", 1, "--name", "exp", cwd=tmp_path)
    assert stopped.code == 143
    folder = tmp_path / "runs" / "exp"
    assert re.search(r"continue with: resnet-train --resume runs/exp$", stopped.stderr.rstrip())
    state = read_checkpoint(folder / "checkpoints" / "last.pt")
    assert (state["epoch"], state["step"]) == (0, 2)
    assert run_cli("resnet-train", "--resume", "runs/exp", cwd=tmp_path).code == 0
    with (folder / "timing.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["train_seconds"]) >= state["epoch_seconds"] > 0
    assert float(row["images_per_second"]) > 0


def test_a_run_saved_in_format_version_1_still_resumes(tmp_path: Path, run_cli) -> None:
    data = Path(__file__).parent / "data"
    shutil.copytree(data / "version_1_run", tmp_path / "runs" / "plain")
    outcome = run_cli("resnet-train", "--resume", "runs/plain", cwd=tmp_path)
    assert outcome.code == 0, outcome
    folders = (tmp_path / "runs" / "plain", data / "version_1_run")
    rows, before = (list(csv.DictReader((path / "metrics.csv").read_text().splitlines())) for path in folders)
    assert len(rows) == 3
    # The epoch saved in the file; metrics that were registered later have no values there.
    assert {name: value for name, value in rows[0].items() if value} == {n: v for n, v in before[0].items() if v}
    evaluation = run_cli("resnet-eval", "runs/plain", "--json", cwd=tmp_path)
    assert evaluation.code == 0, evaluation
    assert json.loads(evaluation.stdout)["top1"] == float(rows[-1]["test_accuracy"])


# --- The number format -----------------------------------------------------------------------------------------------


def fake_amp(amp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `auto` choose a format, as another machine would."""

    def resolve(asked: str, device: object) -> tuple[str, str]:
        return (amp, "of a test") if asked == "auto" else (asked, "")

    monkeypatch.setattr(build, "resolve_amp", resolve)


def test_a_run_stores_the_format_that_auto_chose(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_amp("bf16", monkeypatch)
    outcome = run_cli("resnet-train", *QUICK, "--amp", "auto", cwd=tmp_path)
    assert "), bf16 " in outcome.stderr
    assert "amp auto is bf16 here: of a test\n" in outcome.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert "amp" not in folder.name
    assert read_yaml(folder / "config.yaml")["amp"] == "bf16"


def test_a_resumed_run_keeps_its_format(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_amp("bf16", monkeypatch)
    assert run_cli("resnet-train", *QUICK, "--amp", "auto", "--epochs", 1, "--name", "exp", cwd=tmp_path).code == 0
    fake_amp("off", monkeypatch)
    for amp in ([], ["--amp", "auto"], ["--amp", "bf16"]):
        outcome = run_cli("resnet-train", "--resume", "runs/exp", *amp, cwd=tmp_path)
        assert "runs/exp is finished" in outcome.stderr, outcome
    outcome = run_cli("resnet-train", "--resume", "runs/exp", "--amp", "off", cwd=tmp_path)
    assert "amp (=off) cannot change when a run is resumed (it was bf16)" in outcome.error


def test_auto_resumes_runs_of_the_format_that_it_chooses(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = [*QUICK, "--amp", "auto", "--epochs", 1, "--resume", "auto"]
    for amp, num_runs in (("bf16", 1), ("off", 2), ("bf16", 2)):
        fake_amp(amp, monkeypatch)
        assert run_cli("resnet-train", *line, cwd=tmp_path).code == 0
        assert len(list((tmp_path / "runs").iterdir())) == num_runs


@pytest.mark.parametrize(
    ("device", "scaler", "amp"), [("cpu", {}, "off"), ("cuda", {}, "bf16"), ("cuda", {"scale": 1.0}, "fp16")]
)
def test_auto_in_an_older_state_is_the_format_it_had(device: str, scaler: dict, amp: str) -> None:
    contents = {"config": {"amp": "auto"}, "environment": {"device": device}, "optimizer": {}, "scaler": scaler}
    assert checkpoint._resolve_amp(contents)["config"] == {"amp": amp}
    del contents["optimizer"], contents["scaler"]  # a model was evaluated in float32
    assert checkpoint._resolve_amp(contents)["config"] == {"amp": "off"}
