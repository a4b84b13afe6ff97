"""Start a run from the weights of a checkpoint: which network, how images are normalized, and what is loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resnet_train.config import TrainConfig, make_config, pin, to_plain, unpin
from resnet_train.optim.groups import head_name
from resnet_train.runs.checkpoint import AnyCheckpoint
from resnet_train.runs.folder import find_checkpoint
from resnet_train.runs.foreign import Given, hash_file, is_foreign, read_network
from resnet_train.training.trainer import Trainer

log = logging.getLogger(__name__)


def read_weights(config: TrainConfig, chosen: Iterable[str] = ()) -> AnyCheckpoint:
    """Read the checkpoint that a run starts from.

    Args:
        config: all settings, with `weights`.
        chosen: names of the settings that the user chose; the architecture is found if it is not among them.

    Raises:
        ValueError: it is not usable, has another architecture than the chosen one, or has changed since the run was
            described.
    """
    assert config.weights is not None
    path, digest = unpin(config.weights)
    file = find_checkpoint(path)
    if digest and not hash_file(file).startswith(digest):
        raise ValueError(f"weights (={path}) has changed: its contents are not those that {digest} stands for")
    arch = config.arch if digest or _is_chosen("arch", config, chosen) else None
    try:
        return read_network(file, Given(arch=arch, normalize=config.normalize if is_foreign(file) else None))
    except ValueError as error:
        raise ValueError(f"weights: {error}") from None


def resolve_weights(config: TrainConfig, chosen: Iterable[str] = ()) -> TrainConfig:
    """Return the config with what the checkpoint of `weights` says: network, normalization and its own digest.

    Args:
        config: all settings.
        chosen: names of the settings that the user chose, which stay.

    Raises:
        ValueError: see `read_weights`.
    """
    if config.weights is None or unpin(config.weights)[1]:
        return config
    about = read_weights(config, chosen).about
    found = {"arch": about.arch, **about.arch_options}
    changes = {name: value for name, value in found.items() if not _is_chosen(name, config, chosen)}
    if config.normalize is None:
        changes["normalize"] = ",".join(f"{number:g}" for number in (*about.mean, *about.std))
    path, _ = unpin(config.weights)
    changes["weights"] = str(pin(path, hash_file(find_checkpoint(path))))
    return make_config({**to_plain(config), **changes})


def pin_given(given: dict[str, Any]) -> dict[str, Any]:
    """Return the chosen settings with the digest of `weights`, by which runs are compared.

    Raises:
        ValueError: the checkpoint can't be read.
    """
    if given.get("weights") is None or unpin(Path(given["weights"]))[1]:
        return given
    path = Path(given["weights"])
    return {**given, "weights": str(pin(path, hash_file(find_checkpoint(path))))}


def _is_chosen(name: str, config: TrainConfig, chosen: Iterable[str]) -> bool:
    return name in chosen or getattr(config, name) != TrainConfig.model_fields[name].default


@torch.no_grad()
def load_weights(trainer: Trainer, source: AnyCheckpoint, config: TrainConfig, classes: tuple[str, ...]) -> None:
    """Copy the weights of a checkpoint into the network of a new run; the head stays new if the classes differ.

    Args:
        trainer: a trainer that has done no step.
        source: what `read_weights` returned.
        config: all settings.
        classes: the classes of the run's images.

    Raises:
        ValueError: the network is different, or its new head is frozen.
    """
    assert config.weights is not None
    path, model = unpin(config.weights)[0], trainer.model
    own, head = model.state_dict(), head_name(model)
    keeps_head = _has_classes(source, classes)
    kept, expected = dict(source.weights), dict(own)
    if not keeps_head:
        kept, expected = (_without(head, weights) for weights in (kept, expected))

    # Load the whole network, or all of it but the head, which then has to be trained.
    fits = {name for name in kept.keys() & expected.keys() if kept[name].shape == expected[name].shape}
    if misfits := sorted((kept.keys() | expected.keys()) - fits):
        raise ValueError(f"weights (={path}) are not those of this {config.arch}: {misfits[0]} does not fit")
    if not keeps_head and not any(p.requires_grad for p in model.get_submodule(head).parameters()):
        raise ValueError(
            f"freeze (={','.join(config.freeze or ())}) freezes the new {head}, which starts from random weights"
        )
    model.load_state_dict({**own, **kept})
    if trainer.averaged is not None:
        trainer.averaged.model.load_state_dict(model.state_dict())

    count = "all" if keeps_head else f"{len(kept)} of {len(own)}"
    log.info("starting from %s: %s tensors of its %s", path, count, source.about.arch)
    if not keeps_head:
        before = len(source.about.classes)
        note = " others" if before == len(classes) else ""
        log.info("new last layer (%s) for %d classes; the file has %d%s", head, len(classes), before, note)


def _has_classes(source: AnyCheckpoint, classes: tuple[str, ...]) -> bool:
    """Return whether a network is for these classes; one from other code has no class names."""
    known = source.about.classes
    return len(known) == len(classes) if source.origin is not None else known == list(classes)


def _without(module: str, weights: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in weights.items() if not name.startswith(f"{module}.")}


def describe_frozen(model: nn.Module) -> str:
    """Return how many parameters are frozen, an empty string if none is."""
    total = sum(parameter.numel() for parameter in model.parameters())
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    return f"frozen: {frozen:,} of {total:,} parameters" if frozen else ""
