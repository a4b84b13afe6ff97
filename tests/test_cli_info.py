"""resnet-info: tables, JSON, architectures and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resnet_train.data.dataset import DATASETS
from resnet_train.jobs.info import TOPICS
from resnet_train.models import list_models
from resnet_train.models.complexity import Complexity
from resnet_train.optim.optimizers import OPTIMIZERS
from resnet_train.optim.schedules import SCHEDULES
from resnet_train.recipes import recipe_names
from tests.harness.cli import Outcome, RunCli
from tests.harness.trainers import cached_complexity

NAMES = {
    "models": [entry.name for entry in list_models()],
    "recipes": recipe_names(),
    "datasets": DATASETS.names(),
    "optimizers": OPTIMIZERS.names(),
    "schedules": SCHEDULES.names(),
}


def test_topics_are_those_tested_here() -> None:
    assert list(TOPICS) == list(NAMES)


def test_models_are_listed_by_default(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {name: Complexity(11_173_962 + number, 10**9 + number) for number, name in enumerate(NAMES["models"])}
    monkeypatch.setattr("resnet_train.models.measure_complexity", sizes.__getitem__)
    text = run_cli("resnet-info", cwd=tmp_path)
    rows = json.loads(run_cli("resnet-info", "models", "--json", cwd=tmp_path).stdout)
    assert [(row["name"], row["params"], row["macs"]) for row in rows] == [
        (name, size.params, size.macs) for name, size in sizes.items()
    ]
    header, *lines = text.stdout.splitlines()
    assert (text.code, text.stderr) == (0, "")
    assert header.split() == list(rows[0]) == ["name", "family", "params", "macs"]
    for row, line in zip(rows, lines, strict=True):
        assert line.split() == [row["name"], row["family"], f"{row['params']:,}", f"{row['macs']:,}"]


@pytest.mark.parametrize("topic", [topic for topic in NAMES if topic != "models"])
def test_topic_lists_what_is_registered(topic: str, run_cli: RunCli, tmp_path: Path) -> None:
    text = run_cli("resnet-info", topic, cwd=tmp_path)
    rows = json.loads(run_cli("resnet-info", topic, "--json", cwd=tmp_path).stdout)
    assert (text.code, text.stderr) == (0, "")
    assert [list(row) for row in rows] == [["name", "about"]] * len(NAMES[topic])
    assert [row["name"] for row in rows] == NAMES[topic]
    header, *lines = text.stdout.splitlines()
    assert header.split() == ["name", "about"]
    for row, line in zip(rows, lines):
        assert row["about"]
        assert line.startswith(row["name"])
        assert line.endswith(row["about"])


@pytest.mark.parametrize("name", ["", "checkpoints/model.pt", "checkpoints/last.pt", "checkpoints/best.pt"])
def test_checkpoint_is_described(name: str, trained: tuple[Path, Outcome], run_cli: RunCli, tmp_path: Path) -> None:
    path = trained[0] / name
    text = run_cli("resnet-info", path, cwd=tmp_path)
    described = json.loads(run_cli("resnet-info", path, "--json", cwd=tmp_path).stdout)
    assert (text.code, text.stderr) == (0, "")
    assert described["arch"] == "resnet8"
    assert described["classes"] == [str(digit) for digit in range(10)]
    assert described["config"]["batch_size"] == 32
    assert described["epoch"] == described["metrics"]["epoch"]
    assert described["epoch"] == 2 or name.endswith("best.pt")
    assert "arch               resnet8" in text.stdout.splitlines()
    assert "  batch_size         32" in text.stdout.splitlines()
    assert "classes            0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in text.stdout.splitlines()


@pytest.mark.parametrize("topic", ["model", "no/such.pt", "x" * 300])
def test_unknown_topic_lists_the_topics(topic: str, run_cli: RunCli, tmp_path: Path) -> None:
    error = run_cli("resnet-info", topic, cwd=tmp_path).error
    assert f"is neither a topic nor a file; topics: {', '.join(TOPICS)}" in error


def test_file_that_is_not_a_checkpoint_is_an_error(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert "notes.txt is damaged or not a checkpoint" in run_cli("resnet-info", "notes.txt", cwd=tmp_path).error
    assert "is a folder without checkpoints/model.pt" in run_cli("resnet-info", ".", cwd=tmp_path).error


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", "--stem, --norm-order, --zero-init-residual, --drop-path"),
        ("resnet20", "--shortcut"),
        ("resnet9", ""),
    ],
)
def test_architecture_is_described_with_its_options(name: str, options: str, run_cli: RunCli, tmp_path: Path) -> None:
    text = run_cli("resnet-info", name, cwd=tmp_path)
    described = json.loads(run_cli("resnet-info", name, "--json", cwd=tmp_path).stdout)
    size = cached_complexity(name)
    assert (text.code, text.stderr) == (0, "")
    assert (described["name"], described["params"], described["macs"]) == (name, size.params, size.macs)
    assert sorted(described["options"]) == sorted(options.split(", ")) if options else described["options"] == []
    assert f"params             {size.params}" in text.stdout.splitlines()
    (line,) = [line for line in text.stdout.splitlines() if line.startswith("options")]
    assert all(option in line for option in options.split(", "))
