"""From all findings of an audit to what its page shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain

import numpy as np
import torch

from resnet_train.config import TrainConfig
from resnet_train.data.pictures import Header
from resnet_train.evaluation.duplicates import NearDuplicates
from resnet_train.jobs.audit.images import AuditImages
from resnet_train.jobs.audit.labels import LabelRanking
from resnet_train.jobs.audit.out_of_fold import OutOfFold
from resnet_train.jobs.audit.problems import count_shares
from resnet_train.jobs.audit.result import (
    AuditResult,
    DuplicateGroup,
    DuplicateResult,
    LabelError,
    LabelResult,
    PictureResult,
    Problem,
    SplitResult,
)
from resnet_train.jobs.report import encode_picture
from resnet_train.report.audit_page import AuditPictures
from resnet_train.runtime.environment import describe_environment

# Findings on the page; the tables have all of them.
NUM_GROUPS, NUM_GROUP_IMAGES, NUM_LABEL_ERRORS, NUM_PROBLEMS, NUM_SIZES = 36, 5, 48, 12, 8

WEAK_ACCURACY, WEAK_RATIO = 0.3, 1.5  # networks are weak below this accuracy, or below this multiple of chance


@dataclass(frozen=True)
class Duplicates:
    """Equal images, nearly equal ones, and for each image the lowest number of its group, int64 [N]."""

    equal: list[np.ndarray]
    near: NearDuplicates
    groups: np.ndarray


@dataclass(frozen=True)
class Findings:
    """Everything that was found.

    Attributes:
        images: all of them.
        headers: the headers of the picture files, by split.
        problems: files that can't be read, and odd pictures.
        duplicates: equal and nearly equal images.
        predictions, ranking: about the labels; None and empty if these were not checked.
    """

    images: AuditImages
    headers: dict[str, list[Header | None]]
    problems: list[Problem]
    duplicates: Duplicates
    predictions: OutOfFold | None
    ranking: LabelRanking


def summarize(
    findings: Findings, config: TrainConfig, device: torch.device, no_labels: str | None, folder: str, command: str
) -> AuditResult:
    """Return the numbers and the most important findings.

    Args:
        findings: all of them.
        config: the settings of the training runs.
        device: their device.
        no_labels: why labels were not checked.
        folder, command: those of the audit.
    """
    images = findings.images
    counts = np.bincount(images.splits["train"].labels, minlength=len(images.classes))
    return AuditResult(
        title=images.splits["train"].title,
        image_size=config.image_size,
        classes=images.classes,
        splits=_count_splits(images),
        imbalance=float(counts.max() / counts.min()),
        pictures=_count_pictures(findings),
        num_problems=dict(Counter(problem.kind for problem in findings.problems)),
        problems=_first_of_each_kind(findings.problems),
        duplicates=_describe_duplicates(findings),
        labels=_describe_labels(findings, config),
        no_labels=no_labels,
        folder=folder,
        command=command,
        environment=describe_environment(device),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def draw_findings(findings: Findings) -> AuditPictures:
    """Return the pictures of the findings in a summary, in the same order."""
    images, errors = findings.images, findings.ranking.numbers[_first_errors(findings)]
    groups = [group[:NUM_GROUP_IMAGES] for group in _rank_groups(findings)[:NUM_GROUPS]]
    return AuditPictures(
        groups=[[encode_picture(images.pixels(number)) for number in group] for group in groups],
        errors=[encode_picture(images.pixels(number)) for number in errors.tolist()],
    )


def _count_splits(images: AuditImages) -> tuple[SplitResult, ...]:
    return tuple(
        SplitResult(
            split=split,
            n=len(part),
            num_per_class=tuple(np.bincount(part.labels, minlength=len(part.classes)).tolist()),
        )
        for split, part in images.splits.items()
    )


def _count_pictures(findings: Findings) -> PictureResult | None:
    """Return the sizes, modes and formats of the picture files; None if there are no files."""
    headers = [header for header in chain(*findings.headers.values()) if header is not None]
    if not headers:
        return None
    sizes = count_shares(f"{header.width} × {header.height}" for header in headers)
    return PictureResult(
        n=len(headers),
        num_sizes=len(sizes),
        sizes=sizes[:NUM_SIZES],
        modes=count_shares(header.mode for header in headers),
        formats=count_shares(header.format for header in headers),
    )


def _first_of_each_kind(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """Return the first problems of each kind, kinds in the order of their first problem."""
    kinds = dict.fromkeys(problem.kind for problem in problems)
    first = ([problem for problem in problems if problem.kind == kind][:NUM_PROBLEMS] for kind in kinds)
    return tuple(chain.from_iterable(first))


# --- Duplicates ------------------------------------------------------------------------------------------------------


def _rank_groups(findings: Findings) -> list[list[int]]:
    """Return the numbers of the images of each group: first groups with several labels, then with several splits."""
    members: dict[int, list[int]] = {}
    groups = findings.duplicates.groups
    sizes = np.bincount(groups, minlength=len(groups))
    for number in np.flatnonzero(sizes[groups] > 1).tolist():
        members.setdefault(int(groups[number]), []).append(number)
    similarity = _measure_groups(findings)

    def rank(group: list[int]) -> tuple[bool, bool, float, int]:
        return not _has_conflict(findings, group), not _is_leak(findings, group), -similarity[group[0]], group[0]

    return [_show_all_kinds(findings.images, group) for group in sorted(members.values(), key=rank)]


def _show_all_kinds(images: AuditImages, group: list[int]) -> list[int]:
    """Move the first image of each split and label to the front: only the first images of a group are shown."""
    kinds = {(int(images.split_numbers[number]), int(images.labels[number])): number for number in reversed(group)}
    first = sorted(kinds.values())
    return first + [number for number in group if number not in first]


def _measure_groups(findings: Findings) -> dict[int, float]:
    """Return the similarity of the most similar pair of each group, by its lowest number."""
    duplicates = findings.duplicates
    similarity: dict[int, float] = {int(duplicates.groups[group[0]]): 1.0 for group in duplicates.equal}
    for (one, _), value in zip(duplicates.near.pairs.tolist(), duplicates.near.similarity.tolist()):
        similarity.setdefault(int(duplicates.groups[one]), value)  # the most similar comes first
    return similarity


def _has_conflict(findings: Findings, group: Sequence[int]) -> bool:
    return len(np.unique(findings.images.labels[group])) > 1


def _is_leak(findings: Findings, group: Sequence[int]) -> bool:
    return len(np.unique(findings.images.split_numbers[group])) > 1


def _describe_duplicates(findings: Findings) -> DuplicateResult:
    images, duplicates = findings.images, findings.duplicates
    ranked, similarity = _rank_groups(findings), _measure_groups(findings)
    near = {int(number) for number in duplicates.near.pairs.ravel()}
    shown = tuple(
        DuplicateGroup(
            is_equal=near.isdisjoint(group),
            similarity=similarity[group[0]],
            n=len(group),
            images=tuple(images.refer(number) for number in group[:NUM_GROUP_IMAGES]),
            is_leak=_is_leak(findings, group),
            has_conflict=_has_conflict(findings, group),
        )
        for group in ranked[:NUM_GROUPS]
    )
    return DuplicateResult(
        num_equal=sum(len(group) - 1 for group in duplicates.equal),
        num_near_pairs=len(duplicates.near),
        num_groups=len(ranked),
        num_conflicts=sum(_has_conflict(findings, group) for group in ranked),
        num_leaked=_count_leaked(images, duplicates.groups),
        groups=shown,
    )


def _count_leaked(images: AuditImages, groups: np.ndarray) -> dict[str, int]:
    """Return how many images of each split except training are in a group with a training image."""
    of_train = np.unique(groups[: len(images.splits["train"])])
    leaked = np.isin(groups, of_train)
    numbers = dict(zip(images.splits, np.bincount(images.split_numbers, weights=leaked).astype(int).tolist()))
    return {split: n for split, n in numbers.items() if split != "train"}


# --- Labels ----------------------------------------------------------------------------------------------------------


def _first_errors(findings: Findings) -> np.ndarray:
    """Return the positions of the first likely label errors in the ranking."""
    return np.flatnonzero(findings.ranking.is_error)[:NUM_LABEL_ERRORS]


def _describe_labels(findings: Findings, config: TrainConfig) -> LabelResult | None:
    images, ranking, predictions = findings.images, findings.ranking, findings.predictions
    if predictions is None:
        return None
    splits = images.split_numbers[ranking.numbers]
    is_right = ranking.suggested == images.labels[ranking.numbers]

    def count(chosen: np.ndarray) -> dict[str, int]:
        return {split: int(np.count_nonzero(chosen & (splits == number))) for number, split in enumerate(images.splits)}

    num_checked, num_right = count(np.ones(len(splits), bool)), count(is_right)
    errors = tuple(
        LabelError(
            image=images.refer(int(ranking.numbers[position])),
            suggested=images.classes[ranking.suggested[position]],
            confidence=float(ranking.confidence[position]),
            self_confidence=float(ranking.self_confidence[position]),
        )
        for position in _first_errors(findings).tolist()
    )
    accuracy = {split: num_right[split] / n if n else None for split, n in num_checked.items()}
    return LabelResult(
        arch=config.arch,
        folds=predictions.num_folds,
        epochs=predictions.epochs,
        accuracy=accuracy,
        num_checked=num_checked,
        num_errors=count(ranking.is_error),
        is_weak=(accuracy["train"] or 0) < max(WEAK_ACCURACY, WEAK_RATIO / len(images.classes)),
        errors=errors,
    )
