"""Text for people: counted things, and what files and names hold, which may be anything, made safe to print."""

from __future__ import annotations

import logging
import unicodedata
from dataclasses import fields, is_dataclass, replace
from typing import Any


def escape(text: str, encoding: str = "utf-8") -> str:
    """Return the text with backslash escapes for what a terminal may obey, hide, or be unable to show.

    These are control characters (including newlines), bidirectional overrides and other invisible characters, bytes of
    names that are not UTF-8, and characters that the encoding lacks.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escape_one(c) for c in text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 step`, `1,200 steps`, `10 classes`."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def one_line(error: BaseException) -> str:
    """Return the start of the message of another library's error, without line breaks."""
    return " ".join(str(error).split())[:200]


def _escape_one(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def escape_all(value: Any, encoding: str = "utf-8") -> Any:
    """Return a copy of plain values and dataclasses in which every string is escaped."""
    if isinstance(value, str):
        return escape(value, encoding)
    if isinstance(value, dict):
        return {escape_all(key, encoding): escape_all(item, encoding) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(escape_all(item, encoding) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: escape_all(getattr(value, f.name), encoding) for f in fields(value)})
    return value


class LineFormatter(logging.Formatter):
    """Format each record as one line without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return escape(super().format(record))
