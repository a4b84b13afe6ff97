"""resnet-eval: evaluate a checkpoint, which stores its architecture, normalization and data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_train.cli import choices
from resnet_train.cli.app import (
    Arch,
    Debug,
    Device,
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
from resnet_train.runtime.duration import format_training_length
from resnet_train.text import counted

EXAMPLES = """\
resnet-eval runs/NAME                   the final model of a run
resnet-eval runs/NAME --report report/  a page with charts and mistakes
resnet-eval runs/*-seed*                several networks, averaged
resnet-eval model.pt --json             for a script"""

app = new_app()


@app.command(examples=EXAMPLES)
def evaluate(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .pt file or a run folder; the probabilities of several are averaged.",
            autocompletion=complete(choices.checkpoints),
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Another data set with the same classes.", autocompletion=complete(lambda _: choices.datasets())
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Directory of its data; if not given, the one used in training.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="[test|val|train]",
            help="Split; if not given, test, or val if there is no test.",
            autocompletion=complete(lambda _: dict.fromkeys(("test", "val", "train"), "")),
        ),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="For a run folder, evaluate the model chosen on the validation split.")
    ] = False,
    tta: Annotated[
        str | None,
        typer.Option(
            metavar="[flip|flip-shift]",
            help="Average the probabilities of mirrored, or mirrored and shifted images.",
            autocompletion=complete(lambda _: dict.fromkeys(("flip", "flip-shift"), "")),
        ),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write one row for each image: its most likely classes.")
    ] = None,
    wrong: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Copy the wrong images to DIR/<label>/<predicted>/.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a page with charts and mistakes to DIR/report.html, and report.json."),
    ] = None,
    unknown: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET|DIR",
            help="Also test whether images of none of the classes are noticed: digits, or your pictures.",
        ),
    ] = None,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Also evaluate on images with noise, blur and so on, generated here.")
    ] = False,
    cifar10_c: Annotated[
        Path | None, typer.Option("--cifar10-c", metavar="DIR", help="Also evaluate on your files of CIFAR-10-C.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images per batch.")] = 500,
    device: Device = "auto",
    threads: Threads = 0,
    arch: Arch = None,
    normalize: Normalize = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, accuracies from 0 to 1.")] = False,
    plugin: Plugins = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Evaluate checkpoints: accuracy with its 95 % interval, calibration, accuracy per class, and more on request."""
    checkpoints = [Path(expand_path(str(checkpoint), "checkpoint")) for checkpoint in checkpoints]
    data_dir, predictions = expand_optional(data_dir, "data_dir"), expand_optional(predictions, "predictions")
    wrong, cifar10_c = expand_optional(wrong, "wrong"), expand_optional(cifar10_c, "cifar10_c")
    report, unknown = expand_optional(report, "report"), unknown and expand_path(unknown, "unknown")
    log_to_stderr()
    from resnet_train.jobs.evaluate import EvaluationOptions, evaluate_checkpoint  # torch takes 2 s to import

    hand_back_interrupts()
    options = EvaluationOptions(
        dataset=dataset,
        data_dir=data_dir,
        split=split,
        best=best,
        tta=tta,
        corruptions=corruptions,
        cifar10_c=cifar10_c,
        unknown=unknown,
        predictions=predictions,
        wrong=wrong,
        batch_size=batch_size,
        device=device,
        threads=threads,
        report=report,
        arch=arch,
        normalize=normalize,
    )
    result = evaluate_checkpoint(checkpoints, options)
    print_result(result, _describe, as_json)


def _describe(result: Any) -> str:
    low, high = result.ci95
    width = max(len("class"), *(len(row.name) for row in result.per_class))
    lines = [
        *([f"checkpoint  {path}" for path in result.ensemble or [result.checkpoint]]),
        *([f"ensemble    the probabilities of {len(result.ensemble)} checkpoints, averaged"] * bool(result.ensemble)),
        f"network     {result.arch}, {format_training_length(result.epoch, result.steps_after_epoch)}",
        *([] if result.origin is None else _describe_origin(result.origin)),
        *([] if result.tta is None else [f"tta         {result.tta}: the probabilities of several views, averaged"]),
        f"images      {counted(result.n, f'{result.split} image')} of {result.title}",
        f"top-1       {result.top1:.2%}   (95 % interval {low:.2%} to {high:.2%})",
        f"top-5       {result.top5:.2%}"
        if result.top5 is not None
        else "top-5       not defined for fewer than 6 classes",
        f"balanced    {result.scores['balanced_accuracy']:.2%}   (mean accuracy of the classes)",
        f"macro-F1    {result.scores['macro_f1']:.4f}",
        f"loss        {result.loss:.4f}",
        *_describe_calibration(result.calibration),
        *([] if result.unknown is None else _describe_unknown(result.unknown)),
        *([] if result.best_top1 is None else [_describe_best(result)]),
        f"speed       {result.images_per_second:,.0f} images/s on {result.device}",
        *([] if result.report is None else [f"report      {result.report}"]),
        *(
            []
            if result.num_wrong_copied is None
            else [f"copied      {counted(result.num_wrong_copied, 'wrong image')}"]
        ),
        *(line for table in result.robustness for line in _describe_robustness(table)),
        "",
        f"{'class':<{width}}  accuracy  precision  images",
        *(
            f"{row.name:<{width}}  {_share(row.accuracy):>8}  {_share(row.precision):>9}  {row.n:>6,}"
            for row in result.per_class
        ),
    ]
    if result.chosen_on == result.split:
        lines += ["", f"This epoch was selected on the {result.split} images: do not report this accuracy."]
    return "\n".join(lines)


def _describe_origin(origin: Any) -> list[str]:
    """Return whose parameter names a foreign file had, and how images are normalized for it."""
    mean, std = (" ".join(f"{number:g}" for number in numbers) for numbers in (origin.mean, origin.std))
    return [
        f"origin      other code, with the parameter names of {origin.layout}",
        f"normalized  {origin.normalize}: mean {mean}, std {std}",
    ]


def _describe_calibration(result: Any) -> list[str]:
    """Return the calibration error before and after the temperature, and where that comes from."""
    lines = [f"ECE         {result.ece:.2%}   (95 % interval {_interval(result.ece_ci95)})"]
    if result.calibrated_ece is not None:
        fitted = " and ".join(f"{temperature:.2f}" for temperature in result.temperatures)
        lines += [
            f"calibrated  {result.calibrated_ece:.2%}   (95 % interval {_interval(result.calibrated_ci95)})",
            f"            temperature {fitted}, from {result.fitted_on}",
        ]
    return lines


def _describe_unknown(result: Any) -> list[str]:
    lines = [f"unknown     AUROC {result.auroc:.4f} against {counted(result.n, 'image')} of {result.title}"]
    if result.found is None:
        return [*lines, "            no threshold: the model was trained without validation images"]
    shares = f"{result.found:.2%} of them are called unknown, and {result.false_alarms:.2%} of the images"
    return [*lines, f"            {shares}"]


def _describe_robustness(result: Any) -> list[str]:
    """Return a table of accuracies with a row for each corruption and a column for each severity."""
    width = max(len("corruption"), *(len(row.name) for row in result.corruptions))
    columns = "".join(f"{severity:>9}" for severity in range(1, len(result.corruptions[0].accuracies) + 1))
    return [
        "",
        f"{'corruption':<{width}}{columns}     mean",
        *(
            f"{row.name:<{width}}{''.join(f'{value:>9.2%}' for value in (*row.accuracies, row.mean))}"
            for row in result.corruptions
        ),
        f"mean corruption accuracy {result.mean_accuracy:.2%}, without corruption {result.clean_accuracy:.2%} "
        f"({result.source})",
    ]


def _interval(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.2%} to {bounds[1]:.2%}"


def _describe_best(result: Any) -> str:
    return f"best epoch  {result.best_epoch}, top-1 {result.best_top1:.2%} (selected on the validation images)"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def main() -> None:
    """Run the console script."""
    run_app(app, "resnet-eval")


if __name__ == "__main__":
    main()
