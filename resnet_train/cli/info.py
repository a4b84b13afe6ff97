"""resnet-info: what there is to choose from, and what a checkpoint says of itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_train.cli.app import Debug, Version, new_app, run_app, to_json

app = new_app()


@app.command()
def info(
    topic: Annotated[
        str,
        typer.Argument(
            metavar="TOPIC",
            help="models, recipes, datasets, optimizers or schedules; an architecture; a checkpoint or a run's folder.",
        ),
    ] = "models",
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects (an object for a file).")] = False,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """List the architectures (or another topic), or show what a checkpoint holds."""
    if topic in _TOPICS:
        rows = _TOPICS[topic]()
        typer.echo(to_json(rows) if as_json else _table(rows))
    elif topic in _model_names():
        contents = _model(topic)
        typer.echo(to_json(contents) if as_json else _lines(contents))
    elif os.path.exists(topic):  # noqa: PTH110 - Path.exists raises on names that are too long
        contents = _read(Path(topic))
        typer.echo(to_json(contents) if as_json else _lines(contents))
    else:
        raise ValueError(f"{topic!r} is no file and no topic; topics: {', '.join(_TOPICS)}")


def _models() -> list[dict[str, Any]]:
    from resnet_train.models import list_models, measure_complexity

    rows = []
    for entry in list_models():
        size = measure_complexity(entry.name)
        rows.append({"name": entry.name, "family": entry.family, "params": size.params, "macs": size.macs})
    return rows


def _model_names() -> list[str]:
    from resnet_train.models import list_models

    return [entry.name for entry in list_models()]


def _model(name: str) -> dict[str, Any]:
    """One architecture, with the options that it takes."""
    from resnet_train.models import find_model, measure_complexity

    entry, size = find_model(name), measure_complexity(name)
    flags = ["--" + option.replace("_", "-") for option in entry.options]
    return {"name": name, "family": entry.family, "params": size.params, "macs": size.macs, "options": flags}


def _recipes() -> list[dict[str, Any]]:
    from resnet_train.recipes import recipe_names, recipe_text

    return [{"name": name, "about": recipe_text(name).split("\n")[0].lstrip("# ")} for name in recipe_names()]


def _datasets() -> list[dict[str, Any]]:
    from resnet_train.data.dataset import DATASETS

    return _described(DATASETS)


def _optimizers() -> list[dict[str, Any]]:
    from resnet_train.optim.optimizers import OPTIMIZERS

    return _described(OPTIMIZERS)


def _schedules() -> list[dict[str, Any]]:
    from resnet_train.optim.schedules import SCHEDULES

    return _described(SCHEDULES)


_TOPICS = {
    "models": _models,
    "recipes": _recipes,
    "datasets": _datasets,
    "optimizers": _optimizers,
    "schedules": _schedules,
}


def _described(registry: Any) -> list[dict[str, Any]]:
    """Each name with the first line of its function's docstring."""
    return [{"name": name, "about": (registry[name].__doc__ or "").split("\n")[0]} for name in registry.names()]


def _read(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint but its tensors."""
    from resnet_train.runs.checkpoint import check_parts, last_epoch, read_checkpoint
    from resnet_train.runs.folder import find_checkpoint

    path = find_checkpoint(path)
    contents = read_checkpoint(path)
    check_parts(contents, path)
    record, steps_after = last_epoch(contents)
    return {
        **contents["about"],
        "epoch": record.get("epoch", 0),
        "steps_after_epoch": steps_after,
        "chosen_on": contents.get("chosen_on"),
        "metrics": record,
        "config": contents["config"],
        "environment": contents["environment"],
    }


def _table(rows: list[dict[str, Any]]) -> str:
    """Columns as wide as their longest cell, numbers to the right."""
    cells = [[f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()] for row in rows]
    header = list(rows[0])
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]
    right = [isinstance(value, int) for value in rows[0].values()]
    lines = []
    for row in [header, *cells]:
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _lines(contents: dict[str, Any], indent: str = "") -> str:
    """Nested values as indented `name  value` lines."""
    lines = []
    for name, value in contents.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}", _lines(value, indent + "  ")]
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            lines.append(f"{indent}{name:<18} {'–' if shown is None or value == {} else shown}")
    return "\n".join(lines)


def main() -> None:
    """Console script."""
    run_app(app, "resnet-info")


if __name__ == "__main__":
    main()
