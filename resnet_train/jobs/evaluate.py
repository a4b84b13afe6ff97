"""Evaluate trained models: from checkpoints to metrics."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from resnet_train.data.loader import EVAL_BATCH_SIZE
from resnet_train.evaluation.evaluate import Evaluation
from resnet_train.evaluation.metrics import compute_scores, confidence_interval, top5
from resnet_train.jobs.evaluation_result import EvaluationResult, OriginResult, class_results
from resnet_train.jobs.image_files import (
    check_predictions_file,
    copy_wrong_images,
    empty_folder,
    write_predictions,
)
from resnet_train.jobs.report import PAGE, evaluation_command, report_folder, write_report
from resnet_train.jobs.robustness import RobustnessResult, evaluate_cifar10_c, evaluate_corruptions
from resnet_train.jobs.split_images import SplitImages, load_images
from resnet_train.jobs.subject import Subject, load_subject
from resnet_train.jobs.trust import measure_calibration, measure_unknown
from resnet_train.runs.checkpoint import AnyCheckpoint
from resnet_train.runs.folder import RunFolder, find_best, find_checkpoint
from resnet_train.runs.foreign import Given
from resnet_train.runtime.device import device_name, prepare_machine
from resnet_train.runtime.precision import eval_precision

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What to evaluate, how, and what to write; settings of the images that are None come from the checkpoint.

    Attributes:
        dataset, data_dir, split: the images.
        best: evaluate the model that the run chose on its validation split.
        tta: average over views of each image, "flip" or "flip-shift".
        corruptions: also evaluate on images that are corrupted here.
        cifar10_c: also evaluate on the files of CIFAR-10-C in this folder.
        unknown: also measure how well images of this data set or folder, which show no known class, are recognized.
        predictions: write one row for each image to this CSV file.
        wrong: copy the misclassified images to this folder.
        batch_size, device, threads: how to evaluate.
        report: write a page with everything, and the numbers in it as JSON, to this folder.
        arch, normalize: see `resnet_train.runs.foreign.Given`; for checkpoints from other code.
    """

    dataset: str | None = None
    data_dir: Path | None = None
    split: str | None = None
    best: bool = False
    tta: str | None = None
    corruptions: bool = False
    cifar10_c: Path | None = None
    unknown: str | None = None
    predictions: Path | None = None
    wrong: Path | None = None
    batch_size: int = EVAL_BATCH_SIZE
    device: str = "auto"
    threads: int = 0
    report: Path | None = None
    arch: str | None = None
    normalize: str | None = None

    @property
    def given(self) -> Given:
        """Return what is said about checkpoints from other code."""
        return Given(arch=self.arch, normalize=self.normalize)


def evaluate_checkpoint(
    paths: list[Path], options: EvaluationOptions, loaded: Subject | None = None
) -> EvaluationResult:
    """Evaluate the model of a checkpoint, or several models whose probabilities are averaged.

    Args:
        paths: checkpoints, or folders of runs, which mean their final models.
        options: what to evaluate, how, and what to write.
        loaded: the network of the only checkpoint; if not given, it is read from the file.

    Raises:
        ValueError: no usable checkpoint, an unknown data set or split, or data with other classes.
    """
    if options.predictions is not None:
        check_predictions_file(options.predictions)
    with ExitStack() as folders:  # an error removes those that were created and are empty
        if options.report is not None:
            folders.enter_context(report_folder(options.report))

        # Load the networks and the images.
        subject = loaded or _load(paths, options)
        if options.unknown is not None and subject.is_average:
            raise ValueError("unknown images are recognized by the outputs of a single checkpoint, without --tta")
        data = load_images(subject, options.dataset, options.data_dir, options.split)
        if options.wrong is not None:
            folders.enter_context(empty_folder(options.wrong))

        # Evaluate, and write what was requested for each image before the evaluations on other images, which may fail.
        evaluation, images_per_second = _evaluate_images(subject, data, options.batch_size)
        num_wrong_copied = _write_image_files(data, evaluation, options)
        robustness = _evaluate_robustness(subject, data, evaluation, options)
        best_epoch, best_top1 = _evaluate_best(paths, subject, data, options)
        unknown = None
        if options.unknown is not None:
            unknown = measure_unknown(subject, options.unknown, evaluation, options.batch_size)

        # Gather the numbers, and write the page about them.
        result = replace(
            _gather_numbers(subject, data, evaluation, images_per_second),
            tta=options.tta,
            best_epoch=best_epoch,
            best_top1=best_top1,
            unknown=unknown,
            robustness=robustness,
            report=None if options.report is None else str(options.report / PAGE),
            num_wrong_copied=num_wrong_copied,
        )
        if options.report is not None:
            command = evaluation_command(paths, _changed_options(options))
            write_report(options.report, subject, data, evaluation, result, command, options.batch_size)
        return result


def _load(paths: list[Path], options: EvaluationOptions) -> Subject:
    """Load the networks."""
    device = prepare_machine(options.device, options.threads)
    find = find_best if options.best else find_checkpoint
    return load_subject([find(path) for path in paths], options.tta, device, options.given)


def _evaluate_images(subject: Subject, data: SplitImages, batch_size: int) -> tuple[Evaluation, float]:
    """Evaluate in the number format of training, as the run did, and also return the images per second."""
    if eval_precision(subject.precision, subject.device) is not subject.precision:
        log.info(
            "evaluating in float32, because %s has no units for %s", device_name(subject.device), subject.config.amp
        )
    start = time.perf_counter()
    evaluation = subject.evaluate(data.images, data.indices, batch_size)
    return evaluation, evaluation.n / (time.perf_counter() - start)


def _write_image_files(data: SplitImages, evaluation: Evaluation, options: EvaluationOptions) -> int | None:
    """Write the predictions and copy the wrong images, and return how many were copied (None if not requested)."""
    if options.predictions is not None:
        write_predictions(options.predictions, evaluation, data.images, data.indices)
    if options.wrong is None:
        return None
    return copy_wrong_images(options.wrong, evaluation, data.images, data.indices, data.data_dir)


def _evaluate_robustness(
    subject: Subject, data: SplitImages, evaluation: Evaluation, options: EvaluationOptions
) -> tuple[RobustnessResult, ...]:
    """Evaluate on corrupted images from each requested source."""
    results = []
    if options.corruptions:
        results.append(evaluate_corruptions(subject, data.images, data.indices, evaluation, options.batch_size))
    if options.cifar10_c is not None:
        results.append(evaluate_cifar10_c(subject, options.cifar10_c, evaluation, options.batch_size))
    return tuple(results)


def _evaluate_best(
    paths: list[Path], subject: Subject, data: SplitImages, options: EvaluationOptions
) -> tuple[int | None, float | None]:
    """Return the epoch and the test accuracy of the run's model that was chosen on its validation split.

    Both are None for anything but the final model of a single run that has such a model.
    """
    run = paths[0]
    if len(paths) > 1 or options.best or data.split != "test" or not RunFolder(run).best("val").is_file():
        return None, None
    chosen = load_subject([find_best(run)], options.tta, subject.device)
    evaluation = chosen.evaluate(data.images, data.indices, options.batch_size)
    return chosen.checkpoints[0].epoch, compute_scores(evaluation)["accuracy"]


def _gather_numbers(
    subject: Subject, data: SplitImages, evaluation: Evaluation, images_per_second: float
) -> EvaluationResult:
    """Return the numbers that every evaluation has."""
    scores, first = compute_scores(evaluation), subject.checkpoints[0]
    return EvaluationResult(
        checkpoint=str(subject.paths[0]),
        arch=" + ".join(dict.fromkeys(checkpoint.about.arch for checkpoint in subject.checkpoints)),
        ensemble=tuple(map(str, subject.paths)) if len(subject.paths) > 1 else (),
        epoch=first.epoch,
        steps_after_epoch=first.steps_after_epoch,
        origin=_describe_origin(first),
        chosen_on=data.split if data.split in subject.chosen_on else first.chosen_on,
        split=data.split,
        title=data.images.title,
        n=evaluation.n,
        top1=scores["accuracy"],
        top5=top5(evaluation),
        loss=evaluation.loss,
        ci95=confidence_interval(int(evaluation.confusion.trace()), evaluation.n),
        scores=scores,
        calibration=measure_calibration(evaluation, subject.calibration, data.split),
        per_class=class_results(evaluation, data.images.classes),
        images_per_second=images_per_second,
        device=device_name(subject.device),
    )


def _describe_origin(checkpoint: AnyCheckpoint) -> OriginResult | None:
    """Return where the weights come from, None if this package trained them."""
    if checkpoint.origin is None:
        return None
    about, origin = checkpoint.about, checkpoint.origin
    return OriginResult(layout=origin.layout, normalize=origin.normalize, mean=about.mean, std=about.std)


def _changed_options(options: EvaluationOptions) -> dict[str, Any]:
    """Return the options that are not the defaults and that a report depends on."""
    values = {field.name: (getattr(options, field.name), field.default) for field in fields(options)}
    return {
        name: value
        for name, (value, default) in values.items()
        if value != default and name not in {"predictions", "wrong"}
    }
