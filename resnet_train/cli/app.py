"""What all console scripts share: exit codes, one-line errors, JSON and logging."""

from __future__ import annotations

import codecs
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from typer.core import TyperCommand

from resnet_train import __version__
from resnet_train.cli import choices, exit_at_once
from resnet_train.cli.arguments import flags_of, repair
from resnet_train.cli.completion import complete, split_values
from resnet_train.config import reword
from resnet_train.jobs.given_settings import expand_path
from resnet_train.plugins import load_installed, load_plugins
from resnet_train.runtime.plain import to_plain_values
from resnet_train.runtime.terminal import paint
from resnet_train.text import escape, escape_all

DONE, FAILED, BAD_INPUT, NOT_FINITE = 0, 1, 2, 3
SIGNALLED = 128  # plus the number of the signal
# By name, because importing the classes would import torch. Any other exception is FAILED.
EXIT_CODES = {"ValueError": BAD_INPUT, "NotFinite": NOT_FINITE}
METAVARS = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
# Replacements of the same width, so that tables stay aligned (except for the dots).
ASCII = {"–": "-", "—": "-", "×": "x", "·": "*", "→": ">", "…": "...", "±": "+/-", "≥": ">=", "≤": "<="}


class _Command(TyperCommand):
    """A command whose `--help` has no columns for `--no-…` and for the type of switches, and ends with examples."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        for parameter in self.get_params(ctx):
            _show_plainly(parameter)
        examples, self.epilog = self.epilog, None
        super().format_help(ctx, formatter)
        if examples:
            text = Text(examples.strip("\n"), no_wrap=True, overflow="ellipsis")
            Console().print(Panel(text, title="Examples", title_align="left", border_style="dim"))


def _show_plainly(parameter: Any) -> None:
    """Change what `--help` shows for a parameter: words for types, no ranges, and nothing for switches."""
    if parameter.name in {"install_completion", "show_completion"}:
        parameter.hidden = True  # `python -m resnet_train --install-completion` does it for all commands
    elif parameter.param_type_name == "argument":
        parameter.display_type_rich = lambda **_: ""
    elif parameter.is_flag:
        parameter.secondary_opts, parameter.metavar = [], ""
    elif hasattr(parameter, "type_descriptor"):  # Typer before 0.28 already has such words
        parameter.metavar = parameter.metavar or METAVARS.get(parameter.type_descriptor.annotation, "NAME")
        parameter.min = parameter.max = None


class App(typer.Typer):
    """A Typer application of one command."""

    def __init__(self) -> None:
        super().__init__(
            context_settings={"help_option_names": ["--help", "-h"]},
            pretty_exceptions_enable=False,
        )

    def command(self, *, examples: str = "") -> Any:  # type: ignore[override]
        """Return a decorator that makes a function the command; `examples` are lines of at most 76 columns."""
        return super().command(cls=_Command, epilog=examples)


def new_app() -> App:
    """Return a Typer application for one command."""
    return App()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"resnet_train {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
]
# What checkpoints from other code do not say.
Arch = Annotated[
    str | None,
    typer.Option(
        "--arch", "-a", metavar="NAME", help="For a file from other code: its network; detected if not given."
    ),
]
Device = Annotated[
    str,
    typer.Option(help="Device: auto, cpu, cuda, cuda:1 or mps.", autocompletion=complete(lambda _: choices.devices())),
]
Threads = Annotated[int, typer.Option(min=0, help="Number of CPU threads; 0 is torch's default.")]
Normalize = Annotated[
    str | None,
    typer.Option(
        metavar="cifar10|imagenet|M,S", help="For a file from other code: mean and std of its images, from 0 to 1."
    ),
]


def _load(context: typer.Context, paths: list[str] | None) -> list[str] | None:
    if not context.resilient_parsing:  # else a shell completes the line
        load_plugins(expand_path(path, "plugin") for path in paths or ())
    return paths


Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        callback=_load,
        is_eager=True,
        help="Python file that adds what the checkpoint was trained with; may be given several times.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")]


def run_app(app: typer.Typer, prog_name: str, prepare: Callable[[], None] = lambda: None) -> None:
    """Run the application on `sys.argv`, after `prepare`, and exit with its exit code."""

    def run() -> Any:
        load_installed()
        split_values(os.environ)
        prepare()
        return _run_command(app, prog_name)

    accept_all_characters()
    code = _run(run)
    # Python exits with 120 if it can't flush what is left, for example after the terminal has hung up.
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _run_command(app: typer.Typer, prog_name: str) -> Any:
    """Run the application on `sys.argv`, or answer the shell if it asks for completion."""
    command = typer.main.get_command(app)
    if f"_{prog_name}_COMPLETE".replace("-", "_").upper() not in os.environ:
        is_help = bool({"--help", "-h"} & set(sys.argv[1:]))
        sys.argv[1:] = ["--help"] if is_help else repair(sys.argv[1:], flags_of(command))
    return command(prog_name=prog_name, standalone_mode=False)


def accept_all_characters() -> None:
    """Let stdout and stderr take every character, whatever their encoding."""
    codecs.register_error("to_ascii", _to_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="to_ascii")


def _to_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace typographic characters with similar ones, and all others with backslash escapes."""
    if isinstance(error, UnicodeEncodeError):
        character = error.object[error.start]
        if character in ASCII:
            return ASCII[character], error.start + 1
    return codecs.backslashreplace_errors(error)


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
        message, code = describe_error(error)
        if "--debug" in sys.argv:
            message, code = "".join(traceback.format_exception(error)).rstrip(), FAILED
        for line in message.split("\n"):
            _print_error(line)
    return code if isinstance(code, int) else DONE


def _print_error(line: str) -> None:
    """Print to stderr, unless its terminal has hung up. Messages may quote names, which may hold anything."""
    with suppress(OSError):
        line = escape(line)
        if line.startswith("error:"):
            line = paint("error:", "error", sys.stderr) + line.removeprefix("error:")
        print(line, file=sys.stderr)


def describe_error(error: Exception) -> tuple[str, int]:
    """Return the message, which is one line unless a download failed, and the exit code of an exception."""
    message = " ".join(_text_of(error).split()) or type(error).__name__
    names = [kind.__name__ for kind in type(error).__mro__]

    # A signal stopped the training, which has saved its state.
    if "Interrupted" in names:
        return f"stopped: {message}", SIGNALLED + getattr(error, "signal_number", 0)

    # Typer's own errors have no importable class: it vendors click or not, depending on its version.
    if "Abort" in names:
        return "error: aborted", SIGNALLED + signal.SIGINT
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return f"error: {reword(' '.join(error.format_message().split()))}", error.exit_code

    # The message about a failed download has a line for each way out.
    if type(error) is ConnectionError:
        message = str(error)
    code = next((EXIT_CODES[name] for name in names if name in EXIT_CODES), FAILED)
    if code == FAILED and not isinstance(error, OSError):
        message += f" ({names[0]}; --debug shows the traceback)"
    return f"error: {message}", code


def _text_of(error: Exception) -> str:
    """Return the message of an exception; that of the system without its number, and after the path."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def print_result(result: Any, describe: Callable[[Any], str], as_json: bool) -> None:
    """Print a result as JSON, which is ASCII, or as the text of `describe`, with every name in it escaped."""
    print(to_json(result) if as_json else describe(escape_all(result, stdout_encoding())))  # echo ignores the encoding


def stdout_encoding() -> str:
    """Return the encoding of stdout; UTF-8 if it is closed or in memory."""
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def to_json(value: Any) -> str:
    """Return dataclasses and plain values as strict JSON, with null for numbers that are not finite."""
    return json.dumps(to_plain_values(value), allow_nan=False)


def log_to_stderr() -> None:
    """Show the log of the package on stderr."""
    from resnet_train.loggers.console import show_log  # not at the top: --help needs no tqdm

    show_log()
