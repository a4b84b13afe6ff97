"""Networks by the name of their architecture."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from resnet_train.registry import Registry, on_unload

Constructor = Callable[..., nn.Module]


@dataclass(frozen=True)
class ModelEntry:
    """An architecture: its name, family, constructor, and the options that the constructor takes."""

    name: str
    family: str
    constructor: Constructor
    options: tuple[str, ...]


_MODELS: Registry[Constructor] = Registry("architecture")
_ENTRIES: dict[str, ModelEntry] = {}
_PATTERNS: list[tuple[re.Pattern[str], Callable[[str], ModelEntry]]] = []


def register_model(family: str, options: type[nn.Module] | None = None) -> Callable[[Constructor], Constructor]:
    """Return a decorator that registers a constructor `(num_classes=10, **options) -> nn.Module` under its own name.

    The network has an attribute `stride`: the factor by which its last feature map is smaller than the input.

    Args:
        family: the heading in lists.
        options: the class of the network, whose optional arguments are its options. None means no options.
    """

    def add(constructor: Constructor) -> Constructor:
        name = constructor.__name__
        _MODELS.register(name)(constructor)
        _ENTRIES[name] = ModelEntry(name, family, constructor, optional_arguments(options) if options else ())
        on_unload(partial(_ENTRIES.pop, name))
        return constructor

    return add


def optional_arguments(network: type[nn.Module]) -> tuple[str, ...]:
    """Return the arguments of a network's class that have a default, except num_classes."""
    parameters = inspect.signature(network).parameters.values()
    return tuple(p.name for p in parameters if p.default is not p.empty and p.name != "num_classes")


def register_pattern(
    pattern: str,
) -> Callable[[Callable[[str], ModelEntry]], Callable[[str], ModelEntry]]:
    """Return a decorator that registers a function for all names of a form that no constructor has.

    The function returns the entry of a name, or raises a ValueError that explains why there is no such network.
    """

    def add(make_entry: Callable[[str], ModelEntry]) -> Callable[[str], ModelEntry]:
        entry = re.compile(pattern), make_entry
        _PATTERNS.append(entry)
        on_unload(partial(_PATTERNS.remove, entry))
        return make_entry

    return add


def find_model(name: str) -> ModelEntry:
    """Return the entry of an architecture.

    Raises:
        ValueError: unknown name; the message suggests the nearest one.
    """
    if name in _ENTRIES:
        return _ENTRIES[name]
    for pattern, make_entry in _PATTERNS:
        if pattern.fullmatch(name):
            return make_entry(name)
    _MODELS[name]  # raises, with the nearest name
    raise AssertionError(name)


def create_model(name: str, num_classes: int = 10, **options: Any) -> nn.Module:
    """Build a network with new weights from torch's random state.

    Args:
        name: an architecture that `list_models` returns, or any `resnet<6n+2>`.
        num_classes: length C of the logits.
        options: optional arguments of the architecture's constructor.

    Returns:
        A module that maps normalized images, float [B, 3, H, W], to logits, float [B, C]. Its attribute `stride` is
        the smallest H and W.

    Raises:
        ValueError: unknown name or option, or fewer than 1 class.
    """
    entry = find_model(name)
    if num_classes < 1:
        raise ValueError(f"num_classes (={num_classes}) must be at least 1")
    unknown = sorted(set(options) - set(entry.options))
    if unknown:
        takes = ", ".join(entry.options) or "none"
        raise ValueError(f"{name} has no option {unknown[0]!r}; its options: {takes}")
    return entry.constructor(num_classes=num_classes, **options)


def sketch_model(name: str, num_classes: int, max_parameters: int, **options: Any) -> nn.Module:
    """Build a network on the meta device, where it takes no memory, to compare it with weights from a file.

    A few bytes can describe ten thousand layers, so building stops at a number of parameter tensors.

    Raises:
        ValueError: it has more parameters; or see `create_model`.
    """
    with torch.device("meta"), _max_parameters(max_parameters):
        return create_model(name, num_classes, **options)


@contextmanager
def _max_parameters(limit: int) -> Iterator[None]:
    """While entered, raise a ValueError if a network has more parameters."""
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


def list_models() -> list[ModelEntry]:
    """Return every named architecture, family by family."""
    return list(_ENTRIES.values())
