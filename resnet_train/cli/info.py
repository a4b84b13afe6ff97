"""resnet-info: list the available choices, or describe an architecture or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from resnet_train.cli.app import Debug, Version, new_app, print_result, run_app
from resnet_train.cli.options import expand_path
from resnet_train.jobs import info as job

app = new_app()


@app.command()
def info(
    topic: Annotated[
        str,
        typer.Argument(
            metavar="TOPIC",
            help=f"One of {', '.join(job.TOPICS)}; an architecture; a checkpoint or a run folder.",
        ),
    ] = "models",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: a list for a topic, else an object.")] = False,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """List the architectures or another topic, or describe an architecture or a checkpoint."""
    if topic in job.TOPICS:
        rows = job.TOPICS[topic]()
        print_result(rows, _format_table, as_json)
    else:
        contents = asdict(job.describe(expand_path(topic, "topic")))
        contents = {**contents.pop("about", {}), **contents}  # of a checkpoint
        print_result(contents, _format_tree, as_json)


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
