"""resnet-export: write a trained network to a file for other programs, and check it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_train.cli import choices
from resnet_train.cli.app import (
    Arch,
    Debug,
    Normalize,
    Plugins,
    Threads,
    Version,
    hand_back_interrupts,
    log_to_stderr,
    new_app,
    print_result,
    run_app,
)
from resnet_train.cli.completion import complete
from resnet_train.jobs.given_settings import expand_optional, expand_path

FORMAT_NAMES = ("onnx", "safetensors", "pt", "html", "hub")  # repeated here, because --help imports no torch

EXAMPLES = """\
resnet-export runs/NAME -f onnx                for ONNX Runtime and others
resnet-export runs/NAME -f safetensors --half  weights only, half the size
resnet-export runs/NAME -f hub --license mit   a folder with a model card
resnet-export runs/NAME --check FILE           whether FILE agrees"""

app = new_app()


@app.command(examples=EXAMPLES)
def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="A .pt file or a run folder.", autocompletion=complete(choices.checkpoints)
        ),
    ],
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            metavar="NAME",
            help=f"Kind of file: {', '.join(FORMAT_NAMES)}; see docs/export.md.",
            autocompletion=complete(lambda _: dict.fromkeys(FORMAT_NAMES, "")),
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="File to write; if not given, named after CHECKPOINT."),
    ] = None,
    check_file: Annotated[
        Path | None,
        typer.Option("--check", metavar="FILE", help="Write nothing; check a file that was exported from CHECKPOINT."),
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Store weights as float16: half the size; a few predictions may change.")
    ] = False,
    license_name: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="License in a model card: mit, apache-2.0 and so on.")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="USER/NAME", help="Upload the folder to the Hugging Face Hub.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    best: Annotated[
        bool, typer.Option("--best", help="For a run folder, export the model chosen on the validation split.")
    ] = False,
    images: Annotated[int, typer.Option(min=1, help="Number of images to check the file on.")] = 1000,
    dataset: Annotated[
        str | None, typer.Option(help="Data set of these images; if not given, the one used in training.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Directory of its data; if not given, the one used in training. Without data, images are random."
        ),
    ] = None,
    threads: Threads = 0,
    arch: Arch = None,
    normalize: Normalize = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    plugin: Plugins = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Export a network to a file for other programs, and check that the file computes the same.

    The check exits with 1 if the file is damaged or computes something else.
    """
    if format_name is None and check_file is None:
        raise ValueError(f"give --format ({', '.join(FORMAT_NAMES)}), or --check with a file")
    possible = {"half": half, "license": license_name, "push": push}
    options: dict[str, Any] = {name: value for name, value in possible.items() if value}
    if check_file is not None:
        for name, value in {**possible, "force": force, "output": output}.items():
            if value:
                raise ValueError(f"--check writes nothing; leave out --{name}")
    checkpoint = Path(expand_path(str(checkpoint), "checkpoint"))
    output, data_dir = expand_optional(output, "output"), expand_optional(data_dir, "data_dir")
    check_file = expand_optional(check_file, "check")
    log_to_stderr()
    from resnet_train.jobs import export as job  # torch takes 2 s to import

    hand_back_interrupts()
    common: dict[str, Any] = {
        "best": best, "num_images": images, "dataset": dataset, "data_dir": data_dir, "threads": threads,
        "arch": arch, "normalize": normalize,
    }  # fmt: skip
    if check_file is not None:
        result = job.check(checkpoint, check_file, format=format_name, **common)
    else:
        assert format_name is not None
        result = job.export(checkpoint, output, format=format_name, force=force, **common, **options)
    print_result(result, _describe, as_json)


def _describe(result: Any) -> str:
    lines = [
        f"file        {result.path} ({result.format}, {_size(result.num_bytes)})",
        f"network     {result.arch} of {result.checkpoint}",
        *([] if result.pushed is None else [f"pushed      {result.pushed}"]),
    ]
    if (agreement := result.agreement) is None:
        return "\n".join([*lines, "checked     no: this format cannot be checked here"])
    lines += [
        f"checked     on {agreement.num_images:,} {result.images}",
        f"top-1       equal on {agreement.num_equal:,} of {agreement.num_images:,}",
    ]
    if agreement.num_equal < agreement.num_images:
        lines.append(
            f"            on the others the logits of both classes are at most {agreement.largest_gap:.2g} apart"
        )
    return "\n".join([*lines, f"logits      {_difference(agreement)}"])


def _difference(agreement: Any) -> str:
    if agreement.largest_difference == 0:
        return "equal in every bit"
    return f"at most {agreement.largest_difference:.2g} apart; the largest is {agreement.largest_logit:.3g}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"


def main() -> None:
    """Run the console script."""
    run_app(app, "resnet-export")


if __name__ == "__main__":
    main()
