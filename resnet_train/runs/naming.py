"""Default names of runs: the network, the data set, what differs from the defaults, and the seed."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from resnet_train.config import TrainConfig, changed_settings, unpin
from resnet_train.data.dataset import FACTS
from resnet_train.runtime.names import is_device

MAX_BYTES = 80
HASH_DIGITS = 8


def default_name(config: TrainConfig, recipe: tuple[str, TrainConfig] | None = None) -> str:
    """Return the name of a run for which the user chose none, such as `resnet18-cifar10-cutout16-seed0`.

    Args:
        config: all settings.
        recipe: the name of the YAML file that the settings come from, and its settings. Its name stands for
            them, so only what flags changed is added: `resnet20-fast-cifar10-lr0.2-seed0`.

    Returns:
        A folder name of at most 80 bytes that is valid on every system. If the settings need more, a hash of all of
        them replaces the last ones.
    """
    name, base = recipe or (config.arch, TrainConfig())
    changes = changed_settings(base, config)

    # Do not repeat the parts that every name has: the recipe resnet18-cifar100 contains its data set.
    head = [name] if config.dataset in name.split("-") else [name, config.dataset]
    if config.dataset not in FACTS and config.data_dir != TrainConfig().data_dir:
        head.append(config.data_dir.name)  # the images are what is in this folder
    written = {"dataset", "seed"} if recipe else {"arch", "dataset", "seed"}
    if config.weights is not None:
        written |= {"arch", "normalize"}  # they come with the weights
    tokens = [_token(setting, value) for setting, (_, value) in changes.items() if setting not in written]

    # Replace the last settings with a hash if there are too many of them.
    whole, tail = _clean("-".join([*head, *tokens])), f"-seed{config.seed}"
    room = MAX_BYTES - len(tail)
    if len(whole.encode()) > room:
        digest = hashlib.sha256("-".join([*head, *tokens]).encode(errors="replace")).hexdigest()[:HASH_DIGITS]
        room -= HASH_DIGITS + 1
        while tokens and len(_clean("-".join([*head, *tokens])).encode()) > room:
            tokens.pop()
        start = _clean("-".join([*head, *tokens])).encode()[:room].decode(errors="ignore")
        whole = f"{start.rstrip('-')}-{digest}"
    return whole + tail


def _token(name: str, value: Any) -> str:
    """Return a setting as part of a name: `cutout16`, `optimizer-adamw`, `nesterov`, `no-channels-last`."""
    flag = name.replace("_", "-")
    if name == "weights" and value is not None:
        value = _weights_name(value)
    if isinstance(value, bool):
        return flag if value else f"no-{flag}"
    if value is None:
        return f"no-{flag}"
    if isinstance(value, tuple):
        value = "+".join(map(_part, value))
    if isinstance(value, float):
        value = str(value).removesuffix(".0")  # `--minutes 3` is a float
    return f"{flag}-{value}" if isinstance(value, str) and not value[:1].isdigit() else f"{flag}{value}"


def _part(part: Any) -> str:
    """Return a part of a value: a milestone, a pair of size and share, or a pattern."""
    if isinstance(part, tuple):
        return "x".join(map(str, part))
    return part if isinstance(part, str) else f"{part:g}"


def _weights_name(weights: Path) -> str:
    """Return the name of a checkpoint's run, or of the file if it is not in a run's folder."""
    path, _ = unpin(weights)
    return path.absolute().parents[1].name if path.absolute().parent.name == "checkpoints" else path.stem


def _clean(name: str) -> str:
    """Return the name without characters and device names that are special on some system."""
    name = re.sub(r"[^\w.+-]+", "_", name).lstrip(".-")
    return f"run-{name}" if is_device(name) else name
