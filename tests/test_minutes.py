"""Runs of a given length in minutes: the plan, what is stored of it, and how it is resumed. Clocks are fake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resnet_train.config import TrainConfig, make_config, with_length
from resnet_train.jobs import measure, plan
from resnet_train.jobs.plan import EPOCH_SECONDS, choose_length
from resnet_train.recipes import read_yaml
from tests.harness.cli import SMALL, RunCli

MINUTES = [*SMALL[:-2], "--batch-size", "8", "--no-tensorboard", "--name", "x", "--minutes", "1"]  # without --epochs
STEPS = 390  # of a pass over CIFAR-10 in batches of 128
RATES = {32: 128.0}  # a step takes a second


def length(config: TrainConfig) -> tuple[int, int | None]:
    return config.epochs, config.epoch_steps


def choose(seconds: float, *, rates: dict[int, float] = RATES, eval_seconds: float = 10.0, **settings: Any):
    config = make_config({"minutes": 1, **settings})
    return choose_length(config, (50_000, 10_000), rates, 10_000 / eval_seconds, seconds)


# --- The plan --------------------------------------------------------------------------------------------------------


def test_a_time_of_whole_passes_has_whole_passes() -> None:
    assert length(choose(3 * (STEPS + 10 + EPOCH_SECONDS) + 0.5)) == (3, STEPS)


def test_a_time_between_two_passes_has_shorter_epochs() -> None:
    assert length(choose(600)) == (2, 289)  # (600 - 2 × 10.03) / 2
    assert length(choose(101)) == (1, 90)


@pytest.mark.parametrize("seconds", [30, 333, 395, 410, 790, 802, 2000, 4000, 54_321])
def test_the_plan_fills_its_time(seconds: float) -> None:
    epochs, steps = length(choose(seconds))
    assert steps is not None
    used = epochs * (steps + 10 + EPOCH_SECONDS)
    assert seconds - 11 - epochs <= used <= seconds


def test_fewer_evaluations_leave_time_for_more_steps() -> None:
    epochs, steps = length(choose(4000, eval_every=5))
    assert (epochs, steps) == (11, 360)  # and three evaluations


def test_small_images_are_planned_at_their_own_rate() -> None:
    rates = {16: 512.0, 32: 128.0}  # 0.625 s a step
    assert length(choose(40.5, rates=rates, eval_seconds=0.1, progressive_sizes="16:0.5")) == (1, 64)


def test_a_time_too_short_for_ten_steps_is_refused() -> None:
    message = r"minutes \(=1\) is too short: 15 s are left after the start, a step takes 1 s, and an evaluation 10 s"
    with pytest.raises(ValueError, match=message + r"; give at least --minutes 1\.1$"):
        choose(15)
    assert length(choose(15 + 0.1 * 60 * (1 - plan.RESERVED_SHARE))) == (1, 10)  # what the advice leaves for the run


def test_warm_up_and_milestones_keep_their_shares() -> None:
    config = make_config({"epochs": 20, "warmup_epochs": 5, "schedule": "multi-step", "milestones": [10, 15]})
    planned = with_length(config, 4, 100)
    assert (planned.warmup_epochs, planned.milestones, length(planned)) == (1, (2, 3), (4, 100))


# --- Runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make a step take five seconds and an evaluation none, without measuring; return the seconds of a step."""
    seconds = [5.0]
    monkeypatch.setattr(
        measure, "rates_by_size", lambda trainer, config, sides, *_, **__: dict.fromkeys(sides, 8 / seconds[0])
    )
    monkeypatch.setattr(measure, "eval_rate", lambda *_: 1e9)
    monkeypatch.setattr(plan, "END_SECONDS", 0.0)
    monkeypatch.setattr(plan, "MIN_STEPS", 1)
    monkeypatch.setattr(plan.time, "monotonic", lambda: 0.0)
    return seconds


def settings_of(cwd: Path) -> dict[str, Any]:
    return read_yaml(cwd / "runs" / "x" / "config.yaml")


def test_a_run_stores_the_length_that_was_planned(run_cli: RunCli, tmp_path: Path, fast: list[float]) -> None:
    outcome = run_cli("resnet-train", *MINUTES, cwd=tmp_path)
    assert outcome.code == 0, outcome
    settings = settings_of(tmp_path)
    assert (settings["minutes"], settings["epochs"], settings["epoch_steps"]) == (1.0, 2, 5)  # of eight steps a pass
    assert "planned for 1 min: 2 epochs of 5 steps, 1.25 passes over the training images" in outcome.stderr


def test_the_stored_length_trains_the_same_run_again(run_cli: RunCli, tmp_path: Path, fast: list[float]) -> None:
    assert run_cli("resnet-train", *MINUTES, cwd=tmp_path).code == 0
    fast[0] = 3.0
    again = run_cli("resnet-train", "--config", "runs/x/config.yaml", "--name", "y", cwd=tmp_path)
    assert again.code == 0, again
    assert (tmp_path / "runs/x/metrics.csv").read_bytes() == (tmp_path / "runs/y/metrics.csv").read_bytes()


def test_a_resumed_run_keeps_its_length(run_cli: RunCli, tmp_path: Path, fast: list[float]) -> None:
    assert run_cli("resnet-train", *MINUTES, cwd=tmp_path).code == 0
    fast[0] = 3.0  # another plan, if one were made
    before = (tmp_path / "runs/x/metrics.csv").read_bytes()
    for resume in ("auto", "runs/x"):
        given = MINUTES if resume == "auto" else MINUTES[-2:]
        outcome = run_cli("resnet-train", *given, "--resume", resume, cwd=tmp_path)
        assert "runs/x is finished" in outcome.stderr, outcome
    extended = run_cli("resnet-train", "--resume", "runs/x", "--epochs", 3, cwd=tmp_path)
    assert extended.code == 0, extended
    assert (tmp_path / "runs/x/metrics.csv").read_bytes().startswith(before[:40])
    assert (settings_of(tmp_path)["epochs"], settings_of(tmp_path)["epoch_steps"]) == (3, 5)


def test_a_group_of_seeds_has_the_length_of_its_first_run(run_cli: RunCli, tmp_path: Path, fast: list[float]) -> None:
    assert run_cli("resnet-train", *MINUTES, "--seeds", "0,", cwd=tmp_path).code == 0
    fast[0] = 3.0  # another plan, if one were made
    assert run_cli("resnet-train", *MINUTES, "--seeds", "2", cwd=tmp_path).code == 0
    first, second = (read_yaml(tmp_path / "runs" / f"x-seed{seed}" / "config.yaml") for seed in (0, 1))
    assert {name for name, value in first.items() if value != second[name]} == {"seed", "name"}


def test_another_number_of_minutes_is_another_run(run_cli: RunCli, tmp_path: Path, fast: list[float]) -> None:
    assert run_cli("resnet-train", *MINUTES, cwd=tmp_path).code == 0
    outcome = run_cli("resnet-train", *MINUTES, "--minutes", "2", "--resume", "auto", cwd=tmp_path)
    assert "minutes was 1.0 and is now 2.0" in outcome.error
    outcome = run_cli("resnet-train", "--minutes", "2", "--resume", "runs/x", cwd=tmp_path)
    assert "minutes (=2.0) cannot change when a run is resumed (it was 1.0)" in outcome.error


@pytest.mark.parametrize(("other", "value"), [("epochs", 3), ("epoch-steps", 1)])
def test_minutes_and_epochs_are_not_given_together(other: str, value: int, run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", *MINUTES, f"--{other}", value, cwd=tmp_path)
    assert outcome.error == f"error: --minutes cannot be combined with --{other}: it chooses the epochs"
    assert not list(tmp_path.iterdir())


def test_a_flag_replaces_the_length_of_a_file(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("minutes: 3\nepochs: 4\nepoch_steps: 7\n")
    for flags, expected in (
        ([], (3.0, 4, 7)),
        (["--minutes", "5"], (5.0, 4, None)),
        (["--epochs", "9"], (None, 9, None)),
    ):
        outcome = run_cli("resnet-train", "--config", "own.yaml", *flags, "--print-config", cwd=tmp_path)
        (tmp_path / "printed.yaml").write_text(outcome.stdout)
        settings = read_yaml(tmp_path / "printed.yaml")
        assert (settings["minutes"], settings["epochs"], settings["epoch_steps"]) == expected


def test_an_epoch_is_at_most_a_pass(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", *SMALL, "--epoch-steps", 3, cwd=tmp_path)
    assert outcome.error.endswith("epoch_steps (=3) must be at most 2, a pass over the training images")
