"""The plugins that a run was trained with: which ones are missing here, and which have changed since.

It imports no torch, because a run is also read from its text files alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from resnet_train.config import TrainConfig, make_config, option_names
from resnet_train.plugins import loaded_plugins

if TYPE_CHECKING:
    from resnet_train.runs.checkpoint import Description


@dataclass(frozen=True)
class NeededPlugin:
    """A plugin of a run, as `plugins.describe_plugins` stores it: a file has a path, an installed one has none."""

    name: str
    version: str
    path: str | None

    @property
    def remedy(self) -> str:
        """Return how to provide it."""
        return f"--plugin {self.path}" if self.path else f"an installation of {self.version or self.name}"


def needed_plugins(environment: dict[str, Any]) -> list[NeededPlugin]:
    """Return the plugins that the environment of a checkpoint lists."""
    try:
        stored = TypeAdapter(dict[str, dict[str, str | None]]).validate_python(environment.get("plugins", {}))
    except ValidationError:
        return []
    return [NeededPlugin(name, plugin.get("version") or "", plugin.get("path")) for name, plugin in stored.items()]


def missing_plugins(environment: dict[str, Any]) -> list[NeededPlugin]:
    """Return the plugins of a checkpoint that are not loaded, neither by name nor by content."""
    loaded = loaded_plugins()
    versions = {plugin.version for plugin in loaded.values()}
    return [
        plugin for plugin in needed_plugins(environment) if plugin.name not in loaded and plugin.version not in versions
    ]


def describe_missing(missing: list[NeededPlugin], path: Path) -> str:
    """Return which plugins are missing, and how to provide them."""
    names, remedies = (" and ".join(words) for words in zip(*((plugin.name, plugin.remedy) for plugin in missing)))
    plural = len(missing) > 1
    return (
        f"{path} was trained with the plugin{'s' * plural} {names}, which {'are' if plural else 'is'} not loaded; "
        f"it needs {remedies}"
    )


def check_files(environment: dict[str, Any], path: Path) -> list[str]:
    """Return a sentence for each plugin that has changed since the run was started, or is no longer installed.

    Raises:
        ValueError: a file is not loaded.
    """
    missing = missing_plugins(environment)
    if files := [plugin for plugin in missing if plugin.path]:
        raise ValueError(describe_missing(files, path))
    versions = {plugin.version for plugin in loaded_plugins().values()}
    return [
        f"plugin {plugin.name} {'is not installed' if plugin in missing else f'has changed since {path} was started'}"
        for plugin in needed_plugins(environment)
        if plugin.version not in versions
    ]


@contextmanager
def naming_missing_plugins(environment: dict[str, Any], path: Path) -> Iterator[None]:
    """Add the missing plugins to a ValueError about an unknown name.

    Args:
        environment: of the training; it lists the plugins.
        path: the run or the checkpoint, for the message.

    Raises:
        ValueError: the same one, or one with the plugins that are missing.
    """
    try:
        yield
    except ValueError as error:
        missing = missing_plugins(environment)
        if not missing or not str(error).startswith("unknown "):
            raise
        raise ValueError(f"{describe_missing(missing, path)} ({error})") from None


def read_settings(description: Description, path: Path) -> TrainConfig:
    """Return the settings of a checkpoint, without those of plugins that are missing.

    Evaluation needs the plugin with the network, but not the one that logged its training.

    Raises:
        ValueError: a setting is invalid.
    """
    values = description.config
    if missing_plugins(description.environment):
        values = {name: value for name, value in values.items() if name in option_names()}
    return make_config(values, str(path))
