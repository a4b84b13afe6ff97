"""runs/<name>/: one run, one writer, and what belongs to it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor
from torch.optim import Optimizer

from resnet_train.recipes import to_yaml
from resnet_train.records import EpochRecord
from resnet_train.runs.checkpoint import count_bytes, read_checkpoint, write_checkpoint

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1  # another process that only looks whether the folder is in use has the lock for less
NUM_CHECKPOINTS = 3
HOLDER_SECONDS = 0.5  # within which a process that made the folder has locked it and written who it is


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.pt"
        self.previous = self.checkpoints / "previous.pt"
        self.model = self.checkpoints / "model.pt"
        self._lock, self._holder = FileLock(path / ".lock"), path / ".holder.json"

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    def best(self, split: str) -> Path:
        """Where the best model goes; chosen on the test set, its name says so."""
        return self.checkpoints / ("best.pt" if split == "val" else "best-on-test.pt")

    @staticmethod
    def create(output_dir: Path, name: str, *, given: bool) -> RunFolder:
        """Makes the folder of a new run and locks it.

        Args:
            output_dir: where run folders are.
            name: the run's name; if the user did not give it and it is taken, `-2`, `-3` … is added.

        Raises:
            ValueError: the name was given and exists, or the folder can't be made.
        """
        number = 1
        while True:
            path = output_dir / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                if given or not output_dir.is_dir():
                    raise ValueError(existing_run_message(path)) from None
                number += 1
            except OSError as error:
                raise ValueError(f"cannot make the run folder {path}: {error.strerror}") from None
        folder = RunFolder(path)
        folder.lock()
        return folder

    def lock(self) -> None:
        """Makes this process the only writer until it ends; makes what a killed one did not come to make.

        Raises:
            ValueError: another one is; the message names it.
        """
        try:
            self._lock.acquire(timeout=LOOK_SECONDS)
        except Timeout:
            raise ValueError(f"{self.path} is being written by {self._wait_for_holder()}") from None
        self._holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        self.checkpoints.mkdir(exist_ok=True)
        for stale in self.checkpoints.glob(".*.tmp"):  # whoever wrote them was killed: the lock is ours
            stale.unlink(missing_ok=True)

    def warn_if_nearly_full(self, state: dict[str, Any], optimizer: Optimizer) -> None:
        """Says so if there is no room for the checkpoints of a run: last.pt, previous.pt, and the one being written."""
        buffers = 0
        if state["step"] == 0:  # an optimizer makes its averages of the gradients in its first step
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            buffers = (2 if "betas" in optimizer.defaults else 1) * count_bytes(parameters)
        needed, free = NUM_CHECKPOINTS * (count_bytes(state) + buffers), shutil.disk_usage(self.path).free
        if free < needed:
            log.warning(
                "%s has %.1f MB free, and the %d checkpoints of a run take about %.1f MB: make room, or give another "
                "--output-dir",
                self.path,
                free / 1e6,
                NUM_CHECKPOINTS,
                needed / 1e6,
            )

    def find_writer(self) -> str | None:
        """Who writes here now, if anybody does; a folder with nothing in it is about to be locked by its maker."""
        if any(path.name != ".lock" for path in self.path.glob("*")) and not self._holder.exists():
            return None
        writer = self._wait_for_holder()
        if not self._holder.exists():
            return None
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return writer
        except OSError:  # the folder of another user
            return None
        self._lock.release()  # what a killed process left of itself
        return None

    def _wait_for_holder(self) -> str:
        """The process that holds the lock, which says who it is just after it has taken it."""
        deadline = time.monotonic() + HOLDER_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError, ValueError, KeyError, TypeError):
                about = json.loads(self._holder.read_text())
                return f"process {about['pid']} on {about['host']}"
            time.sleep(0.02)
        return "another process"

    def unlock(self) -> None:
        """Gives the folder back."""
        if self._lock.is_locked:
            self._holder.unlink(missing_ok=True)
            self._lock.release()

    def write_description(self, config: dict[str, Any], environment: dict[str, Any]) -> None:
        """config.yaml, which `--config` reads back, and environment.json."""
        (self.path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        (self.path / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")

    def read_last(self) -> tuple[dict[str, Any], list[str]]:
        """The newest readable checkpoint, and a warning for each one that is not.

        Raises:
            ValueError: there is none.
        """
        warnings: list[str] = []
        for path in (self.last, self.previous):
            try:
                return read_checkpoint(path), warnings
            except ValueError as error:
                warnings.append(str(error))
        raise ValueError(f"{self.path} has no checkpoint to resume from: {'; '.join(warnings)}")

    def set_damaged_aside(self) -> None:
        """Takes an unreadable last.pt out of the way: the next save would make it the previous one."""
        if self.last.exists():
            self.last.replace(self.checkpoints / "damaged.pt")

    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume from, readable or not."""
        return self.last.exists() or self.previous.exists()


def find_checkpoint(path: Path) -> Path:
    """The file itself, or of a run's folder the final model, or the newest state if the run is not finished.

    Raises:
        ValueError: nothing is there.
    """
    if path.is_dir():
        run = RunFolder(path)
        found = [file for file in (run.model, run.last, run.previous) if file.is_file()]
        if not found:
            raise ValueError(f"{path} is a folder without checkpoints/model.pt or last.pt")
        return found[0]
    return path


def existing_run_message(path: Path) -> str:
    """What to say when a named run is there already."""
    if writer := RunFolder(path).find_writer():
        return f"{path} is being written by {writer}"
    how = f"--resume {path}" if RunFolder(path).has_checkpoint() else "--resume auto, which starts it over"
    return f"run {path} exists already; give another --name, or continue it with {how}"


def find_runs(output_dir: Path, name: str, *, given: bool) -> list[RunFolder]:
    """The runs of this name, newest first; a name that was not given by the user has numbered successors."""
    if not output_dir.is_dir():
        return []
    found = [
        RunFolder(path)
        for path in output_dir.iterdir()
        if path.is_dir() and (path.name == name or (not given and _is_numbered(path.name, name)))
    ]
    return sorted(found, key=lambda run: _number(run.name, name), reverse=True)


def _is_numbered(candidate: str, name: str) -> bool:
    return candidate.startswith(f"{name}-") and candidate[len(name) + 1 :].isdecimal()


def _number(candidate: str, name: str) -> int:
    return 1 if candidate == name else int(candidate[len(name) + 1 :])


class CheckpointSaver:
    """Writes a trainer's state into a run folder, with what makes each file explain itself.

    Args:
        folder: where to.
        common: `about` (network, classes, normalization), `config` and `environment`; goes into every file.
    """

    def __init__(self, folder: RunFolder, common: dict[str, Any]) -> None:
        self.folder, self.common = folder, common

    def save_state(self, state: dict[str, Any]) -> None:
        """last.pt; the one before becomes previous.pt."""
        write_checkpoint(self.folder.last, {**self.common, **state}, previous=self.folder.previous)

    def save_best(self, weights: dict[str, Tensor], split: str, record: EpochRecord) -> None:
        """best.pt, or best-on-test.pt if it was chosen there."""
        self._save_weights(self.folder.best(split), weights, record, chosen_on=split)

    def save_final(self, weights: dict[str, Tensor], record: EpochRecord) -> None:
        """model.pt: the weights after the last epoch."""
        self._save_weights(self.folder.model, weights, record)

    def _save_weights(
        self, path: Path, weights: dict[str, Tensor], record: EpochRecord, chosen_on: str | None = None
    ) -> None:
        metrics = record.to_plain()
        write_checkpoint(path, {**self.common, "model": weights, "metrics": metrics, "chosen_on": chosen_on})
