"""Names that come from data, made safe to be names of files."""

from __future__ import annotations

from collections.abc import Iterable

MAX_NAME_BYTES = 100
ALLOWED = set(" -_+()[]#@,.'&")


def safe_names(names: Iterable[str]) -> list[str]:
    """Return a name for a file or folder for each name, all different, even where case does not count.

    Letters and digits of any script stay; separators, control characters and leading dots do not.
    """
    safe: list[str] = []
    taken: set[str] = set()
    for name in names:
        plain = "".join(c if c.isalnum() or c in ALLOWED else "_" for c in name)
        plain = plain.encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore").strip(" .") or "_"
        candidate, number = plain, 1
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{plain}-{number}"
        taken.add(candidate.casefold())
        safe.append(candidate)
    return safe
