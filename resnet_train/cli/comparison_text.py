"""A comparison of runs as text in columns, or as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from resnet_train.evaluation.significance import Spread
from resnet_train.jobs.comparison import Comparison, Difference, Group
from resnet_train.runtime.terminal import count_columns, fit

MIN_NAME_WIDTH = 12
MAX_LEFT_OUT = 10  # runs that are listed; --json has all
NOT_MEASURED = "–"


@dataclass(frozen=True)
class Table:
    """Cells in columns; those named in `left` are left-aligned, and `name` is cut if there is too little room."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[int] = (0,)
    name: int | None = None


Block = Table | str  # a string is a paragraph


def format_text(comparison: Comparison, width: int) -> str:
    """Return a comparison as text of at most `width` columns."""
    return "\n\n".join(
        _layout(block, width) if isinstance(block, Table) else _wrap(block, width) for block in _blocks(comparison)
    )


def format_markdown(comparison: Comparison) -> str:
    """Return a comparison as Markdown."""
    return "\n\n".join(
        _mark_down(block) if isinstance(block, Table) else _escape(block) for block in _blocks(comparison)
    )


# --- Content ---------------------------------------------------------------------------------------------------------


def _blocks(comparison: Comparison) -> Iterable[Block]:
    """Yield tables and paragraphs: groups, times, differences, what they can show, settings, and warnings."""
    groups = comparison.groups
    yield from _group_blocks(groups)
    yield from _target_blocks(groups)
    if comparison.differences:
        yield from _difference_blocks(comparison.differences)
        yield from _power_blocks(comparison.differences)
        yield from _image_blocks(comparison.differences)
        yield from _setting_blocks(comparison.differences)
    else:
        yield "One group: there is nothing to compare it with."
    left_out = [f"left out: {run.path}: {run.reason}" for run in comparison.left_out]
    if len(left_out) > MAX_LEFT_OUT:
        left_out[MAX_LEFT_OUT:] = [f"left out: {len(left_out) - MAX_LEFT_OUT} others, which --json lists"]
    yield from left_out
    yield from (f"note: {note}" for note in comparison.notes)


def _group_blocks(groups: Sequence[Group]) -> Iterable[Block]:
    places = {group.label: " ".join(filter(None, (group.images, group.split))) for group in groups}
    on = "; ".join(f"{label} on {place}" for label, place in places.items() if place)
    if len(set(places.values())) == 1:
        on = f"{groups[0].split} images of {groups[0].images}" if on else ""
    yield f"Final accuracy{f' ({on})' if on else ''}, mean ± standard deviation over seeds:"
    rows = [
        (
            group.label,
            group.name,
            str(group.n),
            _ranges([run.seed for run in group.runs if run.seed is not None]),
            f"{_spread(100 * group.mean, _percent(group.sd), '.2f')} %",
            NOT_MEASURED if group.epochs is None else str(group.epochs),
            _seconds(group.seconds, group.seconds_sd),
        )
        for group in groups
    ]
    yield Table(("", "group", "n", "seeds", "accuracy", "epochs", "training"), rows, left=(0, 1, 3), name=1)


def _target_blocks(groups: Sequence[Group]) -> Iterable[Block]:
    rows = [
        (
            f"{100 * time.target:g} %",
            group.label,
            f"{time.num_reached} of {group.n}",
            NOT_MEASURED if time.epochs is None else f"{time.epochs:.1f}",
            _seconds(time.seconds, time.sd),
        )
        for times in zip(*(group.targets for group in groups))
        for group, time in zip(groups, times)
    ]
    if rows:
        yield "First epoch with at least this accuracy, and the training until then, for the runs that reached it:"
        yield Table(("accuracy", "", "reached by", "epoch", "training"), rows, left=(1,))


def _difference_blocks(differences: Sequence[Difference]) -> Iterable[Block]:
    several = len(differences) > 1
    baseline = differences[0].baseline
    yield f"Differences to {baseline} in points, with 95 % intervals over seeds and over test images:"
    rows = [
        (
            _name(difference),
            NOT_MEASURED if difference.difference is None else f"{100 * difference.difference:+.2f}",
            _interval(difference.over_seeds),
            _p(None if difference.over_seeds is None else difference.over_seeds.p),
            *([_p(difference.p_adjusted)] if several else []),
            _interval(difference.over_images),
            _p(None if difference.over_images is None else difference.over_images.p),
        )
        for difference in differences
    ]
    yield Table(("", "points", "over seeds", "p", *(["adj. p"] if several else []), "over images", "p"), rows)
    if over_seeds := _methods(difference.over_seeds for difference in differences):
        yield f"Over seeds: other seeds, the same test images ({over_seeds})."
    yield from _reasons("Over seeds", [(d, d.why_no_seeds) for d in differences])
    if over_images := _methods(difference.over_images for difference in differences):
        yield f"Over images: other test images, these networks ({over_images})."
    yield from _reasons("Over images", [(d, d.why_no_images) for d in differences])
    if several:
        yield (
            f"Each interval and each p stands alone: if none of {len(differences)} differences is real, "
            f"{0.05 * len(differences):.2g} of them on average have a p below 0.05. "
            f"The adjusted p (Holm) allows for that."
        )


def _power_blocks(differences: Sequence[Difference]) -> Iterable[Block]:
    rows = [
        (
            _name(difference),
            f"{100 * power.sd:.2f} ({100 * power.sd_ci95[0]:.2f} to {100 * power.sd_ci95[1]:.2f})",
            f"{100 * power.detectable:.2f}",
            f"{100 * power.difference:.2f}",
            "over 8,192" if power.needed is None else f"{power.needed:,}",
        )
        for difference in differences
        if (power := difference.power) is not None
    ]
    if rows:
        yield (
            'What the seeds can show: with runs that are spread like these, a true difference of the size in "shows '
            'from" is found (p < 0.05) in 80 % of comparisons, a smaller one less often. To find the one in "to '
            'show" as often, each group needs this many seeds:'
        )
        yield Table(("", "pooled sd, 95 %", "shows from", "to show", "seeds"), rows)


def _image_blocks(differences: Sequence[Difference]) -> Iterable[Block]:
    for difference in differences:
        if (counts := difference.counts) is not None:
            shows = (
                "" if counts.detectable is None else f" This many images can show {100 * counts.detectable:.2f} points."
            )
            yield (
                f"{_name(difference)}: of {counts.num_images:,} images, only {difference.group} is right on "
                f"{counts.gained:,}, and only {difference.baseline} on {counts.lost:,}.{shows}"
            )


def _setting_blocks(differences: Sequence[Difference]) -> Iterable[Block]:
    for difference in differences:
        if difference.settings:
            changes = (f"{name} {_value(old)} → {_value(new)}" for name, (old, new) in difference.settings.items())
            yield f"{_name(difference)}: {', '.join(changes)}"


def _reasons(what: str, reasons: Sequence[tuple[Difference, str]]) -> Iterable[str]:
    """Yield a sentence for each reason, with the differences that it is about."""
    names: dict[str, list[str]] = {}
    for difference, reason in reasons:
        if reason:
            names.setdefault(reason, []).append(_name(difference))
    for reason, about in names.items():
        which = f" ({', '.join(about)})" if len(about) < len(reasons) else ""
        yield f"{what}{which}: not measured. {reason}."


def _methods(spreads: Iterable[Spread | None]) -> str:
    return ", ".join(dict.fromkeys(spread.method for spread in spreads if spread is not None))


def _name(difference: Difference) -> str:
    return f"{difference.group} - {difference.baseline}"


def _interval(spread: Spread | None) -> str:
    return NOT_MEASURED if spread is None else f"{100 * spread.low:+.2f} to {100 * spread.high:+.2f}"


def _p(value: float | None) -> str:
    if value is None:
        return NOT_MEASURED
    return "<0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _seconds(mean: float | None, sd: float | None) -> str:
    return NOT_MEASURED if mean is None else f"{_spread(mean, sd, ',.0f')} s"


def _spread(mean: float, sd: float | None, form: str) -> str:
    return f"{mean:{form}}" if sd is None else f"{mean:{form}} ± {sd:{form}}"


def _value(value: Any) -> str:
    """Return a setting as YAML and flags write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(f"{part:g}" for part in value) if isinstance(value, list | tuple) else str(value)


def _ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers with ranges: `0-2, 7`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


# --- Layout ----------------------------------------------------------------------------------------------------------


def _wrap(paragraph: str, width: int) -> str:
    """Return a paragraph in lines; paths and names are not broken."""
    return textwrap.fill(paragraph, width, break_long_words=False, break_on_hyphens=False)


def _layout(table: Table, width: int) -> str:
    """Return a table in columns, two spaces apart."""
    lines = [table.header, *table.rows]
    widths = [max(count_columns(line[column]) for line in lines) for column in range(len(table.header))]
    if table.name is not None:
        room = width - sum(widths) - 2 * (len(widths) - 1) + widths[table.name]
        widths[table.name] = max(MIN_NAME_WIDTH, min(widths[table.name], room))

    def place(cell: str, column: int) -> str:
        return fit(cell, widths[column]) if column in table.left else _right(cell, widths[column])

    return "\n".join("  ".join(place(cell, number) for number, cell in enumerate(line)).rstrip() for line in lines)


def _right(cell: str, width: int) -> str:
    return " " * (width - count_columns(cell)) + cell


def _mark_down(table: Table) -> str:
    """Return a table of Markdown."""
    rules = ["---" if column in table.left else "---:" for column in range(len(table.header))]
    escape: Callable[[str], str] = _escape
    lines = [[escape(cell) for cell in table.header], rules, *([escape(cell) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|~#@!])", r"\\\1", text)
