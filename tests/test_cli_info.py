"""resnet-info: tables, JSON, architectures and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resnet_train.data.dataset import DATASETS
from resnet_train.jobs.info import TOPICS, Architecture, describe, list_architectures, read_sizes
from resnet_train.models import list_models
from resnet_train.models.complexity import Complexity
from resnet_train.optim.optimizers import OPTIMIZERS
from resnet_train.optim.schedules import SCHEDULES
from resnet_train.recipes import recipe_names, recipe_text
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


def test_models_are_listed_by_default(run_cli: RunCli, tmp_path: Path) -> None:
    text = run_cli("resnet-info", cwd=tmp_path)
    rows = json.loads(run_cli("resnet-info", "models", "--json", cwd=tmp_path).stdout)
    assert [row["name"] for row in rows] == NAMES["models"]
    header, *lines = text.stdout.splitlines()
    assert (text.code, text.stderr) == (0, "")
    assert header.split() == list(rows[0]) == ["name", "family", "params", "macs"]
    for row, line in zip(rows, lines, strict=True):
        assert line.split() == [row["name"], row["family"], f"{row['params']:,}", f"{row['macs']:,}"]


def test_listing_measures_only_networks_without_a_stored_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(name: str) -> Complexity:
        measured.append(name)
        return Complexity(1, 2)

    measured: list[str] = []
    monkeypatch.setattr("resnet_train.models.measure_complexity", measure)
    assert {row.name: row for row in list_architectures()} == read_sizes()
    stored = {name: size for name, size in read_sizes().items() if name != "resnet9"}
    monkeypatch.setattr("resnet_train.jobs.info.read_sizes", lambda: stored)
    (row,) = [row for row in list_architectures() if row.name not in stored]
    assert (row, measured) == (Architecture("resnet9", "resnet9", 1, 2), ["resnet9"])


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


@pytest.mark.parametrize("topic", ["no/such.pt", "x" * 300, "", "?"])
def test_unknown_topic_lists_the_topics(topic: str, run_cli: RunCli, tmp_path: Path) -> None:
    error = run_cli("resnet-info", topic, cwd=tmp_path).error
    assert f"is neither a topic, a name nor a file; topics: {', '.join(TOPICS)}" in error


@pytest.mark.parametrize(
    ("topic", "meant"),
    [
        ("model", "models"),
        ("resnt18", "resnet18"),
        ("quick-start2", "quickstart"),
        ("adam", "adamw"),
        ("cifar", "cifar10"),
    ],
)
def test_unknown_topic_names_the_nearest(topic: str, meant: str, run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli("resnet-info", topic, cwd=tmp_path).error.endswith(f"; did you mean {meant!r}?")


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("resnet14", "resnet14"),
        ("ResNet14", "resnet14"),
        ("ResNet-18", "resnet18"),
        ("WideResNet28-10", "wide_resnet28_10"),
        ("RESNET20-FAST", "resnet20-fast"),
        ("CIFAR-10", "cifar10"),
        ("SGD", "sgd"),
        ("one_cycle", "one-cycle"),
    ],
)
def test_names_are_understood_however_they_are_spelled(topic: str, name: str, run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-info", topic, "--json", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert json.loads(outcome.stdout)["name"] == name


def test_names_of_all_lists_are_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sample = [*NAMES["models"][::8], *(name for topic in NAMES if topic != "models" for name in NAMES[topic])]
    for name in sample:
        assert describe(name).name == name


def test_recipe_is_shown_as_its_file(run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli("resnet-info", "quickstart", cwd=tmp_path).stdout == recipe_text("quickstart")
    described = json.loads(run_cli("resnet-info", "quickstart", "--json", cwd=tmp_path).stdout)
    assert described["settings"]["dataset"] == "digits"


def test_architecture_names_the_recipes_that_train_it(run_cli: RunCli, tmp_path: Path) -> None:
    recipes = json.loads(run_cli("resnet-info", "resnet20", "--json", cwd=tmp_path).stdout)["recipes"]
    assert {"resnet20", "resnet20-fast"} <= set(recipes)
    assert "resnet18" not in recipes
    assert "resnet18" in json.loads(run_cli("resnet-info", "resnet18", "--json", cwd=tmp_path).stdout)["recipes"]


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
