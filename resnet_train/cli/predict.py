"""resnet-predict: classify pictures, with calibrated probabilities."""

from __future__ import annotations

import csv
import io
import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_train.cli import choices
from resnet_train.cli.app import (
    DONE,
    FAILED,
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
    run_app,
    stdout_encoding,
    to_json,
)
from resnet_train.cli.completion import complete
from resnet_train.jobs.given_settings import expand_optional, expand_path
from resnet_train.runtime.terminal import fit
from resnet_train.text import escape
from resnet_train.weights import SHIPPED

log = logging.getLogger("resnet_train.cli.predict")  # also if this module is run as a script

BAR_FROM = 1000  # pictures
IMAGE_WIDTH, CLASS_WIDTH, LINE_WIDTH = 28, 14, 79

EXAMPLES = """\
resnet-predict cat.jpg                              the built-in network
resnet-predict runs/NAME pictures/ --csv > all.csv  a folder, as a table
resnet-predict runs/NAME cat.jpg --explain seen/    with a heat map
find . -name '*.jpg' | resnet-predict runs/NAME -   names from a pipe"""

app = new_app()


@app.command(examples=EXAMPLES)
def predict(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[CHECKPOINT] IMAGE|DIR|-",
            help="A .pt file or a run folder, or nothing for the built-in network; then pictures of any size, folders "
            "of them, or - for a picture or file names, one per line, on stdin.",
            autocompletion=complete(choices.checkpoints),
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="Number of classes for each picture.")] = 3,
    best: Annotated[
        bool, typer.Option("--best", help="For a run folder, use the model chosen on the validation split.")
    ] = False,
    explain: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write each picture with a heat map of what supports its class."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Pictures per batch.")] = 100,
    device: Device = "auto",
    threads: Threads = 0,
    arch: Arch = None,
    normalize: Normalize = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, probabilities from 0 to 1.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, one row for each picture.")] = False,
    plugin: Plugins = None,
    debug: Debug = False,
    version: Version = False,
) -> int:
    """Classify pictures: the most likely classes, and whether a picture is unlike the training images."""
    if as_json and as_csv:
        raise ValueError("--json and --csv cannot be combined; choose one")
    explain = expand_optional(explain, "explain")
    log_to_stderr()
    from tqdm import tqdm

    from resnet_train.jobs.image_files import empty_folder
    from resnet_train.jobs.predict import Predictor, Unreadable, open_sources  # torch takes 2 s to import

    hand_back_interrupts()
    checkpoint, images = _split_arguments(sources, best)
    overlay_folder = nullcontext() if explain is None else empty_folder(explain)
    with open_sources(images) as (files, count), overlay_folder:
        predictor = Predictor(checkpoint, best=best, device=device, threads=threads, arch=arch, normalize=normalize)
        if not predictor.is_calibrated:
            log.warning(
                "this model was trained without validation images: its probabilities are not calibrated, and unknown "
                "pictures are not recognized"
            )
        writer: Any = Json(str(checkpoint)) if as_json else Csv(top) if as_csv else Table()
        unreadable = []
        results = predictor.predict(files, top=top, batch_size=batch_size, explain=explain)
        hides_bar = True if count is not None and count < BAR_FROM else None  # None: also if stderr is no terminal
        _echo(writer.begin())
        for result in tqdm(results, total=count, unit="image", disable=hides_bar, leave=False):
            with tqdm.external_write_mode(file=sys.stdout):
                if isinstance(result, Unreadable):
                    unreadable.append(result)
                    log.error("cannot read %s: %s", result.image, result.reason)
                else:
                    _echo(writer.row(result))
        _echo(writer.end(unreadable))
    if unreadable:
        log.error("%s of the pictures could not be read", f"{len(unreadable):,}")
    return FAILED if unreadable else DONE


def _split_arguments(sources: list[str], best: bool) -> tuple[Path, list[str]]:
    """Return the checkpoint, that of the package if the first argument names pictures, and the pictures.

    Raises:
        ValueError: there are no pictures, or `best` without a run.
    """
    from resnet_train.jobs.predict import is_picture_source

    first = expand_path(sources[0], "checkpoint")
    if not is_picture_source(first):
        if len(sources) == 1:
            raise ValueError(f"{first} is taken as a checkpoint; name pictures after it")
        return Path(first), sources[1:]
    if best:
        raise ValueError("--best needs a run folder before the pictures")
    log.info("using %s, the network that comes with the package; to use another, name it before the pictures", SHIPPED)
    return Path(SHIPPED), sources


def _echo(text: str) -> None:
    if text:
        print(text)  # echo ignores the encoding


class Table:
    """A table of at most 79 columns."""

    def __init__(self) -> None:
        self.header = f"{'image':<{IMAGE_WIDTH}}  {'class':<{CLASS_WIDTH}}  {'prob.':>7}  then\n"

    def begin(self) -> str:
        """Return nothing: a table without rows has no header."""
        return ""

    def row(self, result: Any) -> str:
        """Return the line of a picture, the first after the header; what does not fit ends with an ellipsis."""
        header, self.header = self.header, ""
        first, *others = result.top
        flag = "unknown; " if result.unknown else ""
        rest = flag + ", ".join(f"{_plain(other.name)} {other.probability:.1%}" for other in others)
        image = fit(_plain(result.image), IMAGE_WIDTH, keep_end=True)
        line = f"{image}  {fit(_plain(first.name), CLASS_WIDTH)}  {first.probability:>7.1%}  "
        return header + (line + fit(rest, LINE_WIDTH - IMAGE_WIDTH - CLASS_WIDTH - 13)).rstrip()

    def end(self, unreadable: list[Any]) -> str:
        """Return nothing."""
        return ""


class Csv:
    """One row for each picture that could be read."""

    def __init__(self, top: int) -> None:
        self.top = top

    def begin(self) -> str:
        """Return the header."""
        ranked = [f"{name}_{rank}" for rank in range(1, self.top + 1) for name in ("class", "probability")]
        return self._line(["image", "unknown", *ranked])

    def row(self, result: Any) -> str:
        """Return the row of a picture."""
        ranked = [cell for one in result.top for cell in (one.name, f"{one.probability:.6f}")]
        unknown = "" if result.unknown is None else str(result.unknown).lower()
        return self._line([result.image, unknown, *ranked, *[""] * (2 * self.top - len(ranked))])

    def end(self, unreadable: list[Any]) -> str:
        """Return nothing."""
        return ""

    def _line(self, cells: list[str]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(cells)
        return text.getvalue()


class Json:
    """One object, written as the results come, so that memory does not grow with their number."""

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint, self.count = checkpoint, 0

    def begin(self) -> str:
        """Return the start of the object."""
        return f'{{"checkpoint": {to_json(self.checkpoint)}, "predictions": ['

    def row(self, result: Any) -> str:
        """Return a prediction, after a comma if it is not the first."""
        self.count += 1
        return ("," if self.count > 1 else "") + to_json(result)

    def end(self, unreadable: list[Any]) -> str:
        """Return the end of the object, with the pictures that could not be read."""
        return f'], "unreadable": {to_json(unreadable)}}}'


def _plain(name: str) -> str:
    """Return a name as stdout can show it."""
    return escape(name, stdout_encoding())


def main() -> None:
    """Run the console script."""
    run_app(app, "resnet-predict")


if __name__ == "__main__":
    main()
