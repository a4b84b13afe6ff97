"""What a stream can show: its width and colors."""

from __future__ import annotations

import os
import unicodedata
from contextlib import suppress
from typing import TextIO

WIDTH = 79  # of text that is not shown on a terminal, or on a wider one
COLORS = {"warning": "33", "error": "31", "result": "1"}  # yellow, red, bold


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether the stream is a terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def text_width(stream: TextIO | None) -> int:
    """Return the columns that a line may have: one less than the terminal has, 79 without a terminal."""
    if stream is not None and is_terminal(stream):
        with suppress(OSError, ValueError):
            return max(20, os.get_terminal_size(stream.fileno()).columns - 1)
    return WIDTH


def can_show(text: str, stream: TextIO | None) -> bool:
    """Return whether the encoding of the stream has these characters."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def paint(text: str, kind: str, stream: TextIO | None) -> str:
    """Return the text in the color of a "warning", an "error" or a "result", if the stream shows colors.

    It shows none if it is not a terminal, or if NO_COLOR is set (no-color.org).
    """
    if not is_terminal(stream) or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{COLORS[kind]}m{text}\x1b[0m"


def fit(text: str, width: int, *, keep_end: bool = False) -> str:
    """Pad the text to `width` columns, or cut it at its end (with `keep_end`, at its start) with an ellipsis."""
    if count_columns(text) <= width:
        return text + " " * (width - count_columns(text))
    while count_columns(text) > width - 1:
        text = text[1:] if keep_end else text[:-1]
    filled = " " * (width - 1 - count_columns(text))  # a wide character may leave one column
    return f"…{text}{filled}" if keep_end else f"{text}…{filled}"


def count_columns(text: str) -> int:
    """Return the terminal columns that text takes: two for each wide East Asian character."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)
