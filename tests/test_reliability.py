"""Disks that fail, are full or return other bytes, and files that a killed process leaves."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from resnet_train.build import build_trainer, load_data
from resnet_train.config import make_config
from resnet_train.recipes import read_yaml
from resnet_train.runs import checkpoint, resume
from resnet_train.runs.checkpoint import count_bytes, dump, read_checkpoint, read_model, write_checkpoint
from resnet_train.runs.folder import RunFolder
from resnet_train.runs.space import count_run_bytes, warn_if_nearly_full
from resnet_train.runtime import files
from resnet_train.runtime.files import open_regular
from tests.harness.cli import SMALL, Outcome, RunCli, run_python
from tests.harness.trainers import assert_same_tensors, tiny_trainer

QUICK = [*SMALL, "--no-tensorboard"]

# --- A disk that fails -----------------------------------------------------------------------------------------------


class FailingDisk:
    """Count writes, fsyncs, links and renames; the `failing`-th fails, or every one from there on.

    Args:
        code: the error's number.
        failing: counted from 0; None: none.
        for_good: whether all after it fail as well.
        links: whether the file system has links.
    """

    def __init__(self, code: int, failing: int | None = None, *, for_good: bool = False, links: bool = True) -> None:
        self.code, self.failing, self.for_good, self.links = code, failing, for_good, links
        self.calls: list[str] = []

    def note(self, call: str) -> None:
        number = len(self.calls)
        self.calls.append(call)
        if self.failing is not None and (number == self.failing or (self.for_good and number > self.failing)):
            raise OSError(self.code, os.strerror(self.code))

    def __call__(self, save: Callable[[], None]) -> OSError | None:
        """Save on this disk and return the error."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "open_regular", lambda path, mode: WatchedFile(open_regular(path, mode), self))
            for name in ("fsync", "link", "replace"):
                patch.setattr(os, name, self.watch(name, getattr(os, name)))
            try:
                save()
            except OSError as error:
                return error
        return None

    def watch(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            if name == "link" and not self.links:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            self.note(name)
            return function(*arguments, **options)

        return watched


class WatchedFile:
    """A file whose failing write has written half."""

    def __init__(self, file: Any, disk: FailingDisk) -> None:
        self.file, self.disk = file, disk

    def __enter__(self) -> WatchedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        try:
            self.disk.note("write")
        except OSError:
            self.file.write(memoryview(data)[: len(data) // 2])
            raise
        return self.file.write(data)


def raiser(error: Exception) -> Callable[..., Any]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


def state(number: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    return {"number": number, "model": {name: torch.randn(30, 10, generator=generator) for name in "abc"}}


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failing_save_leaves_the_old_or_the_new_file(code: int, for_good: bool, links: bool, tmp_path: Path) -> None:
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    states = [state(number) for number in range(3)]

    def set_up() -> None:
        for old in states[:2]:
            write_checkpoint(last, old, previous)

    set_up()
    counting = FailingDisk(code, links=links)
    assert counting(lambda: write_checkpoint(last, states[2], previous)) is None
    assert set(counting.calls) == {"write", "fsync", "replace"} | ({"link"} if links else set())
    assert len(counting.calls) >= 20
    found = []
    for failing in range(len(counting.calls)):
        set_up()
        error = FailingDisk(code, failing, for_good=for_good, links=links)(
            lambda: write_checkpoint(last, states[2], previous)
        )
        assert error is not None, failing
        assert error.errno == code
        assert str(error).startswith(f"[Errno {code}] cannot write {last}: {os.strerror(code)}")
        assert ("bytes are needed" in str(error)) == (code == errno.ENOSPC)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]
        read, before = read_checkpoint(last), read_checkpoint(previous)
        found.append((read["number"], before["number"]))
        for contents in (read, before):
            assert_same_tensors(contents["model"], states[contents["number"]]["model"])
    # The new file counts from the rename on; the fsync of the folder comes after it.
    assert set(found[:-1]) == {(1, 0), (1, 1)}
    assert found[-1] == (2, 1)


def test_an_error_of_another_kind_says_nothing_of_room(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write .*no-folder.last\.pt: No such file or directory$"):
        write_checkpoint(tmp_path / "no-folder" / "last.pt", state(0))


# --- A full disk -----------------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from resnet_train.cli.train import main
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
main()
"""


@pytest.fixture
def one_epoch(trained: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """Return a copy of the finished run: <tmp_path>/runs/exp."""
    return Path(shutil.copytree(trained[0], tmp_path / "runs" / "exp"))


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file sizes")
def test_at_a_file_size_limit_the_error_has_the_needed_bytes(one_epoch: Path, tmp_path: Path) -> None:
    files = {path: path.read_bytes() for path in (one_epoch / "checkpoints").glob("*.pt") if path.name != "model.pt"}
    arguments = ["--resume", one_epoch, "--epochs", 3, "--no-tensorboard"]
    outcome = run_python("-c", LIMITED, *arguments, cwd=tmp_path)
    assert outcome.code == 1, outcome
    message = outcome.stderr.splitlines()[-1]
    assert message.startswith("error: ")
    assert f"cannot write {one_epoch / 'checkpoints'}" in message
    assert "File too large (" in message
    needed, free = (int(part.split()[0].replace(",", "")) for part in message.split("(")[-1].split(")")[0].split(", "))
    assert needed > 200_000
    assert free > 0
    assert {path: path.read_bytes() for path in files} == files
    assert list((one_epoch / "checkpoints").glob(".*")) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 1.4 MB in memory."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=1400k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_state_after_a_warning(small_disk: Path, run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", *QUICK, "--output-dir", small_disk, "--name", "exp", cwd=tmp_path)
    assert outcome.code == 1, outcome
    checkpoints = small_disk / "exp" / "checkpoints"
    lines = outcome.stderr.splitlines()
    assert lines[0].startswith(f"warning: {small_disk / 'exp'} has 1.4 MB free, and the files of a run take up to")
    assert "No space left on device (" in lines[-1]
    assert "bytes are needed" in lines[-1]
    assert read_checkpoint(checkpoints / "last.pt")["epoch"] == 1
    assert list(checkpoints.glob(".*")) == []
    assert (small_disk / "exp" / "train.log").read_text().count("the files of a run take up to") == 1


@pytest.mark.parametrize(("optimizer", "most"), [("sgd", 1.4), ("adamw", 1.03), ("muon", 1.6)])
def test_the_space_warning_covers_all_files(
    optimizer: str, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, path = RunFolder(tmp_path / "run"), tmp_path / "last.pt"
    settings = {"epochs": 1, "ema_decay": 0.9, "optimizer": optimizer, "nesterov": False}
    config, trainer = make_config({**settings, "tensorboard": False}), tiny_trainer(**settings)
    trainer.fit()
    write_checkpoint(path, dump(trainer.state()))
    assert count_bytes(dump(trainer.state())) == pytest.approx(path.stat().st_size, rel=0.05)
    folder.checkpoints.mkdir(parents=True)
    for name in ("best.pt", "model.pt"):
        write_checkpoint(folder.checkpoints / name, {"model": trainer.eval_model.state_dict()})
    for share, warned in ((0.97, True), (most, False)):
        caplog.clear()
        free = int(3 * share * path.stat().st_size)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(0, 0, free))
        warn_if_nearly_full(folder, config, trainer)
        assert ("the files of a run take up to" in caplog.text) == warned


def test_the_files_of_a_run_take_what_is_foretold(trained: tuple[Path, Outcome]) -> None:
    folder = trained[0]
    config = make_config(read_yaml(folder / "config.yaml"))
    sizes = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    trainer = build_trainer(config, load_data(config), torch.device("cpu"))
    foretold = count_run_bytes(config, trainer)
    assert sum(sizes.values()) < foretold
    curves = [size for name, size in sizes.items() if not name.endswith((".pt", ".json", ".yaml"))]
    states, models = 3 * sizes["last.pt"], 2 * sizes["model.pt"]
    assert foretold < 1.5 * (states + models) + 3 * sum(curves)


def test_a_disk_without_inodes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(files, "open_regular", raiser(full))
    system = os.statvfs(tmp_path)
    fields = {name: getattr(system, name) for name in dir(system) if name.startswith("f_")}
    without = r"no inodes are free, though [\d,]+ bytes are; 3 bytes are needed\)"
    for favail, message in ((0, without), (9, "3 bytes are needed")):
        values = SimpleNamespace(**{**fields, "f_files": 100, "f_favail": favail})
        monkeypatch.setattr(os, "statvfs", lambda _, values=values: values)
        with pytest.raises(OSError, match=rf"cannot write .*a\.csv: No space left on device \({message}"):
            files.write_text(tmp_path / "a.csv", "abc")


# --- A damaged file --------------------------------------------------------------------------------------------------


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Truncate a file, empty it, or flip 16 of its bits."""
    kind = rng.choice(["cut", "empty", "flip", "flip"])
    if kind == "empty":
        return b""
    if kind == "cut":
        return content[: rng.randrange(len(content))]
    turned = bytearray(content)
    for _ in range(16):
        turned[rng.randrange(len(turned))] ^= 1 << rng.randrange(8)
    return bytes(turned)


def test_a_damaged_last_state_falls_back_100_of_100_times(one_epoch: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(one_epoch)
    whole, expected = folder.last.read_bytes(), read_model(folder.previous)
    rng = random.Random(3)
    for _ in range(100):
        content = damaged(whole, rng)
        folder.last.write_bytes(content)
        caplog.clear()
        assert_same_tensors(resume._read_state(folder), expected)
        (warning,) = [record.getMessage() for record in caplog.records]
        assert f"falling back to {folder.previous}" in warning
        assert len(warning.splitlines()) == 1
        assert (folder.checkpoints / "damaged.pt").read_bytes() == content


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_damaged_newest_state_does_not_change_the_result(seed: int, run_cli: RunCli, tmp_path: Path) -> None:
    arguments = [*QUICK, "--name", "exp"]
    assert run_cli("resnet-train", *arguments, cwd=tmp_path).code == 0
    folder = RunFolder(tmp_path / "runs" / "exp")
    expected = read_checkpoint(folder.model)["model"]
    content = folder.last.read_bytes()
    folder.last.write_bytes([b"", content[:-500], damaged(content, random.Random(seed))][seed])
    error = run_cli("resnet-train", "--resume", folder.last, cwd=tmp_path).error
    assert str(folder.last) in error
    assert str(folder.last) in run_cli("resnet-eval", folder.last, "--device", "cpu", cwd=tmp_path).error
    outcome = run_cli("resnet-train", *arguments, "--resume", "auto", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert outcome.stderr.startswith("warning: runs/exp/checkpoints/last.pt ")
    assert_same_tensors(read_checkpoint(folder.model)["model"], expected)


def test_any_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """Flip bits in the headers of the archive as well, which have no checksums."""
    path, contents = tmp_path / "some.pt", {"numbers": [1, 2.5, "three"], "weight": torch.arange(5.0)}
    write_checkpoint(path, contents)
    whole, rng = path.read_bytes(), random.Random(4)
    positions, refused = range(0, len(whole), 3), 0
    for position in positions:
        turned = bytearray(whole)
        turned[position] ^= 1 << rng.randrange(8)
        path.write_bytes(turned)
        try:
            read = read_checkpoint(path)
        except ValueError:
            refused += 1
        else:
            assert_same_tensors({name: read[name] for name in contents}, contents)
            assert set(read) == {"format", "version", *contents}
    assert refused > 0.4 * len(positions)


@pytest.mark.slow
def test_damaged_files_never_load_as_other_values(trained: tuple[Path, Outcome], tmp_path: Path) -> None:
    source, path, rng = trained[0] / "checkpoints" / "last.pt", tmp_path / "last.pt", random.Random(5)
    whole, expected = source.read_bytes(), read_checkpoint(source)
    refused = equal = 0
    for trial in range(1200):
        turned = bytearray(whole)
        turned[rng.randrange(len(turned))] ^= 1 << rng.randrange(8)
        path.write_bytes(turned if trial < 1000 else whole[: rng.randrange(len(whole))])
        try:
            read = read_checkpoint(path)
        except ValueError:
            refused += 1
        else:
            equal += 1
            assert trial < 1000
            assert_same_tensors(read, expected)
    assert refused + equal == 1200
    assert refused > 1100


@pytest.mark.parametrize("record", ["byteorder", "data/0"])
def test_a_record_that_is_renamed_is_missed(record: str, tmp_path: Path) -> None:
    """Change the name in the header and in the directory of the archive."""
    path = tmp_path / "some.pt"
    write_checkpoint(path, {"weight": torch.arange(5.0)})
    content = path.read_bytes()
    assert content.count(f"archive/{record}".encode()) == 2
    path.write_bytes(content.replace(f"archive/{record}".encode(), f"archive/{record[:-1]}X".encode()))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    if record == "byteorder":
        assert torch.equal(read_checkpoint(path)["weight"], torch.arange(5.0))
    else:
        with pytest.raises(ValueError, match="record data/0 is missing"):
            read_checkpoint(path)


# --- What a kill leaves ----------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from resnet_train.cli.train import main
from resnet_train.runs import checkpoint
wanted, calls = int(sys.argv.pop(1)), []

def kill(*_, **__):
    calls.append(1)
    if len(calls) == wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    return fsync(*_, **__)

fsync, os.fsync = os.fsync, kill
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_rerun_removes_what_a_kill_within_a_save_left(run_cli: RunCli, tmp_path: Path) -> None:
    arguments = [*QUICK, "--name", "exp"]
    killed = run_python("-c", KILLED, 7, *arguments, cwd=tmp_path)
    assert killed.code == -signal.SIGKILL, killed
    folder = tmp_path / "runs" / "exp"
    assert len(list(folder.rglob(".*.tmp"))) == 1
    outcome = run_cli("resnet-train", *arguments, "--resume", "auto", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert sorted(path.name for path in folder.rglob(".*")) == [".lock"]


def test_locking_a_folder_deletes_stale_temporary_files(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "exp", given=True)
    stale = [folder.checkpoints / f".{name}.pt.tmp" for name in ("last", "previous", "model", "best", "best-on-test")]
    for path in stale:
        path.write_bytes(b"half")
    with pytest.raises(ValueError, match="is being written by"):
        RunFolder(folder.path).lock()
    assert all(path.exists() for path in stale)  # they may be the writer's
    folder.unlock()
    folder.lock()
    assert list(folder.checkpoints.iterdir()) == []
    folder.unlock()
