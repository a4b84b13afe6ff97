"""The text of a run: what is trained, and a table of its epochs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from resnet_train.records import RunInfo, Scalars
from resnet_train.runtime.duration import format_clock
from resnet_train.runtime.terminal import WIDTH
from resnet_train.text import counted

INDENT = 11  # column of what follows a label
WIDE = 100  # from this width on, the table shows the learning rate
# If the table is too wide for the terminal, its columns are dropped in this order.
LEFT_OUT_FIRST = ("rate", "train/loss", "val/loss", "test/loss", "train/accuracy", "left", "val/accuracy")


def describe_run(info: RunInfo, width: int) -> list[str]:
    """Return lines about the network, the data, the recipe and the device."""
    config, images = info.config, dict(info.num_images)
    train = f"{images.pop('train'):,} train"
    if left_out := info.num_images["train"] % info.batch_size:
        train += f" ({left_out:,} do not fill a batch)"
    splits = ", ".join([train, *(f"{num:,} {split}" for split, num in images.items())])
    optimizer = f"{config['optimizer']} lr {config['lr']:g}, {config['schedule']}"
    epochs = counted(info.epochs, "epoch")
    rows = [
        (config["arch"], f"{info.num_params:,} parameters", info.folder),
        ("data", f"{info.title}: {splits}, {counted(info.num_classes, 'class')}, {config['image_size']} px", ""),
        ("recipe", f"{epochs}, batch {info.batch_size}, {optimizer}", f"seed {config['seed']}"),
        ("device", f"{info.device}, {info.precision}", "Ctrl-C saves and stops"),
    ]
    return [line for row in rows for line in _lay_out(*row, min(width, WIDTH))]


def _lay_out(label: str, text: str, right: str, width: int) -> list[str]:
    """Return the lines of a label, a text that is wrapped, and a part that ends at the right edge if it fits."""
    indent = " " * INDENT
    lines = textwrap.wrap(
        text,
        max(INDENT + 10, width),
        initial_indent=f"{label:<{INDENT - 1}} ",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    if right and len(lines[-1]) + 3 + len(right) <= width:
        lines[-1] += right.rjust(width - len(lines[-1]))
    elif right:
        lines.append(f"{indent}{right}" if INDENT + len(right) <= width else right)
    return lines


class EpochTable:
    """Rows of epochs in columns that fit the width; a split that is not in the run has no columns."""

    def __init__(self, info: RunInfo, width: int) -> None:
        self.epochs = info.epochs
        self.first = max(6, 2 * len(str(info.epochs)) + 2)
        scores = [f"{split}/{metric}" for split in info.splits for metric in ("loss", "accuracy")]
        names = [*scores, *(["lr"] if width >= WIDE else []), "rate", "left"]
        for name in LEFT_OUT_FIRST:
            if self.first + sum(len(self._head(other, names)) for other in names) <= width:
                break
            names = [other for other in names if other != name]
        self.names = names
        self.widths = {name: len(self._head(name, names)) for name in names}

    @property
    def header(self) -> str:
        """Return the line above the rows."""
        return "epoch".rjust(self.first) + "".join(self._head(name, self.names) for name in self.names)

    def label(self, epoch: int) -> str:
        """Return the first cell of a row."""
        return f"{epoch}/{self.epochs}".rjust(self.first)

    def row(self, epoch: int, scalars: Scalars, seconds_left: float | None) -> str:
        """Return the line of an epoch; what was not measured is blank."""
        cells = {name: _format_score(name, scalars[name]) for name in self.names if name in scalars}
        if "lr" in scalars:
            cells["lr"] = f"{scalars['lr']:.3g}"
        cells["rate"] = f"{scalars['timing/images_per_second']:,.0f}"
        cells["left"] = "" if seconds_left is None else format_clock(seconds_left)
        line = self.label(epoch) + "".join(cells.get(name, "").rjust(self.widths[name]) for name in self.names)
        return line.rstrip()

    @staticmethod
    def _head(name: str, names: Sequence[str]) -> str:
        """Return the head of a column, as wide as its cells."""
        split, _, metric = name.partition("/")
        if metric == "loss":
            return f"{split} loss".rjust(12)
        if metric == "accuracy":
            return "acc".rjust(8) if f"{split}/loss" in names else f"{split} acc".rjust(11)
        return {"lr": "lr".rjust(10), "rate": "images/s".rjust(12), "left": "left".rjust(9)}[name]


def _format_score(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if name.endswith("accuracy") else f"{value:.4f}"
