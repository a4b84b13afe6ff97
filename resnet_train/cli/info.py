"""resnet-info: list the available choices, or describe an architecture or a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_train.cli import choices
from resnet_train.cli.app import Debug, Plugins, Version, log_to_stderr, new_app, print_result, run_app
from resnet_train.cli.completion import complete
from resnet_train.jobs import info as job
from resnet_train.jobs.given_settings import expand_path
from resnet_train.recipes import recipe_text
from resnet_train.text import counted

EXAMPLES = """\
resnet-info                     the networks
resnet-info recipes             the recipes for --config
resnet-info runs/NAME           what a run trained
resnet-info runs/NAME --verify  whether its files agree"""

app = new_app()


def _find_topics(beginning: str) -> choices.Choices:
    """Return what can be described, for completion."""
    lists = choices.architectures(), choices.recipes(), choices.datasets(), choices.optimizers(), choices.schedules()
    named = {name: about for listed in lists for name, about in listed.items()}
    topics = {**dict.fromkeys(job.TOPICS, "list"), "options": "settings", "schema": "settings", "env": "this machine"}
    return {**topics, **choices.checkpoints(beginning), **named}


class Differs(OSError):
    """The files of a run do not agree, which is a failure, not bad input."""


@app.command(examples=EXAMPLES)
def info(
    topic: Annotated[
        str,
        typer.Argument(
            metavar="TOPIC",
            help=f"One of {', '.join(job.TOPICS)}; a name from one of these lists; a checkpoint or a run folder; "
            "options or schema: all settings, as a page or as a JSON schema for editors; env: this machine, for bug "
            "reports.",
            autocompletion=complete(_find_topics),
        ),
    ] = "models",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check that the files of the run folder TOPIC agree, and retrain its last stretch, from previous.pt "
            "to last.pt, to compare every bit; writes nothing there. Exits with 1 if something differs.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: a list for a topic, else an object.")] = False,
    plugin: Plugins = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """List the architectures or another topic, describe a name or a checkpoint, or verify a run."""
    if verify:
        _verify(topic, as_json)
    elif topic in job.TOPICS:
        rows = job.TOPICS[topic]()
        print_result(rows, _format_table, as_json)
    elif topic == "options":
        from resnet_train.jobs.settings import list_settings, settings_page

        print_result(list_settings(), lambda _: settings_page(), as_json)
    elif topic == "schema":
        from resnet_train.jobs.settings import settings_schema

        names = {name: list(find()) for name, find in choices.NAMED.items()}
        print(json.dumps(settings_schema(names), indent=2))
    elif topic == "env":
        from resnet_train.jobs.machine import describe_machine  # imports torch

        print_result(describe_machine(), _format_tree, as_json)
    else:
        log_to_stderr()
        described = job.describe(expand_path(topic, "topic"))
        contents = asdict(described)
        if isinstance(described, job.CheckpointInfo):
            contents = {**contents.pop("about"), **contents}
        is_recipe = isinstance(described, job.RecipeDetails)
        print_result(contents, _format_recipe if is_recipe else _format_tree, as_json)


def _verify(topic: str, as_json: bool) -> None:
    """Print what agrees in a run, or the first thing that differs.

    Raises:
        Differs: something differs.
    """
    from resnet_train.jobs.verify import verify  # imports torch

    log_to_stderr()
    found = verify(Path(expand_path(topic, "topic")))
    if as_json or found.difference is None:
        print_result(found, _format_verification, as_json)
    if found.difference is not None:
        raise Differs(f"{topic}: {found.difference}")


def _format_verification(found: Any) -> str:
    """Format what agrees and what could not be checked."""
    replayed = f"{counted(found.num_tensors, 'tensor')} identical"
    lines = [replayed if found.num_tensors else "no difference found; the last stretch could not be retrained"]
    lines += [f"  checked: {part}" for part in found.checked]
    lines += [f"  not checked: {part}" for part in found.not_checked]
    return "\n".join(lines)


def _format_table(rows: Sequence[Any]) -> str:
    """Format dataclasses as a table whose columns fit their longest cell; numbers are right-aligned."""
    values = [asdict(row) for row in rows]
    cells = [[f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()] for row in values]
    header = list(values[0])
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]
    right = [isinstance(value, int) for value in values[0].values()]
    lines = []
    for row in [header, *cells]:
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _format_recipe(contents: dict[str, Any]) -> str:
    """Return the file of a recipe, whose head has its source, its command and its result."""
    return recipe_text(contents["name"]).rstrip()


def _format_tree(contents: dict[str, Any], indent: str = "") -> str:
    """Format nested values as indented `name  value` lines."""
    lines = []
    for name, value in contents.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}", _format_tree(value, indent + "  ")]
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            lines.append(f"{indent}{name:<18} {'–' if shown is None or value == {} else shown}")
    return "\n".join(lines)


def main() -> None:
    """Run the console script."""
    run_app(app, "resnet-info")


if __name__ == "__main__":
    main()
