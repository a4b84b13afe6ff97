"""What other systems do differently, simulated: names, line ends, open files, Ctrl-Break and drives without links."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_train.data.dataset import load_dataset
from resnet_train.loggers.csv import MetricsCsv, read_rows, read_seconds
from resnet_train.recipes import read_yaml
from resnet_train.runs.checkpoint import read_checkpoint, write_checkpoint
from resnet_train.runs.folder import RunFolder
from resnet_train.runtime import files
from resnet_train.runtime.names import safe_names, windows_problem
from resnet_train.training.signals import SignalWatch
from tests.harness.cli import run_python
from tests.harness.records import make_info, make_record

# --- Files that are replaced -----------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_replaced_leaves_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(files, "replace_file", refuse)
    with pytest.raises(OSError, match=r"cannot write .*x: Permission denied"):
        files.replace_text(tmp_path / "x", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


# --- Names on Windows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("lr:0.1", "has the reserved character ':'"),
        ("a*b", "has the reserved character '*'"),
        ("what?", "has the reserved character '?'"),
        ("con", "is the name of a device"),
        ("AUX.run", "is the name of a device"),
        ("com1", "is the name of a device"),
        ("lpt².x", "is the name of a device"),
        ("conin$", "is the name of a device"),
        ("run.", "ends with a dot or a space"),
        ("run ", "ends with a dot or a space"),
        ("console", ""),
        ("resnet18-lr0.1", ""),
        ("größe", ""),
    ],
)
def test_names_that_windows_refuses_are_known(name: str, problem: str) -> None:
    assert windows_problem(name) == problem


def test_run_with_such_a_name_is_refused_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnet_train.runtime.names.IS_WINDOWS", True)
    with pytest.raises(ValueError, match=r"^name \(='a:b'\) has the reserved character ':', which Windows does not"):
        RunFolder.create(tmp_path, "a:b", given=True)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("resnet_train.runtime.names.IS_WINDOWS", False)
    RunFolder.create(tmp_path, "a:b", given=True).unlock()


def test_classes_named_after_devices_get_other_folders() -> None:
    assert safe_names(["con", "Aux", "nul.txt", "cat"]) == ["_con", "_Aux", "_nul.txt", "cat"]
    assert not any(windows_problem(name) for name in safe_names(["com1", "a:b", "a.", "b ", "?"]))


# --- Line ends -------------------------------------------------------------------------------------------------------


def test_csv_files_may_have_mixed_line_ends(tmp_path: Path) -> None:
    timing = tmp_path / "timing.csv"
    header = "epoch,step,train_seconds,eval_seconds,images_per_second"
    timing.write_bytes(f"{header}\r\n1,2,3.5,0.5,9.0\r\n2,4,1.5,0.5,9.0\n3,6,1.0,1.0,9.0\r\n".encode())
    assert read_seconds(tmp_path) == 8.0
    assert [row[0] for row in read_rows(timing)] == ["epoch", "1", "2", "3"]


def test_resumed_run_repairs_line_ends(tmp_path: Path) -> None:
    """As if a spreadsheet program had saved the file."""
    info = make_info(history=[make_record(1, test=(1.0, 0.5))])
    logger = MetricsCsv(tmp_path)
    logger.start(info)
    timing = tmp_path / "timing.csv"
    timing.write_bytes(timing.read_bytes().replace(b"\n", b"\r\n") + b"1,1,2.0,1.0,5.0\r\n2,2,2.0,1.0,5.0\r\n")
    logger.start(info)
    assert b"\r" not in timing.read_bytes()
    assert [row[0] for row in read_rows(timing)] == ["epoch", "1"]


def test_yaml_may_have_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_bytes(b"# a comment\r\nlr: 0.1\r\nmilestones: [1, 2]\r\n")
    assert read_yaml(tmp_path / "own.yaml") == {"lr": 0.1, "milestones": [1, 2]}


# --- Files that are open ---------------------------------------------------------------------------------------------


@pytest.fixture
def refusing_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let renames fail as on Windows: of and over files that are mapped, and of folders that hold one."""

    def refuse_if_mapped(self: Path, target: Path, rename: Callable[[Path, Path], Path]) -> Path:
        maps = Path("/proc/self/maps").read_text()
        if str(self.resolve()) in maps or str(target.resolve()) in maps:
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(self))
        return rename(self, target)

    rename, replace = Path.rename, Path.replace
    monkeypatch.setattr(Path, "rename", lambda self, target: refuse_if_mapped(self, target, rename))
    monkeypatch.setattr(Path, "replace", lambda self, target: refuse_if_mapped(self, target, replace))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc shows what is mapped")
def test_a_refused_rename_is_simulated(tmp_path: Path, refusing_renames: None) -> None:
    array = np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.uint8, shape=(9,))
    with pytest.raises(PermissionError):
        (tmp_path / "a.npy").replace(tmp_path / "b.npy")
    del array
    (tmp_path / "a.npy").replace(tmp_path / "b.npy")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc shows what is mapped")
@pytest.mark.parametrize("broken", [False, True])
def test_no_file_of_a_cache_is_mapped_when_it_is_renamed(broken: bool, tmp_path: Path, refusing_renames: None) -> None:
    for label in ("cat", "dog"):
        for number in range(3):
            path = tmp_path / "train" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    if broken:
        (tmp_path / "train" / "dog" / "2.png").write_bytes(b"nothing")
    dataset = load_dataset("folder", "train", tmp_path, 8, {"max_unreadable": 0.5, "test_size": 0, "val_size": 0})
    assert dataset is not None
    assert len(dataset.labels) == 6 - broken
    assert dataset.images[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2][: 6 - broken]


def test_file_that_is_open_for_an_instant_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = iter([PermissionError(errno.EACCES, "open elsewhere")] * 3)

    def replace(self: Path, target: Path) -> Path:
        if (refusal := next(refusals, None)) is not None:
            raise refusal
        return original(self, target)

    original = Path.replace
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(files, "IS_WINDOWS", True)
    monkeypatch.setattr(files, "REPLACE_SECONDS", 0)
    files.replace_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert next(refusals, None) is None


@pytest.mark.parametrize(("windows", "attempts"), [(True, files.REPLACE_ATTEMPTS), (False, 1)])
def test_file_that_stays_open_is_an_error(
    windows: bool, attempts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(self: Path, target: Path) -> Path:
        tried.append(target)
        raise PermissionError(errno.EACCES, "open elsewhere")

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr(files, "IS_WINDOWS", windows)
    monkeypatch.setattr(files, "REPLACE_SECONDS", 0)
    with pytest.raises(OSError, match=r"cannot write .*a\.txt: open elsewhere"):
        files.replace_text(tmp_path / "a.txt", "new")
    assert len(tried) == attempts


# --- Signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="SIGUSR2 stands for Ctrl-Break")
def test_ctrl_break_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR2, raising=False)
    before = signal.getsignal(signal.SIGUSR2)
    with SignalWatch(announces=False) as watch:
        signal.raise_signal(signal.SIGUSR2)
        assert watch.stop == signal.SIGUSR2
    assert signal.getsignal(signal.SIGUSR2) == before


@pytest.mark.parametrize("missing", ["SIGHUP", "SIGUSR1"])
def test_system_without_a_signal_is_no_error(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, missing, raising=False)
    with SignalWatch() as watch:
        assert watch.stop == 0


# --- Users -----------------------------------------------------------------------------------------------------------

CACHE_OF_USER = """
import os, sys
sys.argv = ["resnet-train"]
for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "TORCHINDUCTOR_CACHE_DIR"):
    os.environ.pop(name, None)
os.environ.update(dict(word.split("=") for word in os.environ.get("SET", "").split()))
if "NAMELESS" in os.environ:
    os.getuid = lambda: 4294967000
import resnet_train.cli
print(os.environ.get("TORCHINDUCTOR_CACHE_DIR"))
"""


@pytest.mark.skipif(os.name == "nt", reason="users have names on Windows")
@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"NAMELESS": "1", "TMPDIR": "/scratch"}, "/scratch/torchinductor_4294967000"),
        ({"NAMELESS": "1", "SET": "USER=me"}, "None"),
        ({"NAMELESS": "1", "SET": "TORCHINDUCTOR_CACHE_DIR=/mine"}, "/mine"),
        ({}, "None"),
    ],
)
def test_user_without_a_name_gets_a_cache_of_torch(variables: dict[str, str], folder: str, tmp_path: Path) -> None:
    assert run_python("-c", CACHE_OF_USER, cwd=tmp_path, **variables) == (0, f"{folder}\n", "")


# --- Drives ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["EINVAL", "EACCES", "EPERM", "EOPNOTSUPP", "ENOSYS", "EMLINK"])
def test_drive_without_links_keeps_the_previous_state(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(getattr(errno, code), "no links here")

    monkeypatch.setattr(os, "link", refuse)
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    write_checkpoint(last, {"state": 1})
    write_checkpoint(last, {"state": 2}, previous)
    assert (read_checkpoint(previous)["state"], read_checkpoint(last)["state"]) == (1, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


@pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="folders can't be synchronized here")
@pytest.mark.parametrize(("code", "is_error"), [("EINVAL", False), ("ENOTSUP", False), ("EIO", True)])
def test_drive_may_not_synchronize_folders(
    code: str, is_error: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112 - a link to what is open
            raise OSError(getattr(errno, code), "not for folders")

    monkeypatch.setattr(os, "fsync", fsync)
    if is_error:
        with pytest.raises(OSError, match="not for folders"):
            write_checkpoint(tmp_path / "last.pt", {"state": 1})
    else:
        write_checkpoint(tmp_path / "last.pt", {"state": 1})
        assert read_checkpoint(tmp_path / "last.pt")["state"] == 1
