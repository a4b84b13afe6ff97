"""Recipes: YAML files of settings, shipped with the package or written by the user."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from resnet_train.registry import nearest


class _Loader(yaml.SafeLoader):
    """Load scalars as in YAML 1.2: 1e-3 is a number, 010 is ten, and on, off, yes, no and 1:30 are strings."""


class _Dumper(yaml.SafeDumper):
    """Quote strings that `_Loader` would not load as strings."""


_SCALARS = (
    ("bool", r"true|false|True|False|TRUE|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)
# Replace PyYAML's resolvers, which follow YAML 1.1, except those for null and merge keys.
for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in _kind.yaml_implicit_resolvers.items()
    }
    for _name, _pattern, _first in _SCALARS:
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), list(_first))


def recipe_folder() -> Path:
    """Return the folder of the shipped recipes: inside an installed package, next to it in a checkout."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def recipe_text(name: str) -> str:
    """Return the YAML text of a shipped recipe, including the comment at its head."""
    return (recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def find_recipe(name_or_path: str) -> Path:
    """Return the path of a shipped recipe, or `name_or_path` itself if it is a file.

    Raises:
        ValueError: it is neither a recipe nor a file.
    """
    if name_or_path in recipe_names():
        return recipe_folder() / f"{name_or_path}.yaml"
    with suppress(OSError, ValueError):  # the name is too long or has a null character
        if Path(name_or_path).is_file():
            return Path(name_or_path)
    hint = nearest(name_or_path, recipe_names()) or f"; recipes: {', '.join(recipe_names())}"
    raise ValueError(f"config {name_or_path!r} is neither a recipe nor a readable file{hint}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file.

    Raises:
        ValueError: the file can't be read, is not valid YAML, or is not a mapping with string keys.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - it is a SafeLoader
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file") from None
    # The constructors of explicit tags, such as `!!int ''`, raise all kinds of exceptions.
    except Exception as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{path}{where} is not valid YAML: {reason or type(error).__name__}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a mapping of settings (such as 'lr: 0.1'), not a {type(values).__name__}")
    if other := [key for key in values if not isinstance(key, str)]:
        raise ValueError(f"{path} has a key that is not a string: {other[0]!r}")
    return values


def to_yaml(values: dict[str, Any]) -> str:
    """Return settings as YAML text that `read_yaml` reads back to the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
