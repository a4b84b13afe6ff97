"""resnet-info: the tables, their JSON, and what a checkpoint says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resnet_train.data.dataset import DATASETS
from resnet_train.models import list_models
from resnet_train.optim.optimizers import OPTIMIZERS
from resnet_train.optim.schedules import SCHEDULES
from resnet_train.recipes import recipe_names
from tests.conftest import Outcome, RunCli
from tests.harness.trainers import cached_complexity

NAMES = {
    "models": [entry.name for entry in list_models()],
    "recipes": recipe_names(),
    "datasets": DATASETS.names(),
    "optimizers": OPTIMIZERS.names(),
    "schedules": SCHEDULES.names(),
}


@pytest.fixture(scope="module")
def models(run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Outcome]:
    """The table of models and its JSON; each network is measured once for both."""
    cwd = tmp_path_factory.mktemp("info")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnet_train.models.measure_complexity", cached_complexity)
        return run_cli("resnet-info", cwd=cwd), run_cli("resnet-info", "models", "--json", cwd=cwd)


def test_models_are_the_table_that_is_shown_first(models: tuple[Outcome, Outcome]) -> None:
    text, _ = models
    header, *lines = text.stdout.splitlines()
    assert (text.code, text.stderr) == (0, "")
    assert header.split() == ["name", "family", "params", "macs"]
    assert [line.split()[0] for line in lines] == NAMES["models"]
    (line,) = [line for line in lines if line.startswith("resnet18 ")]
    assert line.split()[2] == "11,173,962"


def test_models_as_json_have_exactly_these_keys(models: tuple[Outcome, Outcome]) -> None:
    text, as_json = models
    rows = json.loads(as_json.stdout)
    assert [list(row) for row in rows] == [["name", "family", "params", "macs"]] * len(NAMES["models"])
    for row, line in zip(rows, text.stdout.splitlines()[1:]):
        assert line.split() == [row["name"], row["family"], f"{row['params']:,}", f"{row['macs']:,}"]


@pytest.mark.parametrize("topic", [topic for topic in NAMES if topic != "models"])
def test_a_topic_lists_what_is_registered_with_a_line_about_each(topic: str, run_cli: RunCli, tmp_path: Path) -> None:
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
def test_a_checkpoint_is_described(name: str, trained: tuple[Path, Outcome], run_cli: RunCli, tmp_path: Path) -> None:
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
def test_an_unknown_topic_is_refused_with_those_there_are(topic: str, run_cli: RunCli, tmp_path: Path) -> None:
    error = run_cli("resnet-info", topic, cwd=tmp_path).error
    assert "is neither a topic nor a file; topics: models, recipes, datasets, optimizers, schedules" in error


def test_a_file_that_is_no_checkpoint_is_refused(run_cli: RunCli, tmp_path: Path) -> None:
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
def test_an_architecture_is_described_with_its_options(
    name: str, options: str, run_cli: RunCli, tmp_path: Path
) -> None:
    text = run_cli("resnet-info", name, cwd=tmp_path)
    described = json.loads(run_cli("resnet-info", name, "--json", cwd=tmp_path).stdout)
    size = cached_complexity(name)
    assert (text.code, text.stderr) == (0, "")
    assert (described["name"], described["params"], described["macs"]) == (name, size.params, size.macs)
    assert sorted(described["options"]) == sorted(options.split(", ")) if options else described["options"] == []
    assert f"params             {size.params}" in text.stdout.splitlines()
    (line,) = [line for line in text.stdout.splitlines() if line.startswith("options")]
    assert all(option in line for option in options.split(", "))
