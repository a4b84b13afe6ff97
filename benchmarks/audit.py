"""Plant faults in a folder of real pictures, audit it, and count how many of them `resnet-audit` finds.

    python benchmarks/audit.py data/cifar10-jpeg planted

Links the pictures into `planted/data`, gives 5 % of the training images another class, and adds 50 near duplicates of
training images: shifted by a pixel, re-encoded, or mirrored. Audits that folder, then prints a line of JSON and
writes `planted/pairs.png` with the first pairs of near duplicates that were not planted, for inspection by eye. A
second run continues an audit that was stopped.
"""

from __future__ import annotations

import csv
import io
import json
import resource
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageOps

from resnet_train.cli.audit import EPOCHS, FOLDS, RECIPE, gather_training
from resnet_train.loggers.console import show_log

KINDS = ("shift", "encode", "flip")
DIRECTIONS = ((0, 1), (1, 0), (0, -1), (-1, 0))
QUALITY, LOW_QUALITY = 75, 50  # of the JPEGs, and of those that are re-encoded
FIRST = 52  # pairs among which the false ones are counted


def plant(source: Path, target: Path, share: float, num_copies: int, seed: int) -> dict[str, Any]:
    """Link the pictures of `source` into `target` with faults; return the images with wrong labels and the copies."""
    rng = np.random.default_rng(seed)
    files = sorted((source / "train").glob("*/*"))
    classes = sorted({path.parent.name for path in files})
    labels = np.array([classes.index(path.parent.name) for path in files])
    wrong = rng.choice(len(files), round(share * len(files)), replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, len(classes), len(wrong))) % len(classes)

    # One folder for each class; names contain the right class, so that none occurs twice.
    names = [f"train/{classes[label]}/{path.parent.name}-{path.name}" for label, path in zip(labels, files)]
    for name, path in zip(names, files):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).symlink_to(path.resolve())
    if (source / "test").is_dir():
        (target / "test").symlink_to((source / "test").resolve())

    copies = []
    for number, index in enumerate(rng.choice(len(files), num_copies, replace=False).tolist()):
        kind = KINDS[number % len(KINDS)]
        name = f"train/{classes[labels[index]]}/copy-{number:03}.jpg"
        (target / name).write_bytes(change(Image.open(files[index]), kind, DIRECTIONS[number % len(DIRECTIONS)]))
        copies.append({"image": names[index], "copy": name, "kind": kind})
    return {"wrong": [names[index] for index in wrong.tolist()], "copies": copies}


def change(picture: Image.Image, kind: str, direction: tuple[int, int]) -> bytes:
    """Return the picture as JPEG: shifted by a pixel with repeated borders, at lower quality, or mirrored."""
    if kind == "shift":
        padded = np.pad(np.asarray(picture), ((1, 1), (1, 1), (0, 0)), "edge")
        top, left = 1 + direction[0], 1 + direction[1]
        picture = Image.fromarray(padded[top : top + picture.height, left : left + picture.width])
    elif kind == "flip":
        picture = ImageOps.mirror(picture)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=LOW_QUALITY if kind == "encode" else QUALITY)
    return file.getvalue()


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measure_labels(output: Path, wrong: set[str]) -> dict[str, Any]:
    """Return how well the ranking of the training images puts those with wrong labels first."""
    from sklearn.metrics import roc_auc_score

    rows = [row for row in read_table(output / "labels.csv") if row["split"] == "train"]
    is_wrong = np.array([row["image"] in wrong for row in rows])
    is_found = np.array([row["likely_error"] == "yes" for row in rows])
    shares = {f"precision_{n}": float(is_wrong[:n].mean()) for n in (500, len(wrong))}
    return {
        "auroc": float(roc_auc_score(is_wrong, -np.arange(len(rows)))),
        **shares,
        "likely_errors": int(is_found.sum()),
        "recall": float(is_found[is_wrong].mean()),
    }


def measure_duplicates(output: Path, copies: list[dict[str, str]]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Return how many copies were found, and those of the first pairs that were not planted."""
    rows = read_table(output / "duplicates.csv")
    found = {frozenset((row["image_1"], row["image_2"])): number for number, row in enumerate(rows)}
    ranks = {copy["copy"]: found.get(frozenset((copy["image"], copy["copy"]))) for copy in copies}
    missed = [copy for copy in copies if ranks[copy["copy"]] is None]
    others = [row for number, row in enumerate(rows) if number not in set(ranks.values())]
    near = [row for row in rows if row["kind"] == "near"]
    in_first = [row for row in near[:FIRST] if row in others]
    numbers = {"copies": len(copies), "copies_found": len(copies) - len(missed), "missed": [c["kind"] for c in missed]}
    return {**numbers, "pairs": len(rows), f"others_in_first_{FIRST}": len(in_first)}, others


def draw_pairs(path: Path, data_dir: Path, rows: list[dict[str, str]], per_row: int = 13, scale: int = 2) -> None:
    """Draw pairs of pictures, one above the other."""
    side = 32 * scale
    num_lines = max(1, -(-len(rows) // per_row))
    sheet = Image.new("RGB", (per_row * (side + 6), num_lines * (2 * side + 10)), "white")
    for number, row in enumerate(rows):
        left, top = number % per_row * (side + 6), number // per_row * (2 * side + 10)
        for offset, key in ((0, "image_1"), (side, "image_2")):
            picture = Image.open(data_dir / row[key]).convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, top + offset))
    sheet.save(path)


def main(
    source: Annotated[Path, typer.Argument(help="Folder with train/<class>/* and, optionally, test/<class>/*.")],
    work: Annotated[Path, typer.Argument(help="Folder to work in.")],
    share: Annotated[float, typer.Option(help="Share of the training labels to change.")] = 0.05,
    num_copies: Annotated[int, typer.Option(help="Number of near duplicates to add.")] = 50,
    folds: Annotated[int, typer.Option(help="As for resnet-audit.")] = FOLDS,
    epochs: Annotated[int, typer.Option(help="As for resnet-audit.")] = EPOCHS,
    seed: Annotated[int, typer.Option(help="Seed of the planted faults.")] = 0,
    threads: Annotated[int, typer.Option(help="As for resnet-audit.")] = 0,
) -> None:
    """Plant faults, audit, and print what was found."""
    show_log()
    if not (work / "planted.json").exists():
        planted = plant(source, work / "data", share, num_copies, seed)
        (work / "planted.json").write_text(json.dumps(planted))
    planted = json.loads((work / "planted.json").read_text())

    from resnet_train.jobs.audit import AuditOptions, audit

    options = AuditOptions(
        dataset="folder",
        data_dir=work / "data",
        output=work / "audit",
        config=gather_training(RECIPE, epochs, {"threads": threads}),
        folds=folds,
        command="benchmarks/audit.py",
    )
    start, cpu = time.perf_counter(), cpu_seconds()
    audit(options)
    seconds = {"seconds": round(time.perf_counter() - start), "cpu_seconds": round(cpu_seconds() - cpu)}
    duplicates, others = measure_duplicates(work / "audit", planted["copies"])
    draw_pairs(work / "pairs.png", work / "data", others[:FIRST])
    print(json.dumps({**seconds, **measure_labels(work / "audit", set(planted["wrong"])), **duplicates}))


def cpu_seconds() -> float:
    """Return the processor time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    typer.run(main)
