"""resnet-audit: find duplicates, leaks, likely label errors and odd pictures in a data set."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_train.cli import choices
from resnet_train.cli.app import (
    Debug,
    Device,
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
from resnet_train.config import TrainConfig, make_config, with_length
from resnet_train.jobs.given_settings import expand_path, gather_settings
from resnet_train.text import counted

RECIPE, FOLDS, EPOCHS = "resnet20-fast", 3, 6  # measured, see docs/audit.md

EXAMPLES = """\
resnet-audit pictures/                   a folder of pictures
resnet-audit cifar10                     a data set that is downloaded
resnet-audit pictures/ --folds 0         only duplicates and odd pictures
resnet-audit pictures/ --output report/  where the page goes"""

app = new_app()


@app.command(examples=EXAMPLES)
def audit(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATASET|DIR",
            help="cifar10, cifar100 or digits, or a folder of pictures.",
            autocompletion=complete(lambda _: choices.datasets()),
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="The data set, instead of DATASET|DIR.", autocompletion=complete(lambda _: choices.datasets())
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Directory of the data set's files; if not given, data.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the results; if not given, audits/ and the name of the data."),
    ] = None,
    folds: Annotated[
        int,
        typer.Option(
            min=0, max=100, help="Training runs that check the labels, each without 1/N of the images; 0: none."
        ),
    ] = FOLDS,
    config: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Recipe of these training runs.",
            autocompletion=complete(lambda _: choices.configs()),
        ),
    ] = RECIPE,
    epochs: Annotated[
        int, typer.Option(min=1, help="Epochs of each run; the recipe's schedule is scaled to them.")
    ] = EPOCHS,
    image_size: Annotated[
        int | None, typer.Option(min=8, max=1024, help="Side length of the images in pixels; if not given, 32.")
    ] = None,
    device: Device = "auto",
    threads: Threads = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    plugin: Plugins = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Find duplicates, leaks between splits, likely label errors, and pictures that are odd or can't be read.

    Writes a page and tables, and changes nothing. After Ctrl-C, the same command continues.
    """
    name, folder = _find_source(data, dataset, data_dir)
    given = {"image_size": image_size, "device": device, "threads": threads}
    settings = gather_training(config, epochs, {name: value for name, value in given.items() if value is not None})
    if folds == 1:
        raise ValueError("folds (=1) must be 0, which checks no labels, or at least 2")
    log_to_stderr()
    from resnet_train.jobs.audit import AuditOptions, default_output  # torch takes 2 s to import
    from resnet_train.jobs.audit import audit as run_audit

    hand_back_interrupts()
    options = AuditOptions(
        dataset=name,
        data_dir=folder,
        output=default_output(name, folder) if output is None else Path(expand_path(str(output), "output")),
        config=settings,
        folds=folds,
        command=_describe_command(
            name, folder, {"output": output, "folds": folds, "config": config, "epochs": epochs, **given}
        ),
    )
    print_result(run_audit(options), _describe, as_json)


def _find_source(data: str | None, dataset: str | None, data_dir: Path | None) -> tuple[str, Path]:
    """Return the name of the data set and the directory of its files.

    Raises:
        ValueError: none is named, or two are.
    """
    from resnet_train.data.dataset import DATASETS  # takes 0.2 s to import

    if (data is None) == (dataset is None):
        problem = "no data set is named" if data is None else f"{data!r} and --dataset {dataset} are both named"
        raise ValueError(f"{problem}: give the folder of your pictures, or one of {', '.join(DATASETS.names())}")
    place = Path(expand_path(str(data_dir), "data_dir")) if data_dir is not None else TrainConfig().data_dir
    if dataset is not None or data in DATASETS:
        return str(dataset or data), place
    folder = Path(expand_path(str(data), "data"))
    if not folder.is_dir():
        raise ValueError(f"{data!r} is neither a data set ({', '.join(DATASETS.names())}) nor a folder")
    if data_dir is not None:
        raise ValueError(f"data_dir (={data_dir}) has no effect: {data} is the folder of the pictures")
    return "folder", folder


def gather_training(recipe: str, epochs: int, given: dict[str, Any]) -> TrainConfig:
    """Return the settings of the training runs: a recipe with its epochs replaced, and its image size if one is given.

    Progressive sizes are shares of the image size.

    Raises:
        ValueError: the recipe is wrong, or its length is in minutes.
    """
    settings = gather_settings(recipe, {})
    if "minutes" in settings:
        raise ValueError(f"minutes (={settings['minutes']}) in {recipe}: the training runs need a number of epochs")
    before = make_config(settings)
    if before.progressive_sizes:
        scale = given.get("image_size", before.image_size) / before.image_size
        stages = (f"{max(4, round(size * scale))}:{share}" for size, share in before.progressive_sizes)
        settings["progressive_sizes"] = ",".join(stages)
    return with_length(make_config({**settings, **given}, recipe), epochs)


def _describe_command(dataset: str, data_dir: Path, options: dict[str, Any]) -> str:
    """Return the command that makes this audit; options with their defaults are left out."""
    words = ["resnet-audit", str(data_dir)] if dataset == "folder" else ["resnet-audit", dataset]
    if dataset != "folder" and data_dir != TrainConfig().data_dir:
        words += ["--data-dir", str(data_dir)]
    defaults = {"config": RECIPE, "folds": FOLDS, "epochs": EPOCHS, "device": "auto", "threads": 0}
    for name, value in options.items():
        if value is not None and value != defaults.get(name):
            words += ["--" + name.replace("_", "-"), str(value)]
    return shlex.join(words)


def _describe(result: Any) -> str:
    """Format a result in lines of at most 79 columns, as far as names allow it."""
    counts = ", ".join(f"{part.n:,} {part.split}" for part in result.splits)
    duplicates, problems = result.duplicates, result.num_problems
    leaks = " and ".join(counted(n, f"{split} image") for split, n in duplicates.num_leaked.items())
    kinds = ("size", "shape", "mode", "blank")
    odd = ", ".join(f"{problems[kind]:,} by {kind}" for kind in kinds if kind in problems)
    rows = [
        ("data", f"{result.title}: {counts} images of {counted(len(result.classes), 'class')}"),
        ("unreadable", counted(problems.get("unreadable", 0), "file")),
        ("odd", odd or "0 pictures"),
        ("equal", f"{counted(duplicates.num_equal, 'image')} equal to another one"),
        ("near", f"{counted(duplicates.num_near_pairs, 'pair')} of nearly equal images"),
        *([("leaks", f"{leaks} resembling a training image")] if leaks else []),
        ("conflicts", f"{counted(duplicates.num_conflicts, 'group')} of these images with different labels"),
        *_describe_labels(result),
        ("imbalance", f"{result.imbalance:.3g}, the largest class over the smallest"),
        ("page", f"{result.folder}/audit.html"),
        ("tables", "labels.csv, duplicates.csv, pictures.csv"),
    ]
    return "\n".join(f"{label:<12}{text}" for label, text in rows)


def _describe_labels(result: Any) -> list[tuple[str, str]]:
    labels = result.labels
    if labels is None:
        return [("labels", f"not checked: {result.no_labels}")]
    return [
        (
            "labels" * (number == 0),
            f"{n:,} of {labels.num_checked[split]:,} {split} labels are probably wrong{accuracy}",
        )
        for number, (split, n) in enumerate(labels.num_errors.items())
        for accuracy in ["" if labels.accuracy[split] is None else f" (accuracy {labels.accuracy[split]:.2%})"]
    ]


def main() -> None:
    """Run the console script."""
    run_app(app, "resnet-audit")


if __name__ == "__main__":
    main()
