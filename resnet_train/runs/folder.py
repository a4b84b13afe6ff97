"""runs/<name>/: the files of one run and its one writer."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from resnet_train.loggers.base import CURVE_FOLDERS, logger_files
from resnet_train.loggers.csv import FILES as CSV_FILES
from resnet_train.recipes import to_yaml
from resnet_train.runtime import names
from resnet_train.runtime.files import open_regular, refuse_special_files, write_text
from resnet_train.weights import SHIPPED, shipped_checkpoint

PEEK_SECONDS = 0.1  # a process that only checks whether the folder is in use holds the lock for less than this
HOLDER_SECONDS = 0.5  # a process that creates the folder locks it and writes its identity within this time
# What a run writes besides its checkpoints and the files of its loggers, which declare them.
OTHER_FILES = (".lock", ".holder.json", ".unsaved", "config.yaml", "environment.json", "train.log", "trace.json")
SPLITS = ("val", "test")  # that can select the best model
EXPORTED = "model.safetensors"  # the weights in a folder for the Hugging Face Hub


class RunFolder:
    """The paths of a run's files, and the lock that makes one process their only writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.pt"
        self.previous = self.checkpoints / "previous.pt"
        self.model = self.checkpoints / "model.pt"
        self.unsaved = path / ".unsaved"  # exists from the start of a run until its first save
        self._lock, self._holder = FileLock(path / ".lock"), path / ".holder.json"
        self._lock_file: IO[bytes] | None = None  # open while locked, so that no other file gets its inode

    @property
    def name(self) -> str:
        """Return the run's name."""
        return self.path.name

    def best(self, split: str) -> Path:
        """Return the path of the best model; the name says so if it was chosen on the test split."""
        return self.checkpoints / ("best.pt" if split == "val" else "best-on-test.pt")

    def next_best(self, split: str) -> Path:
        """Return where the best model waits until a state that records its epoch is saved."""
        return self.checkpoints / f"next-{self.best(split).name}"

    @property
    def _curves(self) -> list[Path]:
        return [self.path / split for split in CURVE_FOLDERS]

    @staticmethod
    def create(output_dir: Path, name: str, *, given: bool) -> RunFolder:
        """Create the folder of a new run and lock it.

        Args:
            output_dir: the parent of all run folders.
            name: the run's name.
            given: whether the user chose the name; if not and it is taken, `-2`, `-3` … is appended.

        Raises:
            ValueError: the given name is taken, or the folder can't be created.
        """
        if names.IS_WINDOWS and (problem := names.windows_problem(name)):
            raise ValueError(f"name (={name!r}) {problem}, which Windows does not allow; choose another --name")

        # Creating the folder reserves the name, whoever else tries.
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
                raise ValueError(f"cannot create the run folder {path}: {error.strerror}") from None

        # `.unsaved` marks a run that has saved nothing yet.
        folder = RunFolder(path)
        folder.lock()
        folder.unsaved.touch()
        return folder

    def lock(self) -> None:
        """Take the writer lock, create checkpoints/ and delete stale temporary files.

        Raises:
            ValueError: another process holds the lock; or there is a link or a special file where a run writes.
        """
        # Take the lock; a process that only inspects the folder holds it for an instant.
        self._refuse_special_files()
        try:
            self._lock.acquire(timeout=PEEK_SECONDS)
        except Timeout:
            raise ValueError(f"{self.path} is being written by {self._wait_for_holder()}") from None

        # Record who writes here, and delete what a killed writer left.
        self._lock_file = open_regular(self.path / ".lock", "rb")
        write_text(self._holder, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        self.checkpoints.mkdir(exist_ok=True)
        for folder in (self.path, self.checkpoints):
            for stale in folder.glob(".*.tmp"):  # their writer was killed, because the lock is ours
                stale.unlink(missing_ok=True)

    def _refuse_special_files(self) -> None:
        for folder in (self.path, self.checkpoints, *self._curves):
            refuse_special_files(folder)

    def check_held(self) -> None:
        """Check that the locked folder is still the one at its path, as SQLite does, before something is written.

        Raises:
            OSError: it was moved, removed or replaced.
        """
        if self._lock_file is not None and not self._is_held():
            raise OSError(
                f"{self.path} was moved, removed or replaced while this run was writing to it; nothing more is written"
            )

    def _is_held(self) -> bool:
        """Return whether the locked file is the one at its path: the same device and inode."""
        assert self._lock_file is not None
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._lock_file.fileno()), (self.path / ".lock").lstat())
        return False

    def find_writer(self) -> str | None:
        """Return who writes here now, None if nobody does. An empty folder is about to be locked by its creator."""
        # Without a holder file nobody writes, except in a folder that has just been created.
        self._refuse_special_files()
        if any(path.name != ".lock" for path in self.path.glob("*")) and not self._holder.exists():
            return None
        writer = self._wait_for_holder()
        if not self._holder.exists():
            return None

        # If the holder was killed, the lock is free.
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return writer
        except OSError:  # the folder belongs to another user
            return None
        self._lock.release()  # the holder file was left by a killed process
        return None

    def _wait_for_holder(self) -> str:
        """Return the process that holds the lock, which writes its identity right after taking it."""
        deadline = time.monotonic() + HOLDER_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError, ValueError, KeyError, TypeError):
                with open_regular(self._holder, "r", encoding="utf-8") as file:
                    holder = json.load(file)
                return f"process {holder['pid']} on {holder['host']}"
            time.sleep(0.02)
        return "another process"

    def unlock(self) -> None:
        """Release the lock if this object holds it."""
        if self._lock_file is not None:
            if self._is_held():  # else the files at the path belong to another run
                self._holder.unlink(missing_ok=True)
            self._lock_file.close()
            self._lock_file = None
        self._lock.release()

    def write_description(self, config: dict[str, Any], environment: dict[str, Any]) -> None:
        """Write config.yaml, which `--config` reads, and environment.json."""
        self.check_held()
        write_text(self.path / "config.yaml", to_yaml(config))
        write_text(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")

    def has_checkpoint(self) -> bool:
        """Return whether there is anything to resume from, readable or not."""
        return self.last.exists() or self.previous.exists()

    def is_killed_start(self) -> bool:
        """Return whether the folder holds only what a run that was killed before its first save leaves.

        If it has epochs in metrics.csv or a model, this is so only if `.unsaved` shows that no state was saved yet:
        otherwise somebody deleted the states of a run to save space.
        """
        # The files of the run and of its loggers, in their folders.
        unsaved, patterns = self.unsaved.is_file(), [*OTHER_FILES, ".*.tmp", *logger_files()]
        for path in self.path.rglob("*"):
            name = path.relative_to(self.path).as_posix()
            if name.partition("/")[0] == self.checkpoints.name and not path.is_symlink():
                continue
            if path.is_dir():
                is_own = any(p.startswith(f"{name}/") or ("/" in name and fnmatch(name, p)) for p in patterns)
            else:
                is_own = path.is_file() and any(fnmatch(name, p) for p in patterns)
            if path.is_symlink() or not is_own:
                return False
            if name in CSV_FILES and not unsaved and len(path.read_bytes().splitlines()) > 1:
                return False

        # The checkpoints: none but a best model, and files whose writer was killed.
        files = list(self.checkpoints.iterdir()) if self.checkpoints.is_dir() else []
        best = {file(split) for file in (self.best, self.next_best) for split in SPLITS} if unsaved else set()
        return all(path in best or path.match(".*.tmp") for path in files)


def find_checkpoint(path: Path) -> Path:
    """Return the file itself, or for a run's folder the final model, or the newest state if the run is unfinished.

    For a folder that was exported for the Hugging Face Hub, return the weights; in a cache they are a link.
    The name of the network in the package stands for its file, unless a file or a folder has this name.

    Raises:
        ValueError: there is no such file.
    """
    if str(path) == SHIPPED and not path.exists():
        return shipped_checkpoint()
    if not path.is_dir():
        return path
    run, exported = RunFolder(path), path / EXPORTED
    if exported.is_file() and not run.checkpoints.exists():
        return exported
    refuse_special_files(run.path)
    refuse_special_files(run.checkpoints)
    found = [file for file in (run.model, run.last, run.previous) if file.is_file()]
    if not found:
        raise ValueError(f"{path} is a folder without checkpoints/model.pt or last.pt")
    return found[0]


def find_best(path: Path) -> Path:
    """Return the model of a run's folder that was chosen on its validation split.

    Raises:
        ValueError: there is none.
    """
    best = RunFolder(path).best("val")
    if not best.is_file():
        raise ValueError(f"{path} is not the folder of a run with checkpoints/best.pt, which --val-size makes")
    return best


def existing_run_message(path: Path) -> str:
    """Return the error message for a named run that already exists."""
    if writer := RunFolder(path).find_writer():
        return f"{path} is being written by {writer}"
    message, run = f"run {path} already exists; choose another --name", RunFolder(path)
    if run.has_checkpoint():
        return f"{message}, or continue it with --resume {path}"
    if path.is_dir() and run.is_killed_start():
        return f"{message}, or continue it with --resume auto, which restarts it"
    return message


def find_runs(output_dir: Path, name: str, *, given: bool) -> list[RunFolder]:
    """Return the runs of this name, newest first; an automatic name includes its numbered successors."""
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
