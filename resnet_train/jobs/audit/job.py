"""Audit a data set: files that can't be read, duplicates, leaks between splits, likely label errors, odd pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from resnet_train.build import resolve_auto
from resnet_train.config import TrainConfig
from resnet_train.data.dataset import assign_folds
from resnet_train.data.pictures import Header
from resnet_train.evaluation.duplicates import find_near, group_equal, join_groups, shrink
from resnet_train.jobs.audit.files import (
    audit_folder,
    write_duplicates,
    write_labels,
    write_page,
    write_problems,
)
from resnet_train.jobs.audit.images import AuditImages, load_audit_images
from resnet_train.jobs.audit.labels import rank_labels
from resnet_train.jobs.audit.out_of_fold import FOLDS_FOLDER, OutOfFold, predict_out_of_fold
from resnet_train.jobs.audit.problems import find_blank, find_odd, find_unreadable, read_headers
from resnet_train.jobs.audit.result import AuditResult, Problem
from resnet_train.jobs.audit.summary import Duplicates, Findings, draw_findings, summarize
from resnet_train.runtime.device import prepare_machine
from resnet_train.runtime.names import safe_names

log = logging.getLogger(__name__)

MIN_TRAIN_IMAGES = 16  # fewest that a network can learn something from


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """What to audit, and how.

    Attributes:
        dataset, data_dir: the data set.
        output: the folder of the page and the tables.
        config: the settings of the short training runs; images are compared at its image size.
        folds: the number of training runs; 0 checks no labels.
        command: the command that was given.
    """

    dataset: str
    data_dir: Path
    output: Path
    config: TrainConfig
    folds: int
    command: str


def default_output(dataset: str, data_dir: Path) -> Path:
    """Return the output folder of an audit for which the user chose none."""
    (name,) = safe_names([data_dir.resolve().name if dataset == "folder" else dataset])
    return Path("audits") / name


def audit(options: AuditOptions) -> AuditResult:
    """Look for problems in a data set and write a page and tables about them; the data is not changed.

    Raises:
        ValueError: there are no images, or the output folder holds something else; no folder is created.
        Interrupted: by a signal; the next audit in the same folder continues after the finished training runs.
    """
    _check_output(options)
    with audit_folder(options.output):
        return _audit(options)


def _audit(options: AuditOptions) -> AuditResult:
    """Look for problems, and write what was found into the output folder."""
    # Load all images.
    config = options.config
    device = prepare_machine(config.device, config.threads, config.deterministic)
    images = load_audit_images(options.dataset, options.data_dir, config.image_size)

    # Write what costs little before the training runs.
    headers = _read_headers(images, options)
    problems = _find_problems(images, headers, options)
    write_problems(options.output, problems)
    duplicates = _find_duplicates(images, device)
    write_duplicates(options.output, images, duplicates.equal, duplicates.near)

    # Check the labels with networks that were not trained on them.
    predictions, no_labels = _predict(images, duplicates, options, device)
    ranking = rank_labels(images, predictions)
    write_labels(options.output, images, ranking)

    # Write the page about what matters most.
    findings = Findings(images, headers, problems, duplicates, predictions, ranking)
    result = summarize(findings, config, device, no_labels, str(options.output), options.command)
    write_page(options.output, result, draw_findings(findings))
    return result


def _check_output(options: AuditOptions) -> None:
    """Check that the output folder is not among the pictures: the next audit would take it for a class.

    Raises:
        ValueError: it is among the pictures, or there is no folder of pictures.
    """
    output, data_dir = options.output.resolve(), options.data_dir.resolve()
    if options.dataset == "folder" and not options.data_dir.is_dir():
        raise ValueError(f"{str(options.data_dir)!r} is not a folder of pictures")
    if options.dataset == "folder" and output.is_relative_to(data_dir):
        raise ValueError(
            f"output (={options.output}) is inside {options.data_dir}, the folder of the pictures; "
            f"choose another --output"
        )


def _read_headers(images: AuditImages, options: AuditOptions) -> dict[str, list[Header | None]]:
    """Return the headers of the picture files of each split that has files."""
    return {
        split: read_headers(part.files, options.data_dir)
        for split, part in images.splits.items()
        if part.files is not None
    }


def _find_problems(
    images: AuditImages, headers: dict[str, list[Header | None]], options: AuditOptions
) -> list[Problem]:
    problems = []
    for split, part in images.splits.items():
        if part.files is not None:
            problems += find_unreadable(split, part, options.data_dir)
            problems += find_odd(split, part.files, headers[split], options.config.image_size)
        problems += find_blank(split, part)
    return problems


def _find_duplicates(images: AuditImages, device: torch.device) -> Duplicates:
    """Find equal images over all splits, and those of the rest that are nearly the same."""
    small = np.concatenate([shrink(part.images) for part in images.splits.values()])
    equal = group_equal(chain.from_iterable(part.images for part in images.splits.values()))
    copies = np.concatenate([np.empty(0, np.int64), *(group[1:] for group in equal)])
    different = np.setdiff1d(np.arange(len(images)), copies)

    def show(steps: Iterable[int]) -> Iterable[int]:
        return tqdm(steps, desc="near duplicates", unit="", disable=None, leave=False)

    near = find_near(small[different], device, show).renumber(different)
    pairs = [(group[0], other) for group in equal for other in group[1:]]
    return Duplicates(equal, near, join_groups(len(images), [*pairs, *near.pairs.tolist()]))


def _predict(
    images: AuditImages, duplicates: Duplicates, options: AuditOptions, device: torch.device
) -> tuple[OutOfFold | None, str | None]:
    """Return the predictions of networks for images that they were not trained on, or why there are none."""
    # Duplicates are in one fold: a wrong label must not be confirmed by the same wrong label of a copy.
    labels = images.splits["train"].labels
    num_folds = min(options.folds, len(labels))
    if not num_folds:
        return None, "the number of folds is 0"
    if len(np.unique(labels)) < 2:
        return None, "there is only one class"
    folds = assign_folds(labels, duplicates.groups[: len(labels)], num_folds)
    _, folds = np.unique(folds, return_inverse=True)  # a fold without images is none
    most_held = int(np.bincount(folds).max())
    if len(labels) - most_held < MIN_TRAIN_IMAGES:
        return None, f"{len(labels)} training images are too few to learn from"
    config, _ = resolve_auto(options.config, device)
    return predict_out_of_fold(images.splits, folds, config, options.output / FOLDS_FOLDER, device), None
