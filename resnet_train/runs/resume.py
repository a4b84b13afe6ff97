"""Which run to train, and from which state: everything that differs between a new run and a resumed one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from resnet_train.config import (
    TrainConfig,
    changed_settings,
    is_planned,
    make_config,
    merge_on_resume,
    with_length,
)
from resnet_train.data.dataset import FACTS, find_data_dir, needs_files
from resnet_train.recipes import read_yaml
from resnet_train.runs.checkpoint import ModelCheckpoint, RunCheckpoint, parse, read_checkpoint
from resnet_train.runs.folder import RunFolder, existing_run_message, find_runs
from resnet_train.runs.naming import default_name
from resnet_train.runs.needed_plugins import check_files, naming_missing_plugins

log = logging.getLogger(__name__)

# The fingerprints of the training, test and validation images that a config names.
Fingerprints = Callable[[TrainConfig], tuple[str, str, str]]


class OtherRun(ValueError):
    """A run folder holds another experiment."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run starts.

    Attributes:
        config: all settings.
        folder: the run's folder, locked; None for a new run, whose folder is created when everything else is ready.
        state: the state to resume from; None for a run that starts from step 0.
        name: the name of the folder to create.
        exact: whether to refuse a name that is taken instead of appending a number.
        file: the file that the user chose to resume from; None for the newest usable one.
        model: the final model of a finished run whose states were deleted.
    """

    config: TrainConfig
    folder: RunFolder | None
    state: RunCheckpoint | None
    name: str
    exact: bool
    file: Path | None = None
    model: ModelCheckpoint | None = None

    @property
    def is_finished(self) -> bool:
        """Return whether all epochs are done."""
        return self.model is not None or (self.state is not None and self.state.epoch == self.config.epochs)

    def open_folder(self) -> RunFolder:
        """Return the run's folder, locked; create it if the run is new.

        Raises:
            ValueError: another process created it in the meantime.
        """
        return self.folder or RunFolder.create(self.config.output_dir, self.name, given=self.exact)

    def fall_back(self, error: ValueError) -> RunCheckpoint:
        """Return the state of previous.pt after last.pt was refused with this error; set last.pt aside.

        Raises:
            ValueError: the same error, if there is no other state to resume from.
        """
        if self.folder is None or self.file is not None or not self.folder.last.exists():
            raise error
        try:
            state = _parse_state(self.folder.previous)
        except ValueError:
            raise error from None
        _set_last_aside(self.folder, [str(error)])
        return state


def find_start(
    config: TrainConfig,
    given: dict[str, Any],
    resume: str | None,
    fingerprints: Fingerprints,
    name: str | None = None,
) -> Start:
    """Decide which run to train, lock its folder and read its state.

    Args:
        config: all settings.
        given: the settings that the user chose; a run resumed by its path keeps its settings except these.
        resume: None for a new run, "auto" for the newest run of the same experiment or a new one, or the path of a run,
            whose config then replaces `config`.
        fingerprints: returns the fingerprints of the images of a config.
        name: the name of a new run if the config has none.

    Raises:
        ValueError: there is no such run, it is in use, or a setting would change its result.
    """
    name = config.name or name or default_name(config)
    if resume == "auto":
        return _find_match(config, given, fingerprints, name)
    if resume is not None:
        return _start_at(Path(resume), given)
    if config.name and (config.output_dir / name).exists():
        raise ValueError(existing_run_message(config.output_dir / name))
    return Start(config=config, folder=None, state=None, name=name, exact=config.name is not None)


# --- The run at a path -----------------------------------------------------------------------------------------------


def _start_at(path: Path, given: dict[str, Any]) -> Start:
    """Resume the run in a folder, or from one of its two states."""
    # A path to one of the two states names the state and its folder.
    file = None if path.is_dir() else path
    if file is not None:
        path = _run_of_checkpoint(file)
    folder = RunFolder(path if path.name not in {"", ".."} else path.resolve())
    if not folder.has_checkpoint():
        raise ValueError(
            f"{folder.path} has no checkpoint to resume from; start it with its settings and --resume auto"
        )

    # Lock before reading, because another process may be about to write a newer state.
    folder.lock()
    try:
        state = _parse_state(file) if file else _read_state(folder)
        for change in check_files(state.environment, folder.path):
            log.warning("%s: the result may differ", change)
        with naming_missing_plugins(state.environment, folder.path):
            return _resumed(folder, state, given, file)
    except BaseException:
        folder.unlock()
        raise


def _run_of_checkpoint(path: Path) -> Path:
    """Return the folder of the run that a checkpoint file belongs to."""
    if "optimizer" not in read_checkpoint(path):
        raise ValueError(f"{path} holds a model but not the state of a run; resume from the run's folder")
    file = path.resolve()
    if file.parent.name != "checkpoints" or file.name not in {"last.pt", "previous.pt"}:
        raise ValueError(f"{path} is not inside a run folder; resume from <run>/checkpoints/last.pt or <run>")
    return file.parent.parent


def _resumed(folder: RunFolder, state: RunCheckpoint, given: dict[str, Any], file: Path | None = None) -> Start:
    """Return the start of a run that continues from a state."""
    # The folder may have been moved or renamed since the run started.
    place = {"output_dir": str(folder.path.parent), "name": folder.name}
    config, before = merge_on_resume(state.config, {**given, **place}), make_config(state.config).epochs
    start = Start(config=config, folder=folder, state=state, name=folder.name, exact=True, file=file)

    # Its data may also have been moved; a finished run needs none.
    if not start.is_finished and "data_dir" not in given:
        found = find_data_dir(config, state.data_path)
        start = replace(start, config=config.model_copy(update={"data_dir": found}))
    if config.epochs > before:
        log.warning("epochs was %d and is now %d: the lr schedule is stretched over all of them", before, config.epochs)
    return start


def _read_state(folder: RunFolder) -> RunCheckpoint:
    """Return the newest usable state of a run; set an unusable last.pt aside.

    Raises:
        ValueError: no state is usable.
    """
    # Try last.pt, then previous.pt.
    problems: list[str] = []
    for path in (folder.last, folder.previous):
        try:
            state = _parse_state(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        if problems:
            _set_last_aside(folder, problems)
        return state

    # If none is usable, say why.
    if folder.last.exists() and not folder.previous.exists():
        raise ValueError(problems[0])
    raise ValueError(f"{folder.path} has no checkpoint to resume from: {'; '.join(problems)}")


def _parse_state(path: Path) -> RunCheckpoint:
    """Return the state in a file.

    Raises:
        ValueError: the file is missing or damaged, or a part of it is missing or has the wrong type.
    """
    return parse(read_checkpoint(path), path, RunCheckpoint)


def _set_last_aside(folder: RunFolder, problems: list[str]) -> None:
    """Rename an unusable last.pt, which the next save would make the previous one."""
    for problem in problems:
        log.warning("%s; falling back to %s", problem, folder.previous)
    if folder.last.exists():
        folder.last.replace(folder.checkpoints / "damaged.pt")


# --- The newest run of the same experiment ---------------------------------------------------------------------------


def _find_match(config: TrainConfig, given: dict[str, Any], fingerprints: Fingerprints, name: str) -> Start:
    """Return the newest unfinished run whose whole config is this one, else a finished one, else a new run.

    Raises:
        ValueError: that run is in use or has no readable state, or the chosen name belongs to another run.
    """
    # Take the newest run that is unfinished, and remember the newest that is finished.
    finished: Start | None = None
    for folder, has_name in _candidates(config, name):
        try:
            start = _match(config, given, fingerprints, folder, has_name)
        except OtherRun:
            if config.name:
                raise
            continue
        if not start.is_finished:
            return start
        folder.unlock()
        finished = finished or start

    # Otherwise return the finished one, whose final model may still have to be written.
    if finished is not None:
        if finished.folder is not None and finished.state is not None:  # without a state there is nothing to write
            finished.folder.lock()
        return finished

    # Otherwise start a new run under a free name.
    numbered = (name if number == 1 else f"{name}-{number}" for number in count(1))
    free = next(candidate for candidate in numbered if not (config.output_dir / candidate).exists())
    return Start(config=config, folder=None, state=None, name=name if config.name else free, exact=True)


def _candidates(config: TrainConfig, name: str) -> Iterator[tuple[RunFolder, bool]]:
    """Yield the folders to consider, newest first, and whether they have the name of this run.

    Without a chosen name these are the runs with the default name, then all others in the output directory.
    """
    named = find_runs(config.output_dir, name, given=config.name is not None)
    yield from ((folder, True) for folder in named)

    # The same experiment may have another name, such as one chosen by the user.
    if config.name is None and config.output_dir.is_dir():
        known = {folder.path for folder in named}
        others = [RunFolder(path) for path in config.output_dir.iterdir() if path not in known]
        dated = []
        for folder in others:
            with suppress(OSError):
                files = [file for file in (folder.last, folder.previous, folder.model) if file.is_file()]
                dated += [(max(file.stat().st_mtime_ns for file in files), folder)] if files else []
        yield from ((folder, False) for _, folder in sorted(dated, key=lambda pair: pair[0], reverse=True))


def _match(
    config: TrainConfig, given: dict[str, Any], fingerprints: Fingerprints, folder: RunFolder, has_name: bool
) -> Start:
    """Return the start from a folder that holds this experiment.

    Raises:
        OtherRun: it holds a different one, or files that this program did not make.
        ValueError: the run is in use or has no readable state.
    """
    # Reading a state is slow, and config.yaml rules out most other runs.
    if not has_name:
        _check_described(folder, config, must_exist=True)

    # Lock the folder before its state is read.
    if not folder.has_checkpoint():
        return _match_without_state(config, folder, has_name)
    try:
        folder.lock()
    except ValueError:  # in use
        _check_described(folder, config)
        raise
    except OSError as error:
        if has_name:
            raise
        raise OtherRun(str(error)) from None  # it belongs to another user

    # Only the state says what was trained.
    try:
        state = _read_state(folder)
        if changes := check_files(state.environment, folder.path):
            raise OtherRun(f"{changes[0]}; choose another --name, or continue it with --resume {folder.path}")
        with naming_missing_plugins(state.environment, folder.path):
            _check_same(folder, make_config(state.config), config)
            if config.dataset not in FACTS:
                _check_images(folder, state, config, fingerprints)
            return _resumed(folder, state, given)
    except BaseException as error:
        folder.unlock()
        if has_name or not isinstance(error, ValueError | OSError):
            raise
        raise OtherRun(str(error)) from None


def _match_without_state(config: TrainConfig, folder: RunFolder, has_name: bool) -> Start:
    """Return the start from a folder without a state: a finished run, or one that was killed before its first save."""
    # A final model means a finished run whose states were deleted.
    other = OtherRun(existing_run_message(folder.path))
    if folder.model.is_file():
        try:
            model = parse(read_checkpoint(folder.model), folder.model, ModelCheckpoint)
        except ValueError:
            raise other from None
        try:
            with naming_missing_plugins(model.environment, folder.path):
                before = make_config(model.config, str(folder.model))
        except ValueError as error:
            raise OtherRun(str(error)) from None
        _check_same(folder, before, config)
        if model.epoch != before.epochs:
            raise other
        return Start(config=before, folder=folder, state=None, name=folder.name, exact=True, model=model)

    # Only a folder with this run's name may be restarted.
    if not has_name or not folder.is_killed_start():
        raise other
    try:
        folder.lock()
    except ValueError:  # in use
        _check_described(folder, config)
        raise
    if not folder.is_killed_start():  # another process wrote here in the meantime
        folder.unlock()
        raise other
    folder.unsaved.touch()
    log.info("%s has no checkpoint yet; starting from step 0", folder.path)
    return Start(config=config, folder=folder, state=None, name=folder.name, exact=True)


def _check_described(folder: RunFolder, config: TrainConfig, *, must_exist: bool = False) -> None:
    """Raise OtherRun if config.yaml has other settings."""
    try:
        described = make_config(read_yaml(folder.path / "config.yaml"))
    except ValueError as error:
        if must_exist:
            raise OtherRun(str(error)) from None
    else:
        _check_same(folder, described, config)


def _check_same(folder: RunFolder, before: TrainConfig, config: TrainConfig) -> None:
    """Raise OtherRun if a setting that affects the result differs."""
    if before.minutes == config.minutes and is_planned(before) and not is_planned(config):
        assert before.epoch_steps is not None
        config = with_length(config, before.epochs, before.epoch_steps)
    changes = changed_settings(before, config)
    if not changes:
        return
    listed = ", ".join(f"{name} was {old} and is now {new}" for name, (old, new) in changes.items())
    remedy = "choose another --name"
    if set(changes) == {"epochs"} and config.epochs > before.epochs:
        remedy += f", or extend it with --resume {folder.path} --epochs {config.epochs}"
    raise OtherRun(f"{folder.path} is a run with different settings ({listed}); {remedy}")


def _check_images(folder: RunFolder, state: RunCheckpoint, config: TrainConfig, fingerprints: Fingerprints) -> None:
    """Raise OtherRun if the run was trained or evaluated on other images."""
    about = state.about
    if config.data_dir.is_dir() or not needs_files(config.dataset):
        train, test, val = fingerprints(config)
        same = train == about.fingerprint and about.test_fingerprint in (None, test)
        same &= about.val_fingerprint in (None, val)
    else:  # a finished run needs no images, but the folder must have been the same
        same = state.data_path in (None, str(config.data_dir.absolute()))
    if not same:
        raise OtherRun(f"{folder.path} is a run on other images than those in {config.data_dir}; choose another --name")
