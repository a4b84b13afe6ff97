"""resnet-train: start or resume a run."""

from __future__ import annotations

import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnet_train.cli import choices
from resnet_train.cli.app import (
    Debug,
    Version,
    hand_back_interrupts,
    log_to_stderr,
    new_app,
    print_result,
    run_app,
    stdout_encoding,
)
from resnet_train.cli.completion import complete
from resnet_train.cli.options import add_plugin_options, parse_seeds, with_config_options
from resnet_train.config import make_config, to_plain
from resnet_train.jobs.given_settings import (
    expand_path,
    expand_paths,
    gather_settings,
    read_recipe,
    with_environment,
)
from resnet_train.recipes import to_yaml
from resnet_train.runtime.ranks import rank
from resnet_train.runtime.terminal import is_terminal, paint, text_width
from resnet_train.text import escape

if TYPE_CHECKING:
    from resnet_train.jobs.bench import DryRunResult
    from resnet_train.records import RunResult

EXAMPLES = """\
resnet-train --config quickstart                   seconds, no download
resnet-train --config resnet20-fast                CIFAR-10 on a CPU
resnet-train --arch resnet18 --epochs 200          CIFAR-10 on a GPU
resnet-train --dataset folder --data-dir pictures  your own images"""

app = new_app()


def train(
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
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="auto|PATH",
            help="Resume the newest run with these settings, or start one (auto); or resume the run at PATH.",
            autocompletion=complete(lambda incomplete: {"auto": "", **choices.runs(incomplete)}),
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N|LIST",
            help="Train the seeds 0 to N-1, or a list such as 0,1,7, one after the other, and print their mean and "
            "standard deviation; the same command resumes them.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Run a few steps and estimate time and memory.")] = False,
    profile: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Write a trace of N steps to trace.json and list the most expensive operations."
        ),
    ] = 0,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print all settings as YAML and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Train a ResNet.

    Flags override --config, which overrides the defaults; --no-… turns a switch off.

    Everything a run writes is in runs/<name>/.
    """
    # Check the flags before torch is imported.
    started = time.monotonic()
    given = gather_settings(config, settings)
    _check_combination(given, resume, seeds, profile, dry_run or print_config)
    by_path = resume is not None and resume != "auto"  # the settings are those of the run at this path
    if by_path:
        resume = expand_path(str(resume), "resume")
    given = expand_paths(given if by_path else with_environment(given))
    group = parse_seeds(seeds, settings) if seeds is not None else []
    resolved = make_config({} if by_path else given)

    log_to_stderr()
    from resnet_train.build import check_config  # torch takes 2 s to import
    from resnet_train.cli.seeds import train_group
    from resnet_train.jobs import bench, train
    from resnet_train.runs.naming import default_name
    from resnet_train.runs.weights import resolve_weights

    hand_back_interrupts()
    if not by_path:
        resolved = resolve_weights(resolved, given)
        check_config(resolved)
    if print_config:
        print(to_yaml(to_plain(resolved), stdout_encoding()), end="")
    elif dry_run:
        print_result(bench.dry_run(resolved), _describe_estimate, as_json)
    else:
        recipe = read_recipe(config)
        if group:
            train_group(resolved, group, given, partial(default_name, recipe=recipe), started, as_json)
            return
        result = train.train(resolved, given, resume, default_name(resolved, recipe), profile, started)
        if rank() == 0:
            _print_run(result, resolved.tensorboard, as_json)


def _check_combination(
    given: dict[str, Any], resume: str | None, seeds: str | None, profile: int, is_no_run: bool
) -> None:
    """Raise a ValueError for flags that exclude each other; `is_no_run` is --dry-run or --print-config."""
    if profile and is_no_run:
        raise ValueError("--profile cannot be combined with --dry-run or --print-config")
    if resume is not None and is_no_run:
        raise ValueError("--resume cannot be combined with --dry-run or --print-config")
    if seeds is not None and (is_no_run or profile):
        raise ValueError("--seeds cannot be combined with --dry-run, --print-config or --profile")
    if resume in (None, "auto"):
        return
    if moved := {"name", "output_dir"} & given.keys():
        raise ValueError(f"--{sorted(moved)[0].replace('_', '-')} cannot be combined with --resume PATH")
    if seeds is not None:
        raise ValueError("--seeds cannot be combined with --resume PATH; it resumes all runs with these settings")


def _print_run(result: RunResult, has_tensorboard: bool, as_json: bool) -> None:
    """Print the result of a run, and what to do next if somebody watches."""
    is_watched = is_terminal(sys.stderr) and not as_json
    if is_watched:
        print(file=sys.stderr)
    print_result(result, _describe_result, as_json)
    if is_watched:
        print(_describe_next_steps(result, has_tensorboard), file=sys.stderr)


def _describe_estimate(estimate: DryRunResult) -> str:
    """Format the result of a dry run."""
    from resnet_train.runtime.duration import format_duration

    memory = estimate.peak_memory_bytes
    return "\n".join(
        [
            f"{estimate.arch} ({estimate.params:,} parameters) on {estimate.title}, {estimate.device}",
            f"training    {estimate.images_per_second:,.0f} images/s ({estimate.step_seconds * 1000:.0f} ms a step)",
            f"evaluation  {estimate.eval_images_per_second:,.0f} images/s",
            f"whole run   about {format_duration(estimate.total_seconds)}",
            f"memory      {memory / 2**20:,.0f} MiB at its peak" if memory else "memory      not known here",
            f"checkpoint  {estimate.checkpoint_bytes / 2**20:,.1f} MiB, saved and read back",
        ]
    )


def _describe_result(result: RunResult) -> str:
    """Format a result; its headline is the final epoch, because the best one was selected by its accuracy."""
    from resnet_train.evaluation.metrics import confidence_interval
    from resnet_train.runtime.duration import format_duration

    # The final accuracy, with the interval that its number of images allows.
    split = "test" if "test" in result.final.scores else "val"
    accuracy, n = result.final.scores[split]["accuracy"], result.num_images
    interval = ""
    if n is not None:
        low, high = confidence_interval(round(accuracy * n), n)
        interval = f"(95 % interval {100 * low:.2f} to {100 * high:.2f}, n {n:,})"

    # The best epoch, with what selected it.
    chosen = "(selected on the test images: do not report it)"
    if result.best_split == "val":
        chosen = "(on the validation images, which selected it)"
    if result.best_test_accuracy is not None:
        chosen = f"(validation, which selected it; test {_percent(result.best_test_accuracy)})"
    took = "" if result.seconds is None else f"took {format_duration(result.seconds)}"
    rows = [
        (f"final {split} accuracy", _percent(accuracy), interval),
        (f"best epoch {result.best_epoch}", _percent(result.best_accuracy), chosen),
        (took, result.folder, ""),
    ]

    # In columns; the notes go below the numbers if the terminal is narrow.
    indent = len(f"final {split} accuracy  ")
    lines = []
    for label, value, note in rows:
        line = f"{label:<{indent}}{value}"
        fits = len(line) + 3 + len(note) <= text_width(sys.stdout)
        lines += [f"{line}   {note}".rstrip()] if fits or not note else [line, f"  {note}"]
    return "\n".join([paint(lines[0], "result", sys.stdout), *lines[1:]])


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _describe_next_steps(result: RunResult, tensorboard: bool) -> str:
    """Return the commands that show more of a run."""
    folder = Path(escape(result.folder))
    steps = [(f"resnet-eval  {shlex.quote(str(folder))}", "accuracy of every class")]
    if tensorboard:
        steps.append((f"tensorboard --logdir {shlex.quote(str(folder.parent))}", "http://localhost:6006"))
    width = max(len(command) for command, _ in steps)
    lines = [f"  {command:<{width}}   {what}" for command, what in steps]
    if max(map(len, lines)) > text_width(sys.stderr):
        lines = [f"  {command}" for command, _ in steps]
    return "\n".join(lines)


app.command(examples=EXAMPLES)(with_config_options(train))


def main() -> None:
    """Run the console script."""
    run_app(app, "resnet-train", partial(add_plugin_options, app, train, EXAMPLES))


if __name__ == "__main__":
    main()
