"""resnet-bench: how fast this machine trains a recipe, where the time goes, and which flags would help."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from resnet_train.cli.app import Debug, Version, log_to_stderr, new_app, run_app, to_json
from resnet_train.cli.options import gather_settings, with_config_options
from resnet_train.config import make_config

app = new_app()


@app.command()
@with_config_options
def bench(
    settings: dict[str, Any],
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", metavar="RECIPE|PATH", help="A recipe's name or a YAML file."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Timed steps of each measurement; not given: 20, more on a GPU.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each times the recipe and every change to it once.")] = 5,
    try_compile: Annotated[
        bool, typer.Option("--try-compile", help="Try --compile, too, if there is a compiler; takes minutes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON; shares are 0-1.")] = False,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Measure how fast this machine trains a recipe, where the time goes, and which flags would help.

    Takes the options of resnet-train. The images are random numbers: nothing is read, downloaded or written.
    """
    resolved = make_config(gather_settings(config, settings))
    log_to_stderr()
    from resnet_train.jobs import bench as measuring  # torch takes 2 s to import

    numbers = measuring.bench(resolved, steps, rounds, try_compile)
    typer.echo(to_json(numbers) if as_json else _describe(numbers))


def _describe(numbers: dict[str, Any]) -> str:
    lines = [f"{name:<11} {text}" for name, text in _facts(numbers)]
    return "\n".join([*lines, "", *_changes(numbers)])


def _facts(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    from resnet_train.runtime.duration import format_duration

    machine, side, run = numbers["environment"], numbers["image_size"], numbers["run"]
    memory, phases = numbers["peak_memory_bytes"], numbers["phases"].items()
    reckoned = f"{run['epochs']:,} epochs of {run['train_images']:,} images"
    return [
        ("network", f"{numbers['arch']}, {numbers['params']:,} parameters"),
        ("machine", f"{machine['device_name']}, {machine['cpu']}, torch {machine['torch']}"),
        ("batches", f"{numbers['batch_size']} {numbers['data']} of {side}×{side}, {numbers['precision']}"),
        ("training", f"{_range(numbers['images_per_second'])} images/s, {_rounds(numbers)}"),
        ("arithmetic", _arithmetic(numbers)),
        ("a step", ", ".join(f"{name} {share:.1%}" for name, share in phases)),
        ("evaluation", f"{numbers['eval_images_per_second']:,.0f} images/s"),
        ("memory", f"{memory / 2**20:,.0f} MiB at its peak" if memory else "not known here"),
        ("start", f"{numbers['start_seconds']:.1f} s until the first step is done, without reading the data"),
        *_stages(run),
        ("whole run", f"about {format_duration(run['total_seconds'])}: {reckoned}, evaluations included"),
    ]


def _range(values: dict[str, float]) -> str:
    return f"{values['median']:,.0f} ({values['min']:,.0f} to {values['max']:,.0f})"


def _rounds(numbers: dict[str, Any]) -> str:
    rounds, steps = numbers["rounds"], numbers["steps"]
    return f"{rounds} round{'s' * (rounds != 1)} of {steps} step{'s' * (steps != 1)}"


def _arithmetic(numbers: dict[str, Any]) -> str:
    """Convolutions and linear layers only, so it is a lower bound."""
    reached, possible = (numbers[f"{name}flops_per_second"]["median"] for name in ("", "matrix_"))
    share = numbers["matrix_share"]
    return (
        f"{reached / 1e12:.3g} TFLOP/s, {share['median']:.0%} ({share['min']:.0%} to {share['max']:.0%}) "
        f"of the {possible / 1e12:.3g} TFLOP/s of a matrix product"
    )


def _stages(run: dict[str, Any]) -> list[tuple[str, str]]:
    """What progressive sizes do; nothing without them."""
    if len(run["stages"]) == 1:
        return []
    parts = [f"{s['side']} pixels {s['images_per_second']:,.0f} ({s['share']:.0%} of the steps)" for s in run["stages"]]
    return [("images/s at", ", ".join(parts))]


def _changes(numbers: dict[str, Any]) -> list[str]:
    """What would help here: a table, then a sentence for each change whose whole range is on one side of 1."""
    changes = numbers["changes"]
    width = max(len("one change"), *(len(change["flag"]) for change in changes))
    lines = [f"{'one change':<{width}}  times as fast  range over the rounds"]
    for change in changes:
        ratio = change["ratio"]
        lines.append(
            f"{change['flag']:<{width}}  {ratio['median']:>13.2f}  {ratio['min']:.2f} to {ratio['max']:.2f}"
            f"{_few(change['rounds'], numbers['rounds'])}"
        )
    lines += [f"{flag:<{width}}  {'–':>13}  not tried: {why}" for flag, why in numbers["left_out"].items()]
    return [*lines, "", *_advice(changes, numbers["rounds"])]


def _few(rounds: int, asked: int) -> str:
    """Says so where a change was so slow that it was given up."""
    return "" if rounds == asked else f", {rounds} round{'s' * (rounds != 1)} only"


def _advice(changes: list[dict[str, Any]], rounds: int) -> list[str]:
    from resnet_train.jobs.bench import verdict

    if rounds < 2:
        return ["One round has no range: nothing is said about what would help."]
    sentences = []
    for change in changes:
        if word := verdict(change["ratio"]):
            note = f" (it {change['note']})" if change["note"] else ""
            sentences.append(f"{change['flag']} is {word} here{note}.")
    return sentences or ["No change made a difference that the rounds agree on."]


def main() -> None:
    """Console script."""
    run_app(app, "resnet-bench")


if __name__ == "__main__":
    main()
