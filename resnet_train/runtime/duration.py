"""Time spans and lengths of training as text."""

from __future__ import annotations

import time

from resnet_train.text import counted

UNITS = (("days", 86400), ("h", 3600), ("min", 60), ("s", 1))


def format_duration(seconds: float) -> str:
    """Return a time span in its two largest units: `4 days 12 h`, `17 min 5 s`."""
    rest = round(seconds)
    parts: list[str] = []
    for unit, size in UNITS:
        count, rest = divmod(rest, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {'day' if unit == 'days' and count == 1 else unit}")
    return " ".join(parts[:2])


def format_estimate(seconds: float) -> str:
    """Return an estimated time span, as precise as such an estimate is: `about 2 min`, `about 5 days`."""
    for at_least, step in ((432_000, 86400), (36_000, 3600), (7200, 600), (90, 60), (10, 10)):
        if seconds >= at_least:
            return f"about {format_duration(round(seconds / step) * step)}"
    return f"about {format_duration(max(1, seconds))}"


def format_clock(seconds: float) -> str:
    """Return a time span as on a clock: `0:31`, `2:10`, `1:02:10`, and from a day on `4 d 12 h`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_end(seconds: float) -> str:
    """Return the time `seconds` from now: `at 14:32`, with the date if that is not today."""
    end = time.time() + seconds
    is_today = time.localtime(end)[:3] == time.localtime()[:3]
    return time.strftime("at %H:%M" if is_today else "on %Y-%m-%d at %H:%M", time.localtime(end))


def format_training_length(epochs: int | None, steps: int) -> str:
    """Return the length of training that may have stopped within an epoch: `3 epochs and 12 steps`."""
    if epochs is None:
        return "epochs unknown"
    text = counted(epochs, "epoch")
    return f"{text} and {counted(steps, 'step')}" if steps else text
