"""Names to functions: how architectures, data sets, optimizers and schedules are found."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Function = TypeVar("Function", bound=Callable[..., object])


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that looks most like `name` as ``; did you mean 'x'?``, or nothing if none does."""
    matches = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


class Registry(Generic[Function]):
    """A table of functions of one kind, filled by a decorator where each function is defined."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._functions: dict[str, Function] = {}

    def register(self, name: str) -> Callable[[Function], Function]:
        """Decorator: files the function under `name`."""

        def add(function: Function) -> Function:
            assert name not in self._functions, f"{self.kind} {name!r} is registered twice"
            self._functions[name] = function
            return function

        return add

    def names(self) -> list[str]:
        """All names, in the order of registration."""
        return list(self._functions)

    def __contains__(self, name: object) -> bool:
        return name in self._functions

    def __getitem__(self, name: str) -> Function:
        if name not in self._functions:
            hint = nearest(name, self._functions) or f"; known: {', '.join(self._functions)}"
            raise ValueError(f"unknown {self.kind} {name!r}{hint}")
        return self._functions[name]
