"""Check that the files of a run agree with each other, and retrain its last stretch to compare every bit."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from resnet_train.build import build_trainer, check_config, describe_network, load_data
from resnet_train.config import TrainConfig, changed_settings, make_config, to_plain
from resnet_train.data.dataset import find_data_dir
from resnet_train.evaluation.metrics import compute_scores
from resnet_train.jobs.replay import train_again
from resnet_train.loggers.base import CURVE_FOLDERS
from resnet_train.loggers.csv import TIMING, format_metrics, read_rows
from resnet_train.loggers.events import RUN, Points, find_curve, find_event_files, is_checkpoint, read_events
from resnet_train.recipes import read_yaml
from resnet_train.records import EpochRecord
from resnet_train.runs.agreement import best_split, find_best_record, is_same_record
from resnet_train.runs.bitwise import Difference, compare_states
from resnet_train.runs.checkpoint import (
    ModelCheckpoint,
    RunCheckpoint,
    dump,
    parse,
    read_checkpoint,
)
from resnet_train.runs.folder import SPLITS, RunFolder
from resnet_train.runs.needed_plugins import describe_missing, missing_plugins
from resnet_train.runs.restore import restore_model
from resnet_train.runs.weights import load_weights, read_weights
from resnet_train.runtime.device import device_name, prepare_machine, select_device
from resnet_train.runtime.environment import describe_environment
from resnet_train.runtime.files import refuse_special_files
from resnet_train.text import counted
from resnet_train.training.state import TrainerState
from resnet_train.training.trainer import Trainer, list_scalars

log = logging.getLogger(__name__)

# Bits are comparable only if these are the same.
MACHINE = ("torch", "device", "device_name", "cpu", "threads")
MAX_REPLAY_MINUTES = 10  # for a run that was saved once, at its end


@dataclass
class Verification:
    """What was found in a run.

    Attributes:
        run: its folder.
        difference: the first thing that differs, None if everything that was checked agrees.
        num_tensors: tensors of the state that a replay reproduced bit for bit.
        checked, not_checked: what was compared, and what could not be and why.
    """

    run: str
    difference: str | None = None
    num_tensors: int = 0
    checked: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)


@dataclass
class Run:
    """The checkpoints of a run, as they are on disk.

    Attributes:
        last, previous: the two states; None if there is no such file.
        model, best, waiting: the final model, and by split the best one and the one waiting for a state.
    """

    folder: RunFolder
    last: RunCheckpoint | None
    previous: RunCheckpoint | None
    model: ModelCheckpoint | None
    best: dict[str, ModelCheckpoint]
    waiting: dict[str, ModelCheckpoint]

    @property
    def newest(self) -> RunCheckpoint | ModelCheckpoint:
        """Return what the other files must agree with."""
        found = self.last or self.model
        assert found is not None
        return found

    @property
    def history(self) -> list[EpochRecord]:
        """Return the known records: all, or only the last one if the states were deleted."""
        if self.last is not None:
            return self.last.history
        return [record] if (record := self.newest.metrics) else []

    @property
    def is_finished(self) -> bool:
        """Return whether all epochs are done."""
        return self.last is None or self.last.epoch == make_config(self.last.config).epochs


def verify(path: Path) -> Verification:
    """Verify a run; nothing is written into its folder.

    Raises:
        ValueError: this is not the folder of a run, the run has not ended, or one of its plugins is not loaded.
        Interrupted: by a signal.
    """
    folder = RunFolder(path if path.name not in {"", ".."} else path.resolve())
    is_folder = os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises on names that are too long
    for place in (
        (folder.path, folder.checkpoints, *(folder.path / split for split in CURVE_FOLDERS)) if is_folder else ()
    ):
        refuse_special_files(place)
    if not is_folder or not (folder.has_checkpoint() or folder.model.is_file()):
        raise ValueError(f"{path} is not the folder of a run with checkpoints/last.pt or model.pt")
    if writer := folder.find_writer():
        raise ValueError(f"{path} is being written by {writer}; verify it when that process has ended")

    result = Verification(str(folder.path))
    try:
        run = _read_run(folder)
        if missing := missing_plugins(run.newest.environment):
            raise ValueError(describe_missing(missing, folder.path))
        _check_descriptions(run, result)
        _check_csv(run, result)
        points = _check_events(run, result)
        _check_models(run, result)
        _check_by_training(run, points, result)
    except Difference as difference:
        result.difference = str(difference)
    return result


# --- Comparisons of files --------------------------------------------------------------------------------------------


def _read_run(folder: RunFolder) -> Run:
    """Read all checkpoints; a damaged one counts as a difference."""

    def read(path: Path, kind: type[Any]) -> Any:
        """Return the checkpoint in a file, None if there is none."""
        if not path.is_file():
            return None
        try:
            return parse(read_checkpoint(path), path, kind)
        except ValueError as error:
            raise Difference(str(error)) from None

    best = {split: read(folder.best(split), ModelCheckpoint) for split in SPLITS}
    waiting = {split: read(folder.next_best(split), ModelCheckpoint) for split in SPLITS}
    run = Run(
        folder,
        read(folder.last, RunCheckpoint),
        read(folder.previous, RunCheckpoint),
        read(folder.model, ModelCheckpoint),
        {split: found for split, found in best.items() if found},
        {split: found for split, found in waiting.items() if found},
    )
    if run.last is None and run.previous is not None:
        raise Difference("checkpoints/last.pt is missing, though previous.pt is there")
    return run


def _check_descriptions(run: Run, result: Verification) -> None:
    """Compare what the files say about settings, network, data and machine."""
    newest, name = run.newest, "last.pt" if run.last else "model.pt"
    config = _config_of(newest, name)
    others = {"previous.pt": run.previous, "model.pt": run.model}
    others |= {run.folder.best(split).name: model for split, model in run.best.items()}
    for other_name, other in others.items():
        if other is None or other is newest:
            continue
        compare_states(newest.about.model_dump(), other.about.model_dump(), f"{other_name}: about", name)
        for setting, (now, before) in changed_settings(config, _config_of(other, other_name)).items():
            if setting != "epochs" or before > now:
                raise Difference(f"{other_name}: config.{setting} is {before}, but {now} in {name}")

    # A run that was killed between saving its state and its description is described by the previous state.
    described = [newest] if run.is_finished or run.previous is None else [newest, run.previous]
    try:
        found = to_plain(make_config(read_yaml(run.folder.path / "config.yaml")))
        environment = json.loads((run.folder.path / "environment.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise Difference(f"the description of the run: {error}") from None
    expected, fixed = to_plain(config), changed_settings(config, make_config(found)).keys() - {"epochs"}
    for setting, value in found.items():
        if value != expected[setting]:
            accepted = [part.config.get(setting) for part in described]
            if setting in fixed or value not in accepted:
                raise Difference(f"config.yaml: {setting} is {value}, but {expected[setting]} in {name}")
    if all(environment != part.environment for part in described):
        compare_states(newest.environment, environment, "environment.json", name)
    result.checked.append("config.yaml, environment.json and what each checkpoint says about itself")

    # Check that the states follow each other.
    if run.last is None or run.previous is None:
        return
    before, now = run.previous.history, run.last.history
    for earlier, later in zip(before, now):
        if not is_same_record(earlier, later):
            compare_states(later.to_plain(), earlier.to_plain(), f"previous.pt: history of epoch {later.epoch}", name)


def _config_of(checkpoint: Any, name: str) -> TrainConfig:
    try:
        return make_config(checkpoint.config)
    except ValueError as error:
        raise Difference(f"{name}: config: {error}") from None


def _check_csv(run: Run, result: Verification) -> None:
    """Compare metrics.csv with the history, cell by cell, and the epochs of timing.csv."""
    expected = [line.split(",") for line in format_metrics(run.history, list_scalars()).splitlines()]
    for path, is_whole in ((run.folder.path / "metrics.csv", True), (run.folder.path / "timing.csv", False)):
        try:
            rows = read_rows(path)
        except (ValueError, OSError) as error:
            raise Difference(f"{path.name}: {error}") from None
        if run.last is None and rows:  # only the last epoch is known
            rows = [rows[0], *rows[-1:]] if len(rows) > 1 else rows
        if run.is_finished and len(rows) > len(expected):
            present, done = counted(len(rows) - 1, "row"), counted(len(expected) - 1, "epoch")
            raise Difference(f"{path.name} has {present}, but the run has {done}")
        header = expected[0] if is_whole else ["epoch", "step", *(name.partition("/")[2] for name in TIMING)]
        for number, row in enumerate([header, *expected[1:]]):
            found = rows[number] if number < len(rows) else []
            where = f"{path.name}: " + (f"the row of epoch {row[0]}" if number else "the header")
            if not found or found[:2] != row[:2] or len(found) != len(header):
                raise Difference(f"{where} is {'missing' if not found else ','.join(found)[:80]}")
            for name, cell, cell_found in zip(header, row, found):
                if is_whole and cell != cell_found:
                    raise Difference(f"{where} has {name} {cell_found}, but the checkpoint has {cell}")
    result.checked.append(f"metrics.csv ({counted(len(expected) - 1, 'epoch')}), timing.csv (its epochs)")


def _check_events(run: Run, result: Verification) -> Points:
    """Compare the curves of TensorBoard with the history and timing.csv, and the event files with their own marks.

    Returns:
        The points of all curves.
    """
    # Read the folder of the run, whose axis is the step, and those of the splits, whose axis is the epoch.
    config, num_files, points, problems, unmarked = make_config(run.newest.config), 0, Points(), list[str](), False
    step = run.last.step if run.last else run.history[-1].step
    epoch = run.history[-1].epoch if run.history else 0
    for split in (RUN, *CURVE_FOLDERS):
        if files := find_event_files(run.folder.path / split):
            found, problem, is_marked = _read_points(split, files, epoch if split else step)
            points |= found
            problems += [problem] if problem else []
            unmarked, num_files = unmarked or not is_marked, num_files + len(files)
    if not num_files:
        if config.tensorboard:
            raise Difference("the event files are missing")
        result.not_checked.append("event files: the run has none")
        return points

    # Check that each epoch has its points.
    rows = {row[0]: row[2:] for row in read_rows(run.folder.path / "timing.csv")[1:]}
    for record in run.history:
        timing = dict(zip(TIMING, rows.get(str(record.epoch), [])))
        scalars = record.scalars() | {name: _to_float(cell) for name, cell in timing.items() if cell}
        for name, value in scalars.items():
            if (curve := find_curve(name, within_epoch=False)) is None:
                continue
            found_value = points.get((*curve, record.epoch))
            if found_value is None and (name in timing or not config.tensorboard):  # a while without TensorBoard
                continue
            if found_value is None or _float32(found_value) != _float32(value):
                source = "timing.csv" if name in timing else "the checkpoint"
                shown = "missing" if found_value is None else f"{found_value:.9g}"
                where = f"{'/'.join(curve)} at epoch {record.epoch}"
                raise Difference(f"event files: {where} is {shown}, but {value!r} in {source}")

    # Check all other points, which are in no other file.
    if problems:
        raise Difference(f"event files: {problems[0]}")
    if unmarked:  # written by an earlier version, or not since TensorBoard was switched off
        result.not_checked.append("curves within epochs before the replay: no mark of last.pt is in the event files")
    result.checked.append(f"{num_files} event file{'s'[: num_files > 1]} ({len(points)} points)")
    return points


def _read_points(split: str, files: list[Path], last: int) -> tuple[Points, str | None, bool]:
    """Return the points of a folder up to a checkpoint, anything wrong with a mark, and whether it is marked.

    Raises:
        Difference: a point appears twice, or an event is damaged.
    """
    points, digest, problem, is_marked = Points(), hashlib.sha256(), None, False
    for path in files:
        content, end = path.read_bytes(), 0
        try:
            for next_end, event in read_events(path, check=True):
                if is_checkpoint(event) and event.step <= last:
                    so_far, is_marked = digest.copy(), is_marked or event.step == last
                    so_far.update(content[:end])
                    if event.session_log.msg != so_far.hexdigest() and problem is None:
                        unit, name = "epoch" if split else "step", "/".join(filter(None, (split, path.name)))
                        problem = f"{name} or one before was changed or removed after {unit} {event.step}"
                elif event.HasField("session_log") and not is_checkpoint(event):  # TensorBoard forgets these points
                    points = {key: value for key, value in points.items() if key[-1] < event.step}
                for value in event.summary.value:
                    if event.step > last or value.WhichOneof("value") != "simple_value":
                        continue
                    if (split, value.tag, event.step) in points:
                        raise Difference(f"event files: {value.tag} has {event.step} twice")
                    points[split, value.tag, event.step] = value.simple_value
                end = next_end
        except ValueError as error:
            if path != files[-1] or not is_marked:  # what was torn by a kill after the save is cut off on resume
                raise Difference(f"event files: {error}") from None
        digest.update(content)
    return points, problem, is_marked


def _float32(value: float) -> bytes:
    return struct.pack("f", value) if abs(value) < 3.4e38 or value != value else repr(value).encode()


def _to_float(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise Difference(f"timing.csv: {cell[:40]!r} is not a number") from None


def _check_models(run: Run, result: Verification) -> None:
    """Compare the records of the best and the final model with the history, and the final weights with the state."""
    model, last = run.model, run.last
    if last is None:
        assert model is not None
        result.not_checked.append("the replay: last.pt and previous.pt are not here")
    elif model is not None:
        if not run.is_finished:
            raise Difference(f"model.pt exists, but the run is not finished (done: {counted(last.epoch, 'epoch')})")
        compare_states(_plain(last.metrics), _plain(model.metrics), "model.pt: metrics", "last.pt")
        compare_states(dict(last.weights), dict(model.model), "model.pt: model", "last.pt")
    elif run.is_finished:
        result.not_checked.append("model.pt: not written yet; --resume writes it")
    if model is not None and model.chosen_on is not None:
        raise Difference(f"model.pt: chosen_on is {model.chosen_on!r}, but the final model is not chosen")

    # Check that the best model is from an epoch in the history and the split that selects.
    expected, split = find_best_record(run.history), best_split(run.history)
    for other in set(run.best) - {split}:
        raise Difference(f"{run.folder.best(other).name} exists, though {split} selects the best epoch")
    if last is None:
        result.not_checked.append("the best epoch: the history is in last.pt")
        return
    name, best, waiting = run.folder.best(split).name, run.best.get(split), run.waiting.get(split)
    if waiting is not None and is_same_record(waiting.metrics, expected):  # killed right after the state was saved
        name, best = run.folder.next_best(split).name, waiting
    if (best is None) != (expected is None):
        raise Difference(f"{name} is {'missing' if best is None else 'present, though no epoch was evaluated'}")
    if best is not None and expected is not None:
        compare_states(_plain(expected), _plain(best.metrics), f"{name}: metrics", "last.pt")
        if best.chosen_on != split:
            raise Difference(f"{name}: chosen_on is {best.chosen_on!r}, but must be {split!r}")
        if is_same_record(expected, last.metrics) and not last.steps_after_epoch:
            compare_states(dict(last.weights), dict(best.model), f"{name}: model", "last.pt")
    names = [name] * (best is not None) + ["model.pt"] * (model is not None)
    result.checked.append(f"the records of {' and '.join(names)}" if names else "that there is no model yet")


def _plain(record: EpochRecord | None) -> dict[str, Any]:
    return record.to_plain() if record else {}


# --- Comparisons by computing again ----------------------------------------------------------------------------------


def _check_by_training(run: Run, points: Points, result: Verification) -> None:
    """Compare the data with the run's, evaluate the best model again, and retrain the last stretch."""
    newest, name = run.newest, "last.pt" if run.last else "model.pt"
    config = make_config(newest.config)
    try:
        config = config.model_copy(update={"data_dir": find_data_dir(config, newest.data_path)})
        data = load_data(config)
    except (ValueError, OSError) as error:
        result.not_checked.append(f"the data, the best model's scores and the replay: {error}")
        return
    compare_states(describe_network(config, data).model_dump(), newest.about.model_dump(), f"{name}: about", "the data")
    result.checked.append("the training and test images")

    # Compute as the run did, where that is possible.
    reason = _why_not_here(newest)
    if reason is not None:
        result.not_checked.append(f"the best model's scores and the replay: {reason}")
        return
    threads = newest.environment.get("threads")
    most = 4 * (os.cpu_count() or 1)
    device = prepare_machine(
        config.device,
        threads if isinstance(threads, int) and 0 < threads <= most else config.threads,
        config.deterministic,
    )
    try:
        check_config(config, resumed=True)
        trainer = build_trainer(config, data, device)
    except (ValueError, RuntimeError) as error:
        raise Difference(f"{name}: no run has these settings: {error}") from None
    unlike = _unlike_bits(newest, config, device)
    if run.last is not None:
        _replay(run, trainer, points, unlike, result)
    _evaluate_again(run, trainer, config, result)


def _why_not_here(newest: RunCheckpoint | ModelCheckpoint) -> str | None:
    """Return why nothing can be computed as the run did, None if it can."""
    if isinstance(newest, RunCheckpoint) and len(newest.sums) > 1:
        return f"the run was trained by {len(newest.sums)} processes"
    wanted, chosen = newest.environment.get("device"), make_config(newest.config).device
    try:
        here = select_device(chosen)
    except ValueError as error:
        return str(error)
    name = device_name(here)
    if here.type != wanted or (here.type != "cpu" and name != newest.environment.get("device_name")):
        return f"the run was trained on {newest.environment.get('device_name')}, but this is {name}"
    return None


def _unlike_bits(checkpoint: RunCheckpoint | ModelCheckpoint, config: TrainConfig, device: torch.device) -> str | None:
    """Return why bits may differ here although nothing was changed, None if they may not."""
    now, before = describe_environment(device), checkpoint.environment
    changed = [f"{key} was {before.get(key)} and is {now[key]}" for key in MACHINE if before.get(key) != now[key]]
    if device.type != "cpu" and not config.deterministic:
        changed.append(f"{device.type} without --deterministic rounds differently each time")
    return "; ".join(changed) or None


def _replay(run: Run, trainer: Trainer, points: Points, unlike: str | None, result: Verification) -> None:
    """Train from previous.pt, or from step 0 to the first save, to last.pt, and compare every bit."""
    assert run.last is not None
    previous, last, config = run.previous, run.last, make_config(run.last.config)
    if previous is None and _took_longer_than_a_save(run, last):
        result.not_checked.append("the replay: previous.pt is missing, and training all steps again takes too long")
        return
    if previous is None and any(record.lr != trainer.lr_at(record.step - 1) for record in last.history):
        result.not_checked.append("the replay: previous.pt is missing, and the schedule was different before")
        return
    if previous is not None and len(previous.sums) > 1:
        result.not_checked.append(f"the replay: previous.pt was saved by {len(previous.sums)} processes")
        return
    first, steps = previous.step if previous else 0, len(trainer.train_loader)
    if not last.epoch * steps <= last.step <= min(last.epoch + 1, config.epochs) * steps:
        done = f"{counted(last.epoch, 'epoch')} of {counted(steps, 'step')}"
        raise Difference(f"last.pt: step is {last.step}, which does not follow {done}")
    if previous is not None and (previous.epoch, previous.step) > (last.epoch, last.step):
        raise Difference(f"previous.pt: step is {previous.step}, after step {last.step} of last.pt")
    if previous is None and config.weights is not None:
        try:
            load_weights(trainer, read_weights(config), config, tuple(last.about.classes))
        except ValueError as error:
            result.not_checked.append(f"the replay: it starts from weights that are not here: {error}")
            return
    log.info("retraining steps %d to %d of %s", first + 1, last.step, run.folder.path)
    replay = train_again(trainer, previous, last)
    try:
        count = compare_states(_trained_part(dump(trainer.state())), _trained_part(dump(last)), "last.pt", "the replay")
        _compare_points(points, replay.points)
        split = best_split(last.history)
        if replay.best_weights and split in run.best and run.best[split].epoch == replay.best_epoch:
            name = run.folder.best(split).name
            compare_states(dict(run.best[split].model), replay.best_weights, f"{name}: model", "the replay")
    except Difference as difference:
        if unlike is None:
            raise
        result.not_checked.append(f"the replay's bits, because {unlike}; they first differ here: {difference}")
        return
    result.num_tensors = count
    result.checked.append(f"the replay from step {first} to {last.step}: every bit of the state")


def _took_longer_than_a_save(run: Run, last: RunCheckpoint) -> bool:
    """Return whether training up to a state took longer than the time between two saves."""
    config, header = make_config(last.config), [name.partition("/")[2] for name in TIMING]
    rows = [dict(zip(header, row[2:])) for row in read_rows(run.folder.path / "timing.csv")[1:]]
    seconds = last.epoch_seconds + sum(_to_float(row["train_seconds"]) for row in rows)
    return seconds > 60 * (config.save_every_minutes or MAX_REPLAY_MINUTES)


def _trained_part(state: dict[str, Any]) -> dict[str, Any]:
    """Return what training reproduces: all of a trainer's state but its clock."""
    return {name: state[name] for name in TrainerState.model_fields if name != "epoch_seconds"}


def _compare_points(points: Points, replayed: Points) -> None:
    """Compare the curves within epochs with those of the replay."""
    for (split, tag, step), value in replayed.items():
        found = points.get((split, tag, step), value)
        if _float32(found) != _float32(value):
            raise Difference(f"event files: {tag} at step {step} is {found:.9g}, but {value!r} in the replay")


def _evaluate_again(run: Run, trainer: Trainer, config: TrainConfig, result: Verification) -> None:
    """Evaluate the best model again, and the final one of a run without states."""
    models = {run.folder.best(split).name: model for split, model in run.best.items()}
    if run.last is None and run.model is not None:
        models["model.pt"] = run.model
    for name, model in models.items():
        assert model.metrics is not None
        try:
            restore_model(model, Path(name))
        except ValueError as error:
            raise Difference(str(error)) from None
        trainer.eval_model.load_state_dict(model.model)
        trainer.signals.stop, unlike = 0, _unlike_bits(model, config, trainer.device)
        for split, loader in trainer.eval_loaders.items():
            if (recorded := model.metrics.scores.get(split)) is None:
                continue
            scores = compute_scores(trainer.evaluate_on(loader))
            try:
                expected = {key: scores[key] for key in recorded if key in scores}
                compare_states(expected, recorded, f"{name}: metrics.scores.{split}", "an evaluation of its weights")
            except Difference as difference:
                if unlike is None:
                    raise
                result.not_checked.append(
                    f"the scores of {name}, because {unlike}; they first differ here: {difference}"
                )
                break
        else:
            result.checked.append(f"the scores of {name}, which was evaluated again")
