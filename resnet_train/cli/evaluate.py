"""resnet-eval: evaluate a checkpoint, which stores its architecture, normalization and data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_train.cli.app import Debug, Version, hand_back_interrupts, log_to_stderr, new_app, print_result, run_app
from resnet_train.cli.options import expand_path

app = new_app()


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A .pt file or a run folder.")],
    dataset: Annotated[str | None, typer.Option(help="Another data set with the same classes.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Directory of its data; if not given, that of the training.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="test|val|train", help="Split; if not given, test, or val if there is no test."),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Of a run folder, evaluate the model chosen on the validation split.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images per batch.")] = 500,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Number of CPU threads; 0 is torch's default.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, accuracies from 0 to 1.")] = False,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Evaluate a checkpoint: top-1 with its 95 % interval, top-5, loss, and accuracy per class."""
    checkpoint = Path(expand_path(str(checkpoint), "checkpoint"))
    if data_dir is not None:
        data_dir = Path(expand_path(str(data_dir), "data_dir"))
    log_to_stderr()
    from resnet_train.jobs.evaluate import evaluate_checkpoint  # torch takes 2 s to import

    hand_back_interrupts()
    result = evaluate_checkpoint(
        checkpoint,
        dataset=dataset,
        data_dir=data_dir,
        split=split,
        best=best,
        batch_size=batch_size,
        device=device,
        threads=threads,
    )
    print_result(result, _describe, as_json)


def _describe(result: Any) -> str:
    low, high = result.ci95
    width = max(len("class"), *(len(row.name) for row in result.per_class))
    lines = [
        f"checkpoint  {result.checkpoint}",
        f"network     {result.arch}, {_trained(result.epoch, result.steps_after_epoch)}",
        f"images      {result.n:,} {result.split} images of {result.title}",
        f"top-1       {result.top1:.2%}   (95 % interval {low:.2%} to {high:.2%})",
        f"top-5       {result.top5:.2%}"
        if result.top5 is not None
        else "top-5       not defined for fewer than 6 classes",
        f"balanced    {result.scores['balanced_accuracy']:.2%}   (mean accuracy of the classes)",
        f"macro-F1    {result.scores['macro_f1']:.4f}",
        f"loss        {result.loss:.4f}",
        *([] if result.best_top1 is None else [_describe_best(result)]),
        f"speed       {result.images_per_second:,.0f} images/s on {result.device}",
        "",
        f"{'class':<{width}}  accuracy  precision  images",
        *(
            f"{row.name:<{width}}  {_share(row.accuracy):>8}  {_share(row.precision):>9}  {row.n:>6,}"
            for row in result.per_class
        ),
    ]
    if result.chosen_on == result.split:
        lines.append(f"\nThis epoch was selected on the {result.split} images: do not report this accuracy.")
    return "\n".join(lines)


def _describe_best(result: Any) -> str:
    return f"best epoch  {result.best_epoch}, top-1 {result.best_top1:.2%} (selected on the validation images)"


def _trained(epochs: int, steps: int) -> str:
    text = f"{epochs} epoch{'s' * (epochs != 1)}"
    return f"{text} and {steps} step{'s' * (steps != 1)}" if steps else text


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def main() -> None:
    """Run the console script."""
    run_app(app, "resnet-eval")


if __name__ == "__main__":
    main()
