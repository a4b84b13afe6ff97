"""resnet-compare: groups of runs that differ only in the seed, their differences, and how far to trust them."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from resnet_train.cli import choices
from resnet_train.cli.app import (
    Debug,
    Plugins,
    Version,
    hand_back_interrupts,
    log_to_stderr,
    new_app,
    print_result,
    run_app,
)
from resnet_train.cli.completion import complete
from resnet_train.jobs.given_settings import expand_optional, expand_path
from resnet_train.runtime.terminal import text_width

app = new_app()
log = logging.getLogger(__name__)

EXAMPLES = """
resnet-compare runs                             all runs of a folder
resnet-compare 'runs/a-seed*' 'runs/b-seed*'    b compared with a
resnet-compare runs --target 94                 time to an accuracy of 94 %
resnet-compare runs --markdown > comparison.md  a table for a README
"""


@app.command(examples=EXAMPLES)
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN…",
            help="Run folders, folders of runs, quoted patterns such as 'runs/*-seed*', or tables of resnet-eval "
            "--predictions. The first group is what the others are compared with.",
            autocompletion=complete(choices.runs),
        ),
    ],
    target: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="Report the time to reach an accuracy, or several: 94,95.")
    ] = None,
    detect: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="Say how many seeds show this difference; if not given, the measured one."),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also compare image by image, using the tables DIR/<run>.csv; missing ones are made by evaluating the "
            "runs.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw the accuracy of each run over its training time.")
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, accuracies from 0 to 1.")] = False,
    plugin: Plugins = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Compare runs: mean and spread over seeds, differences with intervals, and what so few seeds can show."""
    # Check the flags before anything is read.
    if as_json and as_markdown:
        raise ValueError("--json and --markdown cannot be combined; choose one")
    if detect is not None and not 0 < detect <= 100:
        raise ValueError(f"detect (={detect:g}) must be points between 0 and 100")
    targets = _parse_targets(target)
    paths = [expand_path(run, "run") for run in runs]
    predictions = expand_optional(predictions, "predictions")
    plot = expand_optional(plot, "plot")

    log_to_stderr()
    from resnet_train.cli.comparison_text import format_markdown, format_text
    from resnet_train.jobs import compare as job
    from resnet_train.jobs.comparison_plot import check_plot_file, write_plot

    hand_back_interrupts()
    if plot is not None:
        check_plot_file(plot)
    comparison = job.compare(paths, targets, predictions, None if detect is None else detect / 100)
    if plot is not None:
        write_plot(plot, comparison, targets)
        log.info("the curves are in %s", plot)
    width = text_width(sys.stdout)
    print_result(comparison, format_markdown if as_markdown else lambda result: format_text(result, width), as_json)


def _parse_targets(text: str | None) -> list[float]:
    """Return the shares of percentages such as `94,95`.

    Raises:
        ValueError: one is not a percentage.
    """
    targets = []
    for part in (text or "").split(",") if text is not None else []:
        try:
            percent = float(part)
        except ValueError:
            percent = 0.0
        if not 0 < percent <= 100:
            raise ValueError(f"target (={text!r}) must be percentages between 0 and 100, such as 94 or 94,95")
        targets.append(percent / 100)
    return targets


def main() -> None:
    """Run the console script."""
    run_app(app, "resnet-compare")


if __name__ == "__main__":
    main()
