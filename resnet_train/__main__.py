"""`python -m resnet_train COMMAND …`: list the commands, or run one."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

from resnet_train import __version__
from resnet_train.cli import prepare_process

USAGE = """\
Usage: python -m resnet_train COMMAND [OPTIONS]

{commands}

COMMAND --help shows the options of a command. --install-completion lets your
shell complete flags and values of all commands; --show-completion SHELL prints
what it adds (for bash, zsh, fish, powershell or pwsh)."""


def main() -> None:
    """Run the command that the first argument names, or list the commands."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name == "help" and arguments:
        name, arguments = arguments[0], ["--help"]
    if name in {"--help", "-h", "help"}:
        print(usage())
    elif name == "--version":
        print(f"resnet_train {__version__}")
    elif name in {"--install-completion", "--show-completion"}:
        set_up_completion(name, *arguments)
    else:
        run_command(name, arguments)


def usage() -> str:
    """Return the list of commands."""
    from resnet_train.cli.commands import COMMANDS

    width = max(len(command.short_name) for command in COMMANDS)
    return USAGE.format(commands="\n".join(f"  {each.short_name:<{width}}  {each.help}" for each in COMMANDS))


def run_command(name: str, arguments: list[str]) -> None:
    """Run a command as its console script does, which exits; exit with 2 if there is no such command."""
    from resnet_train.cli.commands import COMMANDS, find_command
    from resnet_train.registry import nearest

    command = find_command(name)
    if command is None:
        names = [each.short_name for each in COMMANDS]
        what = f"a command must come before {name!r}" if name.startswith("-") else f"unknown command {name!r}"
        hint = nearest(name, [] if name.startswith("-") else names) or f"; commands: {', '.join(names)}"
        exit_with(what + hint)
    sys.argv = [command.name, *arguments]
    importlib.import_module(command.module).main()


def set_up_completion(flag: str, shell: str = "") -> None:
    """Install completion for the shell that runs this, or print the script for a shell."""
    from resnet_train.cli.completion import install_completion, show_completion

    try:
        print(install_completion() if flag == "--install-completion" else show_completion(shell))
    except ValueError as error:
        exit_with(str(error))


def exit_with(message: str) -> NoReturn:
    """Print an error message and exit with the code of bad input."""
    from resnet_train.text import escape

    print(f"error: {escape(message)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    prepare_process()
    main()
