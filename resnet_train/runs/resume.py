"""Which run to train, and from which state: everything that differs between a new run and a resumed one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_train.config import TrainConfig, make_config, merge_on_resume
from resnet_train.runs.checkpoint import RunCheckpoint, parse, read_checkpoint
from resnet_train.runs.folder import RunFolder, existing_run_message, find_runs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        config: all settings.
        folder: the run's folder, locked; None for a new run, whose folder is created when everything else is ready.
        state: the state to resume from; None for a run that starts from step 0.
        name: of the folder to create.
        exact: refuse a name that is taken instead of appending a number.
    """

    config: TrainConfig
    folder: RunFolder | None
    state: RunCheckpoint | None
    name: str
    exact: bool

    @property
    def is_finished(self) -> bool:
        """Return whether all epochs are done."""
        return self.state is not None and self.state.epoch == self.config.epochs

    def open_folder(self) -> RunFolder:
        """Return the run's folder, locked; create it if the run is new.

        Raises:
            ValueError: another process created it in the meantime.
        """
        return self.folder or RunFolder.create(self.config.output_dir, self.name, given=self.exact)


def find_start(config: TrainConfig, given: dict[str, Any], resume: str | None) -> Start:
    """Decide which run to train, lock its folder and read its state.

    Args:
        config: all settings.
        given: those that the user chose; only these are compared with a run that is resumed.
        resume: None for a new run, "auto" for the newest run of this name, or the path of a run, whose config then
            replaces `config`.

    Raises:
        ValueError: there is no such run, it is in use, or a setting would change its result.
    """
    name = config.name or default_name(config)
    exact = config.name is not None or resume == "auto"
    folder = _find_folder(config, resume)
    if folder is None:
        if config.name and (config.output_dir / config.name).exists():
            raise ValueError(existing_run_message(config.output_dir / config.name))
        return Start(config, None, None, name, exact)

    folder.lock()  # before the state is read, because another process may be about to write a newer one
    try:
        if not folder.has_checkpoint():
            log.info("%s has no checkpoint yet; starting from step 0", folder.path)
            return Start(config, folder, None, name, exact)
        state = _read_state(folder)
        place = {"output_dir": str(folder.path.parent), "name": folder.name}
        merged = merge_on_resume(state.config, {**given, **place})
        _check_epochs(merged, make_config(state.config).epochs)
        return Start(merged, folder, state, folder.name, exact)
    except BaseException:
        folder.unlock()
        raise


def default_name(config: TrainConfig) -> str:
    """Return the name of a run for which the user chose none."""
    return f"{config.arch}-{config.dataset}-seed{config.seed}"


def _find_folder(config: TrainConfig, resume: str | None) -> RunFolder | None:
    """Return the folder of the run to resume, None for a new run."""
    if resume is None:
        return None
    if resume == "auto":
        runs = find_runs(config.output_dir, config.name or default_name(config), given=config.name is not None)
        return runs[0] if runs else None
    path = Path(resume)
    if not path.is_dir():
        path = _run_of_checkpoint(path)
    folder = RunFolder(path if path.name not in {"", ".."} else path.resolve())
    if not folder.has_checkpoint():
        raise ValueError(
            f"{folder.path} has no checkpoint to resume from; start it with its settings and --resume auto"
        )
    return folder


def _run_of_checkpoint(path: Path) -> Path:
    """Return the folder of the run that a checkpoint file belongs to."""
    if "optimizer" not in read_checkpoint(path):
        raise ValueError(f"{path} holds a model but not the state of a run; resume from the run's folder")
    if path.resolve().parent.name != "checkpoints" or path.name not in {"last.pt", "previous.pt"}:
        raise ValueError(f"{path} is not inside a run folder; resume from <run>/checkpoints/last.pt or <run>")
    return path.resolve().parent.parent


def _read_state(folder: RunFolder) -> RunCheckpoint:
    """Return the newest readable state of a run; set an unreadable last.pt aside.

    Raises:
        ValueError: no state is readable, or the readable one is incomplete.
    """
    problems: list[str] = []
    for path in (folder.last, folder.previous):
        try:
            contents = read_checkpoint(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            log.warning("%s; falling back to %s", problem, path)
            if folder.last.exists():  # the next save would make it the previous one
                folder.last.replace(folder.checkpoints / "damaged.pt")
        return parse(contents, path, RunCheckpoint)
    raise ValueError(f"{folder.path} has no checkpoint to resume from: {'; '.join(problems)}")


def _check_epochs(config: TrainConfig, before: int) -> None:
    """Check that training is extended, not shortened: the schedule of a run depends on its number of epochs."""
    if config.epochs < before:
        raise ValueError(f"epochs (={config.epochs}) must not be less than the run was started with (={before})")
    if config.epochs > before:
        log.warning("epochs was %d and is now %d: the lr schedule is stretched over all of them", before, config.epochs)
