"""What all console scripts share: exit codes, one-line errors, JSON and logging."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import typer

from resnet_train import __version__
from resnet_train.cli import exit_at_once
from resnet_train.runtime.ranks import rank

DONE, FAILED, BAD_INPUT, NOT_FINITE = 0, 1, 2, 3
SIGNALLED = 128  # plus the number of the signal
# By name, because importing the classes would import torch. Any other exception is FAILED.
EXIT_CODES = {"ValueError": BAD_INPUT, "NotFinite": NOT_FINITE}


def new_app() -> typer.Typer:
    """Return a Typer application for one command."""
    return typer.Typer(context_settings={"help_option_names": ["--help", "-h"]}, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"resnet_train {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")]


def run_app(app: typer.Typer, prog_name: str) -> None:
    """Run the application on `sys.argv` and exit with its exit code."""
    code = _run(lambda: app(prog_name=prog_name, standalone_mode=False))
    # Python exits with 120 if it can't flush what is left, as after a hang-up of the terminal.
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def hand_back_interrupts() -> None:
    """Let SIGINT raise KeyboardInterrupt again, after the imports of a command."""
    if signal.getsignal(signal.SIGINT) is exit_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(command: Callable[[], Any]) -> int:
    """Run a command, print its error if it has one, and return its exit code."""
    try:
        code = command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        _print_error("interrupted")
        return SIGNALLED + signal.SIGINT
    except BrokenPipeError:
        # The reader of stdout (head, less) has quit: discard what Python would flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        line, code = describe_error(error)
        # Messages may quote file names, which may contain terminal escape sequences.
        _print_error("".join(c if c.isprintable() else "?" for c in line))
    return code if isinstance(code, int) else DONE


def _print_error(line: str) -> None:
    """Print to stderr, unless its terminal has hung up."""
    with suppress(OSError):
        print(line, file=sys.stderr)


def describe_error(error: Exception) -> tuple[str, int]:
    """Return the one-line message and the exit code of an exception."""
    message = " ".join(str(error).split()) or type(error).__name__
    names = [kind.__name__ for kind in type(error).__mro__]

    # A signal stopped the training, which has saved its state.
    if "Interrupted" in names:
        return f"stopped: {message}", SIGNALLED + getattr(error, "signal_number", 0)

    # Typer's own errors have no importable class: it vendors click or not, depending on its version.
    if "Abort" in names:
        return "error: aborted", SIGNALLED + signal.SIGINT
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return f"error: {' '.join(error.format_message().split())}", error.exit_code

    code = next((EXIT_CODES[name] for name in names if name in EXIT_CODES), FAILED)
    if code == FAILED and not isinstance(error, OSError):
        message += f" ({names[0]}; --debug shows the traceback)"
    return f"error: {message}", code


def to_json(value: Any) -> str:
    """Return dataclasses and plain values as strict JSON, with null for numbers that are not finite."""

    def to_plain(part: Any) -> Any:
        if is_dataclass(part) and not isinstance(part, type):
            part = asdict(part)
        if isinstance(part, dict):
            return {key: to_plain(item) for key, item in part.items()}
        if isinstance(part, list | tuple):
            return [to_plain(item) for item in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(to_plain(value), allow_nan=False)


def log_to_stderr() -> None:
    """Show the log of the package on stderr; ranks other than 0 show errors only."""
    from resnet_train.loggers.console import BarHandler

    handler = BarHandler()
    handler.setFormatter(_LineFormatter())
    logger = logging.getLogger("resnet_train")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO if rank() == 0 else logging.ERROR)


class _LineFormatter(logging.Formatter):
    """Format a record as its message, with the level in front of warnings and errors."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno > logging.INFO else text
