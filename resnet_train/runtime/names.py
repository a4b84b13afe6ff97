"""Names that come from data, made safe as file names."""

from __future__ import annotations

import os
from collections.abc import Iterable

IS_WINDOWS = os.name == "nt"
PORTS = {f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"}
WINDOWS_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *PORTS}
WINDOWS_RESERVED = '<>:"/\\|?*'
MAX_NAME_BYTES = 100
ALLOWED = set(" -_+()[]#@,.'&")


def safe_names(names: Iterable[str]) -> list[str]:
    """Return a name for a file or folder for each name, all different, even where case does not count.

    Letters and digits of any script are kept; separators, control characters, leading dots and names of Windows devices
    are not.
    """
    safe: list[str] = []
    taken: set[str] = set()
    for name in names:
        plain = "".join(c if c.isalnum() or c in ALLOWED else "_" for c in name)
        plain = plain.encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore").strip(" .") or "_"
        plain = f"_{plain}" if is_device(plain) else plain
        candidate, number = plain, 1
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{plain}-{number}"
        taken.add(candidate.casefold())
        safe.append(candidate)
    return safe


def is_device(name: str) -> bool:
    """Return whether Windows takes a name for a device, whatever its extension: `aux`, `con.txt`."""
    return name.split(".")[0].rstrip().upper() in WINDOWS_DEVICES


def windows_problem(name: str) -> str:
    """Return why Windows can't have a file or folder of this name, or an empty string."""
    if is_device(name):
        return "is the name of a device"
    if reserved := [character for character in name if character in WINDOWS_RESERVED or character < " "]:
        return f"has the reserved character {reserved[0]!r}"
    return "ends with a dot or a space" if name.endswith((".", " ")) else ""
