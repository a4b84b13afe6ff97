"""List the available choices, and describe architectures and checkpoints.

Imports are local to functions: most topics need no torch, which takes 2 s to import.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnet_train.weights import SHIPPED

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A name that a setting accepts, and one line about it."""

    name: str
    about: str


@dataclass(frozen=True)
class Architecture:
    """A network with 10 classes; its size is for one 32×32 image.

    Attributes:
        params: number of parameters.
        macs: multiply-adds of convolutions and linear layers.
    """

    name: str
    family: str
    params: int
    macs: int


@dataclass(frozen=True)
class ArchitectureDetails(Architecture):
    """An architecture, the flags of its options, and the recipes that train it."""

    options: list[str]
    recipes: list[str]


@dataclass(frozen=True)
class RecipeDetails(Choice):
    """A recipe: its name, the first line of its file, and its settings."""

    settings: dict[str, Any]


@dataclass(frozen=True)
class CheckpointInfo:
    """Everything in a checkpoint but its tensors.

    Attributes:
        about: architecture, classes, normalization and data set.
        epoch: finished epochs; None if that is unknown.
        steps_after_epoch: optimizer steps since then.
        chosen_on: split on which the epoch was selected, None if it was not.
        metrics: record of the last finished epoch, empty if there is none.
        calibration: temperature and threshold from the validation images, empty if there are none.
        origin: where the weights come from if other code trained them, else empty.
    """

    about: dict[str, Any]
    epoch: int | None
    steps_after_epoch: int
    chosen_on: str | None
    metrics: dict[str, Any]
    calibration: dict[str, Any]
    origin: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]


def list_architectures() -> list[Architecture]:
    """Return every named architecture, family by family."""
    from resnet_train.models import list_models

    known = read_sizes()
    return [known.get(entry.name) or _measure(entry.name, entry.family) for entry in list_models()]


def read_sizes() -> dict[str, Architecture]:
    """Return the shipped architectures with their sizes, which take seconds to measure; needs no torch."""
    path = Path(__file__).parents[1] / "models" / "sizes.json"
    return {row["name"]: Architecture(**row) for row in json.loads(path.read_text(encoding="utf-8"))}


def _measure(name: str, family: str) -> Architecture:
    from resnet_train.models import measure_complexity

    size = measure_complexity(name)
    return Architecture(name=name, family=family, params=size.params, macs=size.macs)


def list_recipes() -> list[Choice]:
    """Return every shipped recipe with the first line of its head."""
    from resnet_train.recipes import recipe_names, recipe_text

    return [Choice(name, recipe_text(name).split("\n")[0].lstrip("# ")) for name in recipe_names()]


def list_datasets() -> list[Choice]:
    """Return every data set."""
    from resnet_train.data.dataset import DATASETS

    return _list_registry(DATASETS)


def list_optimizers() -> list[Choice]:
    """Return every optimizer."""
    from resnet_train.optim.optimizers import OPTIMIZERS

    return _list_registry(OPTIMIZERS)


def list_schedules() -> list[Choice]:
    """Return every learning rate schedule."""
    from resnet_train.optim.schedules import SCHEDULES

    return _list_registry(SCHEDULES)


TOPICS: dict[str, Callable[[], Sequence[Choice | Architecture]]] = {
    "models": list_architectures,
    "recipes": list_recipes,
    "datasets": list_datasets,
    "optimizers": list_optimizers,
    "schedules": list_schedules,
}


def describe(topic: str) -> ArchitectureDetails | CheckpointInfo | RecipeDetails | Choice:
    """Describe an architecture, a checkpoint, a run folder, a recipe, or a name from one of the lists.

    Case, hyphens and underscores in names do not count: `ResNet-18` is `resnet18`.

    Raises:
        ValueError: `topic` is none of these, or the checkpoint is invalid.
    """
    from resnet_train.models import find_model, list_models
    from resnet_train.recipes import recipe_names
    from resnet_train.registry import nearest

    with suppress(ValueError):  # resnet14 is not in the list
        return _describe_architecture(find_model(topic))
    if topic == SHIPPED or os.path.exists(topic):  # noqa: PTH110 - Path.exists raises on names that are too long
        return describe_checkpoint(Path(topic))

    # Other names, and names that are spelled differently. A network takes precedence over a recipe of the same name.
    models = [entry.name for entry in list_models()]
    choices = {choice.name: choice for choice in (*list_datasets(), *list_optimizers(), *list_schedules())}
    names = [*models, *recipe_names(), *choices]
    wanted = _plain(topic)
    name = next((name for name in names if wanted and _plain(name) == wanted), wanted)
    if name in recipe_names() and name not in models:
        return _describe_recipe(name)
    if name in choices:
        return choices[name]
    with suppress(ValueError):
        return _describe_architecture(find_model(name))
    hint = nearest(topic, [*TOPICS, *names]) or f"; topics: {', '.join(TOPICS)}"
    raise ValueError(f"{topic!r} is neither a topic, a name nor a file{hint}")


def _plain(name: str) -> str:
    """Return the letters and digits of a name, in lower case."""
    return re.sub(r"[\W_]", "", name.lower())


def _describe_architecture(entry: Any) -> ArchitectureDetails:
    from resnet_train.config import TrainConfig
    from resnet_train.recipes import find_recipe, read_yaml, recipe_names

    size = read_sizes().get(entry.name) or _measure(entry.name, entry.family)
    trained = {name: read_yaml(find_recipe(name)).get("arch", TrainConfig().arch) for name in recipe_names()}
    return ArchitectureDetails(
        **asdict(size),
        options=["--" + option.replace("_", "-") for option in entry.options],
        recipes=[name for name, arch in trained.items() if arch == entry.name],
    )


def _describe_recipe(name: str) -> RecipeDetails:
    from resnet_train.recipes import find_recipe, read_yaml

    (about,) = [recipe.about for recipe in list_recipes() if recipe.name == name]
    return RecipeDetails(name, about, read_yaml(find_recipe(name)))


def describe_checkpoint(path: Path) -> CheckpointInfo:
    """Return what the checkpoint at `path`, a file or a run folder, holds.

    Raises:
        ValueError: there is no valid checkpoint.
    """
    from resnet_train.runs.folder import find_checkpoint
    from resnet_train.runs.foreign import read_network
    from resnet_train.runs.needed_plugins import describe_missing, missing_plugins

    path = find_checkpoint(path)
    checkpoint = read_network(path)
    if missing := missing_plugins(checkpoint.environment):
        log.warning(describe_missing(missing, path))
    return CheckpointInfo(
        about=checkpoint.about.model_dump(),
        epoch=checkpoint.epoch,
        steps_after_epoch=checkpoint.steps_after_epoch,
        chosen_on=checkpoint.chosen_on,
        metrics=checkpoint.metrics.to_plain() if checkpoint.metrics else {},
        calibration=checkpoint.calibration.model_dump() if checkpoint.calibration else {},
        origin=checkpoint.origin.model_dump() if checkpoint.origin else {},
        config=checkpoint.config,
        environment=checkpoint.environment,
    )


def _list_registry(registry: Any) -> list[Choice]:
    """Return each registered name with the first line of its function's docstring."""
    return [Choice(name, (registry[name].__doc__ or "").split("\n")[0]) for name in registry.names()]
