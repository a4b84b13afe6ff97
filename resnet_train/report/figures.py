"""Charts as inline SVG. Colors are CSS classes, so that pages can be light, dark or printed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resnet_train.report.markup import escape, shorten
from resnet_train.report.style import CHARTS, COLORS
from resnet_train.text import counted

WIDTH = 360  # of every chart, in its own units: about a phone's width, so that its text is as large as other text
LEFT, RIGHT, TOP, BOTTOM = 42, 16, 12, 34  # margins of charts with axes
MAX_LABELED_CLASSES = 20  # a larger matrix has no names and counts
LABEL_LENGTH = 12
HEAT_LEVELS = 8  # colors of a matrix without counts
NUM_TICKS = 5
NUM_COLORS = 6  # for lines
KEY_HEIGHT, CURVES_HEIGHT = 13, 184  # height of a line of the key, and of a chart of runs without key and axis


def draw_confusion_matrix(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Return a heat map: a row for each label, a column for each prediction.

    The color of a cell is the share of the row's images: blue on the diagonal; orange elsewhere, relative to the
    largest such share, so that rare confusions are visible.
    """
    count = len(names)
    shares = [[cell / max(1, sum(row)) for cell in row] for row in matrix]
    worst = max((shares[i][j] for i in range(count) for j in range(count) if i != j), default=0) or 1.0
    scaled = [[shares[i][j] if i == j else shares[i][j] / worst for j in range(count)] for i in range(count)]
    label = f"Confusion matrix of {count} classes"
    if count > MAX_LABELED_CLASSES:
        return _svg(WIDTH, label, _draw_levels(scaled, WIDTH / count))

    # Names are on the left and, rotated, on top.
    margin = 16 + 5.4 * max(len(shorten(name, LABEL_LENGTH)) for name in names)
    side = (WIDTH - margin) / count
    parts = []
    for i, name in enumerate(names):
        middle, text = margin + side * (i + 0.5), escape(shorten(name, LABEL_LENGTH))
        parts.append(f'<text class="tick" x="{margin - 5:g}" y="{middle + 3:.1f}" text-anchor="end">{text}</text>')
        parts.append(
            f'<text class="tick" transform="translate({middle + 3:.1f} {margin - 5:g}) rotate(-90)">{text}</text>'
        )

    # Each cell has its count, and a tooltip that says what it means.
    for i, row in enumerate(matrix):
        for j, cell in enumerate(row):
            x, y, kind = margin + side * j, margin + side * i, "right" if i == j else "wrong"
            title = f"{cell:,} of {sum(row):,} images of {names[i]} were classified as {names[j]}"
            is_dark = " on" if scaled[i][j] > 0.6 else ""
            place = f'x="{x + side / 2 - 0.5:.1f}" y="{y + side / 2 + 2.5:.1f}"'
            parts.append(
                f"<g><title>{escape(title)}</title>"
                f'<rect class="cell {kind}" x="{x:.1f}" y="{y:.1f}" width="{side - 1:.1f}" height="{side - 1:.1f}" '
                f'fill-opacity="{scaled[i][j]:.3f}"/>'
                f'<text class="in{is_dark}" {place}>{cell or ""}</text></g>'
            )
    return _svg(WIDTH, label, parts)


def _draw_levels(scaled: list[list[float]], side: float) -> Iterable[str]:
    """Yield one path for each color of a matrix, because separate cells of many classes would fill megabytes."""
    paths: dict[tuple[str, int], list[str]] = {}
    for i, row in enumerate(scaled):
        for j, share in enumerate(row):
            if level := math.ceil(share * HEAT_LEVELS):
                cells = paths.setdefault(("right" if i == j else "wrong", level), [])
                cells.append(f"M{side * j:.2f} {side * i:.2f}h{side:.2f}v{side:.2f}h-{side:.2f}z")
    yield f'<rect class="frame" width="{WIDTH}" height="{WIDTH}"/>'
    for (kind, level), cells in paths.items():
        yield f'<path class="cell {kind}" fill-opacity="{level / HEAT_LEVELS:g}" d="{"".join(cells)}"/>'


def draw_reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """Return a diagram of accuracy over confidence: bars that end on the diagonal are calibrated.

    Args:
        bins: bins of equal width, each with `low`, `high`, `n`, `num_correct` and `mean_confidence`.
    """
    height = 280
    plot = _Plot(height)
    parts = [*plot.draw_axes("confidence", percent=True), plot.draw_line([(0, 0), (1, 1)], "diagonal")]
    for part in bins:
        if not part["n"]:
            continue
        accuracy, confidence = part["num_correct"] / part["n"], part["mean_confidence"]
        title = f"{counted(part['n'], 'image')}: confidence {confidence:.2%}, accuracy {accuracy:.2%}"
        bar = plot.draw_bar(part["low"], part["high"], 0, accuracy, "right")
        ends = min(accuracy, confidence), max(accuracy, confidence)
        gap = plot.draw_bar(part["low"], part["high"], *ends, "gap")
        parts.append(f"<g><title>{escape(title)}</title>{bar}{gap}</g>")
    return _svg(height, "Reliability diagram: accuracy over confidence", parts)


def draw_confidence_histogram(bins: Sequence[Mapping[str, Any]]) -> str:
    """Return two histograms of confidence: that of the right images, and below it that of the wrong ones."""
    height, half = 280, 132
    counts = {
        "right": [part["num_correct"] for part in bins],
        "wrong": [part["n"] - part["num_correct"] for part in bins],
    }
    shares = {kind: [count / max(1, sum(row)) for count in row] for kind, row in counts.items()}
    highest = max(max(row) for row in shares.values()) or 1.0
    parts: list[str] = []
    for top, base, kind in ((TOP + 10, half, "right"), (TOP + 10 + half, height - BOTTOM, "wrong")):
        plot = _Plot(base, bottom=0, top=top, y_range=(0.0, highest))
        parts += plot.draw_axes("confidence" if kind == "wrong" else "", percent=True, num_ticks=2)
        parts.append(f'<text class="key" x="{LEFT}" y="{top - 6}">{sum(counts[kind]):,} {kind} images</text>')
        for part, count, share in zip(bins, counts[kind], shares[kind]):
            if count:
                images = counted(count, f"{kind} image")
                title = f"{images} with a confidence of {part['low']:.0%} to {part['high']:.0%}"
                bar = plot.draw_bar(part["low"], part["high"], 0, share, kind)
                parts.append(f"<g><title>{escape(title)}</title>{bar}</g>")
    return _svg(height, "Histograms of confidence: right and wrong images", parts)


def draw_class_counts(counts: Mapping[str, Sequence[int]], names: Sequence[str]) -> str:
    """Return a bar for each class in each split, as long as the class's share of the split.

    Args:
        counts: images in each class, by split.
        names: the class names.
    """
    shares = {split: [count / max(1, sum(row)) for count in row] for split, row in counts.items()}
    longest = max(max(row) for row in shares.values()) or 1.0
    is_named = len(names) <= MAX_LABELED_CLASSES
    margin = 16 + 5.4 * max(len(shorten(name, LABEL_LENGTH)) for name in names) if is_named else 8
    top, side = 24.0, 18.0 if is_named else max(1.0, WIDTH / len(names))
    height = side * 0.8 / len(counts)
    parts = []
    for number, (split, row) in enumerate(counts.items()):
        kind, x = ("right", "wrong", "third")[number], margin + 60 * number
        parts.append(f'<rect class="bar {kind}" x="{x:g}" y="4" width="10" height="8"/>')
        parts.append(f'<text class="key" x="{x + 14:g}" y="12">{escape(split)}</text>')
        for i, (count, name) in enumerate(zip(row, names)):
            width = (WIDTH - margin - RIGHT) * shares[split][i] / longest
            y = top + side * i + height * number
            place = f'x="{margin:g}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
            title = f"{counted(count, f'{split} image')} of {name}"
            parts.append(f'<rect class="bar {kind}" {place}><title>{escape(title)}</title></rect>')
    for i, name in enumerate(names if is_named else ()):
        place = f'x="{margin - 5:g}" y="{top + side * (i + 0.4) + 3:.1f}" text-anchor="end"'
        parts.append(f'<text class="tick" {place}>{escape(shorten(name, LABEL_LENGTH))}</text>')
    return _svg(top + side * len(names), "Images in each class, as shares of their split", parts)


def draw_curves(
    epochs: Sequence[float], series: Mapping[str, Sequence[float | None]], title: str, *, percent: bool = False
) -> str:
    """Return a line for each series over the epochs; missing values are left out.

    Args:
        epochs: the epochs, increasing.
        series: values by name, as many as there are epochs.
        title: the title of the chart.
        percent: whether the values are shares, to be shown as percentages.
    """
    height = 230
    lines = {
        name: [(x, y) for x, y in zip(epochs, values) if y is not None and math.isfinite(y)]
        for name, values in series.items()
    }
    values = [y for points in lines.values() for _, y in points] or [0.0]
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.5
    bounds = (max(0.0, low - room), min(1.0, high + room) if percent else high + room)
    plot = _Plot(height, top=TOP + 20, x_range=(epochs[0], max(epochs[-1], epochs[0] + 1)), y_range=bounds)
    parts = plot.draw_axes("epoch", percent=percent, percent_x=False)

    # The key is a line of text above the chart.
    x = float(LEFT)
    for number, (name, points) in enumerate(lines.items(), start=1):
        text = f"{name} {title}"
        parts.append(f'<path class="line s{number}" d="M{x:g} {TOP - 2}h14"/>')
        parts.append(f'<text class="key" x="{x + 18:g}" y="{TOP + 2}">{escape(text)}</text>')
        x += 30 + 5.8 * len(text)
        parts.append(plot.draw_line(points, f"s{number}"))
        if points:
            parts.append(plot.draw_dot(points[-1], f"s{number}"))
    return _svg(height, f"{title} over epochs: {', '.join(lines)}", parts)


def draw_accuracy_curves(
    groups: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    label: str,
    title: str,
    targets: Sequence[float] = (),
) -> str:
    """Return the curves of runs in the color of their group, with a line in the key for each group.

    Args:
        groups: the points (x, accuracy) of each run, by name of the group.
        label: the label of the horizontal axis.
        title: the title of the chart.
        targets: accuracies to draw a line at.
    """
    # Make both axes include all points.
    points = [point for runs in groups.values() for run in runs for point in run]
    values = [y for _, y in points] + list(targets) or [0.0]
    room = 0.04 * (max(values) - min(values)) or 0.01
    top = TOP + KEY_HEIGHT * len(groups)
    plot = _Plot(
        top + CURVES_HEIGHT + BOTTOM,
        top=top,
        x_range=(0.0, max((x for x, _ in points), default=1.0)),
        y_range=(max(0.0, min(values) - room), min(1.0, max(values) + room)),
    )
    parts = plot.draw_axes(label, percent=True, percent_x=False)
    parts += [plot.draw_line([(0, target), (plot.x_range[1], target)], "target") for target in targets]

    # Draw thin lines, so that runs that nearly agree can be told apart.
    for number, (name, runs) in enumerate(groups.items()):
        kind, y = f"s{number % NUM_COLORS + 1}", TOP + KEY_HEIGHT * number - 2
        dashes = "" if number < NUM_COLORS else f' stroke-dasharray="{1 + number // NUM_COLORS * 2} 2"'
        parts.append(f'<path class="line {kind}"{dashes} d="M{LEFT} {y}h14"/>')
        parts.append(f'<text class="key" x="{LEFT + 18}" y="{y + 3}">{escape(name)}</text>')
        lines = "".join(plot.draw_line(run, kind) + "".join(plot.draw_dot(p, kind, 1.6) for p in run) for run in runs)
        parts.append(f'<g class="runs"{dashes}><title>{escape(name)}</title>{lines}</g>')
    return _svg(top + CURVES_HEIGHT + BOTTOM, title, parts)


def make_standalone(chart: str) -> str:
    """Return a chart as the text of an SVG file, with its colors for light and dark screens."""
    head, _, body = chart.partition(">")
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    style = f"{COLORS}{CHARTS}svg {{ font: 9px system-ui, sans-serif; }}\n.paper {{ fill: var(--page); }}\n"
    return f'{head}><style>{style}</style><rect class="paper" width="100%" height="100%"/>{body}\n'


class _Plot:
    """A rectangle with axes, and the positions of values in it."""

    def __init__(
        self,
        height: float,
        *,
        top: float = TOP,
        bottom: float = BOTTOM,
        x_range: tuple[float, float] = (0.0, 1.0),
        y_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.top, self.base, self.end = top, height - bottom, WIDTH - RIGHT
        self.x_range, self.y_range = x_range, y_range

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (self.end - LEFT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.base - (self.base - self.top) * (value - low) / (high - low)

    def draw_axes(self, label: str, *, percent: bool, percent_x: bool = True, num_ticks: int = NUM_TICKS) -> list[str]:
        """Return grid lines with values; the horizontal axis has them only if it has a label."""
        parts = []
        for value in round_ticks(*self.y_range, num_ticks):
            y, text = self.y(value), f"{value:.4%}" if percent else f"{value:.4f}"
            text = _trim(text)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{self.end}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">{text}</text>')
        if label:
            # An epoch is a whole number: few of them get few ticks.
            span = self.x_range[1] - self.x_range[0]
            for value in round_ticks(*self.x_range, min(NUM_TICKS, round(span)) if label == "epoch" else NUM_TICKS):
                text = f"{value:.0%}" if percent_x else _trim(f"{value:.1f}")
                place = f'x="{self.x(value):.1f}" y="{self.base + 14}"'
                parts.append(f'<text class="tick" {place} text-anchor="middle">{text}</text>')
            middle = (LEFT + self.end) / 2
            parts.append(
                f'<text class="tick" x="{middle}" y="{self.base + 29}" text-anchor="middle">{escape(label)}</text>'
            )
        return parts

    def draw_bar(self, left: float, right: float, low: float, high: float, kind: str) -> str:
        x, y = self.x(left) + 0.5, self.y(high)
        width, height = self.x(right) - x - 0.5, self.y(low) - y
        return f'<rect class="bar {kind}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"/>'

    def draw_line(self, points: Sequence[tuple[float, float]], kind: str) -> str:
        path = "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
        return f'<path class="line {kind}" d="M{path}"/>' if points else ""

    def draw_dot(self, point: tuple[float, float], kind: str, radius: float = 2.5) -> str:
        return f'<circle class="dot {kind}" cx="{self.x(point[0]):.1f}" cy="{self.y(point[1]):.1f}" r="{radius:g}"/>'


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round values between the bounds, with steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _trim(text: str) -> str:
    """Return a number without trailing zeros."""
    digits, sign = (text[:-1], "%") if text.endswith("%") else (text, "")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + sign


def _svg(height: float, label: str, parts: Iterable[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
