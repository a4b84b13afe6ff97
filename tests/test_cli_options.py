"""The command line: what decides over what, help without torch, completion, usage errors."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from resnet_train import __version__
from resnet_train.cli.options import gather_settings
from resnet_train.config import TrainConfig, make_config, option_metadata, option_names, to_plain
from resnet_train.recipes import read_yaml
from tests.conftest import MODULES, Outcome, RunCli, run_python
from tests.test_config import another_value

# Runs a console script as its entry point does, and says at the end whether torch was imported on the way.
HELP_PROGRAM = """
import importlib, sys
module, *sys.argv = sys.argv[1:]
try:
    importlib.import_module(module).main()
except SystemExit as leaving:
    print("code", leaving.code, file=sys.stderr)
print("torch" if {"torch", "torchvision", "sklearn", "scipy"} & set(sys.modules) else "light", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """`--help` of every command."""
    cwd = tmp_path_factory.mktemp("help")
    return {
        command: run_python("-c", HELP_PROGRAM, module, command, "--help", cwd=cwd)
        for command, module in MODULES.items()
    }


def printed_config(outcome: Outcome, tmp_path: Path) -> TrainConfig:
    assert outcome.code == 0, outcome
    path = tmp_path / "printed.yaml"
    path.write_text(outcome.stdout, encoding="utf-8")
    return make_config(read_yaml(path))


@pytest.mark.parametrize("command", MODULES)
def test_help_is_shown_without_importing_torch(command: str, helps: dict[str, Outcome]) -> None:
    assert helps[command].stderr.split() == ["code", "0", "light"]
    assert f"Usage: {command}" in helps[command].stdout
    assert "`" not in helps[command].stdout


@pytest.mark.parametrize("name", option_names())
def test_help_shows_every_setting_with_its_short_flag(name: str, helps: dict[str, Outcome]) -> None:
    flag = "--" + name.replace("_", "-")
    (line,) = [line for line in helps["resnet-train"].stdout.splitlines() if re.match(rf"\W*{flag}(?![\w-])", line)]
    assert option_metadata(name)["short"] in line
    if TrainConfig.model_fields[name].annotation in (bool, bool | None):
        assert f"--no-{flag[2:]}" in line


def test_help_groups_the_settings_in_panels_and_shows_defaults(helps: dict[str, Outcome]) -> None:
    text = helps["resnet-train"].stdout
    titles = [match[1] for line in text.splitlines() if (match := re.match(r"\W*─ ([A-Z][\w ]+?) ─", line))]
    assert titles == ["Options", *dict.fromkeys(option_metadata(name)["panel"] for name in option_names())]
    assert "Default: resnet18." in text
    assert "Default: 0.0005." in text
    assert "Default: off." in text
    assert "One of: random, alternating, none." in text


@pytest.mark.parametrize("command", MODULES)
def test_version_is_printed(command: str, run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli(command, "--version", cwd=tmp_path) == (0, f"resnet_train {__version__}\n", "")


@pytest.mark.parametrize("command", MODULES)
def test_an_unknown_flag_is_a_usage_error_in_one_line(command: str, run_cli: RunCli, tmp_path: Path) -> None:
    assert "--learning-rte" in run_cli(command, "--learning-rte", "1", cwd=tmp_path).error


def test_a_flag_without_its_value_and_a_spare_argument_are_usage_errors(run_cli: RunCli, tmp_path: Path) -> None:
    assert "--epochs" in run_cli("resnet-train", "--epochs", cwd=tmp_path).error
    assert "digits" in run_cli("resnet-train", "digits", cwd=tmp_path).error
    assert "CHECKPOINT" in run_cli("resnet-eval", cwd=tmp_path).error


def test_flags_decide_over_yaml_and_yaml_over_defaults(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("epochs: 7\nlr: 1e-3\nnesterov: true\n")
    arguments = ["--config", "own.yaml", "--epochs", "9", "--no-nesterov", "--print-config"]
    config = printed_config(run_cli("resnet-train", *arguments, cwd=tmp_path), tmp_path)
    assert config == make_config({"epochs": 9, "lr": 1e-3, "nesterov": False})


def test_what_is_not_given_is_not_part_of_what_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("epochs: 7\nlr: 1e-3\n")
    assert gather_settings(None, {}) == {}
    assert gather_settings(None, {"seed": "3"}) == {"seed": "3"}
    assert gather_settings(str(tmp_path / "own.yaml"), {"lr": "2"}) == {"epochs": 7, "lr": "2"}


def test_a_bad_value_in_yaml_is_refused_even_if_a_flag_covers_it(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("epochs: 0\n")
    error = run_cli("resnet-train", "--config", "own.yaml", "--epochs", "9", "--print-config", cwd=tmp_path).error
    assert "epochs (=0)" in error
    assert "own.yaml" in error


def as_flags(name: str, value: Any) -> list[str]:
    """A setting as the command line takes it."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]


@pytest.mark.parametrize("name", option_names())
def test_every_setting_can_be_given_as_a_flag(
    name: str, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_train.build.check_names", lambda config: None)  # no network takes every setting
    value = another_value(name)
    config = printed_config(run_cli("resnet-train", *as_flags(name, value), "--print-config", cwd=tmp_path), tmp_path)
    assert config == make_config({name: value})


def test_short_flags_mean_their_settings(run_cli: RunCli, tmp_path: Path) -> None:
    arguments = ["-a", "resnet20", "-b", "64", "-c", "quickstart", "--print-config"]
    config = printed_config(run_cli("resnet-train", *arguments, cwd=tmp_path), tmp_path)
    assert (config.arch, config.batch_size, config.dataset) == ("resnet20", 64, "digits")


def test_a_printed_config_can_be_fed_back(run_cli: RunCli, tmp_path: Path) -> None:
    first = run_cli("resnet-train", "-c", "quickstart", "--milestones", "3,6", "--print-config", cwd=tmp_path)
    (tmp_path / "again.yaml").write_text(first.stdout)
    second = run_cli("resnet-train", "-c", "again.yaml", "--print-config", cwd=tmp_path)
    assert first.code == 0
    assert second == first
    assert list(read_yaml(tmp_path / "again.yaml")) == list(to_plain(TrainConfig()))


def test_print_config_makes_no_run(run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli("resnet-train", "--print-config", cwd=tmp_path).code == 0
    assert list(tmp_path.iterdir()) == []


def test_shells_can_complete_flags(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_RESNET_TRAIN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "resnet-train --ep")
    monkeypatch.setenv("COMP_CWORD", "1")
    outcome = run_cli("resnet-train", cwd=tmp_path)
    assert (outcome.code, outcome.stdout.split()) == (0, ["--epochs"])


@pytest.mark.parametrize("command", MODULES)
def test_the_completion_script_is_shown(
    command: str, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"_{command.replace('-', '_').upper()}_COMPLETE", "source_bash")
    outcome = run_cli(command, cwd=tmp_path)
    assert outcome.code == 0
    assert f"complete -o default -F _{command.replace('-', '_')}_completion {command}" in outcome.stdout


@pytest.mark.parametrize("command", MODULES)
def test_a_command_is_declared_under_its_name(command: str) -> None:
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'{command} = "{MODULES[command]}:main"' in pyproject
    assert callable(importlib.import_module(MODULES[command]).main)
