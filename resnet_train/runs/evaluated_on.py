"""Which images runs were trained and evaluated on, as far as their files say."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from resnet_train.data.dataset import FACTS
from resnet_train.runs.folder import find_checkpoint
from resnet_train.runs.history import RunHistory


@dataclass(frozen=True)
class Images:
    """The images of a run.

    Attributes:
        trained, evaluated: equal for equal images.
        title: the name of the data set.
        is_known: False if the run has no checkpoint, so that only the name of the folder of images is known.
    """

    trained: str
    evaluated: str
    title: str
    is_known: bool = True


def identify_images(histories: Sequence[RunHistory]) -> list[Images]:
    """Return the images of each run.

    A run without a checkpoint is assumed to share the images of runs with checkpoints whose image folder has the same
    name.
    """
    found = [_read_images(history) for history in histories]
    places = [(history.config.dataset, history.config.data_dir.name, history.split) for history in histories]
    images = []
    for own, place in zip(found, places):
        same_name = {other for other, there in zip(found, places) if other is not None and there == place}
        if own is None and len(same_name) == 1:
            (own,) = same_name
        dataset, name, split = place
        images.append(own or Images(f"{dataset} {name}", f"{dataset} {name} {split}", f"{dataset} {name}", False))
    return images


def _read_images(history: RunHistory) -> Images | None:
    """Return the images of a run if its data set is fixed or it has a checkpoint, else None."""
    config, split = history.config, history.split
    held_out = f" {config.val_size}" if split == "val" else ""
    if config.dataset in FACTS:
        return Images(config.dataset, f"{config.dataset} {split}{held_out}", FACTS[config.dataset].title)
    with suppress(ValueError, OSError):
        checkpoint = find_checkpoint(history.path)
        from resnet_train.runs.checkpoint import read_model  # torch takes 2 s to import

        about = read_model(checkpoint).about
        own = about.test_fingerprint if split == "test" else about.val_fingerprint
        evaluated = own or f"{about.fingerprint} {split}{held_out}"
        return Images(about.fingerprint, evaluated, about.title)
    return None
