"""Compare runs: groups that differ only in the seed, their differences, and how far to trust them."""

from __future__ import annotations

import logging
import os
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from resnet_train.config import PLANNED, result_settings, to_plain
from resnet_train.evaluation.significance import (
    adjust_p_values,
    compare_image_means,
    compare_networks,
    compare_seeds,
    detectable_by_images,
    detectable_by_seeds,
    pooled_sd,
    sd_interval,
    seeds_needed,
)
from resnet_train.jobs.comparison import (
    Comparison,
    Difference,
    Group,
    ImageCounts,
    LeftOut,
    RunScore,
    SeedPower,
    TargetTime,
)
from resnet_train.jobs.prediction_tables import PredictionTable, align, read_predictions
from resnet_train.runs.evaluated_on import Images, identify_images
from resnet_train.runs.folder import find_checkpoint
from resnet_train.runs.history import RunHistory, find_run_folders, read_history
from resnet_train.runtime.files import created_folder

log = logging.getLogger(__name__)

SEED_ENDING = re.compile(r"[-_.]?seed[-_.]?\d+(-\d+)?$", re.ASCII)
ROUNDING = 1e-9  # rounding error of accuracies that were percentages
ACCURACY_TOLERANCE = 1e-3  # between a run and its table: near ties may turn out differently at another batch size


@dataclass(frozen=True)
class Member:
    """A run with its images, or a table of predictions."""

    score: RunScore
    history: RunHistory | None = None
    images: Images | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that affect the result, as plain values, without those that `minutes` chose."""
        if self.history is None:
            return {}
        left_out = {"seed"} | (PLANNED if self.history.config.minutes is not None else set())
        plain, values = to_plain(self.history.config), result_settings(self.history.config)
        return {name: v if isinstance(v, str) else plain[name] for name, v in values.items() if name not in left_out}

    @property
    def key(self) -> object:
        """Return a key that is equal for runs that differ only in the seed."""
        if self.images is None:
            return self.score.path
        return self.images.trained, self.images.evaluated, repr(self.settings)


def compare(
    paths: Iterable[Path | str],
    targets: Sequence[float] = (),
    predictions: Path | None = None,
    detect: float | None = None,
) -> Comparison:
    """Compare runs by their final accuracies.

    Args:
        paths: run folders, folders that hold some, patterns such as `runs/*-seed*`, or tables of predictions.
        targets: accuracies, as shares, to look for in the history of each run.
        predictions: folder of the tables of predictions `<run>.csv`, for comparisons image by image. Missing tables are
            made by evaluating the runs.
        detect: the difference, as a share, for which the number of seeds is planned; if not given, the measured one.

    Raises:
        ValueError: no run or table is usable, or a table does not belong to its run.
    """
    left_out: list[LeftOut] = []
    members = _find_members(paths, left_out)
    if not members:
        reasons = "; ".join(f"{part.path}: {part.reason}" for part in left_out[:3])
        raise ValueError(f"there is no finished run to compare ({reasons}{'; …' if len(left_out) > 3 else ''})")

    # Group the runs that differ only in the seed, in the order in which they were given.
    gathered: dict[object, list[Member]] = {}
    for member in members:
        gathered.setdefault(member.key, []).append(member)
    parts = [_drop_repeated_seeds(part, left_out) for part in gathered.values()]
    groups = [_make_group(_letters(number), part, targets) for number, part in enumerate(parts)]

    # Compare each group with the first.
    if predictions is not None:
        _check_names(member for part in parts for member in part)
    sides = [Side(group, part, _load_tables(part, predictions)) for group, part in zip(groups, parts)]
    differences = [_make_difference(sides[0], side, detect) for side in sides[1:]]
    return Comparison(
        groups=tuple(groups),
        differences=tuple(_adjust(differences)),
        left_out=tuple(left_out),
        notes=tuple(_make_notes([member for part in parts for member in part])),
    )


# --- Runs and groups -------------------------------------------------------------------------------------------------


def _find_members(paths: Iterable[Path | str], left_out: list[LeftOut]) -> list[Member]:
    """Return the finished runs and the tables at the paths, each once; add the other runs to `left_out`."""
    # Tables are files, runs are folders.
    places: dict[Path, Path] = {}
    for path in map(str, paths):
        try:
            found = _find_places(path)
        except ValueError as error:
            if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises on names that are too long
                raise
            left_out.append(LeftOut(path=path, reason=str(error)))  # runs/* also matches what is not a run
            continue
        for place in found:
            places.setdefault(place.resolve(), place)

    # Read both.
    members = []
    for place in places.values():
        try:
            member = _read_table(place) if place.is_file() else _read_run(place)
        except (ValueError, OSError) as error:
            if place.is_file():
                raise
            left_out.append(LeftOut(path=str(place), reason=str(error)))
            continue
        members.append(member)
    images = iter(identify_images([member.history for member in members if member.history is not None]))
    return [member if member.history is None else replace(member, images=next(images)) for member in members]


def _find_places(path: str) -> list[Path]:
    """Return the run folders at a path or pattern, or the path itself if it is a table.

    Raises:
        ValueError: there is neither.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises on names that are too long
        return find_run_folders(path)
    if path.endswith(".csv"):
        return [Path(path)]
    raise ValueError("it is a file; give the run's folder, or the table that resnet-eval --predictions writes")


def _read_table(path: Path) -> Member:
    accuracy = read_predictions(path).accuracy
    return Member(RunScore(name=path.stem, path=str(path), seed=None, accuracy=accuracy))


def _read_run(folder: Path) -> Member:
    """Return a finished run.

    Raises:
        ValueError: it is unfinished, or its files are damaged.
    """
    history = read_history(folder)
    if problem := history.problem():
        raise ValueError(problem)
    evaluated = [(point.epoch, point.seconds, point.accuracy) for point in history.points]
    curve = tuple((epoch, seconds, value) for epoch, seconds, value in evaluated if value is not None)
    score = RunScore(
        name=history.name,
        path=str(folder),
        seed=history.config.seed,
        accuracy=curve[-1][2],
        seconds=curve[-1][1],
        curve=curve,
    )
    return Member(score, history)


def _drop_repeated_seeds(part: list[Member], left_out: list[LeftOut]) -> list[Member]:
    """Return the first run of each seed, by seed: a repeated one says nothing about other seeds."""
    kept: dict[int | None, Member] = {}
    for member in part:
        first = kept.setdefault(member.score.seed, member).score
        if first is not member.score:
            reason = f"same settings and seed as {first.path}"
            if first.accuracy != member.score.accuracy:
                reason += f", but an accuracy of {member.score.accuracy:.2%}, not {first.accuracy:.2%}"
            left_out.append(LeftOut(path=member.score.path, reason=reason))
    return sorted(kept.values(), key=lambda member: member.score.seed or 0)


def _make_group(label: str, part: Sequence[Member], targets: Sequence[float]) -> Group:
    """Return the statistics of runs that differ only in the seed."""
    first, runs = part[0], tuple(member.score for member in part)
    times = [run.seconds for run in runs if run.seconds is not None]
    all_timed = len(times) == len(runs)
    lengths = {member.history.config.epochs for member in part if member.history is not None}
    return Group(
        label=label,
        name=_common_name([run.name for run in runs]),
        split=first.history.split if first.history is not None else "",
        images=first.images.title if first.images is not None else "",
        epochs=lengths.pop() if len(lengths) == 1 else None,
        runs=runs,
        mean=float(np.mean([run.accuracy for run in runs])),
        sd=_sd([run.accuracy for run in runs]),
        seconds=float(np.mean(times)) if all_timed else None,
        seconds_sd=_sd(times) if all_timed else None,
        targets=tuple(_find_target(runs, target) for target in targets),
        settings=first.settings,
    )


def _find_target(runs: Sequence[RunScore], target: float) -> TargetTime:
    """Return when runs first reached an accuracy."""
    reached = [next((p for p in run.curve if p[2] >= target - ROUNDING), None) for run in runs]
    points = [point for point in reached if point is not None]
    times = [seconds for _, seconds, _ in points if seconds is not None]
    all_timed = bool(points) and len(times) == len(points)
    return TargetTime(
        target=target,
        num_reached=len(points),
        epochs=float(np.mean([epoch for epoch, _, _ in points])) if points else None,
        seconds=float(np.mean(times)) if all_timed else None,
        sd=_sd(times) if all_timed else None,
    )


def _sd(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _common_name(names: Sequence[str]) -> str:
    """Return what the names have in common, without the seed."""
    stems = [SEED_ENDING.sub("", name) or name for name in names]
    common = takewhile(lambda letters: len(set(letters)) == 1, zip(*stems))
    return "".join(letters[0] for letters in common).rstrip("-_. ") or stems[0]


def _letters(number: int) -> str:
    """Return A for 0, B for 1, …, AA for 26 and so on."""
    letters = string.ascii_uppercase
    return (_letters(number // 26 - 1) if number >= 26 else "") + letters[number % 26]


# --- Differences -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """One side of a difference: a group, its runs with their images, and their tables of predictions, if any."""

    group: Group
    members: Sequence[Member]
    tables: Sequence[PredictionTable]

    @property
    def images(self) -> Images | None:
        """Return the images of its runs, None for a table of predictions."""
        return self.members[0].images


def _make_difference(before: Side, after: Side, detect: float | None) -> Difference:
    """Return the difference of two groups with its intervals over seeds and over test images."""
    settings = _changed_settings(before, after)
    difference = Difference(group=after.group.label, baseline=before.group.label, difference=None, settings=settings)
    if before.images and after.images and before.images.evaluated != after.images.evaluated:
        reason = f"{before.group.label} and {after.group.label} are evaluated on different images"
        return replace(difference, why_no_seeds=reason, why_no_images=reason)
    points = after.group.mean - before.group.mean
    difference = replace(difference, difference=points)
    difference = _add_seeds(difference, before.group, after.group, abs(points) if detect is None else detect)
    return _add_images(difference, before.tables, after.tables)


def _changed_settings(before: Side, after: Side) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, and the data set if it differs."""
    old, new = before.group.settings, after.group.settings
    if not old or not new:
        return {}
    names = dict.fromkeys([*old, *new])
    changes = {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}
    if before.images and after.images and before.images.trained != after.images.trained and "dataset" not in changes:
        changes["images"] = (before.images.title, after.images.title)
    return changes


def _add_seeds(difference: Difference, before: Group, after: Group, planned: float) -> Difference:
    """Add the interval over seeds, and how many seeds would show a difference."""
    single = next((group for group in (before, after) if group.n < 2), None)
    if single is not None:
        return replace(difference, why_no_seeds=f"{single.label} has one run, and a spread needs two")
    sd, df = pooled_sd(before.accuracies, after.accuracies)
    if sd < ROUNDING:
        return replace(difference, why_no_seeds="The runs of each group have equal accuracies")
    power = SeedPower(
        sd=sd,
        sd_ci95=sd_interval(sd, df),
        detectable=detectable_by_seeds(sd, (before.n, after.n)),
        difference=planned,
        needed=seeds_needed(planned, sd),
    )
    return replace(difference, over_seeds=compare_seeds(before.accuracies, after.accuracies), power=power)


def _add_images(
    difference: Difference, before: Sequence[PredictionTable], after: Sequence[PredictionTable]
) -> Difference:
    """Add the interval over test images, if there are predictions.

    Raises:
        ValueError: the tables have different images or labels.
    """
    if not before or not after:
        return replace(difference, why_no_images="That needs predictions (--predictions DIR)")
    like = before[0]
    first, second = ([align(table, like) for table in tables] for tables in (before, after))
    if len(first) > 1 or len(second) > 1:
        return replace(difference, over_images=compare_image_means(np.mean(first, axis=0), np.mean(second, axis=0)))
    lost, gained = int((first[0] & ~second[0]).sum()), int((~first[0] & second[0]).sum())
    num_images = len(first[0])
    detectable = detectable_by_images((lost + gained) / num_images, num_images)
    counts = ImageCounts(num_images=num_images, lost=lost, gained=gained, detectable=detectable)
    return replace(difference, over_images=compare_networks(lost, gained, num_images), counts=counts)


def _adjust(differences: Sequence[Difference]) -> list[Difference]:
    """Add p-values adjusted for the number of differences."""
    tested = [difference.over_seeds.p for difference in differences if difference.over_seeds is not None]
    adjusted = iter(adjust_p_values(tested))
    return [d if d.over_seeds is None else replace(d, p_adjusted=next(adjusted)) for d in differences]


def _load_tables(part: Sequence[Member], folder: Path | None) -> list[PredictionTable]:
    """Return the table of each member, from the folder if it is a run; none without a folder.

    Raises:
        ValueError: a table does not belong to its run, or a run can't be evaluated.
    """
    tables = []
    for member in part:
        if member.history is None:
            tables.append(read_predictions(Path(member.score.path)))
        elif folder is not None:
            tables.append(_load_table(member.score, member.history, folder / f"{member.score.name}.csv"))
    return tables


def _load_table(score: RunScore, history: RunHistory, path: Path) -> PredictionTable:
    """Return the table of a run; evaluate the run if there is none."""
    if not os.path.lexists(path):
        from resnet_train.jobs.evaluate import EvaluationOptions, evaluate_checkpoint  # torch takes 2 s to import

        find_checkpoint(history.path)  # raises if there is none, before anything is written
        log.info("evaluating %s", score.path)
        with created_folder(path.parent):
            evaluate_checkpoint([history.path], EvaluationOptions(split=history.split, predictions=path))
    table = read_predictions(path)
    if abs(table.accuracy - score.accuracy) > ACCURACY_TOLERANCE:
        raise ValueError(
            f"{path} has an accuracy of {table.accuracy:.2%}, but the run {score.path} has {score.accuracy:.2%}: it is "
            f"from another network; delete it, or choose another folder"
        )
    return table


def _check_names(members: Iterable[Member]) -> None:
    """Check that the runs have different names, by which their tables are found.

    Raises:
        ValueError: two runs have the same name.
    """
    paths: dict[str, str] = {}
    for member in members:
        other = paths.setdefault(member.score.name, member.score.path)
        if member.history is not None and other != member.score.path:
            raise ValueError(
                f"{other} and {member.score.path} have the same name, so their predictions would go to one file; "
                f"rename one of them"
            )


# --- Notes -----------------------------------------------------------------------------------------------------------


def _make_notes(members: Sequence[Member]) -> list[str]:
    """Return what a reader must know about the runs: different versions and machines, unverified images."""
    notes = []
    environments = [member.history.environment for member in members if member.history is not None]
    for name, what in (("torch", "versions of torch"), ("cpu", "CPUs"), ("device_name", "devices")):
        values = sorted({str(environment[name]) for environment in environments if environment.get(name) is not None})
        if len(values) > 1:
            times = "" if name == "torch" else ": their times are not comparable"
            notes.append(f"the runs are from different {what} ({', '.join(values)}){times}")
    unsure = sorted({member.images.title for member in members if member.images and not member.images.is_known})
    if unsure:
        named = ", ".join(unsure)
        notes.append(f"without checkpoints, folders with the same name are assumed to hold the same images ({named})")
    return notes
