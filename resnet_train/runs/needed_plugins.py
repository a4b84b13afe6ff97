"""The plugins that a run was trained with: which ones are missing here, and which have changed since."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from resnet_train.config import TrainConfig, make_config, option_names
from resnet_train.plugins import loaded_plugins
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
    """Return a sentence for each plugin file that has changed since the run was started.

    Raises:
        ValueError: a file is not loaded.
    """
    if missing := [plugin for plugin in missing_plugins(environment) if plugin.path]:
        raise ValueError(describe_missing(missing, path))
    loaded = loaded_plugins()
    versions = {plugin.version for plugin in loaded.values()}
    return [
        f"plugin {plugin.name} has changed since {path} was started"
        for plugin in needed_plugins(environment)
        if plugin.version not in versions
    ]


@contextmanager
def naming_missing_plugins(description: Description, path: Path) -> Iterator[None]:
    """Add the missing plugins to a ValueError about an unknown name.

    Raises:
        ValueError: the same one, or one with the plugins that the checkpoint at `path` was trained with.
    """
    try:
        yield
    except ValueError as error:
        if missing := missing_plugins(description.environment):
            raise ValueError(f"{describe_missing(missing, path)} ({error})") from None
        raise


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
