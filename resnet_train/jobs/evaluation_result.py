"""The numbers of an evaluation, as `resnet-eval --json` and a report give them."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_train.evaluation.evaluate import Evaluation
from resnet_train.jobs.robustness import RobustnessResult
from resnet_train.jobs.trust import CalibrationResult, UnknownResult


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """The numbers of one class; shares are 0–1, and None where they would divide by zero or the class has no images.

    Averages over the classes leave out what is None.

    Attributes:
        name: the class.
        n: images with this label.
        accuracy: share of them that were classified correctly (recall).
        precision: share of the images classified as this class that have its label.
        f1: harmonic mean of both.
    """

    name: str
    n: int
    accuracy: float | None
    precision: float | None
    f1: float | None


@dataclass(frozen=True, kw_only=True)
class OriginResult:
    """The origin of weights that other code trained.

    Attributes:
        layout: the repository whose parameter names the file has.
        normalize: how images are normalized, as given or assumed.
        mean, std: one value per channel, on a 0–1 scale.
    """

    layout: str
    normalize: str
    mean: list[float]
    std: list[float]


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """The numbers of a checkpoint on one split, or of several whose probabilities are averaged.

    Attributes:
        checkpoint, arch: what was evaluated; the first of several checkpoints.
        ensemble: all checkpoints whose probabilities were averaged; empty for a single one.
        tta: the test-time augmentation, None without one.
        epoch, steps_after_epoch: how long it was trained; the epoch is None if that is unknown.
        origin: where the weights come from if other code trained them, and how images are normalized for them.
        chosen_on: the split that this epoch was selected on; None for the final epoch.
        split, title, n: the images.
        top1, loss: accuracy and mean cross-entropy.
        top5: share of labels among the five most likely classes; None below six classes.
        ci95: Wilson's 95 % interval of `top1`.
        scores: every registered metric by name.
        calibration: how far the probabilities can be trusted.
        per_class: one result for each class.
        images_per_second, device: the speed of this evaluation.
        best_epoch, best_top1: of the run's model that was chosen on the validation split, on the same test images; None
            if the checkpoint is not a run's folder or has no such model.
        unknown: how well images of another kind are recognized; None if not requested.
        robustness: the accuracy on corrupted images, for each requested source.
        report: the page that was written; None if not requested.
        num_wrong_copied: misclassified images that were copied; None if not requested.
    """

    checkpoint: str
    arch: str
    ensemble: tuple[str, ...] = ()
    tta: str | None = None
    epoch: int | None
    steps_after_epoch: int
    origin: OriginResult | None = None
    chosen_on: str | None
    split: str
    title: str
    n: int
    top1: float
    top5: float | None
    loss: float
    ci95: tuple[float, float]
    scores: dict[str, float]
    calibration: CalibrationResult
    per_class: tuple[ClassResult, ...]
    images_per_second: float
    device: str
    best_epoch: int | None = None
    best_top1: float | None = None
    unknown: UnknownResult | None = None
    robustness: tuple[RobustnessResult, ...] = ()
    report: str | None = None
    num_wrong_copied: int | None = None


def class_results(evaluation: Evaluation, classes: tuple[str, ...]) -> tuple[ClassResult, ...]:
    """Return the numbers of each class."""
    # Rows of the confusion matrix are labels, columns are predictions.
    confusion = evaluation.confusion
    correct, support, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    return tuple(
        ClassResult(
            name=name,
            n=int(support[i]),
            accuracy=float(correct[i] / support[i]) if support[i] else None,
            precision=float(correct[i] / predicted[i]) if support[i] and predicted[i] else None,
            f1=float(2 * correct[i] / (support[i] + predicted[i])) if support[i] else None,
        )
        for i, name in enumerate(classes)
    )
