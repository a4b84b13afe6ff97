"""Networks for torch.hub.

>>> torch.hub.load("OWNER/REPOSITORY", "resnet20", num_classes=10)  # new weights
>>> torch.hub.load("OWNER/REPOSITORY", "checkpoint")  # the trained resnet20 that comes with the repository
>>> torch.hub.load("OWNER/REPOSITORY", "checkpoint", "runs/NAME")  # a network that you have trained
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resnet_train import models

# torch.hub lists every function and class of this file, so nothing else is imported under its name.
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torch import nn

# What the networks need; the other dependencies of the package are not imported here.
dependencies = ["filelock", "numpy", "pydantic", "torch"]


def checkpoint(path: str | None = None) -> nn.Module:
    """Return the network of a checkpoint or a run folder, with its weights, in evaluation mode on the CPU.

    Without a path it is the trained network that comes with this repository.
    """
    from pathlib import Path

    from resnet_train.runs.checkpoint import read_model
    from resnet_train.runs.folder import find_checkpoint
    from resnet_train.runs.restore import restore_model
    from resnet_train.weights import shipped_checkpoint

    file = shipped_checkpoint() if path is None else find_checkpoint(Path(path))
    return restore_model(read_model(file), file)


def _entry_point(name: str, family: str) -> Callable[..., nn.Module]:
    def build(num_classes: int = 10, **options: Any) -> nn.Module:
        return models.create_model(name, num_classes, **options)

    build.__name__ = name
    build.__doc__ = (
        f"Return a {name} ({family}) with new weights; images float [B, 3, H, W] to logits [B, num_classes]."
    )
    return build


globals().update({entry.name: _entry_point(entry.name, entry.family) for entry in models.list_models()})
