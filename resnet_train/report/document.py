"""What all pages share: the frame, numbers that name their place in the JSON file, tables, figures and pictures."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

from resnet_train.report.markup import escape
from resnet_train.report.style import STYLE

# A page may not load anything: browsers refuse whatever is not inside it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
FORMATS: dict[str, Callable[[Any], str]] = {
    "percent": "{:.2%}".format,
    "count": "{:,}".format,
    "rate": "{:,.0f}".format,
    "decimal": "{:.4f}".format,
    "short": "{:.2f}".format,
    "general": "{:g}".format,
}


class Numbers:
    """The numbers of a JSON file, as a page shows them."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report

    def number(self, path: str, kind: str = "percent") -> str:
        """Return a number as HTML, a `<data>` element that names its place, and – for null.

        Args:
            path: the keys and indices that lead to it, separated by dots.
            kind: how to write it, a key of `FORMATS`.
        """
        value = reduce(
            lambda part, key: part[int(key) if isinstance(part, list) else key], path.split("."), self.report
        )
        if value is None:
            return "–"
        return f'<data value="{value!r}" class="{kind}" title="{path}">{FORMATS[kind](value)}</data>'


def render_document(title: str, header: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """Return a page.

    Args:
        title: plain text.
        header: HTML above the links to the sections.
        sections: key, heading and HTML of each; one without HTML is left out.
    """
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{heading}</a>' for key, heading, _ in shown)
    body = "".join(f'<section id="{key}"><h2>{heading}</h2>{text}</section>' for key, heading, text in shown)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body><header>{header}<nav>{links}</nav></header><main>{body}</main></body></html>\n"
    )


def show_cards(cards: Iterable[tuple[str, str, str]]) -> str:
    """Return the numbers that matter most: what, value and note of each, HTML."""
    boxes = (
        f'<div class="card"><small>{what}</small><b>{value}</b><small>{note}</small></div>'
        for what, value, note in cards
    )
    return f'<div class="cards">{"".join(boxes)}</div>'


def show_picture(data: bytes, text: str) -> str:
    """Return a PNG or JPEG inside the page, with text for those who can't see it."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f'<img alt="{escape(text)}" src="data:image/{kind};base64,{base64.b64encode(data).decode("ascii")}">'


def show_figure(chart: str, caption: str) -> str:
    """Return a chart above its caption, if it has one."""
    return f"<figure>{chart}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]], last: Sequence[str] | None = None) -> str:
    """Return a table of HTML texts; a column is aligned to the right if its cells are numbers."""
    rows = list(rows)
    is_number = [all(row[i].startswith(("<data", "–")) for row in rows) for i in range(len(header))]

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = (' class="n"' if number else "" for number in is_number)
        return f"<tr>{''.join(f'<{tag}{kind}>{cell}</{tag}>' for cell, kind in zip(cells, kinds))}</tr>"

    head = f"<thead>{line(header, 'th')}</thead>" if any(header) else ""
    foot = f"<tfoot>{line(last, 'td')}</tfoot>" if last else ""
    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody>{foot}</table></div>'
