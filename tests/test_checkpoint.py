"""Checkpoint files: whole or absent when written, verified when read, and never a way to run code."""

from __future__ import annotations

import errno
import os
import pickle  # noqa: TID251 - to attack with
import random
import zipfile
from pathlib import Path

import pytest
import torch

from resnet_train.models import create_model
from resnet_train.records import About
from resnet_train.runs import checkpoint
from resnet_train.runs.checkpoint import ModelCheckpoint, read_checkpoint, read_model, write_checkpoint
from resnet_train.runs.folder import RunFolder
from resnet_train.runs.restore import restore_model
from resnet_train.runtime.files import open_regular
from tests.harness.trainers import assert_same_tensors, tiny_trainer

ABOUT = About(
    arch="resnet8",
    arch_options={},
    classes=["a", "b", "c"],
    image_size=8,
    mean=[0.5] * 3,
    std=[0.25] * 3,
    dataset="digits",
    title="t",
    fingerprint="f",
)


@pytest.fixture
def saved(tmp_path):
    """Return the checkpoint of a tiny trainer and its state."""
    trainer = tiny_trainer(epochs=1)
    trainer.fit()
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    description = checkpoint.Description(about=ABOUT, config={"lr": 0.1}, environment={})
    checkpoint.Saver(folder, description).save_state(trainer.state())
    return folder.last, trainer.state()


def test_what_is_written_is_read(saved):
    path, state = saved
    read = read_model(path)
    assert (read.about, read.config) == (ABOUT, {"lr": 0.1})
    for key, value in state:
        assert_same_tensors(getattr(read, key), value, key)


def test_restored_model_gives_the_same_logits(saved):
    path, contents = saved
    model = restore_model(read_model(path), path)
    reference = create_model("resnet8", 3)
    reference.load_state_dict(contents.model)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(images), reference.eval()(images))  # NHWC and NCHW kernels round differently


def test_the_old_file_becomes_the_previous_one(tmp_path):
    path, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for number in range(3):
        write_checkpoint(path, {"number": number}, previous)
    assert read_checkpoint(path)["number"] == 2
    assert read_checkpoint(previous)["number"] == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def test_no_links_on_this_file_system(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    test_the_old_file_becomes_the_previous_one(tmp_path)


@pytest.mark.parametrize("call", ["write", "fsync", "link", "rename"])
def test_a_failing_disk_leaves_the_old_file_and_its_message(tmp_path, monkeypatch, call):
    path, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    write_checkpoint(path, {"number": 1}, previous)

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "write":

        class Full:
            def __init__(self, file):
                self.file = file

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            write = staticmethod(fail)

            def __getattr__(self, name):
                return getattr(self.file, name)

        monkeypatch.setattr(checkpoint, "open_regular", lambda path, mode: Full(open_regular(path, mode)))
    elif call == "rename":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=r"cannot write .*last\.pt: No space left on device"):
        write_checkpoint(path, {"number": 2}, previous)
    monkeypatch.undo()
    assert read_checkpoint(path)["number"] == 1
    assert list(tmp_path.glob(".*")) == []


def test_flipped_bits_never_load_as_other_values(saved):
    path, contents = saved
    data = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(60):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            read = read_model(path)
        except ValueError:
            refused += 1
        else:  # the bit was padding, or a name that nobody reads
            for key, value in contents:
                assert_same_tensors(getattr(read, key), value, key)
    assert refused > 40


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files_are_refused(saved, share):
    path, _ = saved
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"last\.pt"):
        read_checkpoint(path)


class Payload:
    """Create a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "evil.pt"
    torch.save({"format": checkpoint.FORMAT, "version": 1, "x": Payload(trace)}, path)
    with pytest.raises(ValueError, match=r"its pickle uses '__builtin__\.getattr'"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(ValueError, match="not a checkpoint"):
        read_checkpoint(path)
    assert not trace.exists()


def test_compressed_records_are_refused(saved, tmp_path):
    path, _ = saved
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    with pytest.raises(ValueError, match="compressed"):
        read_checkpoint(bomb)


@pytest.mark.parametrize("contents", [{"format": "other"}, [1, 2], {"format": checkpoint.FORMAT, "version": 99}])
def test_other_peoples_files_are_refused(tmp_path, contents):
    path = tmp_path / "other.pt"
    torch.save(contents, path)
    with pytest.raises(ValueError, match=r"other\.pt (is not a checkpoint|has checkpoint version 99)"):
        read_checkpoint(path)


@pytest.mark.parametrize("changed", [{"arch": "resnet14"}, {"arch_options": {"deep": True}}, {"classes": ["a", "b"]}])
def test_a_description_that_does_not_fit_is_refused(saved, changed):
    path, state = saved
    about = ABOUT.model_copy(update=changed)
    model = ModelCheckpoint(about=about, config={}, environment={}, model=state.model)
    with pytest.raises(ValueError, match="does not hold the network it describes"):
        restore_model(model, path)


def test_names_have_no_prefixes(saved):
    path, _ = saved
    assert all(not name.startswith(("module.", "_orig_mod.")) for name in read_checkpoint(path)["model"])
