"""What a comparison of runs found. Accuracies are shares, times are seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from resnet_train.evaluation.significance import Spread


@dataclass(frozen=True, kw_only=True)
class RunScore:
    """A finished run, or a table of predictions.

    Attributes:
        seed: None for a table of predictions.
        accuracy: after the last epoch; that of a table is the share of its images that are right.
        seconds: the time of training, without evaluation; None if unknown.
        curve: the epochs that were evaluated, as (epoch, seconds, accuracy).
    """

    name: str
    path: str
    seed: int | None
    accuracy: float
    seconds: float | None = None
    curve: tuple[tuple[int, float | None, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class TargetTime:
    """When the runs of a group first reached an accuracy.

    Attributes:
        target: the accuracy.
        num_reached: how many runs of the group did.
        epochs: the mean of their epochs; None if none did.
        seconds, sd: mean and standard deviation of their training time; None if unknown, the sd also for a single run.
    """

    target: float
    num_reached: int
    epochs: float | None
    seconds: float | None
    sd: float | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ only in the seed.

    Attributes:
        label: A, B, … in the order of the arguments.
        name: what the names of the runs have in common.
        split, images: the split and the data set that the accuracies are measured on; empty for tables of predictions.
        epochs: the epochs of each run; None if they differ, as they may with the same `minutes`, and for tables of
            predictions.
        mean, sd: mean and sd of the final accuracies; the sd is None for a single run.
        seconds, seconds_sd: the same for the training time.
        settings: those that affect the result.
    """

    label: str
    name: str
    split: str
    images: str
    epochs: int | None
    runs: tuple[RunScore, ...]
    mean: float
    sd: float | None
    seconds: float | None
    seconds_sd: float | None
    targets: tuple[TargetTime, ...]
    settings: dict[str, Any]

    @property
    def n(self) -> int:
        """Return the number of runs."""
        return len(self.runs)

    @property
    def accuracies(self) -> list[float]:
        """Return the final accuracy of each run."""
        return [run.accuracy for run in self.runs]


@dataclass(frozen=True, kw_only=True)
class SeedPower:
    """What these numbers of runs can show, for runs spread like these.

    Attributes:
        sd: the standard deviation of single runs, pooled over both groups, with its 95 % interval.
        detectable: the difference that is found with a probability of 80 %.
        difference: the one to plan for.
        needed: how many runs of each group find it with a probability of 80 %; None if more than 8,192 are needed.
    """

    sd: float
    sd_ci95: tuple[float, float]
    detectable: float
    difference: float
    needed: int | None


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """Two networks on the same images: how many only the first, and only the second, classifies correctly.

    Attributes:
        detectable: the difference that this number of images shows with a probability of 80 % at this disagreement.
    """

    num_images: int
    lost: int
    gained: int
    detectable: float | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference between a group and the first one.

    Attributes:
        group, baseline: their labels.
        difference: the difference of the means, positive if the group is more accurate; None on different images.
        over_seeds: how far it may be off because other seeds give other networks; None if unknown.
        over_images: how far it may be off because other test images give other accuracies of these networks.
        why_no_seeds, why_no_images: why one of them is None; empty if it is not.
        p_adjusted: the p over seeds after Holm's correction for all differences from the first group.
        power: what the seeds can show; None if `over_seeds` is.
        counts: image counts of two single networks; None for groups of them.
        settings: those that differ, with the values in the first group and in this one.
    """

    group: str
    baseline: str
    difference: float | None
    over_seeds: Spread | None = None
    over_images: Spread | None = None
    why_no_seeds: str = ""
    why_no_images: str = ""
    p_adjusted: float | None = None
    power: SeedPower | None = None
    counts: ImageCounts | None = None
    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A run that is not compared, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Groups of runs and their differences from the first group.

    Attributes:
        notes: what a reader must know to trust the numbers.
    """

    groups: tuple[Group, ...]
    differences: tuple[Difference, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
