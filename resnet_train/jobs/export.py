"""Export a trained network to a file for other programs, and check that the file computes the same."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnet_train.config import TrainConfig
from resnet_train.data.sources.cifar import no_downloads
from resnet_train.export import FORMATS, Format, Source
from resnet_train.export.agreement import Agreement, compare_outputs
from resnet_train.export.hub_folder import push_folder
from resnet_train.export.output import check_target, written
from resnet_train.jobs.evaluate import EvaluationOptions, evaluate_checkpoint
from resnet_train.jobs.split_images import load_images
from resnet_train.jobs.subject import Subject, load_subject
from resnet_train.registry import accepts
from resnet_train.runs.checkpoint import AnyCheckpoint, ModelCheckpoint
from resnet_train.runs.folder import find_best, find_checkpoint
from resnet_train.runs.foreign import Given
from resnet_train.runs.needed_plugins import needed_plugins
from resnet_train.runtime.device import prepare_machine
from resnet_train.runtime.extras import import_extra
from resnet_train.runtime.plain import to_plain_values

log = logging.getLogger(__name__)

NUM_IMAGES = 1000  # to check a file on


class Differs(OSError):
    """A file does not compute what its network computes, which is a failure, not bad input."""


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """A file and what its check found.

    Attributes:
        checkpoint, arch: what was exported.
        format, path, num_bytes: the file, or the folder.
        images: what it was checked on; None if this format cannot be checked here.
        agreement: how well the file and the network agree; None likewise.
        pushed: the address on the Hugging Face Hub; None if it was not pushed.
    """

    checkpoint: str
    arch: str
    format: str
    path: str
    num_bytes: int
    images: str | None
    agreement: Agreement | None
    pushed: str | None = None


@dataclass(frozen=True)
class CheckImages:
    """Images to compare two networks on, uint8 [N, 3, S, S], and what they are."""

    pixels: np.ndarray
    title: str


def export(
    checkpoint: Path | str,
    path: Path | str | None = None,
    *,
    format: str,  # noqa: A002 - the word of the field
    best: bool = False,
    force: bool = False,
    num_images: int = NUM_IMAGES,
    dataset: str | None = None,
    data_dir: Path | str | None = None,
    threads: int = 0,
    arch: str | None = None,
    normalize: str | None = None,
    **options: Any,
) -> ExportResult:
    """Export the network of a checkpoint and check the file before it gets its name.

    Args:
        checkpoint: a file, or the folder of a run, which means its final model.
        path: the file to write; by default it is named after the checkpoint, in the current folder.
        format: a name in `FORMATS`.
        best: for a run, export the model that was chosen on its validation split.
        force: replace an existing file.
        num_images: images to check the file on.
        dataset, data_dir: where these are; by default the test images of the checkpoint, or random ones if missing.
        threads: number of CPU threads; 0 is torch's choice.
        arch, normalize: see `resnet_train.runs.foreign.Given`; for checkpoints from other code.
        options: options of the format, such as `half`.

    Raises:
        ValueError: no usable checkpoint, an unknown format or option, a missing package, or the file exists.
        Differs: the file does not compute what the network computes.
    """
    # Check what can be checked before anything takes time.
    kind = FORMATS[format]()
    _check_options(format, kind, options)
    for module in kind.modules:
        import_extra(module, f"--format {format}")
    target = Path(path) if path is not None else Path(_stem(Path(checkpoint)) + kind.suffix)
    found = _find(Path(checkpoint), best)
    if target.exists() and found.exists() and target.samefile(found):
        raise ValueError(f"{target} is the checkpoint itself; choose another --output")
    check_target(target, kind.files, force)
    kind.check_options(options)

    # Export and check.
    subject = _load(Path(checkpoint), best, threads, Given(arch=arch, normalize=normalize))
    evaluation = None
    if kind.needs_evaluation:
        folder = None if data_dir is None else Path(data_dir)
        settings = EvaluationOptions(
            dataset=dataset,
            data_dir=folder,
            best=best,
            device="cpu",
            threads=threads,
            arch=arch,
            normalize=normalize,
        )
        evaluation = _evaluate(Path(checkpoint), settings)
    source = make_source(subject, evaluation)
    images = _find_images(subject, num_images, dataset, data_dir)
    encoded = kind.encode(source, **options)
    with written(target, encoded, force) as temporary:
        agreement = _compare(kind, temporary, source, images, target)
    result = _describe(subject, format, target, images, agreement)
    return replace(result, pushed=push_folder(target, options["push"])) if options.get("push") else result


def check(
    checkpoint: Path | str,
    path: Path | str,
    *,
    format: str | None = None,  # noqa: A002
    best: bool = False,
    num_images: int = NUM_IMAGES,
    dataset: str | None = None,
    data_dir: Path | str | None = None,
    threads: int = 0,
    arch: str | None = None,
    normalize: str | None = None,
) -> ExportResult:
    """Check that a file that was exported from this checkpoint is undamaged and computes what its network computes.

    Args:
        path: the file; its suffix determines the format unless `format` is given.
        checkpoint, best, num_images, dataset, data_dir, threads, arch, normalize: see `export`.

    Raises:
        ValueError: no usable checkpoint, no such file, or a missing package.
        Differs: the file is damaged, or belongs to another network.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise ValueError(f"there is no file {path}")
    name = format or _format_of(path)
    kind = FORMATS[name]()
    for module in kind.modules:
        import_extra(module, f"--check of {name}")
    subject = _load(Path(checkpoint), best, threads, Given(arch=arch, normalize=normalize))
    images = _find_images(subject, num_images, dataset, data_dir)
    try:
        agreement = _compare(kind, path, make_source(subject), images, path)
    except ValueError as error:
        raise Differs(str(error)) from None
    if agreement is None:
        raise ValueError(f"a file of format {name} cannot be checked here")
    return _describe(subject, name, path, images, agreement)


def make_source(subject: Subject, evaluation: dict[str, Any] | None = None) -> Source:
    """Return the network of a subject in the form in which it is exported."""
    checkpoint = _without_paths(subject.checkpoints[0], subject.config)
    network = subject.first_network.float().to(memory_format=torch.contiguous_format)  # as in a new network
    return Source(checkpoint=checkpoint, network=network, evaluation=evaluation)


def _without_paths(checkpoint: AnyCheckpoint, config: TrainConfig) -> ModelCheckpoint:
    """Return weights and description without paths of this machine, which mean nothing elsewhere."""
    # Keep only the file names of plugins.
    folders = {name for name, field in TrainConfig.model_fields.items() if field.annotation in (Path, Path | None)}
    settings = {name: value for name, value in checkpoint.config.items() if name not in folders}
    environment = dict(checkpoint.environment)
    if config.plugin:
        settings["plugin"] = [Path(path).name for path in config.plugin]
    if plugins := needed_plugins(environment):
        environment["plugins"] = {
            plugin.name: {"version": plugin.version, "path": plugin.path and Path(plugin.path).name}
            for plugin in plugins
        }
    return ModelCheckpoint(
        about=checkpoint.about,
        config=settings,
        environment=environment,
        model=checkpoint.weights,
        metrics=checkpoint.metrics,
        chosen_on=checkpoint.chosen_on,
        calibration=checkpoint.calibration,
        origin=checkpoint.origin,
    )


def _find(checkpoint: Path, best: bool) -> Path:
    return find_best(checkpoint) if best else find_checkpoint(checkpoint)


def _load(checkpoint: Path, best: bool, threads: int, given: Given) -> Subject:
    return load_subject([_find(checkpoint, best)], None, prepare_machine("cpu", threads), given)


def _check_options(name: str, kind: Format, options: dict[str, Any]) -> None:
    """Raise a ValueError if an option is given that the format does not take."""
    for option in options:
        if not accepts(kind.encode, option):
            users = [other for other in FORMATS.names() if accepts(FORMATS[other].encode, option)]
            flag = "--" + option.replace("_", "-")
            used_by = f"; it is used by {', '.join(users)}" if users else ""
            raise ValueError(f"{flag} has no effect with --format {name}{used_by}")


def _evaluate(checkpoint: Path, options: EvaluationOptions) -> dict[str, Any] | None:
    """Return the numbers of `resnet-eval --json`; None if the test images are not here."""
    try:
        with no_downloads():
            return to_plain_values(evaluate_checkpoint([checkpoint], options))
    except (ValueError, OSError) as error:
        if options.dataset is not None or options.data_dir is not None:
            raise
        log.warning("the card will have no measured numbers: %s", error)
        return None


def _stem(checkpoint: Path) -> str:
    return checkpoint.resolve().name if checkpoint.is_dir() else checkpoint.stem


def _format_of(path: Path) -> str:
    """Return the format whose suffix a file has."""
    for name in FORMATS.names():
        kind = FORMATS[name]
        if path.is_dir() if kind.files else path.suffix == kind.suffix:
            return name
    raise ValueError(f"{path} does not have the suffix of any format; name the format with --format")


def _find_images(subject: Subject, num_images: int, dataset: str | None, data_dir: Path | str | None) -> CheckImages:
    """Return evenly spaced test images of the checkpoint's data set, or random ones if they are not here."""
    try:
        with no_downloads():
            data = load_images(subject, dataset, data_dir, None)
    except (ValueError, OSError):
        if dataset is not None or data_dir is not None:
            raise
        side = subject.image_size
        shape = (min(num_images, NUM_IMAGES), 3, side, side)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return CheckImages(pixels, "random images, because the test images are not here")
    chosen = data.indices[np.linspace(0, len(data.indices) - 1, min(num_images, len(data.indices))).astype(int)]
    return CheckImages(np.ascontiguousarray(data.images.images[chosen]), f"{data.split} images of {data.images.title}")


def _compare(kind: Format, path: Path, source: Source, images: CheckImages, target: Path) -> Agreement | None:
    """Return how far the file at `path` and the network agree; None if the format cannot be checked.

    Raises:
        ValueError: the file is damaged, or describes another network.
        Differs: it computes something else; the message names it `target`.
    """
    opened = kind.open(path, source)
    if opened is None:
        return None
    agreement = compare_outputs(source.compute_logits, opened.forward, images.pixels, opened.tolerance)
    if not agreement.holds:
        different = agreement.num_images - agreement.num_equal
        raise Differs(
            f"{target} does not compute what the network computes: other classes for {different:,} of "
            f"{agreement.num_images:,} images, logits up to {agreement.largest_difference:.2g} apart "
            f"(at most {agreement.tolerance * agreement.largest_logit:.2g} is expected)"
        )
    return agreement


def _describe(
    subject: Subject,
    name: str,
    path: Path,
    images: CheckImages,
    agreement: Agreement | None,
) -> ExportResult:
    files = [path] if path.is_file() else list(path.iterdir())
    return ExportResult(
        checkpoint=str(subject.paths[0]),
        arch=subject.checkpoints[0].about.arch,
        format=name,
        path=str(path),
        num_bytes=sum(file.stat().st_size for file in files),
        images=None if agreement is None else images.title,
        agreement=agreement,
    )
