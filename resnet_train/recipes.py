"""Recipes: YAML files of settings, shipped with the package or written by the user."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from resnet_train.registry import nearest


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: 1e-3 is a number; on, off, yes and no are words."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|false|True|False|TRUE|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)|[0-9]+\.[0-9]*|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def recipe_folder() -> Path:
    """Where the shipped recipes are: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def recipe_names() -> list[str]:
    """The names that `--config` accepts besides paths."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def recipe_text(name: str) -> str:
    """The whole YAML text of a shipped recipe, its head with the measured result included."""
    return (recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def find_recipe(name_or_path: str) -> Path:
    """The file that `--config` means: a shipped recipe's name first, else a path.

    Raises:
        ValueError: there is neither such a recipe nor such a file.
    """
    if name_or_path in recipe_names():
        return recipe_folder() / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if "\0" not in name_or_path and path.is_file():
        return path
    hint = nearest(name_or_path, recipe_names()) or f"; recipes: {', '.join(recipe_names())}"
    raise ValueError(f"config {name_or_path!r} is neither a recipe nor a readable file{hint}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ValueError: the file can't be read, is no YAML, or is not a mapping with text keys.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{where} is not YAML: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a mapping of settings (like 'lr: 0.1'), not a {type(values).__name__}")
    if not all(isinstance(key, str) for key in values):
        raise ValueError(f"{path} has a key that is no name: {next(k for k in values if not isinstance(k, str))!r}")
    return values


def to_yaml(values: dict[str, Any]) -> str:
    """Settings as YAML text that `read_yaml` reads back to the same values."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
