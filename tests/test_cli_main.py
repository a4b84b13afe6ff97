"""`python -m resnet_train`: the table of commands, listed and dispatched."""

from __future__ import annotations

import importlib
import os
import sys
import tomllib
from pathlib import Path

import pytest

from resnet_train import __main__, __version__
from resnet_train.cli.commands import COMMANDS, find_command
from tests.harness.cli import run_python

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def run_main(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what `python -m resnet_train` prints to stdout."""
    monkeypatch.setattr(sys, "argv", ["__main__.py", *arguments])
    __main__.main()
    return capsys.readouterr().out


def test_table_has_the_console_scripts_of_the_package() -> None:
    scripts = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {command.name: f"{command.module}:main" for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_command_has_a_main(command: object) -> None:
    assert callable(importlib.import_module(command.module).main)  # type: ignore[attr-defined]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_commands_are_listed(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run_main(arguments, monkeypatch, capsys).splitlines()
    for command in COMMANDS:
        assert f"{command.short_name} {command.help}" in [" ".join(line.split()) for line in lines]
    assert max(map(len, lines)) < 80


def test_listing_imports_no_command_and_no_torch(tmp_path: Path) -> None:
    program = "import sys; sys.argv[1:] = []; from resnet_train.__main__ import main; main(); print(*sys.modules)"
    outcome = run_python("-c", program, cwd=tmp_path)
    assert outcome.code == 0
    assert not {"torch", "typer", "pydantic"} & set(outcome.stdout.split())


def test_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(["--version"], monkeypatch, capsys) == f"resnet_train {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["info", "recipes", "--json"], ["resnet-info", "recipes", "--json"]),
        (["resnet-info"], ["resnet-info"]),
        (["Train", "--lr", "1"], ["resnet-train", "--lr", "1"]),
        (["help", "eval"], ["resnet-eval", "--help"]),
    ],
)
def test_command_gets_its_arguments(arguments: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    for command in COMMANDS:
        monkeypatch.setattr(f"{command.module}.main", lambda: called.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["__main__.py", *arguments])
    __main__.main()
    assert called == [expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "error: unknown command 'trian'; did you mean 'train'?"),
        (["--arch", "resnet18"], "error: a command must come before '--arch'; commands: train, eval, predict, "),
        (["\x1b[2J"], r"error: unknown command '\x1b[2J'; commands: train, "),
    ],
)
def test_unknown_command_is_a_usage_error(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_main(arguments, monkeypatch, capsys)
    assert capsys.readouterr().err.startswith(message)


def test_unknown_names_find_no_command() -> None:
    assert find_command("resnet-") is None
    assert find_command("") is None


def test_process_is_prepared_as_by_a_console_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("OMP_", "GOMP_", "KMP_"))]:
        monkeypatch.delenv(name)
    code = (
        "import os, runpy, signal, sys; sys.argv = ['x', '--version']; runpy.run_module('resnet_train', "
        "run_name='__main__'); print(os.environ['GOMP_SPINCOUNT'], flush=True); signal.raise_signal(signal.SIGINT)"
    )
    outcome = run_python("-c", code, cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (130, "interrupted\n")
    assert "10000" in outcome.stdout.split()
