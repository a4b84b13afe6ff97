"""resnet-train --seeds: each run is that of its seed alone, a killed one resumes, and the end says mean ± sd."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from resnet_train.cli.options import parse_seeds
from resnet_train.config import TrainConfig, make_config, to_plain
from resnet_train.jobs import seeds as job
from resnet_train.jobs.compare import compare
from resnet_train.recipes import to_yaml
from resnet_train.training.trainer import NotFinite
from tests.harness.cli import SMALL, RunCli
from tests.harness.processes import KILLED, Stop, assert_same_result, needs_fork, run_forked, run_ranks

OTHER_STOPS = [pytest.param(Stop(at, 1), marks=pytest.mark.slow) for at in ("record", "saved", "final")]
TINY = [*SMALL, "--no-tensorboard", "--threads", "1"]


def times_of(folder: Path) -> dict[str, int]:
    """Return when each file of the checkpoints was written, in nanoseconds."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "checkpoints").iterdir()}


# --- The flag --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("1", [0]), ("0,1,7", [0, 1, 7]), ("7,", [7]), (" 4 , 2", [4, 2])]
)
def test_a_number_is_a_count_and_a_list_names_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text, {}) == seeds


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1001", "x", "1,x", "1,,2", ",", "1,1", "1.5", "9" * 30, "9" * 19 + ",1", "²", "0-4"]
)
def test_other_seeds_are_refused_with_the_value(text: str, run_cli: RunCli, tmp_path: Path) -> None:
    error = run_cli("resnet-train", *TINY, "--seeds", text, cwd=tmp_path).error
    assert re.match(r"error: seeds? \(=", error)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "1"], "--seed cannot be combined with --seeds"),
        (["--dry-run"], "--seeds cannot be combined with --dry-run"),
        (["--print-config"], "--seeds cannot be combined"),
        (["--profile", "2"], "--seeds cannot be combined"),
        (["--resume", "runs/x"], "--seeds cannot be combined with --resume PATH"),
    ],
)
def test_flags_of_a_single_run_are_refused(arguments: list[str], message: str, run_cli: RunCli, tmp_path: Path) -> None:
    assert message in run_cli("resnet-train", "--seeds", "2", *arguments, cwd=tmp_path).error


# --- The runs --------------------------------------------------------------------------------------------------------


def test_each_seed_is_the_run_that_it_gives_alone(run_cli: RunCli, tmp_path: Path) -> None:
    options = [*TINY, "--ema-decay", 0.9]
    assert run_cli("resnet-train", *options, "--seeds", "0,3", "--output-dir", "group", cwd=tmp_path).code == 0
    for seed in (0, 3):
        assert run_cli("resnet-train", *options, "--seed", seed, "--output-dir", "alone", cwd=tmp_path).code == 0
        (folder,) = (tmp_path / "alone").glob(f"*-seed{seed}")
        assert_same_result(tmp_path / "group" / folder.name, folder)


def test_names_leave_out_what_the_first_run_chose(run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli("resnet-train", *TINY, "--amp", "auto", "--seeds", 2, cwd=tmp_path).code == 0
    first, second = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert (first.removesuffix("0"), "amp" in first) == (second.removesuffix("1"), False)


def test_the_end_has_the_mean_and_deviation_of_compare(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", *TINY, "--seeds", 2, "--json", cwd=tmp_path)
    results = json.loads(outcome.stdout)
    assert [run["seed"] for run in results["runs"]] == [0, 1]
    (group,) = compare([tmp_path / "runs"]).groups
    assert (results["mean"], results["sd"]) == (group.mean, group.sd)

    # The second time, nothing is trained, and the text says the same.
    before = [times_of(folder) for folder in sorted((tmp_path / "runs").iterdir())]
    again = run_cli("resnet-train", *TINY, "--seeds", 2, cwd=tmp_path)
    assert again.code == 0, again
    assert again.stderr.count("is finished; nothing to do") == 2
    assert [times_of(folder) for folder in sorted((tmp_path / "runs").iterdir())] == before
    last = again.stdout.splitlines()[-1]
    assert last == f"mean ± sd  {100 * group.mean:.2f} ± {100 * group.sd:.2f} % final test accuracy (n=2)"


@needs_fork
@pytest.mark.parametrize("stop", [Stop("step", 3), *OTHER_STOPS])
def test_a_killed_seed_resumes_and_a_finished_one_is_kept(stop: Stop, run_cli: RunCli, tmp_path: Path) -> None:
    group, killed = [*TINY, "--name", "x"], [*TINY, "--name", "x", "--output-dir", "killed"]
    assert run_cli("resnet-train", *group, "--seeds", 2, cwd=tmp_path).code == 0
    assert run_cli("resnet-train", *killed, "--seeds", "0,", cwd=tmp_path).code == 0
    finished = times_of(tmp_path / "killed" / "x-seed0")
    assert run_forked(*killed, "--seeds", 2, cwd=tmp_path, stop=stop).code == KILLED
    outcome = run_cli("resnet-train", *killed, "--seeds", 2, cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert times_of(tmp_path / "killed" / "x-seed0") == finished
    for name in ("x-seed0", "x-seed1"):
        assert_same_result(tmp_path / "killed" / name, tmp_path / "runs" / name)


@needs_fork
def test_an_interrupted_group_names_the_way_on(tmp_path: Path) -> None:
    ended = run_forked(*TINY, "--seeds", "2", cwd=tmp_path, stop=Stop("step", 1, "SIGINT"))
    assert ended.code == 130
    assert "the same command resumes it and trains the remaining seeds" in ended.output
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_name_is_that_of_all_runs(run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli("resnet-train", *TINY, "--seeds", 2, "--name", "x", cwd=tmp_path).code == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["x-seed0", "x-seed1"]

    # The settings of one of them train more of the group.
    arguments = ["--config", "runs/x-seed1/config.yaml", "--seeds", 3]
    assert run_cli("resnet-train", *arguments, cwd=tmp_path).code == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["x-seed0", "x-seed1", "x-seed2"]


@pytest.mark.slow
@needs_fork
def test_processes_train_a_group_together(tmp_path: Path) -> None:
    ends = run_ranks(*TINY, "--seeds", "2", "--name", "x", cwd=tmp_path)
    assert [end.code for end in ends] == [0, 0], ends
    assert "n=2" in ends[0].output
    alone = [*TINY, "--seed", "1", "--name", "x", "--output-dir", "alone"]
    assert [end.code for end in run_ranks(*alone, cwd=tmp_path)] == [0, 0]
    assert_same_result(tmp_path / "runs" / "x-seed1", tmp_path / "alone" / "x")


# --- Runs that end otherwise, without training -----------------------------------------------------------------------


class FakeTrain:
    """Stands for `train`: returns results without training, and raises NotFinite for some seeds."""

    def __init__(self, folder: Path, not_finite: tuple[int, ...] = ()) -> None:
        self.folder, self.not_finite = folder, not_finite
        self.configs: list[TrainConfig] = []

    def __call__(self, config: TrainConfig, given: dict[str, Any], *rest: Any, **named: Any) -> Any:
        self.configs.append(config)
        if config.seed in self.not_finite:
            raise NotFinite("the loss is not finite")
        if config.minutes is not None and config.epoch_steps is None:  # as `train` plans it
            config = make_config({**to_plain(config), "epochs": 7, "epoch_steps": 5})
        if config.amp == "auto":
            config = config.model_copy(update={"amp": "bf16"})
        (self.folder / "config.yaml").write_text(to_yaml(to_plain(config)))
        final = SimpleNamespace(scores={"test": {"accuracy": 0.5 + config.seed / 10}})
        return SimpleNamespace(seed=config.seed, folder=str(self.folder), final=final, seconds=None)


def test_a_seed_that_is_not_finite_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(job, "train", FakeTrain(tmp_path, not_finite=(1,)))
    results = job.train_seeds(TrainConfig(), [0, 1, 2])
    assert results is not None
    assert ([run.seed for run in results.runs], results.not_finite) == ([0, 2], (1,))
    assert results.mean == pytest.approx(0.6)
    assert results.sd == pytest.approx(np.std([0.5, 0.7], ddof=1))
    with pytest.raises(NotFinite):
        job.train_seeds(TrainConfig(), [1])


def test_a_group_with_a_seed_that_is_not_finite_ends_with_3(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", *TINY, "--seeds", 2, "--lr", 1e30, cwd=tmp_path)
    assert outcome.code == 3
    assert outcome.stderr.splitlines()[-1].startswith("error: ")


def test_minutes_are_planned_once_for_all_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    train = FakeTrain(tmp_path)
    monkeypatch.setattr(job, "train", train)
    job.train_seeds(make_config({"minutes": 3}), [0, 1])
    first, second = train.configs
    assert (first.minutes, first.epoch_steps) == (3, None)
    assert (second.minutes, second.epochs, second.epoch_steps, second.seed) == (3, 7, 5, 1)


def test_the_number_format_is_chosen_once_for_all_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    train = FakeTrain(tmp_path)
    monkeypatch.setattr(job, "train", train)
    job.train_seeds(TrainConfig(), [0, 1])
    assert [config.amp for config in train.configs] == ["auto", "bf16"]
