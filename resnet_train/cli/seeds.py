"""resnet-train --seeds: the results of a group of runs as text."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from resnet_train.cli.app import print_result
from resnet_train.config import TrainConfig
from resnet_train.jobs.seeds import SeedResults, train_seeds
from resnet_train.runtime.duration import format_duration
from resnet_train.runtime.terminal import is_terminal, paint, text_width
from resnet_train.text import escape
from resnet_train.training.trainer import NotFinite


def train_group(
    config: TrainConfig,
    seeds: Sequence[int],
    given: dict[str, Any],
    make_name: Callable[[TrainConfig], str],
    started: float,
    as_json: bool,
) -> None:
    """Train the runs and print their results.

    Raises:
        NotFinite: the numbers of a run were not finite; the results of the others are printed.
    """
    results = train_seeds(config, seeds, given, make_name, started)
    if results is None:  # only rank 0 has them
        return
    is_watched = is_terminal(sys.stderr) and not as_json
    if is_watched:
        print(file=sys.stderr)
    print_result(results, _describe, as_json)
    if is_watched:
        patterns = dict.fromkeys(escape(re.sub(r"\d+$", "*", run.folder)) for run in results.runs)
        print(f"  resnet-compare {' '.join(map(shlex.quote, patterns))}", file=sys.stderr)
    if results.not_finite:
        failed = ", ".join(map(str, results.not_finite))
        raise NotFinite(f"{len(results.not_finite)} of {len(seeds)} runs are not finite (seed {failed})")


def _describe(results: SeedResults) -> str:
    """Format a line for each run, and the mean with its spread and n."""
    rows = [
        (
            f"seed {run.seed}",
            f"{100 * run.final.scores[results.split]['accuracy']:.2f} %",
            "" if run.seconds is None else format_duration(run.seconds),
            run.folder,
        )
        for run in results.runs
    ]
    widths = [max(len(row[column]) for row in [*rows, ("mean ± sd", "", "")]) for column in range(3)]
    lines: list[str] = []
    for label, accuracy, took, folder in rows:
        line = f"{label:<{widths[0]}}  {accuracy:>{widths[1]}}  {took:<{widths[2]}}"
        fits = len(line) + 2 + len(folder) <= text_width(sys.stdout)
        lines += [f"{line}  {folder}"] if fits else [line.rstrip(), f"  {folder}"]

    # The mean is the headline.
    label, spread = ("mean", "") if results.sd is None else ("mean ± sd", f" ± {100 * results.sd:.2f}")
    summary = f"{label:<{widths[0]}}  {100 * results.mean:.2f}{spread} % final {results.split} accuracy (n={results.n})"
    return "\n".join([*lines, paint(summary, "result", sys.stdout)])
