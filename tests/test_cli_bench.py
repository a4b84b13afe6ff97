"""resnet-bench: the report and its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resnet_train.jobs import bench
from tests.harness.cli import Outcome, RunCli

TINY = ["--arch", "resnet8", "--dataset", "digits", "--image-size", "8", "--train-size", "32", "--batch-size", "16"]
QUICK = [*TINY, "--device", "cpu", "--steps", "1", "--rounds", "2"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MATRIX_SIDE", 32)
    monkeypatch.setattr(bench, "_thread_counts", lambda: [1])  # more than there are processors free for take seconds


def result_of(outcome: Outcome) -> dict:
    assert outcome.code == 0, outcome
    return json.loads(outcome.stdout)


def test_the_numbers_as_json_hold_together(run_cli: RunCli, tmp_path: Path) -> None:
    numbers = result_of(run_cli("resnet-bench", *QUICK, "--epochs", "3", "--json", cwd=tmp_path))
    rate = numbers["images_per_second"]
    assert 0 < rate["min"] <= rate["median"] <= rate["max"]
    assert numbers["flops_per_second"]["max"] == pytest.approx(rate["max"] * numbers["flops_per_image"])
    assert sum(numbers["phases"].values()) == pytest.approx(1)
    assert list(numbers["phases"]) == ["data", "forward", "backward", "optimizer", "host"]
    assert (numbers["run"]["steps"], numbers["run"]["train_images"]) == (6, 32)
    assert numbers["run"]["total_seconds"] > numbers["run"]["train_seconds"] > 0
    flags = [change["flag"] for change in numbers["changes"]]
    assert {"--no-channels-last", "--amp bf16", "--batch-size 32"} <= set(flags)
    assert not list(tmp_path.iterdir())


def test_the_report_says_it_all_in_aligned_lines(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-bench", *QUICK, "--progressive-sizes", "4:0.5", cwd=tmp_path)
    assert outcome.code == 0, outcome
    facts, table, advice = (part.splitlines() for part in outcome.stdout.strip().split("\n\n"))
    names = [line[:12].strip() for line in facts]
    assert names == [
        "network",
        "machine",
        "batches",
        "training",
        "arithmetic",
        "a step",
        "evaluation",
        "memory",
        "start",
        "images/s at",
        "whole run",
    ]
    assert "16 random images of 8×8, float32" in facts[2]
    assert facts[9].endswith("(50% of the steps)")
    assert table[0].split() == ["one", "change", "times", "as", "fast", "range", "over", "the", "rounds"]
    assert advice
    assert "round 2 of 2" in outcome.stderr


def test_what_helps_is_said_only_where_the_rounds_agree(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rates(measures: dict[str, object], rounds: int, *_: object) -> dict[str, list[float]]:
        known = {"as given": [10.0, 10.0], "--no-channels-last": [12.0, 9.0], "--amp bf16": [15.0, 20.0]}
        return {name: known.get(name, [4.0]) for name in measures}

    monkeypatch.setattr(bench, "interleave", rates)
    lines = run_cli("resnet-bench", *QUICK, cwd=tmp_path).stdout.splitlines()
    assert "--amp bf16 is faster here (it rounds otherwise)." in lines
    assert not any(line.startswith("--no-channels-last is") for line in lines)
    assert any(line.endswith("0.40 to 0.40, 1 round only") for line in lines)


def test_one_round_allows_no_advice(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-bench", *TINY, "--device", "cpu", "--steps", "1", "--rounds", "1", cwd=tmp_path)
    assert outcome.stdout.splitlines()[-1].startswith("One round has no range")


def test_a_recipe_is_measured_with_flags_over_it(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("arch: resnet14\nbatch_size: 8\n")
    options = ["--config", "mine.yaml", *QUICK[2:], "--json"]
    numbers = result_of(run_cli("resnet-bench", *options, cwd=tmp_path))
    assert (numbers["arch"], numbers["batch_size"]) == ("resnet14", 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arch", "resnet19"], "resnet19"),
        (["--batch-size", "64"], "batch_size (=64) must be at most the number of training images (=32)"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--steps", "0"], "'--steps'"),
        (["--config", "nothing"], "config 'nothing' is neither a recipe nor a readable file"),
    ],
)
def test_bad_input_is_one_line(options: list[str], message: str, run_cli: RunCli, tmp_path: Path) -> None:
    assert message in run_cli("resnet-bench", *QUICK, *options, cwd=tmp_path).error
