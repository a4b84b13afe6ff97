"""The functions for notebooks and scripts: the commands, called from Python.

Each takes what its command takes, returns a dataclass with what `--json` prints, and raises what the command reports:
ValueError for what the caller can fix, OSError for failures of the machine. docs/python.md shows them in use.
"""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from resnet_train.build import check_config
from resnet_train.config import TrainConfig, make_config, to_plain
from resnet_train.jobs.compare import compare
from resnet_train.jobs.evaluate import EvaluationOptions, evaluate_checkpoint
from resnet_train.jobs.evaluation_result import EvaluationResult
from resnet_train.jobs.export import ExportResult
from resnet_train.jobs.export import export as export_file
from resnet_train.jobs.given_settings import (
    expand_path,
    expand_paths,
    gather_settings,
    read_recipe,
    with_environment,
)
from resnet_train.jobs.predict import BATCH_SIZE, TOP_K, Prediction, predict_pixels
from resnet_train.jobs.train import train as train_run
from resnet_train.jobs.trained_model import Picture, TrainedModel, as_list, as_pixels, load_model
from resnet_train.loggers.console import shown_log
from resnet_train.models import create_model
from resnet_train.records import RunResult
from resnet_train.registry import nearest
from resnet_train.runs.naming import default_name
from resnet_train.runs.weights import resolve_weights
from resnet_train.runtime.borrow import borrow_generators, borrow_process
from resnet_train.training.signals import Interrupted

__all__ = ["compare", "create_model", "evaluate", "export", "load_model", "predict", "train"]

_TRAINING = threading.Lock()  # guards the generators, kernels and log, which all threads of a process share
_OF_FILES = (
    "best",
    "tta",
    "device",
    "threads",
    "report",
    "arch",
    "normalize",
)  # options that need a checkpoint, not a loaded model


def train(
    config: TrainConfig | str | Path | None = None,
    *,
    resume: str | Path | None = None,
    verbose: bool = True,
    **settings: Any,
) -> RunResult:
    """Train a run and return its result, with a record of each epoch and the folder that holds everything.

    Ctrl-C, or the stop button of a notebook, saves the state and raises KeyboardInterrupt.

    Args:
        config: the name of a recipe, a YAML file, or a config; the defaults if not given.
        resume: "auto" for the newest run with the same settings or a new one, or the path of a run, which keeps its
            settings. A finished run is not trained again; its result is returned.
        verbose: show what `resnet-train` shows.
        settings: override those of `config`, as flags do: `train("resnet20-fast", epochs=2)`.

    Raises:
        ValueError: bad input; no run folder was created.
        NotFinite: a loss, gradient or weight was not finite.
        RuntimeError: another thread is training.
    """
    given, recipe = _gather(config, settings)
    by_path = resume is not None and resume != "auto"  # the settings are those of the run at this path
    if by_path and (moved := {"name", "output_dir"} & given.keys()):
        raise ValueError(f"{min(moved)} cannot be combined with the path of a run to resume")
    given = expand_paths(given if by_path else with_environment(given))
    resolved = make_config({} if by_path else given)
    place = expand_path(str(resume), "resume") if resume is not None else None

    # Keep other threads out, and restore the state of the process afterwards.
    if not _TRAINING.acquire(blocking=False):
        raise RuntimeError("another thread of this process is training; wait for it, or start another process")
    try:
        with shown_log() if verbose else nullcontext(), borrow_process(), borrow_generators():
            if not by_path:
                resolved = resolve_weights(resolved, given)
                check_config(resolved)
            return train_run(resolved, given, place, default_name(resolved, read_recipe(recipe)))
    except Interrupted as error:
        if error.signal_number != signal.SIGINT:
            raise
        message = str(error)
    finally:
        _TRAINING.release()
    # Outside the handler: the traceback that a notebook keeps would keep the network.
    raise KeyboardInterrupt(f"{message}, or in Python with train(resume=…)")


def evaluate(
    model: TrainedModel | str | Path | Sequence[str | Path],
    *,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    split: str | None = None,
    verbose: bool = True,
    **options: Any,
) -> EvaluationResult:
    """Evaluate a model on labeled images and return its accuracy, its calibration and the numbers of each class.

    Args:
        model: a checkpoint or a run's folder; several, whose probabilities are averaged; or a loaded model.
        dataset: another data set with the same classes; if not given, the one used in training.
        data_dir: directory of its data; if not given, the one used in training.
        split: test, val or train; if not given, test, or val if there is no test.
        verbose: show warnings and progress.
        options: other options of `resnet-eval`, as `EvaluationOptions` lists them.

    Raises:
        ValueError: no usable checkpoint, an unknown option, data set or split, or data with other classes.
    """
    options.update(dataset=dataset, data_dir=data_dir, split=split)
    chosen = _evaluation_options(options)
    with shown_log() if verbose else nullcontext(), borrow_process():
        if isinstance(model, TrainedModel):
            if useless := [name for name in _OF_FILES if getattr(chosen, name) != getattr(EvaluationOptions(), name)]:
                raise ValueError(f"{useless[0]} needs the path of a checkpoint instead of a loaded model")
            with _in_evaluation(model):
                return evaluate_checkpoint([model.path], chosen, model.subject)
        _refuse_other_modules(model)
        paths = [model] if isinstance(model, str | Path) else list(model)
        return evaluate_checkpoint([Path(expand_path(str(path), "model")) for path in paths], chosen)


def predict(
    model: TrainedModel | str | Path,
    pictures: Picture | Sequence[Picture],
    *,
    top: int = TOP_K,
    batch_size: int = BATCH_SIZE,
) -> list[Prediction]:
    """Classify pictures, with calibrated probabilities.

    Args:
        model: a checkpoint, a run's folder or a loaded model.
        pictures: one or several paths, PIL images, uint8 arrays or tensors; see `TrainedModel.transform`.
        top: number of classes for each picture.
        batch_size: pictures per batch.

    Returns:
        A prediction for each picture, in order.

    Raises:
        ValueError: no usable checkpoint, or a picture can't be read.
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} (={value}) must be at least 1")
    if not isinstance(model, TrainedModel):
        _refuse_other_modules(model)
        model = load_model(expand_path(str(model), "model"), device="auto")
    subject, named = model.subject, enumerate(as_list(pictures))
    predictions: list[Prediction] = []
    with _in_evaluation(model):
        while batch := list(itertools.islice(named, batch_size)):
            pixels = np.stack([as_pixels(picture, subject.image_size) for _, picture in batch])
            for (number, picture), (classes, unknown, _) in zip(batch, predict_pixels(subject, pixels, top)):
                name = str(getattr(picture, "filename", "") or (picture if isinstance(picture, str | Path) else number))
                is_calibrated = subject.calibration is not None
                predictions.append(Prediction(image=name, top=classes, calibrated=is_calibrated, unknown=unknown))
    return predictions


def export(
    checkpoint: str | Path,
    path: str | Path | None = None,
    *,
    format: str,  # noqa: A002 - the word of the field
    verbose: bool = True,
    **options: Any,
) -> ExportResult:
    """Write the network of a checkpoint to a file for other programs, and check that it computes the same.

    Args:
        checkpoint: a file, or the folder of a run, which means its final model.
        path: the file to write; by default it is named after the checkpoint, in the current folder.
        format: onnx, safetensors, pt and so on; docs/export.md describes them.
        verbose: show progress.
        options: other options of `resnet-export`, such as `half=True`; see `resnet_train.jobs.export.export`.

    Raises:
        ValueError: no usable checkpoint, an unknown format or option, a missing package, or the file exists.
        OSError: the file does not compute what the network computes, or can't be written.
    """
    checkpoint = expand_path(str(checkpoint), "checkpoint")
    path = None if path is None else expand_path(str(path), "path")
    with shown_log() if verbose else nullcontext(), borrow_process():
        return export_file(checkpoint, path, format=format, **options)


def _gather(config: TrainConfig | str | Path | None, settings: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the settings that were given, and the name or path of the recipe if they come from one."""
    if isinstance(config, TrainConfig):
        before = {name: value for name, value in to_plain(config).items() if name in config.model_fields_set}
        return {**before, **settings}, None
    recipe = None if config is None else str(config)
    return gather_settings(recipe, settings), recipe


def _evaluation_options(options: dict[str, Any]) -> EvaluationOptions:
    """Return options with paths expanded.

    Raises:
        ValueError: there is no such option.
    """
    known = {field.name: field for field in fields(EvaluationOptions)}
    for name in options:
        if name not in known:
            raise ValueError(f"unknown option {name!r}{nearest(name, known)}")
    paths = {name for name, field in known.items() if "Path" in str(field.type)}
    values: dict[str, Any] = {
        name: Path(expand_path(str(value), name)) if name in paths and value is not None else value
        for name, value in options.items()
    }
    return EvaluationOptions(**values)


def _refuse_other_modules(model: object) -> None:
    if isinstance(model, nn.Module):
        raise ValueError(
            f"a {type(model).__name__} does not know its classes and preprocessing; use a model that load_model returns"
        )


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, then back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
