"""Make the network that the package ships, with its card, from a finished run.

    python benchmarks/shipped_network.py runs/resnet20-ship --data-dir data/cifar10-jpeg

It rounds the weights to float16, writes them to resnet_train/weights/, evaluates the run and the written file on all
test images, and writes the card from the numbers.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

TITLE = "CIFAR-10 as JPEG, quality 75"  # of its data, in every output
CARD = """\
# {name}

The network that comes with the package. `resnet-predict photo.jpg` uses it, and other commands take its name instead of
a checkpoint, as in `resnet-export {name} --format html`. In Python, its path is
`resnet_train.weights.shipped_checkpoint()`.

| | |
|---|---|
| network | {arch}, {params:,} parameters, {size} × {size} pixels |
| classes | {classes} |
| data | CIFAR-10 (Krizhevsky 2009), re-encoded as JPEG at quality 75: {num_train:,} training images{held_out} |
| accuracy | **{top1:.2%}** on the {n:,} test images, 95 % interval {low:.2%} to {high:.2%} |
| before rounding | {top1_before:.2%} |
| top-5, mean F1 | {top5:.2%}, {f1:.2%} |
| calibration error | {calibration} |
| file | `{name}.pt`, {num_bytes:,} bytes, weights rounded to float16 (read as float32) |
| made with | torch {torch}, {cpu}, {date} |

The accuracy is that of the final epoch and of the file itself, after rounding. By class:

| class | accuracy | precision |
|---|---|---|
{per_class}

## How it was made

```
{train_command}
python benchmarks/shipped_network.py {run} --data-dir DIR
resnet-eval {name} --data-dir DIR     # the numbers above
```

`DIR` has the folders `train/<class>/` and `test/<class>/` with the pictures of CIFAR-10 as JPEG files at quality 75.

## Limits

- It was trained on JPEG-75. The loss of detail costs accuracy, and on the original images it may be better or worse
  (not measured); do not compare the number above with published CIFAR-10 accuracies.
- It sees the central square of a picture as {size} × {size} pixels and answers with one of ten classes, whatever the
  picture shows. {unknown}
- CIFAR-10's pictures are small photos with one object each. On other pictures it is wrong more often.

## License

The weights have the license of this project. The page of CIFAR-10 (https://www.cs.toronto.edu/~kriz/cifar.html) asks
users to cite Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images", and states no license; the
pictures were collected from the web and belong to their authors. They are not part of this package.
"""


def describe(run: Path, before: Any, after: Any, checkpoint: Any, num_bytes: int) -> dict[str, Any]:
    """Return the values of the card.

    Args:
        run: the run's folder.
        before, after: evaluations of its model and of the written file.
        checkpoint: the model.
        num_bytes: the size of the file.
    """
    from resnet_train.config import make_config
    from resnet_train.jobs.report import training_command
    from resnet_train.models import measure_complexity
    from resnet_train.weights import SHIPPED

    folders = {"data_dir": Path("DIR"), "output_dir": Path("runs")}
    about, config, trust = checkpoint.about, make_config(checkpoint.config), after.calibration
    calibration = f"{trust.ece:.2%}"
    unknown = "It cannot tell that a picture shows none of them."
    if checkpoint.calibration is not None:
        calibration += (
            f"; {trust.calibrated_ece:.2%} with the stored temperature {checkpoint.calibration.temperature:.3f}"
        )
        unknown = "`unknown` marks pictures unlike 95 % of the validation images, but many others pass as known."
    return {
        "name": SHIPPED,
        "arch": about.arch,
        "params": measure_complexity(about.arch, len(about.classes), about.image_size, **about.arch_options).params,
        "size": about.image_size,
        "classes": ", ".join(about.classes),
        "num_train": 50_000 - config.val_size,
        "held_out": f", {config.val_size:,} held out for validation" if config.val_size else "",
        "n": after.n,
        "top1": after.top1,
        "low": after.ci95[0],
        "high": after.ci95[1],
        "top1_before": before.top1,
        "top5": after.top5,
        "f1": after.scores["macro_f1"],
        "calibration": calibration,
        "num_bytes": num_bytes,
        "torch": checkpoint.environment["torch"],
        "cpu": checkpoint.environment["cpu"],
        "date": datetime.now(UTC).date().isoformat(),
        "per_class": "\n".join(f"| {one.name} | {one.accuracy:.2%} | {one.precision:.2%} |" for one in after.per_class),
        "train_command": training_command(config.model_copy(update=folders)),
        "run": f"runs/{config.name}",
        "unknown": unknown,
    }


def main(
    run: Annotated[Path, typer.Argument(help="The finished run.")],
    data_dir: Annotated[Path, typer.Option(help="Its images.")],
    folder: Annotated[Path | None, typer.Option(help="Write here instead of into the package.")] = None,
) -> None:
    """Write the network and its card."""
    from resnet_train.jobs.evaluate import EvaluationOptions, evaluate_checkpoint
    from resnet_train.jobs.export import export
    from resnet_train.runs.checkpoint import read_checkpoint, read_model, write_checkpoint
    from resnet_train.runs.folder import find_checkpoint
    from resnet_train.weights import shipped_checkpoint

    path = shipped_checkpoint() if folder is None else folder / shipped_checkpoint().name
    export(run, path, format="pt", half=True, force=True, data_dir=data_dir, num_images=100)
    contents = read_checkpoint(path)
    write_checkpoint(path, {**contents, "about": {**contents["about"], "title": TITLE}})  # not that of a folder here
    options = EvaluationOptions(data_dir=data_dir, split="test")
    before, after = (evaluate_checkpoint([one], options) for one in (run, path))
    values = describe(run, before, after, read_model(find_checkpoint(run)), path.stat().st_size)
    path.with_name("README.md").write_text(CARD.format(**values), encoding="utf-8")
    print(f"{path}: {after.top1:.2%} of {after.n:,} test images, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    typer.run(main)
