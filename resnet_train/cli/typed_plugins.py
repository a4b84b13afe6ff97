"""The plugins of a command line that a shell completes: what their files register, read without running them.

Loading them would import torch, and a file is run only when the user runs a command.
"""

from __future__ import annotations

import ast
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from resnet_train.jobs.given_settings import gather_plugins


def find_plugins(words: list[str]) -> list[str]:
    """Return the plugins that the words after a command name, with --plugin or in the file of --config."""
    given: dict[str, list[str]] = {"--config": [], "--plugin": []}
    for word, following in zip(words, [*words[1:], ""]):
        name, equals, value = word.partition("=")
        if word.startswith("-c"):
            name, equals, value = "--config", word[2:], word[2:].removeprefix("=")
        if name in given and (value := value if equals else following):
            given[name].append(value)
    return gather_plugins(given["--config"][-1] if given["--config"] else None, {"plugin": given["--plugin"]})


def typed_plugins() -> list[Path]:
    """Return the plugin files of the line that a shell completes; none if a command runs."""
    if not any(name.startswith("_RESNET_") and name.endswith("_COMPLETE") for name in os.environ):
        return []
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    try:
        words = shlex.split(line)
    except ValueError:  # a quote is open
        words = line.split()
    with suppress(OSError, ValueError):
        return [Path(path) for path in find_plugins(words[1:])]
    return []


def typed_settings() -> Iterator[tuple[str, Any, str]]:
    """Yield name, kind and help of the settings that these plugins add."""
    for node in read_statements(typed_plugins()):
        match node:
            case ast.Expr(
                value=ast.Call(func=ast.Name(id="add_setting"), args=[ast.Constant(value=str(name)), kind, *rest])
            ):
                texts = [part.value for part in rest[1:] if isinstance(part, ast.Constant)]
                yield name, _read_kind(kind), str(texts[0]) if texts else ""


def read_statements(paths: Iterable[Path]) -> list[ast.stmt]:
    """Return the statements of source files; files that can't be read have none."""
    statements: list[ast.stmt] = []
    for path in paths:
        with suppress(OSError, ValueError, SyntaxError):
            statements += ast.parse(path.read_text("utf-8")).body
    return statements


def _read_kind(annotation: ast.expr) -> Any:
    """Return bool for a switch, a Literal with its values, and str for anything else; `| None` is left out."""
    match annotation:
        case ast.BinOp(left=kind, op=ast.BitOr()):
            return _read_kind(kind)
        case ast.Name(id="bool"):
            return bool
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            return Literal[tuple(part.value for part in ast.walk(values) if isinstance(part, ast.Constant))]
    return str
