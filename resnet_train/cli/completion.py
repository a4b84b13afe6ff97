"""Completion of flags and values by bash, zsh, fish and PowerShell, without importing torch."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, MutableMapping

import typer

from resnet_train.cli.choices import Choices
from resnet_train.cli.commands import COMMANDS

SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")


def complete(find: Callable[[str], Choices]) -> Callable[[str], list[tuple[str, str]]]:
    """Return a function for Typer from the beginning of a word to the values that start with it.

    Args:
        find: returns values, with a line about each, from the beginning of a word; it need not filter by it.
    """

    def find_matching(incomplete: str) -> list[tuple[str, str]]:
        return [(value, about) for value, about in find(incomplete).items() if value.startswith(incomplete)]

    return find_matching


def split_values(environ: MutableMapping[str, str]) -> None:
    """Turn the words `--flag`, `=`, `value`, into which bash splits `--flag=value`, into `--flag` and `value`."""
    if not environ.get("COMP_WORDS") or not environ.get("COMP_CWORD", "").isdigit():
        return
    cursor = int(environ["COMP_CWORD"])
    program, *words = environ["COMP_WORDS"].split("\n")
    kept, dropped = [program], 0
    for position, word in enumerate(words, 1):
        if word != "=" or not kept[-1].startswith("--"):
            kept.append(word)
        elif position == cursor:
            kept.append("")
        else:
            dropped += position < cursor
    environ["COMP_WORDS"], environ["COMP_CWORD"] = "\n".join(kept), str(cursor - dropped)


def show_completion(shell: str) -> str:
    """Return the script that makes a shell complete all commands.

    Raises:
        ValueError: unknown shell.
    """
    if shell not in SHELLS:
        raise ValueError(f"unknown shell {shell!r}; known: {', '.join(SHELLS)}")
    return "".join(_run_typer(command.name, [], f"source_{shell}") for command in COMMANDS)


def install_completion() -> str:
    """Install completion of all commands for the shell that runs this, and return what Typer says about it.

    Raises:
        ValueError: the shell is not known.
    """
    said = [_run_typer(command.name, ["--install-completion"]) for command in COMMANDS]
    if not all(" installed in " in text for text in said):
        raise ValueError("the shell is not known; add the output of --show-completion SHELL to its startup file")
    return "\n".join([*(text.split("\n")[0] for text in said), "Open a new terminal to use it."])


def _run_typer(prog_name: str, arguments: list[str], completion: str = "") -> str:
    """Return what a Typer application prints that has options for completion and nothing else."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(lambda: None)
    variable = f"_{prog_name}_COMPLETE".replace("-", "_").upper()
    os.environ[variable] = completion
    try:
        with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.suppress(SystemExit):
            app(arguments, prog_name=prog_name)
    finally:
        del os.environ[variable]
    return stdout.getvalue()
