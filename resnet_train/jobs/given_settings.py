"""The settings that a user gives: a recipe or a YAML file, which flags or keyword arguments override."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from resnet_train.config import TrainConfig, make_config, without_none
from resnet_train.plugins import load_plugins
from resnet_train.recipes import find_recipe, read_yaml

DATA_DIR_VARIABLE = "RESNET_TRAIN_DATA_DIR"
VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)


def gather_settings(config: str | None, flags: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a YAML file, overridden by flags; defaults are not included.

    Raises:
        ValueError: the file has an invalid setting, even if a flag overrides it.
    """
    from_file: dict[str, Any] = {}
    load_plugins(plugins := gather_plugins(config, flags))
    if config is not None:
        path = find_recipe(expand_path(config, "config"))
        from_file = read_yaml(path)
        make_config(from_file, source=str(path))

    # The length of a run is given in epochs or in minutes; a flag replaces what the file says.
    if "minutes" in flags and (other := {"epochs", "epoch_steps"} & flags.keys()):
        raise ValueError(f"--minutes cannot be combined with --{min(other).replace('_', '-')}: it chooses the epochs")
    if "minutes" in flags:
        from_file.pop("epoch_steps", None)
    if "epochs" in flags and from_file.pop("minutes", None) is not None:
        from_file.pop("epoch_steps", None)
    return {**from_file, **flags, **({"plugin": plugins} if plugins else {})}


def gather_plugins(config: str | None, flags: dict[str, Any]) -> list[str]:
    """Return the plugins of a YAML file and those of flags, with paths expanded; none from an invalid file."""
    given = flags.get("plugin") or []
    in_file: Any = []
    with suppress(ValueError):  # `gather_settings` reports what is wrong with the file
        in_file = read_yaml(find_recipe(expand_path(config, "config"))).get("plugin", []) if config is not None else []
    lists = [[paths] if isinstance(paths, str | Path) else paths for paths in (in_file, given)]
    paths = [path for paths in lists if isinstance(paths, list | tuple) for path in paths]
    return list(dict.fromkeys(expand_path(str(path), "plugin") for path in paths))


def with_environment(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with the data folder from the environment variable, unless they have their own."""
    folder = os.environ.get(DATA_DIR_VARIABLE)
    return {"data_dir": folder, **settings} if folder else settings


def read_recipe(config: str | None) -> tuple[str, TrainConfig] | None:
    """Return the name of the YAML file that settings come from, and its settings; None without a file."""
    return None if config is None else (Path(config).stem, make_config(gather_settings(config, {})))


def expand_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with those that are paths expanded.

    Raises:
        ValueError: see `expand_path`.
    """
    is_path = {name: without_none(field.annotation) is Path for name, field in TrainConfig.model_fields.items()}
    return {
        name: expand_path(value, name) if is_path.get(name) and isinstance(value, str) else value
        for name, value in settings.items()
    }


def expand_optional(path: Path | None, name: str) -> Path | None:
    """Return an optional path, expanded; see `expand_path`."""
    return None if path is None else Path(expand_path(str(path), name))


def expand_path(text: str, name: str) -> str:
    """Return a path with `~`, `~user`, `$VARIABLE` and `${VARIABLE}` expanded, unless it exists as written.

    A shell does so only where nothing is quoted and a word starts with the path, not in `--flag=~/x`.

    Raises:
        ValueError: a variable is not set, or the home folder is not known; the message has the name of the setting.
    """

    def value_of(match: re.Match[str]) -> str:
        variable = match[1] or match[2]
        if variable not in os.environ:
            raise ValueError(f"{name} (={text!r}) needs the environment variable {variable}, which is not set")
        return os.environ[variable]

    if os.path.lexists(text):
        return text
    try:
        home = str(Path(text).expanduser()) if text.startswith("~") else text
    except (RuntimeError, ValueError):
        raise ValueError(f"{name} (={text!r}) needs a home folder that is not known here") from None
    return VARIABLE.sub(value_of, home)
