"""The files of an audit: tables of all findings, and a page with the most important ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from resnet_train.evaluation.duplicates import NearDuplicates
from resnet_train.jobs.audit.images import AuditImages
from resnet_train.jobs.audit.labels import LabelRanking
from resnet_train.jobs.audit.out_of_fold import FOLDS_FOLDER
from resnet_train.jobs.audit.result import AuditResult, Problem
from resnet_train.report.audit_page import AuditPictures, render_audit
from resnet_train.runtime.files import created_folder, explain_write_errors, open_regular, write_text
from resnet_train.runtime.plain import to_plain_values

PAGE, DATA = "audit.html", "audit.json"
LABELS, DUPLICATES, PROBLEMS = "labels.csv", "duplicates.csv", "pictures.csv"
OWN_FILES = {PAGE, DATA, LABELS, DUPLICATES, PROBLEMS, FOLDS_FOLDER}
ROW_BYTES = 200


@contextmanager
def audit_folder(folder: Path) -> Iterator[None]:
    """Create the folder of an audit, or accept one that holds nothing but an older audit; see `created_folder`.

    Raises:
        ValueError: it holds something else, or can't be created.
    """
    with created_folder(folder) as names:
        if others := [name for name in names if name not in OWN_FILES]:
            raise ValueError(f"{folder} holds {others[0]}, which is not part of an audit; choose another --output")
        yield


def write_problems(folder: Path, problems: Iterable[Problem]) -> None:
    """Write one row for each file that can't be read and each odd picture."""
    rows = ([one.split, one.image, one.kind, one.detail] for one in problems)
    _write_table(folder / PROBLEMS, ["split", "image", "problem", "detail"], rows)


def write_duplicates(folder: Path, images: AuditImages, equal: Sequence[np.ndarray], near: NearDuplicates) -> None:
    """Write one row for each pair: equal images with the first of their group, then near duplicates by similarity."""
    header = ["kind", "similarity", "mirrored", "shift_down", "shift_right", "leak", "conflict"]
    header += [f"{name}_{number}" for number in (1, 2) for name in ("split", "image", "label")]

    def row(values: Sequence[Any], pair: Sequence[int]) -> list[Any]:
        first, second = map(images.refer, pair)
        is_leak, has_conflict = first.split != second.split, first.label != second.label
        cells = [cell for one in (first, second) for cell in (one.split, one.image, one.label)]
        return [*values, _yes(is_leak), _yes(has_conflict), *cells]

    rows = [row(["equal", "1.0000", "no", 0, 0], (group[0], other)) for group in equal for other in group[1:]]
    columns = zip(near.similarity.tolist(), near.mirrored.tolist(), near.shifts.tolist(), near.pairs.tolist())
    rows += [row(["near", f"{value:.4f}", _yes(flip), *shift], pair) for value, flip, shift, pair in columns]
    _write_table(folder / DUPLICATES, header, rows)


def write_labels(folder: Path, images: AuditImages, ranking: LabelRanking) -> None:
    """Write one row for each image whose label was checked, most doubtful first."""
    columns = zip(*(values.tolist() for values in vars(ranking).values()))
    rows = []
    for number, suggested, confidence, own, is_error in columns:
        one = images.refer(number)
        shown = [images.classes[suggested], f"{confidence:.6f}", f"{own:.6f}", _yes(is_error)]
        rows.append([one.split, one.image, one.label, *shown])
    header = ["split", "image", "label", "suggested", "confidence", "self_confidence", "likely_error"]
    _write_table(folder / LABELS, header, rows)


def write_page(folder: Path, result: AuditResult, pictures: AuditPictures) -> None:
    """Write audit.json and audit.html."""
    plain = to_plain_values(result)
    write_text(folder / DATA, json.dumps(plain, allow_nan=False, indent=1) + "\n")
    write_text(folder / PAGE, render_audit(plain, pictures))


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file in UTF-8; file names that are not valid UTF-8 keep their bytes."""
    rows = list(rows)
    with (
        explain_write_errors(path, ROW_BYTES * len(rows)),
        open_regular(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
