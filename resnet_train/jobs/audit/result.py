"""What an audit found, as `resnet-audit --json` and its page show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ImageReference:
    """An image: its split, its file or index, and its label."""

    split: str
    image: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A file that can't be read, or a picture that is unlike the others.

    Attributes:
        split, image: its location.
        kind: "unreadable", "size", "shape", "mode" or "blank".
        detail: what is wrong.
    """

    split: str
    image: str
    kind: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """The images of one split.

    Attributes:
        split, n: its name and the number of its images.
        num_per_class: images per class, in the order of the classes.
    """

    split: str
    n: int
    num_per_class: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many pictures have a size, a mode or a format."""

    name: str
    n: int


@dataclass(frozen=True, kw_only=True)
class PictureResult:
    """The picture files.

    Attributes:
        n: files that can be read.
        num_sizes: how many different sizes there are.
        sizes, modes, formats: most frequent first; only the first of many sizes.
    """

    n: int
    num_sizes: int
    sizes: tuple[Share, ...]
    modes: tuple[Share, ...]
    formats: tuple[Share, ...]


@dataclass(frozen=True, kw_only=True)
class DuplicateGroup:
    """Images that are equal or nearly so.

    Attributes:
        is_equal: all of them are equal, pixel by pixel.
        similarity: the correlation of the details of the most similar pair; 1 if they are equal.
        n: how many images there are.
        images: the first of them.
        is_leak: they are in more than one split.
        has_conflict: they have different labels.
    """

    is_equal: bool
    similarity: float
    n: int
    images: tuple[ImageReference, ...]
    is_leak: bool
    has_conflict: bool


@dataclass(frozen=True, kw_only=True)
class DuplicateResult:
    """Images that occur several times.

    Attributes:
        num_equal: images that are equal to another one, without the first of each group.
        num_near_pairs: pairs of images that are nearly the same.
        num_groups: groups of images that are equal or nearly so.
        num_conflicts: groups whose images have different labels.
        num_leaked: images of each split except training that are in a group with a training image.
        groups: the first groups: those with different labels, then those in several splits, then the most similar.
    """

    num_equal: int
    num_near_pairs: int
    num_groups: int
    num_conflicts: int
    num_leaked: dict[str, int]
    groups: tuple[DuplicateGroup, ...]


@dataclass(frozen=True, kw_only=True)
class LabelError:
    """An image whose label is probably wrong.

    Attributes:
        image: the image with its label.
        suggested: the class that the network gives it.
        confidence: the probability of that class.
        self_confidence: the probability of the label.
    """

    image: ImageReference
    suggested: str
    confidence: float
    self_confidence: float


@dataclass(frozen=True, kw_only=True)
class LabelResult:
    """Labels that are probably wrong, according to networks that were not trained on these images.

    Attributes:
        arch, folds, epochs: the training runs.
        accuracy: the accuracy of their predictions, by split; None if no image could be checked.
        num_checked: images that could be checked, by split.
        num_errors: likely label errors, by split.
        is_weak: the networks know too little for their list to be worth much.
        errors: the first of all of them, least likely label first.
    """

    arch: str
    folds: int
    epochs: int
    accuracy: dict[str, float | None]
    num_checked: dict[str, int]
    num_errors: dict[str, int]
    is_weak: bool
    errors: tuple[LabelError, ...]


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What an audit found; the CSV files next to it have every finding.

    Attributes:
        title: the name of the data set.
        image_size: the side length in pixels at which images are compared and trained on.
        classes: the class names.
        splits: the images of each split.
        imbalance: training images of the largest class over those of the smallest.
        pictures: the picture files; None if the data set has none.
        num_problems: files and pictures by kind of problem.
        problems: the first of each kind.
        duplicates: images that occur several times.
        labels: labels that are probably wrong; None if they were not checked.
        no_labels: why not.
        folder: the folder of the page and the CSV files.
        command: the command that makes this audit.
        environment: versions and hardware.
        date: the date in UTC.
    """

    title: str
    image_size: int
    classes: tuple[str, ...]
    splits: tuple[SplitResult, ...]
    imbalance: float
    pictures: PictureResult | None
    num_problems: dict[str, int]
    problems: tuple[Problem, ...]
    duplicates: DuplicateResult
    labels: LabelResult | None
    no_labels: str | None
    folder: str
    command: str
    environment: dict[str, Any]
    date: str
