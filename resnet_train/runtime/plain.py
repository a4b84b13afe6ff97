"""Dataclasses as plain values, for JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, is_dataclass
from typing import Any


def to_plain_values(value: Any) -> Any:
    """Return dataclasses and containers as values of strict JSON, with None for numbers that are not finite."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: to_plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain_values(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
