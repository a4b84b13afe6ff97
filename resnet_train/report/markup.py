"""Text in a page: nothing that comes from data or files is ever markup."""

from __future__ import annotations

import html

from resnet_train import text as plain_text


def escape(text: object) -> str:
    """Return text for HTML, SVG or an attribute, with backslash escapes for controls such as line reversals."""
    return html.escape(plain_text.escape(str(text)))


def name(text: object) -> str:
    """Return a name from data as HTML, isolated so that its script does not reorder the text next to it."""
    return f"<bdi>{escape(text)}</bdi>"


def name_compared(text: str, expected: str) -> str:
    """Return a name from data as HTML, colored if it is not the expected one."""
    return f'<span class="differs">{name(text)}</span>' if text != expected else name(text)


def shorten(text: str, length: int) -> str:
    """Shorten the text to `length` characters, ending in … if it is cut; control characters count as escapes."""
    text = plain_text.escape(text)
    return text if len(text) <= length else text[: length - 1] + "…"
