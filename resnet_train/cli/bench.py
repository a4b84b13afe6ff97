"""resnet-bench: how fast this machine trains a recipe, where the time goes, and which flags would help."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnet_train.cli import choices
from resnet_train.cli.app import Debug, Version, hand_back_interrupts, log_to_stderr, new_app, print_result, run_app
from resnet_train.cli.completion import complete
from resnet_train.cli.options import add_plugin_options, with_config_options
from resnet_train.config import make_config
from resnet_train.jobs.given_settings import gather_settings
from resnet_train.text import counted

if TYPE_CHECKING:
    from resnet_train.jobs.bench import BenchResult, ChangeResult

EXAMPLES = """\
resnet-bench                                  resnet18, default settings
resnet-bench --config resnet20-fast           a recipe
resnet-bench --arch resnet20 --rounds 9       narrower ranges
resnet-bench --config resnet18 --try-compile  whether --compile helps"""

app = new_app()


def bench(
    settings: dict[str, Any],
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "-c",
            metavar="RECIPE|PATH",
            help="A recipe's name or a YAML file.",
            autocompletion=complete(lambda _: choices.configs()),
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Timed steps of each measurement; by default 20, more on a GPU.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each times the recipe and every change to it once.")] = 5,
    try_compile: Annotated[
        bool, typer.Option("--try-compile", help="Also try --compile if there is a compiler; takes minutes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON; shares are 0–1.")] = False,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Measure how fast this machine trains a recipe, where the time goes, and which flags would help.

    Takes the options of resnet-train. The images are random: nothing is read, downloaded or written.
    """
    resolved = make_config(gather_settings(config, settings))
    log_to_stderr()
    from resnet_train.jobs import bench as job  # torch takes 2 s to import

    hand_back_interrupts()
    result = job.bench(resolved, steps, rounds, try_compile)
    print_result(result, _describe, as_json)


def _describe(result: BenchResult) -> str:
    """Format a result: a block of facts, a table of changes, and advice."""
    facts = (f"{name:<11} {text}" for name, text in _facts(result))
    return "\n".join([*facts, "", *_changes(result), "", *_advice(result)])


def _facts(result: BenchResult) -> Iterator[tuple[str, str]]:
    """Yield the names and the values of the facts."""
    from resnet_train.runtime.duration import format_duration

    machine, rate, share, run = result.environment, result.images_per_second, result.matrix_share, result.run
    yield "network", f"{result.arch}, {result.params:,} parameters"
    yield "machine", f"{machine['device_name']}, {machine['cpu']}, torch {machine['torch']}"
    side = result.image_size
    yield "batches", f"{result.batch_size} {result.data} of {side}×{side}, {result.precision}"
    yield (
        "training",
        f"{rate.median:,.0f} ({rate.min:,.0f} to {rate.max:,.0f}) images/s, "
        f"{counted(result.rounds, 'round')} of {counted(result.steps, 'step')}",
    )
    reached, possible = result.flops_per_second.median / 1e12, result.matrix_flops_per_second.median / 1e12
    shares = f"{share.median:.0%} ({share.min:.0%} to {share.max:.0%})"
    yield "arithmetic", f"{reached:.3g} TFLOP/s, {shares} of the {possible:.3g} of a matrix product"
    yield "a step", ", ".join(f"{phase} {part:.1%}" for phase, part in result.phases.items())
    yield "evaluation", f"{result.eval_images_per_second:,.0f} images/s"
    memory = result.peak_memory_bytes
    yield "memory", f"{memory / 2**20:,.0f} MiB at its peak" if memory else "not known here"
    yield "start", f"{result.start_seconds:.1f} s until the first step is done, without reading the data"
    if len(run.stages) > 1:
        stages = (f"{s.side} pixels {s.images_per_second:,.0f} ({s.share:.0%} of the steps)" for s in run.stages)
        yield "images/s at", ", ".join(stages)
    predicted = f"{counted(run.epochs, 'epoch')} of {counted(run.train_images, 'image')}, evaluations included"
    yield "whole run", f"about {format_duration(run.total_seconds)}: {predicted}"


def _changes(result: BenchResult) -> Iterator[str]:
    """Yield the lines of the table of changes."""
    flags = [*(change.flag for change in result.changes), *result.left_out]
    width = max(len("one change"), *map(len, flags))
    yield f"{'one change':<{width}}  times as fast  range over the rounds"
    for change in result.changes:
        ratio, few = change.ratio, ""
        if change.rounds < result.rounds:  # it was too slow to be repeated
            few = f", {counted(change.rounds, 'round')} only"
        yield f"{change.flag:<{width}}  {ratio.median:>13.2f}  {ratio.min:.2f} to {ratio.max:.2f}{few}"
    for flag, reason in result.left_out.items():
        yield f"{flag:<{width}}  {'–':>13}  not tried: {reason}"


def _advice(result: BenchResult) -> list[str]:
    """Return a sentence for each change whose whole range is on one side of 1."""
    if result.rounds < 2:
        return ["One round has no range, so there is no advice."]
    sentences = [
        f"{change.flag} is {change.verdict} here{f' (it {change.note})' * bool(change.note)}"
        f"{_describe_gain(change, result)}."
        for change in result.changes
        if change.verdict
    ]
    return sentences or ["No change made a difference that the rounds agree on."]


def _describe_gain(change: ChangeResult, result: BenchResult) -> str:
    """Return whether what compilation saves in this run is more than what it takes."""
    from resnet_train.runtime.duration import format_duration

    if change.compile_seconds is None or change.verdict != "faster":
        return ""
    saved, takes = change.seconds_saved(result.run), change.compile_seconds
    pays = "pays off" if saved > takes else "does not pay off"
    return f", and {pays} in this run: it saves {format_duration(saved)} and takes {format_duration(takes)} to compile"


app.command(examples=EXAMPLES)(with_config_options(bench))


def main() -> None:
    """Run the console script."""
    run_app(app, "resnet-bench", partial(add_plugin_options, app, bench, EXAMPLES))


if __name__ == "__main__":
    main()
