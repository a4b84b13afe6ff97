"""Evaluate trained models: from checkpoints to their numbers."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from resnet_train.data.loader import EVAL_BATCH_SIZE
from resnet_train.evaluation.metrics import compute_scores, confidence_interval, top5
from resnet_train.jobs.evaluation_result import EvaluationResult, class_results
from resnet_train.jobs.image_files import (
    check_predictions_file,
    copy_wrong_images,
    make_empty_folder,
    write_predictions,
)
from resnet_train.jobs.report import PAGE, check_report_folder, evaluation_command, write_report
from resnet_train.jobs.robustness import evaluate_cifar10_c, evaluate_corruptions
from resnet_train.jobs.split_images import SplitImages, load_images
from resnet_train.jobs.subject import Subject, load_subject
from resnet_train.jobs.trust import measure_calibration, measure_unknown
from resnet_train.records import About
from resnet_train.runs.checkpoint import read_model
from resnet_train.runs.folder import RunFolder, find_best, find_checkpoint
from resnet_train.runs.restore import restore_model
from resnet_train.runtime.device import device_name, prepare_machine
from resnet_train.runtime.precision import eval_precision

log = logging.getLogger(__name__)


def evaluate_checkpoint(
    path: Path | str | Sequence[Path | str],
    *,
    dataset: str | None = None,
    data_dir: Path | str | None = None,
    split: str | None = None,
    best: bool = False,
    tta: str | None = None,
    corruptions: bool = False,
    cifar10_c: Path | str | None = None,
    unknown: str | None = None,
    predictions: Path | str | None = None,
    wrong: Path | str | None = None,
    report: Path | str | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    device: str = "auto",
    threads: int = 0,
) -> EvaluationResult:
    """Evaluate the model of a checkpoint; what is not given is taken from the checkpoint.

    Args:
        path: a checkpoint, or the folder of a run, which means its final model; of several, probabilities are averaged.
        dataset, data_dir, split: the images.
        best: evaluate the model that the run chose on its validation split.
        tta: average over views of each image, "flip" or "flip-shift".
        corruptions: also evaluate on images that are corrupted here.
        cifar10_c: also evaluate on the files of CIFAR-10-C in this folder.
        unknown: also tell apart the images of this data set or folder, which show none of the classes.
        predictions: write one row for each image to this CSV file.
        wrong: copy the images that are classified wrong to this folder.
        report: write a page with everything, and the numbers in it as JSON, to this folder.
        batch_size, device, threads: how to evaluate.

    Raises:
        ValueError: no usable checkpoint, an unknown data set or split, or data with other classes.
    """
    # Load the networks and the images, and check where results go.
    given = [Path(path)] if isinstance(path, str | Path) else [Path(part) for part in path]
    if predictions is not None:
        check_predictions_file(Path(predictions))
    if report is not None:
        check_report_folder(Path(report))
    torch_device = prepare_machine(device, threads)
    subject = load_subject([find_best(one) if best else find_checkpoint(one) for one in given], tta, torch_device)
    if unknown is not None and subject.is_average:
        raise ValueError("unknown images are told apart by the outputs of one checkpoint without --tta")
    data = load_images(subject, dataset, data_dir, split)
    if wrong is not None:
        make_empty_folder(Path(wrong))

    # Evaluate in the format of the training, as the run did.
    if eval_precision(subject.precision, torch_device) is not subject.precision:
        log.info("evaluating in float32, because %s has no units for %s", device_name(torch_device), subject.amp)
    start = time.perf_counter()
    evaluation = subject.evaluate(data.images, data.indices, batch_size)
    seconds = time.perf_counter() - start

    # Write what was asked for each image.
    num_wrong = None
    if predictions is not None:
        write_predictions(Path(predictions), evaluation, data.images, data.indices)
    if wrong is not None:
        num_wrong = copy_wrong_images(Path(wrong), evaluation, data.images, data.indices, data.data_dir)

    # Evaluate on other images.
    robustness = []
    if corruptions:
        robustness.append(evaluate_corruptions(subject, data.images, data.indices, evaluation, batch_size))
    if cifar10_c is not None:
        robustness.append(evaluate_cifar10_c(subject, Path(cifar10_c), evaluation, batch_size))

    # A run that chose a model on its validation split has two numbers to report.
    best_epoch = best_top1 = None
    if len(given) == 1 and given[0].is_dir() and not best and data.split == "test":
        best_epoch, best_top1 = _evaluate_best(given[0], tta, subject, data, batch_size)

    scores, first = compute_scores(evaluation), subject.checkpoints[0]
    result = EvaluationResult(
        checkpoint=str(subject.paths[0]),
        arch=" + ".join(dict.fromkeys(checkpoint.about.arch for checkpoint in subject.checkpoints)),
        ensemble=tuple(map(str, subject.paths)) if len(subject.paths) > 1 else (),
        tta=tta,
        epoch=first.epoch,
        steps_after_epoch=first.steps_after_epoch,
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
        images_per_second=evaluation.n / seconds,
        device=device_name(torch_device),
        best_epoch=best_epoch,
        best_top1=best_top1,
        unknown=None if unknown is None else measure_unknown(subject, unknown, evaluation, batch_size),
        robustness=tuple(robustness),
        report=None if report is None else str(Path(report) / PAGE),
        num_wrong_copied=num_wrong,
    )
    if report is not None:
        options = {
            "dataset": dataset,
            "data_dir": data_dir,
            "split": split,
            "best": best,
            "tta": tta,
            "corruptions": corruptions,
            "cifar10_c": cifar10_c,
            "unknown": unknown,
            "batch_size": None if batch_size == EVAL_BATCH_SIZE else batch_size,
            "device": None if device == "auto" else device,
            "threads": threads or None,
            "report": report,
        }
        command = evaluation_command(given, options)
        write_report(Path(report), subject, data, evaluation, result, command, batch_size)
    return result


def _evaluate_best(
    run: Path, tta: str | None, subject: Subject, data: SplitImages, batch_size: int
) -> tuple[int | None, float | None]:
    """Return the epoch and the accuracy of the run's model that was chosen on the validation split, if it has one."""
    if not RunFolder(run).best("val").is_file():
        return None, None
    chosen = load_subject([find_best(run)], tta, subject.device)
    evaluation = chosen.evaluate(data.images, data.indices, batch_size)
    return chosen.checkpoints[0].epoch, compute_scores(evaluation)["accuracy"]


def load_model(path: Path | str) -> tuple[nn.Module, About]:
    """Load the network of a checkpoint or of a run's folder, for notebooks and scripts.

    Returns:
        The model in evaluation mode on the CPU, from normalized images float [B, 3, H, W] to logits float [B, C]; and
        the checkpoint's description of it: `arch`, `classes`, `image_size`, `mean`, `std` (on a 0–1 scale) and so on.

    Raises:
        ValueError: no usable checkpoint.
    """
    path = find_checkpoint(Path(path))
    checkpoint = read_model(path)
    return restore_model(checkpoint, path), checkpoint.about
