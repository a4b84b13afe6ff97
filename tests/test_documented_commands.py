"""Every command that README, docs and recipes print is understood by the program."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import shutil
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from resnet_train.cli.commands import COMMANDS
from tests.harness.cli import Outcome, RunCli, run_python

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "runs/README.md")),
    *ROOT.glob("docs/*.md"),  # those of plugins have a test
    *ROOT.glob("configs/*.yaml"),
]
APPS = {command.name: command.module for command in COMMANDS}
TOOLS = {"build", "twine", "pip", "venv"}  # modules that a reader installs
PARSED_ONLY = {
    "--resume",
    "--weights",
    "--seeds",
    "--profile",
    "--dry-run",
}  # they need files or exclude --print-config
FOR_READERS = ("…", "<", "COMMAND")  # a command with one of these is a pattern


def commands_of(page: Path) -> list[str]:
    """Return the commands of a page: the lines of its blocks and, in README, those within its text."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":
        return [command for command in re.findall(r"^# command +(.*)$", text, re.MULTILINE) if is_complete(command)]
    blocks = "\n".join(re.findall(r"^```(?:\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    first_words = "|".join(map(re.escape, [*APPS, "python ", "torchrun ", "scripts/", "./scripts/"]))
    lines = re.findall(rf"^(?:\$ )?((?:{first_words}).*)$", blocks, re.MULTILINE)
    text_alone = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    inline = re.findall(rf"`((?:{first_words})[^`]* [^`]*)`", text_alone) if page == PAGES[0] else []
    return [command for command in [*lines, *inline] if is_complete(command)]


def is_complete(command: str) -> bool:
    """Return whether a command can be given as it is printed."""
    return not any(mark in command for mark in FOR_READERS)


CASES = sorted(
    {(page.relative_to(ROOT).as_posix(), command) for page in PAGES if page.exists() for command in commands_of(page)}
)


def arguments_of(command: str) -> list[str]:
    """Return the words of one command, without comment, pipes and redirections."""
    return shlex.split(re.split(r"\s[|&>]|\s2>|;", command)[0], comments=True)


def parse(module: str, arguments: list[str]) -> None:
    """Parse arguments as the command of a module does, without running it."""
    app = importlib.import_module(module).app
    typer.main.get_command(app).make_context(module, list(arguments))


def test_commands_are_found() -> None:
    assert len(CASES) > 60
    assert {page for page, _ in CASES} >= {"README.md", "docs/results.md", "configs/quickstart.yaml"}


@pytest.mark.parametrize(("page", "command"), CASES)
def test_a_documented_command_is_understood(page: str, command: str, run_cli: RunCli, tmp_path: Path) -> None:
    program, *arguments = arguments_of(command)
    if program in {"python", "torchrun"}:
        script = next(i for i, word in enumerate(arguments) if word == "-m" or word.endswith(".py"))
        arguments = arguments[script:]
    if program.removeprefix("./").startswith("scripts/"):
        assert (ROOT / program).is_file()
    elif program in APPS:
        parse(APPS[program], arguments)
        if program == "resnet-train" and PARSED_ONLY.isdisjoint(arguments):
            outcome = run_cli(program, *arguments, "--print-config", cwd=tmp_path)
            assert outcome.code == 0, outcome
    elif arguments[0] == "-m":
        assert arguments[1] in TOOLS or find_spec(arguments[1]), command
        if arguments[1].startswith("resnet_train.cli."):
            parse(arguments[1], arguments[2:])
    else:
        assert (ROOT / arguments[0]).is_file(), command
        app = typer.Typer()
        app.command()(runpy.run_path(str(ROOT / arguments[0]))["main"])
        typer.main.get_command(app).make_context(arguments[0], arguments[1:])


# Commands of README that a test cannot run, and why.
NOT_RUN = {
    "resnet-train --config resnet20-10min": "ten minutes, CIFAR-10",
    "resnet-train --config resnet20-50epochs": "an hour, CIFAR-10",
    "resnet-train --arch resnet18 --epochs 200": "a GPU, CIFAR-10",
    "resnet-train --config resnet18-95": "a GPU, CIFAR-10",
    "resnet-train --arch resnet20 --val-size 5000": "hours, CIFAR-10",
    "resnet-train --config resnet20-fast --minutes 3 --dataset folder --data-dir cifar": "three minutes, CIFAR-10",
    "resnet-train --dataset folder --data-dir pictures": "200 epochs of resnet18",
    "resnet-eval FILE --arch resnet20": "a pattern",
    "resnet-info RUN --verify": "a pattern",
}


def write_pictures(folder: Path, per_class: int) -> None:
    """Write train/ and test/ with pictures of two classes, noise of two brightnesses."""
    rng = np.random.default_rng(0)
    for split, (name, level) in product(("train", "test"), (("cat", 0), ("dog", 100))):
        (folder / split / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(level, level + 100, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / split / name / f"{i}.png")


@pytest.mark.slow
def test_commands_of_readme_run(trained: tuple[Path, Outcome], tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 30)
    write_pictures(tmp_path / "data" / "pictures", 150)
    shutil.copytree(trained[0], tmp_path / "runs" / "resnet20-cifar10-seed0")
    shutil.copy(tmp_path / "pictures" / "test" / "cat" / "0.png", tmp_path / "photo.jpg")
    commands = {shlex.join(arguments_of(command)) for command in commands_of(ROOT / "README.md")}
    assert NOT_RUN.keys() <= commands
    for command in sorted(commands - NOT_RUN.keys()):
        program, *arguments = shlex.split(command)
        if program in APPS:
            paths = [str(path) for word in arguments for path in tmp_path.glob(word) if "*" in word]
            arguments = [word for word in arguments if "*" not in word] + paths
            outcome = run_python("-m", APPS[program], *arguments, cwd=tmp_path)
            assert outcome.code == 0, (command, outcome)
