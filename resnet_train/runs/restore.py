"""From a checkpoint to the network it describes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from resnet_train.models import create_model
from resnet_train.runs.checkpoint import AnyCheckpoint


def restore_model(checkpoint: AnyCheckpoint, path: Path) -> nn.Module:
    """Return the network that a checkpoint describes, with its weights, in evaluation mode on the CPU.

    Raises:
        ValueError: description and weights do not fit together.
    """
    about, weights = checkpoint.about, checkpoint.weights
    build = partial(create_model, about.arch, len(about.classes), **about.arch_options)
    try:
        # Try on the meta device first: it takes no memory for a network that the weights do not fill.
        with torch.device("meta"), _max_parameters(len(weights)):
            sketch = build()
        sketch.load_state_dict(weights, assign=True)
        model = build()
        model.load_state_dict(weights)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not hold the network it describes: {reason}") from None
    return model.eval()


@contextmanager
def _max_parameters(limit: int) -> Iterator[None]:
    """Limit the number of parameters of networks built within, as a few bytes can describe ten thousand layers.

    Raises:
        ValueError: a network has more.
    """
    left = limit

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= parameter is not None
        if left < 0:
            raise ValueError(f"it has more parameters than the {limit} weights in the file")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
