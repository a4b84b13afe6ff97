"""The cache on disk: built once, verified whenever it is opened, and rebuilt if anything in it changed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from resnet_train.data.cache import open_or_build
from tests.harness.cli import PACKAGE_PARENT

FILES = ("images.npy", "labels.npy", "cache.json")
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], dtype=np.int64)
FACTS = {"mean": [0.25, 0.5, 0.75], "skipped": ["a.png (broken)"], "classes": ["cat", "dog"]}


def write(folder):
    np.save(folder / "images.npy", IMAGES, allow_pickle=False)
    np.save(folder / "labels.npy", LABELS, allow_pickle=False)
    return FACTS


def never(folder):
    pytest.fail("the cache was built again")


def recording(fills):
    def fill(folder):
        fills.append(folder)
        return write(folder)

    return fill


def assert_original(cached):
    assert np.array_equal(cached.images, IMAGES)
    assert np.array_equal(cached.labels, LABELS)
    assert (cached.images.dtype, cached.labels.dtype) == (np.uint8, np.int64)
    assert cached.facts == FACTS


def contents(data_dir):
    """Return the names in the cache folder except the lock, which stays."""
    return sorted(path.name for path in (data_dir / ".resnet_train").iterdir() if path.name != ".lock")


def damage_reports(caplog):
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "resnet_train.data.cache" and record.levelno == logging.WARNING
    ]


def test_cache_is_built_once_and_opened_afterwards(tmp_path, caplog):
    assert_original(open_or_build(tmp_path, "digits-train", "abc", write))
    assert_original(open_or_build(tmp_path, "digits-train", "abc", never))
    assert contents(tmp_path) == ["digits-train-abc"]
    assert damage_reports(caplog) == []


def test_cache_holds_three_files_without_pickles(tmp_path):
    open_or_build(tmp_path, "digits-train", "abc", write)
    folder = tmp_path / ".resnet_train" / "digits-train-abc"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert np.array_equal(np.load(folder / "images.npy", allow_pickle=False), IMAGES)
    assert np.array_equal(np.load(folder / "labels.npy", allow_pickle=False), LABELS)
    assert json.loads((folder / "cache.json").read_text())["content"]["facts"] == FACTS


def test_images_are_memory_mapped_and_cannot_be_written(tmp_path):
    images = open_or_build(tmp_path, "digits-train", "abc", write).images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_is_detected_and_the_cache_rebuilt(tmp_path, caplog, file):
    fills, rng = [], np.random.default_rng(FILES.index(file))
    open_or_build(tmp_path, "digits-train", "abc", recording(fills))
    path = tmp_path / ".resnet_train" / "digits-train-abc" / file
    for trial in range(5):
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        assert_original(open_or_build(tmp_path, "digits-train", "abc", recording(fills)))
        assert len(fills) == trial + 2
        assert len(damage_reports(caplog)) == trial + 1
        assert "digits-train-abc is damaged" in damage_reports(caplog)[-1]
    assert_original(open_or_build(tmp_path, "digits-train", "abc", never))


@pytest.mark.parametrize("place", ["first", "last"])
def test_every_chunk_of_a_file_is_checked(tmp_path, monkeypatch, caplog, place):
    monkeypatch.setattr("resnet_train.data.cache.CHUNK_BYTES", 64)  # images.npy has 17 chunks
    open_or_build(tmp_path, "digits-train", "abc", write)
    path = tmp_path / ".resnet_train" / "digits-train-abc" / "images.npy"
    content = bytearray(path.read_bytes())
    content[130 if place == "first" else -1] ^= 1  # the pixels start at byte 128
    path.write_bytes(content)
    assert_original(open_or_build(tmp_path, "digits-train", "abc", write))
    assert ["the checksum of images.npy differs" in report for report in damage_reports(caplog)] == [True]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, -1])
def test_a_truncated_file_is_detected_and_the_cache_rebuilt(tmp_path, caplog, file, keep):
    open_or_build(tmp_path, "digits-train", "abc", write)
    path = tmp_path / ".resnet_train" / "digits-train-abc" / file
    content = path.read_bytes()
    path.write_bytes(content[:-1] if keep == -1 else content[: int(keep * len(content))])
    assert_original(open_or_build(tmp_path, "digits-train", "abc", write))
    assert len(damage_reports(caplog)) == 1
    assert path.read_bytes() == content


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_detected_and_the_cache_rebuilt(tmp_path, caplog, file):
    open_or_build(tmp_path, "digits-train", "abc", write)
    path = tmp_path / ".resnet_train" / "digits-train-abc" / file
    path.unlink()
    assert_original(open_or_build(tmp_path, "digits-train", "abc", write))
    assert len(damage_reports(caplog)) == 1
    assert path.is_file()


STRANGE = {
    "empty": b"",
    "list": b"[]",
    "null": b"null",
    "number": b"7",
    "text": b'"content"',
    "no content": b"{}",
    "numbers": b'{"content": 1, "crc32": 2}',
    "nested": b"[" * 100_000,
    "not utf-8": b"\xff\xfe",
}


@pytest.mark.parametrize("strange", STRANGE)
def test_a_strange_description_is_detected_and_rebuilt(tmp_path, caplog, strange):
    open_or_build(tmp_path, "digits-train", "abc", write)
    path = tmp_path / ".resnet_train" / "digits-train-abc" / "cache.json"
    path.write_bytes(STRANGE[strange])
    assert_original(open_or_build(tmp_path, "digits-train", "abc", write))
    assert len(damage_reports(caplog)) == 1


def test_a_cache_of_another_format_is_rebuilt(tmp_path, caplog, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("resnet_train.data.cache.FORMAT", 2)
        open_or_build(tmp_path, "digits-train", "abc", write)
    assert_original(open_or_build(tmp_path, "digits-train", "abc", write))
    assert "format 2, but this version reads 1" in damage_reports(caplog)[0]


def test_array_files_of_pickled_objects_are_never_loaded(tmp_path):
    def write_objects(folder):
        np.save(folder / "images.npy", np.array([{"an": "object"}], dtype=object), allow_pickle=True)
        np.save(folder / "labels.npy", LABELS)
        return FACTS

    with pytest.raises(ValueError, match=r"allow_pickle=False|can't be memory-mapped"):
        open_or_build(tmp_path, "digits-train", "abc", write_objects)


def test_crash_while_filling_leaves_nothing_behind(tmp_path):
    def fill(folder):
        write(folder)
        raise MemoryError("in the middle")

    with pytest.raises(MemoryError, match="in the middle"):
        open_or_build(tmp_path, "digits-train", "abc", fill)
    assert contents(tmp_path) == []
    assert_original(open_or_build(tmp_path, "digits-train", "abc", write))


def test_fill_that_forgets_a_file_leaves_nothing_behind(tmp_path):
    with pytest.raises(OSError, match=r"labels\.npy"):
        open_or_build(tmp_path, "x", "abc", lambda folder: np.save(folder / "images.npy", IMAGES) or FACTS)
    assert contents(tmp_path) == []


def test_full_disk_is_an_os_error_and_keeps_the_older_cache(tmp_path):
    open_or_build(tmp_path, "digits-train", "abc", write)

    def fill(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        open_or_build(tmp_path, "digits-train", "def", fill)
    assert contents(tmp_path) == ["digits-train-abc"]


def test_only_older_caches_of_the_same_name_are_removed(tmp_path):
    for name, fingerprint in [("folder-test-32", "1"), ("folder-train-320", "1"), ("folder-train-32", "1")]:
        open_or_build(tmp_path, name, fingerprint, write)
    assert_original(open_or_build(tmp_path, "folder-train-32", "2", write))
    assert contents(tmp_path) == ["folder-test-32-1", "folder-train-32-2", "folder-train-320-1"]


BUILDER = """
import sys
from pathlib import Path
from resnet_train.data.cache import open_or_build

def fill(folder):
    (folder / "images.npy").write_text("half of it")
    print(folder, flush=True)
    sys.stdin.read()

open_or_build(Path(sys.argv[1]), "digits-train", "abc", fill)
"""


def test_a_killed_build_is_removed_by_the_next_one(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
    ) as process:
        folder = Path(process.stdout.readline().strip())
        process.kill()
    assert (folder / "images.npy").is_file()
    assert_original(open_or_build(tmp_path, "digits-train", "abc", write))
    assert contents(tmp_path) == ["digits-train-abc"]


def test_opening_a_cache_removes_what_a_killed_build_left(tmp_path):
    open_or_build(tmp_path, "digits-train", "abc", write)
    (tmp_path / ".resnet_train" / ".building-killed").mkdir()
    assert_original(open_or_build(tmp_path, "digits-train", "abc", never))
    assert contents(tmp_path) == ["digits-train-abc"]


def test_another_builder_waits_for_a_build_in_progress(tmp_path, caplog):
    caplog.set_level(logging.INFO, "resnet_train")
    open_or_build(tmp_path, "folder-train-8", "abc", write)
    filling, complete, folders = threading.Event(), threading.Event(), []

    def fill(folder):
        folders.append(folder)
        filling.set()
        assert complete.wait(60)
        return write(folder)

    with ThreadPoolExecutor(2) as pool:
        building = pool.submit(open_or_build, tmp_path, "digits-train", "abc", fill)
        assert filling.wait(60)
        assert_original(open_or_build(tmp_path, "folder-train-8", "abc", never))  # other caches can be opened
        waiting = pool.submit(open_or_build, tmp_path, "digits-train", "abc", never)
        while not any("waiting for another process" in record.getMessage() for record in caplog.records):
            assert not waiting.done()
            time.sleep(0.01)
        assert folders[0].is_dir()
        complete.set()
        for cached in (building.result(60), waiting.result(60)):
            assert_original(cached)
    assert contents(tmp_path) == ["digits-train-abc", "folder-train-8-abc"]


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("no flock")])
def test_caches_are_built_where_files_cannot_be_locked(tmp_path, monkeypatch, error):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    (tmp_path / ".resnet_train" / ".building-of-another").mkdir(parents=True)
    assert_original(open_or_build(tmp_path, "digits-train", "abc", write))
    assert_original(open_or_build(tmp_path, "digits-train", "abc", never))
    assert contents(tmp_path) == [".building-of-another", "digits-train-abc"]


OF_WRONG_SHAPE = {
    "floats": (IMAGES.astype(np.float32), LABELS),
    "no channels": (IMAGES[:, 0], LABELS),
    "one channel": (IMAGES[:, :1], LABELS),
    "fewer labels": (IMAGES, LABELS[1:]),
    "labels that are no integers": (IMAGES, LABELS.astype(np.float64)),
}


@pytest.mark.parametrize("wrong", OF_WRONG_SHAPE)
def test_arrays_of_a_wrong_kind_are_rebuilt(tmp_path, caplog, wrong):
    def write_wrong(folder):
        for name, array in zip(("images.npy", "labels.npy"), OF_WRONG_SHAPE[wrong], strict=True):
            np.save(folder / name, array, allow_pickle=False)
        return FACTS

    with pytest.raises(ValueError, match="holds"):
        open_or_build(tmp_path, "digits-train", "abc", write_wrong)
    assert_original(open_or_build(tmp_path, "digits-train", "abc", write))
    assert len(damage_reports(caplog)) == 1


def test_a_header_that_claims_too_much_is_refused_unread(tmp_path):
    def write_lie(folder):
        np.save(folder / "images.npy", IMAGES, allow_pickle=False)
        header = "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }".ljust(117) + "\n"
        (folder / "labels.npy").write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode())
        return FACTS

    with pytest.raises(ValueError, match=r"length is greater than file size|OSError|OverflowError"):
        open_or_build(tmp_path, "digits-train", "abc", write_lie)


def flipped(content, rng):
    """Return the content with one bit flipped."""
    turned = bytearray(content)
    turned[rng.integers(len(turned))] ^= 1 << rng.integers(8)
    return bytes(turned)


def check_damages(tmp_path, num_flips, num_truncations, seed):
    """Damage the files of a cache in turn; each damage must be detected and the original restored."""
    rng = np.random.default_rng(seed)
    open_or_build(tmp_path, "digits-train", "abc", write)
    folder = tmp_path / ".resnet_train" / "digits-train-abc"
    whole = {file: (folder / file).read_bytes() for file in FILES}
    fills = []
    for trial in range(num_flips + num_truncations):
        file = FILES[trial % 3]
        cut = whole[file][: rng.integers(len(whole[file]))]
        (folder / file).write_bytes(flipped(whole[file], rng) if trial < num_flips else cut)
        assert_original(open_or_build(tmp_path, "digits-train", "abc", recording(fills)))
        assert len(fills) == trial + 1
        assert {file: (folder / file).read_bytes() for file in FILES} == whole


def test_a_sample_of_damages_never_loads(tmp_path):
    check_damages(tmp_path, 12, 6, seed=1)


@pytest.mark.slow
def test_1000_flipped_bits_and_200_truncations_never_load(tmp_path):
    check_damages(tmp_path, 1000, 200, seed=2)


def test_opened_images_stay_readable_while_the_cache_is_replaced(tmp_path):
    images = open_or_build(tmp_path, "digits-train", "abc", write).images
    open_or_build(tmp_path, "digits-train", "def", write)
    assert not (tmp_path / ".resnet_train" / "digits-train-abc").exists()
    assert np.array_equal(images, IMAGES)


def unwritable(tmp_path, name="file"):
    """Return a data_dir in which nobody, not even root, can create a folder."""
    (tmp_path / name).write_text("a regular file")
    return tmp_path / name / "data"


def test_unwritable_data_dir_falls_back_to_the_user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    data_dir = unwritable(tmp_path)
    assert_original(open_or_build(data_dir, "digits-train", "abc", write))
    assert_original(open_or_build(data_dir, "digits-train", "abc", never))
    assert len(list((tmp_path / "xdg" / "resnet_train").glob("*/digits-train-abc/images.npy"))) == 1


@pytest.mark.parametrize("variable", [None, ""])
def test_the_user_cache_is_in_the_home_folder_by_default(tmp_path, monkeypatch, variable):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if variable is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", variable)
    assert_original(open_or_build(unwritable(tmp_path), "digits-train", "abc", write))
    assert len(list((tmp_path / "home" / ".cache" / "resnet_train").glob("*/digits-train-abc"))) == 1


def test_two_unwritable_data_dirs_have_separate_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for name in ("one", "two"):
        open_or_build(unwritable(tmp_path, name), "folder-train-32", f"fingerprint of {name}", write)
    assert len(list((tmp_path / "xdg" / "resnet_train").glob("*/folder-train-32-*"))) == 2


def test_no_writable_place_at_all_is_an_os_error(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(unwritable(tmp_path)))
    with pytest.raises(OSError, match="Not a directory"):
        open_or_build(unwritable(tmp_path), "digits-train", "abc", write)


def test_a_deleted_cache_is_rebuilt_without_a_warning(tmp_path, caplog):
    open_or_build(tmp_path, "digits-train", "abc", write)
    shutil.rmtree(tmp_path / ".resnet_train")
    assert_original(open_or_build(tmp_path, "digits-train", "abc", write))
    assert damage_reports(caplog) == []
