"""The command line: precedence of settings, help without torch, completion, usage errors."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from resnet_train import __version__
from resnet_train.cli.arguments import flags_of, repair
from resnet_train.config import PANELS, TrainConfig, make_config, option_metadata, option_names, to_plain
from resnet_train.jobs.given_settings import expand_path, expand_paths, gather_settings
from resnet_train.recipes import read_yaml
from tests.harness.cli import MODULES, Outcome, RunCli, run_python
from tests.test_config import another_value

Helps = dict[str, tuple[int, str, list[str]]]
# Prints `--help` of each command, its exit code, and the heavy modules that were imported on the way, as JSON.
HELP_PROGRAM = """
import contextlib, importlib, io, json, sys
helps = {}
for command, module in json.loads(sys.argv[1]).items():
    sys.argv = [command, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        try:
            importlib.import_module(module).main()
        except SystemExit as end:
            heavy = sorted({"torch", "torchvision", "sklearn", "scipy"} & set(sys.modules))
            helps[command] = [end.code, stdout.getvalue(), heavy]
print(json.dumps(helps))
"""


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> Helps:
    """Return exit code, `--help` text and imported heavy modules of every command."""
    outcome = run_python("-c", HELP_PROGRAM, json.dumps(MODULES), cwd=tmp_path_factory.mktemp("help"))
    assert outcome.code == 0, outcome
    return json.loads(outcome.stdout)


@pytest.fixture(scope="module")
def narrow_helps(tmp_path_factory: pytest.TempPathFactory) -> Helps:
    """Return the same on a terminal of 80 columns."""
    outcome = run_python("-c", HELP_PROGRAM, json.dumps(MODULES), cwd=tmp_path_factory.mktemp("help"), COLUMNS="80")
    assert outcome.code == 0, outcome
    return json.loads(outcome.stdout)


def printed_config(outcome: Outcome, tmp_path: Path) -> TrainConfig:
    """Return the config that `--print-config` printed."""
    assert outcome.code == 0, outcome
    path = tmp_path / "printed.yaml"
    path.write_text(outcome.stdout, encoding="utf-8")
    return make_config(read_yaml(path))


@pytest.mark.parametrize("command", MODULES)
def test_help_imports_no_torch(command: str, helps: Helps) -> None:
    code, text, heavy = helps[command]
    assert (code, heavy) == (0, [])
    assert f"Usage: {command}" in text
    assert "`" not in text
    assert not re.search(r"\[x?[<>]=?|\bx[<>]=", text)


@pytest.mark.parametrize("name", option_names())
def test_help_shows_the_setting_with_its_short_flag(name: str, helps: Helps) -> None:
    flag = as_flags(name, True)[0] if is_switch(name) else "--" + name.replace("_", "-")
    (line,) = [line for line in helps["resnet-train"][1].splitlines() if re.match(rf"\W*{flag}(?![\w-])", line)]
    assert option_metadata(name)["short"] in line
    assert "--no-" not in line.partition("  ")[0].replace(flag, "", 1)


def test_help_has_panels_defaults_and_choices(helps: Helps) -> None:
    text = helps["resnet-train"][1]
    titles = [match[1] for line in text.splitlines() if (match := re.match(r"\W*─ ([A-Z][\w -]+?) ─", line))]
    assert titles == ["Options", *PANELS, "Examples"]
    assert "Default: resnet18." in text
    assert "Default: 0.0005." in text
    assert "Default: off." in text
    assert "Default: on; --no-tensorboard turns it off." in text
    assert "[zeros|reflect]" in text
    assert "One of: random, alternating, none." in text
    assert "<bool>" not in text


@pytest.mark.parametrize("command", MODULES)
def test_help_at_80_columns_leaves_the_text_25(command: str, narrow_helps: Helps) -> None:
    lines = narrow_helps[command][1].splitlines()
    assert max(map(len, lines)) <= 80
    starts = [re.match(r"│ {20,}", line).end() for line in lines if re.match(r"│ {20,}", line)]
    assert max(starts) <= 80 - 2 - 25


@pytest.mark.parametrize("command", MODULES)
def test_examples_of_help_are_four_that_the_command_takes(command: str, narrow_helps: Helps) -> None:
    panel = narrow_helps[command][1].partition("─ Examples ─")[2]
    examples = [re.split(" {2,}", line.strip("│ "))[0] for line in panel.splitlines() if line.startswith("│")]
    assert len(examples) == 4
    for example in examples:
        name, *arguments = shlex.split(example.rpartition("|")[2].partition(">")[0])
        assert name == command
        app = typer.main.get_command(importlib.import_module(MODULES[command]).app)
        flags = flags_of(app)
        assert repair(arguments, flags) == arguments
        app.make_context(command, arguments, resilient_parsing=True)


@pytest.mark.parametrize("command", MODULES)
def test_version_is_printed(command: str, run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli(command, "--version", cwd=tmp_path) == (0, f"resnet_train {__version__}\n", "")


@pytest.mark.parametrize("command", MODULES)
def test_unknown_flag_is_a_usage_error_in_one_line(command: str, run_cli: RunCli, tmp_path: Path) -> None:
    assert "--learning-rte" in run_cli(command, "--learning-rte", "1", cwd=tmp_path).error


def test_missing_value_and_extra_argument_are_usage_errors(run_cli: RunCli, tmp_path: Path) -> None:
    assert "--epochs" in run_cli("resnet-train", "--epochs", cwd=tmp_path).error
    assert "--dataset digits" in run_cli("resnet-train", "digits", cwd=tmp_path).error
    assert "CHECKPOINT" in run_cli("resnet-eval", cwd=tmp_path).error


def test_flags_override_yaml_and_yaml_overrides_defaults(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("epochs: 7\nlr: 1e-3\nnesterov: true\n")
    arguments = ["--config", "own.yaml", "--epochs", "9", "--no-nesterov", "--print-config"]
    config = printed_config(run_cli("resnet-train", *arguments, cwd=tmp_path), tmp_path)
    assert config == make_config({"epochs": 9, "lr": 1e-3, "nesterov": False})


def test_gathered_settings_contain_no_defaults(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("epochs: 7\nlr: 1e-3\n")
    assert gather_settings(None, {}) == {}
    assert gather_settings(None, {"seed": "3"}) == {"seed": "3"}
    assert gather_settings(str(tmp_path / "own.yaml"), {"lr": "2"}) == {"epochs": 7, "lr": "2"}


def test_invalid_yaml_is_an_error_even_under_a_flag(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("epochs: 0\n")
    error = run_cli("resnet-train", "--config", "own.yaml", "--epochs", "9", "--print-config", cwd=tmp_path).error
    assert "epochs (=0)" in error
    assert "own.yaml" in error


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DISK", str(tmp_path / "disk"))
    monkeypatch.delenv("UNSET", raising=False)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("~/x", "/home/x"),
        ("~", "/home"),
        ("$DISK/x", "/disk/x"),
        ("${DISK}", "/disk"),
        ("$HOME/$DISK", "/home/{}/disk"),
    ],
)
def test_home_and_variables_in_paths_are_expanded(
    written: str, expected: str, home: str, run_cli: RunCli, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(f"data_dir: '{written}'\n")
    arguments = ["-c", "own.yaml", f"--output-dir={written}", "--print-config"]
    config = printed_config(run_cli("resnet-train", *arguments, cwd=tmp_path), tmp_path)
    assert config.data_dir == config.output_dir == Path(home + expected.format(home))


@pytest.mark.parametrize("written", ["./~/x", "a~/x", "$", "cost$5", "$(x)", "a\\$"])
def test_other_paths_are_not_expanded(written: str) -> None:
    assert expand_path(written, "data_dir") == written


def test_a_path_that_exists_as_written_is_kept(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "$DISK").mkdir()
    monkeypatch.chdir(tmp_path)
    assert expand_path("$DISK", "data_dir") == "$DISK"


def test_expanding_needs_a_known_variable_and_home(home: str, run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("data_dir: ${UNSET}/x\n")
    message = "error: data_dir (='${UNSET}/x') needs the environment variable UNSET, which is not set"
    assert run_cli("resnet-train", "-c", "own.yaml", cwd=tmp_path).error == message
    assert run_cli("resnet-train", "-c", "own.yaml", "--data-dir", "x", "--print-config", cwd=tmp_path).code == 0
    with pytest.raises(ValueError, match=r"^output_dir \(='~nobody-here'\) needs a home folder that is not known"):
        expand_paths({"output_dir": "~nobody-here"})


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        ("resnet-train", "--resume=~/none"),
        ("resnet-train", "--config=~/none"),
        ("resnet-eval", "~/none"),
        ("resnet-info", "~/none"),
        ("resnet-bench", "--config=$HOME/none"),
    ],
)
def test_every_path_argument_is_expanded(
    command: str, argument: str, home: str, run_cli: RunCli, tmp_path: Path
) -> None:
    assert f"{home}/home/none" in run_cli(command, argument, cwd=tmp_path).error


@pytest.mark.parametrize("option", ["data_dir", "predictions", "wrong", "report", "unknown", "cifar10_c"])
def test_every_path_of_an_evaluation_is_expanded(
    option: str, home: str, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(checkpoints: list[Path], options: Any) -> None:
        raise ValueError(f"got {getattr(options, option)}")

    monkeypatch.setattr("resnet_train.jobs.evaluate.evaluate_checkpoint", show)
    outcome = run_cli("resnet-eval", "some.pt", f"--{option.replace('_', '-')}=~/some", cwd=tmp_path)
    assert outcome.error.endswith(f"{home}/home/some")


def is_switch(name: str) -> bool:
    """Return whether a setting is true or false."""
    return TrainConfig.model_fields[name].annotation in (bool, bool | None)


def as_flags(name: str, value: Any) -> list[str]:
    """Return the flags that give a setting this plain value."""
    flag = name.removeprefix("no_").replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value != name.startswith("no_") else f"--no-{flag}"]
    return [f"--{flag}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]


@pytest.mark.parametrize("name", option_names())
def test_setting_can_be_given_as_a_flag(
    name: str, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_train.build.check_config", lambda config: None)  # no network accepts every option
    monkeypatch.setattr("resnet_train.runs.weights.resolve_weights", lambda config, given: config)  # there is no file
    for module in ("cli.options", "jobs.given_settings"):
        monkeypatch.setattr(f"resnet_train.{module}.load_plugins", lambda paths: None)  # there is no such file
    value = another_value(name)
    config = printed_config(run_cli("resnet-train", *as_flags(name, value), "--print-config", cwd=tmp_path), tmp_path)
    assert config == make_config({name: value})


def test_short_flags_set_their_settings(run_cli: RunCli, tmp_path: Path) -> None:
    arguments = ["-a", "resnet20", "-b", "64", "-c", "quickstart", "--print-config"]
    config = printed_config(run_cli("resnet-train", *arguments, cwd=tmp_path), tmp_path)
    assert (config.arch, config.batch_size, config.dataset) == ("resnet20", 64, "digits")


def test_printed_config_can_be_used_as_a_config(run_cli: RunCli, tmp_path: Path) -> None:
    first = run_cli("resnet-train", "-c", "quickstart", "--epochs", "12", "--print-config", cwd=tmp_path)
    (tmp_path / "again.yaml").write_text(first.stdout)
    second = run_cli("resnet-train", "-c", "again.yaml", "--print-config", cwd=tmp_path)
    assert first.code == 0
    assert second == first
    assert list(read_yaml(tmp_path / "again.yaml")) == list(to_plain(TrainConfig()))


def test_print_config_creates_no_run(run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli("resnet-train", "--print-config", cwd=tmp_path).code == 0
    assert list(tmp_path.iterdir()) == []


def test_print_config_checks_the_settings_together(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", "--optimizer", "adamw", "--nesterov", "--print-config", cwd=tmp_path)
    assert (outcome.code, outcome.stdout) == (2, "")


def test_print_config_ends_with_one_newline(run_cli: RunCli, tmp_path: Path) -> None:
    text = run_cli("resnet-train", "--print-config", cwd=tmp_path).stdout
    assert text == text.strip() + "\n"


def test_data_folder_comes_from_the_environment(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESNET_TRAIN_DATA_DIR", "$HOME/shared")
    monkeypatch.setenv("HOME", "/home/x")
    (tmp_path / "own.yaml").write_text("data_dir: mine\n")

    def data_dir(*arguments: str) -> str:
        return str(
            printed_config(run_cli("resnet-train", *arguments, "--print-config", cwd=tmp_path), tmp_path).data_dir
        )

    assert data_dir() == "/home/x/shared"
    assert data_dir("--data-dir", "other") == "other"
    assert data_dir("-c", "own.yaml") == "mine"
    monkeypatch.setenv("RESNET_TRAIN_DATA_DIR", "")
    assert data_dir() == "data"


def test_data_folder_of_a_run_resumed_by_path_is_kept(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(resolved: TrainConfig, given: dict[str, Any], *_: Any) -> None:
        raise ValueError(f"given {given}")

    monkeypatch.setenv("RESNET_TRAIN_DATA_DIR", "shared")
    monkeypatch.setattr("resnet_train.jobs.train.train", show)
    assert run_cli("resnet-train", "--resume", "runs/x", cwd=tmp_path).error == "error: given {}"
    assert run_cli("resnet-train", "--resume", cwd=tmp_path).error == "error: given {'data_dir': 'shared'}"
