"""List the available choices, and describe architectures and checkpoints.

Imports are local to functions: most topics need no torch, which takes 2 s to import.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
    """An architecture and the flags of its options."""

    options: list[str]


@dataclass(frozen=True)
class CheckpointInfo:
    """Everything in a checkpoint but its tensors.

    Attributes:
        about: architecture, classes, normalization and data set.
        epoch: finished epochs.
        steps_after_epoch: optimizer steps since then.
        chosen_on: split on which the epoch was selected, None if it was not.
        metrics: record of the last finished epoch, empty if there is none.
        calibration: temperature and threshold from the validation images, empty if there are none.
    """

    about: dict[str, Any]
    epoch: int
    steps_after_epoch: int
    chosen_on: str | None
    metrics: dict[str, Any]
    calibration: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]


def list_architectures() -> list[Architecture]:
    """Return every named architecture, family by family."""
    from resnet_train.models import list_models, measure_complexity

    sizes = [(entry, measure_complexity(entry.name)) for entry in list_models()]
    return [
        Architecture(name=entry.name, family=entry.family, params=size.params, macs=size.macs) for entry, size in sizes
    ]


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


def describe(topic: str) -> ArchitectureDetails | CheckpointInfo:
    """Describe an architecture, a checkpoint or a run folder.

    Raises:
        ValueError: `topic` is none of these, or the checkpoint is invalid.
    """
    from resnet_train.models import list_models, measure_complexity

    for entry in list_models():
        if entry.name == topic:
            size = measure_complexity(topic)
            flags = ["--" + option.replace("_", "-") for option in entry.options]
            return ArchitectureDetails(
                name=topic, family=entry.family, params=size.params, macs=size.macs, options=flags
            )
    if os.path.exists(topic):  # noqa: PTH110 - Path.exists raises on names that are too long
        return describe_checkpoint(Path(topic))
    raise ValueError(f"{topic!r} is neither a topic nor a file; topics: {', '.join(TOPICS)}")


def describe_checkpoint(path: Path) -> CheckpointInfo:
    """Return what the checkpoint at `path`, a file or a run folder, holds.

    Raises:
        ValueError: there is no valid checkpoint.
    """
    from resnet_train.runs.checkpoint import read_model
    from resnet_train.runs.folder import find_checkpoint

    checkpoint = read_model(find_checkpoint(path))
    return CheckpointInfo(
        about=checkpoint.about.model_dump(),
        epoch=checkpoint.epoch,
        steps_after_epoch=checkpoint.steps_after_epoch,
        chosen_on=checkpoint.chosen_on,
        metrics=checkpoint.metrics.to_plain() if checkpoint.metrics else {},
        calibration=checkpoint.calibration.model_dump() if checkpoint.calibration else {},
        config=checkpoint.config,
        environment=checkpoint.environment,
    )


def _list_registry(registry: Any) -> list[Choice]:
    """Return each registered name with the first line of its function's docstring."""
    return [Choice(name, (registry[name].__doc__ or "").split("\n")[0]) for name in registry.names()]
