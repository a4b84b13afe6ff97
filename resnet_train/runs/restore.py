"""From a checkpoint to the network it describes, and to the trainer of the run it continues."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resnet_train.config import TrainConfig
from resnet_train.models import create_model, sketch_model
from resnet_train.runs.checkpoint import AnyCheckpoint, RunCheckpoint
from resnet_train.runs.folder import RunFolder
from resnet_train.runs.needed_plugins import describe_missing, missing_plugins
from resnet_train.training.trainer import Trainer

log = logging.getLogger(__name__)


class UnusableState(ValueError):
    """A state does not fit its run."""


def restore_model(checkpoint: AnyCheckpoint, path: Path) -> nn.Module:
    """Return the network that a checkpoint describes, with its weights, in evaluation mode on the CPU.

    Raises:
        ValueError: description and weights do not fit together.
    """
    about, weights = checkpoint.about, checkpoint.weights
    try:
        # Try a sketch first, which takes no memory if the weights do not fill the network.
        sketch = sketch_model(about.arch, len(about.classes), len(weights), **about.arch_options)
        sketch.load_state_dict(weights, assign=True)
        with torch.random.fork_rng(devices=[]):  # the initial weights are replaced, so leave the random state unchanged
            model = create_model(about.arch, len(about.classes), **about.arch_options)
        model.load_state_dict(weights)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if missing := missing_plugins(checkpoint.environment):
            raise ValueError(describe_missing(missing, path)) from None
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not hold the network it describes: {reason}") from None
    return model.eval()


def restore_trainer(
    trainer: Trainer, state: RunCheckpoint, config: TrainConfig, fingerprints: tuple[str, str, str]
) -> None:
    """Load the state of a run into its trainer.

    Args:
        trainer: a trainer built from `config`.
        state: the state read from the run's folder.
        config: all settings.
        fingerprints: those of the training, test and validation images that the trainer was built with.

    Raises:
        UnusableState: the state does not fit the run.
        ValueError: the images are not those of the run.
    """
    folder, about = RunFolder(config.output_dir / str(config.name)), state.about
    saved = (about.fingerprint, about.test_fingerprint, about.val_fingerprint)
    for split, before, now in zip(("training", "test", "validation"), saved, fingerprints):
        if before not in (None, now):
            raise ValueError(f"{config.data_dir} does not hold the {split} images that {folder.path} was started with")
    try:
        trainer.load_state(state)
    except (KeyError, TypeError, IndexError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UnusableState(f"{folder.last} does not hold a state of this run: {reason}") from None


def warn_about_changes(state: RunCheckpoint, environment: dict[str, Any], num_ranks: int) -> None:
    """Warn if a resumed run will differ: identical bits need the same device, versions, threads and processes."""
    before = state.environment
    keys = ("torch", "device", "device_name", "threads")
    changed = [
        f"{key} was {before.get(key)} and is now {now}" for key in keys if before.get(key) != (now := environment[key])
    ]
    if changed:
        log.warning("%s: the result may differ in its last bits", "; ".join(changed))
    if (num_before := len(state.sums)) != num_ranks:  # one row of sums for each process
        log.warning(
            "the number of processes was %d and is now %d: the result will differ, because batch norm sees other parts",
            num_before,
            num_ranks,
        )
