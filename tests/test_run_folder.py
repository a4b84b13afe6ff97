"""Run folders: names and numbers, one writer at a time, and which checkpoint is read."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from resnet_train.loggers.csv import MetricsCsv
from resnet_train.loggers.guard import Guard
from resnet_train.loggers.log_file import LogFile
from resnet_train.recipes import read_yaml
from resnet_train.records import About
from resnet_train.runs import resume
from resnet_train.runs.checkpoint import Description, Saver, read_checkpoint, write_checkpoint
from resnet_train.runs.folder import RunFolder, find_checkpoint, find_runs
from resnet_train.training.state import TrainerState
from tests.harness.cli import PACKAGE_PARENT
from tests.harness.records import make_info, make_record

ABOUT = About(
    arch="resnet8",
    arch_options={},
    classes=["a", "b"],
    image_size=8,
    mean=[0.5] * 3,
    std=[0.25] * 3,
    dataset="digits",
    title="t",
    fingerprint="f",
)
DESCRIPTION = Description(about=ABOUT, config={}, environment={})
HOLDER = """
import sys
from pathlib import Path
from resnet_train.runs.folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.lock()
print("locked", flush=True)
sys.stdin.read()
"""


def create(output_dir: Path, name: str = "x", *, given: bool = False) -> RunFolder:
    """Create a run folder and unlock it."""
    folder = RunFolder.create(output_dir, name, given=given)
    folder.unlock()
    return folder


def test_a_new_folder_is_created_and_locked(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a" / "b", "x", given=True)
    try:
        assert folder.path == tmp_path / "a" / "b" / "x"
        assert folder.name == "x"
        assert folder.checkpoints.is_dir()
        with pytest.raises(ValueError, match="is being written by"):
            RunFolder(folder.path).lock()
    finally:
        folder.unlock()


def test_a_default_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    assert [create(tmp_path).name for _ in range(11)] == ["x", *(f"x-{number}" for number in range(2, 12))]


def test_a_freed_number_is_taken_again(tmp_path: Path) -> None:
    for name in ("x", "x-3"):
        (tmp_path / name).mkdir()
    assert [create(tmp_path).name for _ in range(2)] == ["x-2", "x-4"]


def test_a_given_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    create(tmp_path)
    with pytest.raises(ValueError, match=r"x already exists; choose another --name, or continue it with --resume"):
        create(tmp_path, given=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_output_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^cannot create the run folder .*: Not a directory$"):
        create(tmp_path / "file")
    with pytest.raises(ValueError, match=r"^cannot create the run folder .*: File name too long$"):
        create(tmp_path / ("x" * 300))


# --- The lock --------------------------------------------------------------------------------------------------------


def test_a_second_writer_learns_who_the_first_is(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "x", given=True)
    try:
        with pytest.raises(ValueError, match=rf"x is being written by process {os.getpid()} on \S+$"):
            RunFolder(folder.path).lock()
    finally:
        folder.unlock()


def test_another_process_that_writes_is_named_until_it_ends(tmp_path: Path) -> None:
    path = create(tmp_path).path
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"is being written by process {holder.pid} on "):
            RunFolder(path).lock()
        holder.kill()
        holder.wait()
    again = RunFolder(path)  # a killed process holds nothing, and what it left of itself is overwritten
    again.lock()
    assert json.loads((path / ".holder.json").read_text())["pid"] == os.getpid()
    again.unlock()


def test_an_unlocked_folder_can_be_locked_again(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "x", given=True)
    folder.unlock()
    assert not (folder.path / ".holder.json").exists()
    other = RunFolder(folder.path)
    other.lock()
    other.unlock()


def test_unlocking_without_the_lock_changes_nothing(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "x", given=True)
    try:
        RunFolder(folder.path).unlock()
        assert (folder.path / ".holder.json").exists()
        with pytest.raises(ValueError, match="is being written by"):
            RunFolder(folder.path).lock()
    finally:
        folder.unlock()


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", "null"])
def test_an_unreadable_holder_is_another_process(content: str, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "x", given=True)
    try:
        (folder.path / ".holder.json").write_text(content)
        with pytest.raises(ValueError, match=r"x is being written by another process$"):
            RunFolder(folder.path).lock()
    finally:
        folder.unlock()


# --- The folder at the path, and what is planted in it ---------------------------------------------------------------


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunFolder]:
    """Return a locked folder with a state."""
    folder = RunFolder.create(tmp_path, "x", given=True)
    Saver(folder, DESCRIPTION).save_state(state_of(1))
    yield folder
    folder.unlock()


WRITES: dict[str, Callable[[RunFolder], None]] = {
    "state": lambda folder: Saver(folder, DESCRIPTION).save_state(state_of(2)),
    "best": lambda folder: Saver(folder, DESCRIPTION).save_best({}, "test", make_record(1, train=(2.5, 0.1))),
    "final": lambda folder: Saver(folder, DESCRIPTION).save_final({}, make_record(1, train=(2.5, 0.1))),
    "description": lambda folder: folder.write_description({}, {}),
    "a log's start": lambda folder: Guard(folder.check_held).start(None),
    "rows and events": lambda folder: Guard(folder.check_held).log({}, step=1),
    "pictures": lambda folder: Guard(folder.check_held).log_picture("some", None, split="test", epoch=1),
}


def contents_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("lost", ["moved", "removed", "replaced", "unlocked"])
def test_nothing_is_written_into_a_lost_folder(lost: str, writer: RunFolder, tmp_path: Path) -> None:
    other = RunFolder(writer.path)
    if lost == "unlocked":
        (writer.path / ".lock").unlink()
    elif lost == "removed":
        shutil.rmtree(writer.path)
    else:
        writer.path.rename(tmp_path / "y")
    if lost in {"replaced", "unlocked"}:
        writer.path.mkdir(exist_ok=True)
        other.lock()
    before = contents_of(tmp_path)
    for write in WRITES.values():
        with pytest.raises(OSError, match=r"^\S+x was moved, removed or replaced while this run was writing to it"):
            write(writer)
    writer.unlock()
    assert contents_of(tmp_path) == before
    other.unlock()


def test_a_folder_lost_within_a_save_is_not_written(
    writer: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def save_and_lose(contents: object, file: object) -> None:
        save(contents, file)  # type: ignore[arg-type]
        writer.path.rename(tmp_path / "y")
        (writer.path / "checkpoints").mkdir(parents=True)
        (writer.path / "checkpoints" / ".last.pt.tmp").write_text("another run's")

    monkeypatch.setattr(torch, "save", save_and_lose)
    with pytest.raises(OSError, match="was moved, removed or replaced"):
        Saver(writer, DESCRIPTION).save_state(state_of(2))
    assert list(contents_of(writer.path).values()) == [b"another run's"]


RUN_FILES = (".lock", ".holder.json", "config.yaml", "environment.json", "metrics.csv", "timing.csv", "train.log",
             "checkpoints", "checkpoints/last.pt", "checkpoints/previous.pt", "checkpoints/.last.pt.tmp")  # fmt: skip


@pytest.mark.parametrize("kind", ["link", "dangling link", "FIFO"])
@pytest.mark.parametrize("name", RUN_FILES)
def test_what_is_planted_in_a_run_folder_is_refused(name: str, kind: str, saved: RunFolder, tmp_path: Path) -> None:
    target, planted = tmp_path / "target", saved.path / name
    if planted.is_dir():
        planted.rename(target)
    elif kind == "link":
        target.write_text("untouched")
    planted.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(planted)
    else:
        planted.symlink_to(target)
    before = contents_of(target) if target.is_dir() else target.exists() and target.read_bytes()
    message = rf"{re.escape(name)} is a link or a special file, which a run neither reads nor writes; remove it$"
    for action in (saved.lock, saved.find_writer, lambda: find_checkpoint(saved.path)):
        with pytest.raises(ValueError, match=message):
            action()
    assert (contents_of(target) if target.is_dir() else target.exists() and target.read_bytes()) == before


@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_what_is_planted_during_a_run_is_refused(kind: str, writer: RunFolder, tmp_path: Path) -> None:
    names = ("config.yaml", "metrics.csv", "timing.csv", "train.log", "checkpoints/.last.pt.tmp")
    for name in names:
        if kind == "link":
            (writer.path / name).symlink_to(tmp_path / "target")
        else:
            os.mkfifo(writer.path / name)
    info = make_info()
    writes: list[Callable[[], object]] = [
        lambda: writer.write_description({}, {}),
        lambda: MetricsCsv(writer.path).start(info),
        lambda: LogFile(writer.path / "train.log"),
        lambda: WRITES["state"](writer),
    ]
    for write in writes:
        with pytest.raises(ValueError, match="is a link or a special file"):
            write()
    assert not (tmp_path / "target").exists()


# --- Finding runs ----------------------------------------------------------------------------------------------------


def test_runs_of_a_name_are_found_newest_first(tmp_path: Path) -> None:
    for number in ("", "-2", "-9", "-10", "-11", "-3"):
        (tmp_path / f"x{number}").mkdir()
    for other in ("x-two", "x-2-3", "xx", "y-2", "x-", "x2", "ax", "x--4", "x-1.5"):
        (tmp_path / other).mkdir()
    (tmp_path / "x-99").write_text("a file")
    assert [run.name for run in find_runs(tmp_path, "x", given=False)] == ["x-11", "x-10", "x-9", "x-3", "x-2", "x"]
    assert [run.name for run in find_runs(tmp_path, "x-2", given=False)] == ["x-2-3", "x-2"]
    assert [run.name for run in find_runs(tmp_path, "x", given=True)] == ["x"]
    assert find_runs(tmp_path, "nothing", given=False) == []
    assert find_runs(tmp_path / "nowhere", "x", given=False) == []


# --- Checkpoints -----------------------------------------------------------------------------------------------------


def state_of(epoch: int) -> TrainerState:
    """Return a state without tensors after this many epochs."""
    return TrainerState(
        model={},
        optimizer={},
        scaler={},
        averaged=None,
        epoch=epoch,
        step=2 * epoch,
        sums=[[0.0] * 8],
        epoch_seconds=0.0,
        history=[make_record(number, train=(2.5, 0.1)) for number in range(1, epoch + 1)],
        best_epoch=0,
        best_accuracy=-1.0,
    )


@pytest.fixture
def saved(tmp_path: Path) -> RunFolder:
    """Return a folder whose previous.pt is of epoch 1 and whose last.pt is of epoch 2."""
    folder = create(tmp_path)
    for epoch in (1, 2):
        Saver(folder, DESCRIPTION).save_state(state_of(epoch))
    return folder


def read_state(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> tuple[int, list[str]]:
    """Return the epoch that a resumed run starts from, and the warnings."""
    logging.getLogger("resnet_train").propagate = True
    caplog.clear()
    epoch = resume._read_state(folder).epoch
    return epoch, [record.getMessage() for record in caplog.records]


def test_the_newest_state_is_read(saved: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    assert read_state(saved, caplog) == (2, [])
    assert read_checkpoint(saved.previous)["epoch"] == 1
    assert read_checkpoint(saved.last)["about"] == ABOUT.model_dump()


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_truncated_last_state_falls_back(size: int, saved: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    content = saved.last.read_bytes()
    saved.last.write_bytes(content[:size])
    epoch, (warning,) = read_state(saved, caplog)
    assert epoch == 1
    assert warning.startswith(f"{saved.last} is damaged or not a checkpoint: ")
    assert warning.endswith(f"; falling back to {saved.previous}")


def test_a_missing_last_state_falls_back(saved: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    saved.last.unlink()
    assert saved.has_checkpoint()
    message = f"cannot read {saved.last}: No such file or directory; falling back to {saved.previous}"
    assert read_state(saved, caplog) == (1, [message])


def test_without_a_readable_state_both_files_are_named(saved: RunFolder) -> None:
    for path in (saved.last, saved.previous):
        path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"has no checkpoint to resume from: .*last\.pt .*; .*previous\.pt "):
        resume._read_state(saved)


def test_a_new_folder_has_no_checkpoint(tmp_path: Path) -> None:
    folder = create(tmp_path)
    assert not folder.has_checkpoint()
    with pytest.raises(ValueError, match="has no checkpoint to resume from"):
        resume._read_state(folder)
    with pytest.raises(ValueError, match=r"is a folder without checkpoints/model\.pt or last\.pt"):
        find_checkpoint(folder.path)


def test_a_folder_means_its_final_model_else_its_state(saved: RunFolder) -> None:
    assert find_checkpoint(saved.path) == saved.last
    Saver(saved, DESCRIPTION).save_final({}, make_record(2, train=(2.5, 0.1)))
    assert find_checkpoint(saved.path) == saved.model
    assert find_checkpoint(saved.previous) == saved.previous
    saved.model.unlink()
    saved.last.unlink()
    assert find_checkpoint(saved.path) == saved.previous


def test_a_saved_state_makes_the_final_model_outdated(saved: RunFolder) -> None:
    saver = Saver(saved, DESCRIPTION)
    saver.save_final({}, make_record(2, train=(2.5, 0.1)))
    saver.save_state(state_of(2))
    assert not saved.model.exists()


def test_the_best_model_says_which_split_chose_it(saved: RunFolder) -> None:
    saver, record = Saver(saved, DESCRIPTION), make_record(1, train=(2.5, 0.1))
    saver.save_best({}, "test", record)
    saver.save_state(state_of(3))
    assert [path.name for path in saved.checkpoints.glob("best*")] == ["best-on-test.pt"]
    saver.save_best({}, "val", record)
    saver.save_state(state_of(4))
    assert sorted(path.name for path in saved.checkpoints.glob("best*")) == ["best-on-test.pt", "best.pt"]
    contents = read_checkpoint(saved.best("val"))
    assert (contents["metrics"], contents["chosen_on"]) == (record.to_plain(), "val")


def test_the_best_model_waits_for_the_state_that_knows_its_epoch(saved: RunFolder) -> None:
    saver = Saver(saved, DESCRIPTION)
    saver.save_best({}, "val", make_record(3, train=(2.5, 0.1)))
    assert not saved.best("val").exists()
    saver.save_state(state_of(3))
    assert read_checkpoint(saved.best("val"))["metrics"]["epoch"] == 3
    assert not saved.next_best("val").exists()


def test_saving_leaves_no_temporary_files(saved: RunFolder) -> None:
    write_checkpoint(saved.last, {"config": {}}, previous=saved.previous)
    assert sorted(path.name for path in saved.checkpoints.iterdir()) == ["last.pt", "previous.pt"]


def test_the_description_can_be_read_back(tmp_path: Path) -> None:
    folder = create(tmp_path)
    folder.write_description({"lr": 1e-05, "name": "größer"}, {"device": "cpu", "cuda": None})
    assert read_yaml(folder.path / "config.yaml") == {"lr": 1e-05, "name": "größer"}
    assert json.loads((folder.path / "environment.json").read_text()) == {"device": "cpu", "cuda": None}
