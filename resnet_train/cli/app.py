"""How every console script starts and ends: one-line errors and the exit codes of the design.

0 done · 1 failed · 2 usage or bad input · 3 loss not finite · 130 SIGINT · 143 SIGTERM
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from resnet_train import __version__

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


def new_app() -> typer.Typer:
    """A Typer application of one command."""
    return typer.Typer(context_settings={"help_option_names": ["--help", "-h"]}, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"resnet_train {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def run_app(app: typer.Typer, prog_name: str) -> None:
    """Runs the application on `sys.argv` and exits with the code of the design."""
    sys.exit(_run(lambda: app(prog_name=prog_name, standalone_mode=False)))


def _run(command: Callable[[], Any]) -> int:
    try:
        code = command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough; nothing more may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        message, code = describe_error(error)
        shown = "".join(c if c.isprintable() else "?" for c in message)  # no escape sequences out of a file
        print(f"{getattr(error, 'label', 'error')}: {shown}", file=sys.stderr)
    return code if isinstance(code, int) else 0


def describe_error(error: Exception) -> tuple[str, int]:
    """An exception as one line and an exit code.

    Typer's own usage errors are known by their `format_message` and `exit_code`: its click is vendored or not,
    depending on the version, so its classes have no importable name.
    """
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return " ".join(error.format_message().split()), error.exit_code
    if type(error).__name__ == "Abort":
        return "aborted", INTERRUPTED
    message = " ".join(str(error).split()) or type(error).__name__
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return message, code
    if isinstance(error, ValueError):
        return message, BAD_INPUT
    if isinstance(error, OSError):
        return message, FAILED
    return f"{message} ({type(error).__name__}; --debug shows the traceback)", FAILED


def to_json(value: Any) -> str:
    """Strict JSON: numbers that are not finite become null."""

    def finite(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: finite(item) for key, item in part.items()}
        if isinstance(part, list | tuple):
            return [finite(item) for item in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(value), allow_nan=False)


def log_to_stderr() -> None:
    """Shows what the package logs: information as it is, warnings with their name in front."""
    from resnet_train.loggers.console import BarHandler

    handler = BarHandler()
    handler.setFormatter(_LineFormatter())
    logger = logging.getLogger("resnet_train")
    logger.handlers, logger.propagate = [handler], False
    first = os.environ.get("RANK", "0") == "0"  # torchrun's number of this process
    logger.setLevel(logging.INFO if first else logging.ERROR)


class _LineFormatter(logging.Formatter):
    """Information as it is, warnings with their level in front."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno > logging.INFO else text
