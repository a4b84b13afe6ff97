"""Names to functions, and functions to the settings that their signatures name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

Function = TypeVar("Function", bound=Callable[..., object])
Result = TypeVar("Result")


def accepts(function: Callable[..., object], name: str) -> bool:
    """Return whether `function` has a parameter of this name."""
    return name in inspect.signature(function).parameters


def call_with(function: Callable[..., Result], settings: Mapping[str, Any], **parts: Any) -> Result:
    """Call `function` with `parts` and with those `settings` that its signature names."""
    # Parts take precedence over settings of the same name.
    taken = {name: value for name, value in settings.items() if name not in parts and accepts(function, name)}
    return function(**taken, **parts)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the most similar known name, or an empty string if none is similar."""
    matches = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


class Registry(Generic[Function]):
    """A table of functions of one kind, filled by a decorator where each function is defined.

    Raises:
        ValueError: `registry[name]` with an unknown name; the message suggests the nearest one.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._functions: dict[str, Function] = {}

    def register(self, name: str) -> Callable[[Function], Function]:
        """Return a decorator that registers a function under `name`."""

        def add(function: Function) -> Function:
            assert name not in self._functions, f"{self.kind} {name!r} is registered twice"
            self._functions[name] = function
            return function

        return add

    def names(self) -> list[str]:
        """Return all names in the order of registration."""
        return list(self._functions)

    def __contains__(self, name: object) -> bool:
        return name in self._functions

    def __getitem__(self, name: str) -> Function:
        if name not in self._functions:
            hint = nearest(name, self._functions) or f"; known: {', '.join(self._functions)}"
            raise ValueError(f"unknown {self.kind} {name!r}{hint}")
        return self._functions[name]
