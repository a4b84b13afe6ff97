"""resnet-train: start or resume a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from resnet_train.cli.options import expand_path, expand_paths, gather_settings, with_config_options
from resnet_train.config import make_config, to_plain
from resnet_train.recipes import to_yaml

if TYPE_CHECKING:
    from resnet_train.jobs.bench import DryRunResult

app = new_app()


@app.command()
@with_config_options
def train(
    settings: dict[str, Any],
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", metavar="RECIPE|PATH", help="A recipe's name or a YAML file."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="auto|PATH",
            help="Resume the newest run with these settings, or start it (auto); or resume the run at PATH.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Run a few steps and estimate time and memory.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print all settings as YAML and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Train a ResNet.

    Flags override --config, which overrides the defaults. Everything a run writes is in runs/<name>/.
    """
    # Check the flags before torch is imported.
    given = expand_paths(gather_settings(config, settings))
    if resume is not None and (dry_run or print_config):
        raise ValueError("--resume cannot be combined with --dry-run or --print-config")
    by_path = resume is not None and resume != "auto"  # the settings are those of the run at this path
    if by_path:
        resume = expand_path(str(resume), "resume")
    if by_path and (moved := {"name", "output_dir"} & given.keys()):
        raise ValueError(f"--{sorted(moved)[0].replace('_', '-')} cannot be combined with --resume PATH")
    resolved = make_config({} if by_path else given)

    log_to_stderr()
    from resnet_train.build import check_config  # torch takes 2 s to import
    from resnet_train.jobs import bench, train
    from resnet_train.runs.naming import default_name

    hand_back_interrupts()
    if not by_path:
        check_config(resolved)
    if print_config:
        print(to_yaml(to_plain(resolved), stdout_encoding()), end="")
    elif dry_run:
        print_result(bench.dry_run(resolved), _describe_estimate, as_json)
    else:
        recipe = (Path(config).stem, make_config(gather_settings(config, {}))) if config is not None else None
        result = train.train(resolved, given, resume, default_name(resolved, recipe))
        if result is not None:  # rank 0 has the result
            print_result(result, _describe_result, as_json)


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


def _describe_result(result: Any) -> str:
    """Format a result; its headline is the final epoch, because the best one was selected by its accuracy."""
    final = result.final
    split = "test" if "test" in final.scores else "val"
    accuracy, loss = final.scores[split]["accuracy"], final.scores[split]["loss"]
    chosen = "" if result.best_test_accuracy is None else f", its test accuracy {result.best_test_accuracy:.2%}"
    return "\n".join(
        [
            f"run         {result.folder}",
            f"best epoch  {result.best_epoch}, {result.best_split} accuracy {result.best_accuracy:.2%}"
            f" (selected on the {'validation' if result.best_split == 'val' else 'test'} images){chosen}",
            f"final {split} accuracy {accuracy:.2%}, loss {loss:.4f}: {result.arch} on {result.title}, "
            f"epoch {final.epoch}, seed {result.seed}",
        ]
    )


def main() -> None:
    """Run the console script."""
    run_app(app, "resnet-train")


if __name__ == "__main__":
    main()
