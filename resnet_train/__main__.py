"""`python -m resnet_train COMMAND …`: list the commands, or run one."""

from __future__ import annotations

import importlib
import sys

from resnet_train import __version__
from resnet_train.cli import prepare_process

USAGE = """\
Usage: python -m resnet_train COMMAND [OPTIONS]

{commands}

COMMAND --help shows the options of a command."""


def main() -> None:
    """Run the command that the first argument names, or list the commands."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name == "help" and arguments:
        name, arguments = arguments[0], ["--help"]
    if name in {"--help", "-h", "help"}:
        print(usage())
    elif name == "--version":
        print(f"resnet_train {__version__}")
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
    from resnet_train.text import escape

    command = find_command(name)
    if command is None:
        names = [each.short_name for each in COMMANDS]
        what = f"a command must stand before {name!r}" if name.startswith("-") else f"unknown command {name!r}"
        hint = nearest(name, [] if name.startswith("-") else names) or f"; commands: {', '.join(names)}"
        print(f"error: {escape(what)}{hint}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [command.name, *arguments]
    importlib.import_module(command.module).main()


if __name__ == "__main__":
    prepare_process()
    main()
