"""The cache on disk: built once, verified whenever it is opened, and rebuilt if anything in it changed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from resnet_train.data.cache import FORMAT, CacheSource, Facts, _json_crc32, _temporary_place, open_or_build
from tests.harness.cli import PACKAGE_PARENT

FILES = ("images.npy", "labels.npy", "cache.json")
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], dtype=np.int64)


class SomeFacts(Facts):
    mean: tuple[float, ...]


FACTS = SomeFacts(classes=tuple("abcdef"), mean=(0.25, 0.5, 0.75))


def source(split="train", fingerprint="abc", **changes):
    values = {"dataset": "digits", "image_size": 8, "num_classes": 6, "classes": FACTS.classes}
    return CacheSource(split=split, fingerprint=fingerprint, **{**values, **changes})


def open_cache(data_dir, of, fill):
    return open_or_build(data_dir, of, SomeFacts, fill)


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
    assert_original(open_cache(tmp_path, source(), write))
    assert_original(open_cache(tmp_path, source(), never))
    assert contents(tmp_path) == ["digits-train-8-abc"]
    assert damage_reports(caplog) == []


def test_cache_holds_three_files_without_pickles(tmp_path):
    open_cache(tmp_path, source(), write)
    folder = tmp_path / ".resnet_train" / "digits-train-8-abc"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert np.array_equal(np.load(folder / "images.npy", allow_pickle=False), IMAGES)
    assert np.array_equal(np.load(folder / "labels.npy", allow_pickle=False), LABELS)
    assert json.loads((folder / "cache.json").read_text())["content"]["facts"] == FACTS.model_dump(mode="json")


def test_images_are_memory_mapped_and_cannot_be_written(tmp_path):
    images = open_cache(tmp_path, source(), write).images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_is_detected_and_the_cache_rebuilt(tmp_path, caplog, file):
    fills, rng = [], np.random.default_rng(FILES.index(file))
    open_cache(tmp_path, source(), recording(fills))
    path = tmp_path / ".resnet_train" / "digits-train-8-abc" / file
    for trial in range(5):
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        assert_original(open_cache(tmp_path, source(), recording(fills)))
        assert len(fills) == trial + 2
        assert len(damage_reports(caplog)) == trial + 1
        assert "digits-train-8-abc is damaged" in damage_reports(caplog)[-1]
    assert_original(open_cache(tmp_path, source(), never))


@pytest.mark.parametrize("place", ["first", "last"])
def test_every_chunk_of_a_file_is_checked(tmp_path, monkeypatch, caplog, place):
    monkeypatch.setattr("resnet_train.data.cache.CHUNK_BYTES", 64)  # images.npy has 17 chunks
    open_cache(tmp_path, source(), write)
    path = tmp_path / ".resnet_train" / "digits-train-8-abc" / "images.npy"
    content = bytearray(path.read_bytes())
    content[130 if place == "first" else -1] ^= 1  # the pixels start at byte 128
    path.write_bytes(content)
    assert_original(open_cache(tmp_path, source(), write))
    assert ["the checksum of images.npy differs" in report for report in damage_reports(caplog)] == [True]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, -1])
def test_a_truncated_file_is_detected_and_the_cache_rebuilt(tmp_path, caplog, file, keep):
    open_cache(tmp_path, source(), write)
    path = tmp_path / ".resnet_train" / "digits-train-8-abc" / file
    content = path.read_bytes()
    path.write_bytes(content[:-1] if keep == -1 else content[: int(keep * len(content))])
    assert_original(open_cache(tmp_path, source(), write))
    assert len(damage_reports(caplog)) == 1
    assert path.read_bytes() == content


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_detected_and_the_cache_rebuilt(tmp_path, caplog, file):
    open_cache(tmp_path, source(), write)
    path = tmp_path / ".resnet_train" / "digits-train-8-abc" / file
    path.unlink()
    assert_original(open_cache(tmp_path, source(), write))
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
    open_cache(tmp_path, source(), write)
    path = tmp_path / ".resnet_train" / "digits-train-8-abc" / "cache.json"
    path.write_bytes(STRANGE[strange])
    assert_original(open_cache(tmp_path, source(), write))
    assert len(damage_reports(caplog)) == 1


def test_a_cache_of_another_format_is_rebuilt(tmp_path, caplog, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("resnet_train.data.cache.FORMAT", FORMAT + 1)
        open_cache(tmp_path, source(), write)
    assert_original(open_cache(tmp_path, source(), write))
    assert f"format {FORMAT + 1}, but this version reads {FORMAT}" in damage_reports(caplog)[0]


def test_array_files_of_pickled_objects_are_never_loaded(tmp_path):
    def write_objects(folder):
        np.save(folder / "images.npy", np.array([{"an": "object"}], dtype=object), allow_pickle=True)
        np.save(folder / "labels.npy", LABELS)
        return FACTS

    with pytest.raises(ValueError, match="holds objects"):
        open_cache(tmp_path, source(), write_objects)


def test_crash_while_filling_leaves_nothing_behind(tmp_path):
    def fill(folder):
        write(folder)
        raise MemoryError("in the middle")

    with pytest.raises(MemoryError, match="in the middle"):
        open_cache(tmp_path, source(), fill)
    assert contents(tmp_path) == []
    assert_original(open_cache(tmp_path, source(), write))


def test_fill_that_forgets_a_file_leaves_nothing_behind(tmp_path):
    with pytest.raises(OSError, match=r"labels\.npy"):
        open_cache(tmp_path, source(), lambda folder: np.save(folder / "images.npy", IMAGES) or FACTS)
    assert contents(tmp_path) == []


def test_full_disk_is_an_os_error_and_keeps_the_older_cache(tmp_path):
    open_cache(tmp_path, source(), write)

    def fill(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        open_cache(tmp_path, source(fingerprint="def"), fill)
    assert contents(tmp_path) == ["digits-train-8-abc"]


def test_only_older_caches_of_the_same_name_are_removed(tmp_path):
    for dataset, split in [("a", "test"), ("a", "train"), ("b", "train")]:
        open_cache(tmp_path, source(split, "1", dataset=dataset), write)
    assert_original(open_cache(tmp_path, source("train", "2", dataset="a"), write))
    assert contents(tmp_path) == ["a-test-8-1", "a-train-8-2", "b-train-8-1"]


BUILDER = """
import sys
from pathlib import Path
from resnet_train.data.cache import CacheSource, Facts, open_or_build

def fill(folder):
    (folder / "images.npy").write_text("half of it")
    print(folder, flush=True)
    sys.stdin.read()

source = CacheSource(dataset="digits", split="train", image_size=8, fingerprint="abc", num_classes=6)
open_or_build(Path(sys.argv[1]), source, Facts, fill)
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
    assert_original(open_cache(tmp_path, source(), write))
    assert contents(tmp_path) == ["digits-train-8-abc"]


def test_opening_a_cache_removes_what_a_killed_build_left(tmp_path):
    open_cache(tmp_path, source(), write)
    (tmp_path / ".resnet_train" / ".building-killed").mkdir()
    assert_original(open_cache(tmp_path, source(), never))
    assert contents(tmp_path) == ["digits-train-8-abc"]


def test_another_builder_waits_for_a_build_in_progress(tmp_path, caplog):
    caplog.set_level(logging.INFO, "resnet_train")
    open_cache(tmp_path, source(dataset="folder"), write)
    filling, complete, folders = threading.Event(), threading.Event(), []

    def fill(folder):
        folders.append(folder)
        filling.set()
        assert complete.wait(60)
        return write(folder)

    with ThreadPoolExecutor(2) as pool:
        building = pool.submit(open_cache, tmp_path, source(), fill)
        assert filling.wait(60)
        assert_original(open_cache(tmp_path, source(dataset="folder"), never))  # other caches can be opened
        waiting = pool.submit(open_cache, tmp_path, source(), never)
        while not any("waiting for another process" in record.getMessage() for record in caplog.records):
            assert not waiting.done()
            time.sleep(0.01)
        assert folders[0].is_dir()
        complete.set()
        for cached in (building.result(60), waiting.result(60)):
            assert_original(cached)
    assert contents(tmp_path) == ["digits-train-8-abc", "folder-train-8-abc"]


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("no flock")])
def test_caches_are_built_where_files_cannot_be_locked(tmp_path, monkeypatch, error):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    (tmp_path / ".resnet_train" / ".building-of-another").mkdir(parents=True)
    assert_original(open_cache(tmp_path, source(), write))
    assert_original(open_cache(tmp_path, source(), never))
    assert contents(tmp_path) == [".building-of-another", "digits-train-8-abc"]


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
        open_cache(tmp_path, source(), write_wrong)
    assert_original(open_cache(tmp_path, source(), write))
    assert len(damage_reports(caplog)) == 1


def test_a_header_that_claims_too_much_is_refused_unread(tmp_path):
    def write_lie(folder):
        np.save(folder / "images.npy", IMAGES, allow_pickle=False)
        header = "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }".ljust(117) + "\n"
        (folder / "labels.npy").write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode())
        return FACTS

    with pytest.raises(ValueError, match=r"length is greater than file size|OSError|OverflowError"):
        open_cache(tmp_path, source(), write_lie)


def flipped(content, rng):
    """Return the content with one bit flipped."""
    turned = bytearray(content)
    turned[rng.integers(len(turned))] ^= 1 << rng.integers(8)
    return bytes(turned)


def check_damages(tmp_path, num_flips, num_truncations, seed):
    """Damage the files of a cache in turn; each damage must be detected and the original restored."""
    rng = np.random.default_rng(seed)
    open_cache(tmp_path, source(), write)
    folder = tmp_path / ".resnet_train" / "digits-train-8-abc"
    whole = {file: (folder / file).read_bytes() for file in FILES}
    fills = []
    for trial in range(num_flips + num_truncations):
        file = FILES[trial % 3]
        cut = whole[file][: rng.integers(len(whole[file]))]
        (folder / file).write_bytes(flipped(whole[file], rng) if trial < num_flips else cut)
        assert_original(open_cache(tmp_path, source(), recording(fills)))
        assert len(fills) == trial + 1
        assert {file: (folder / file).read_bytes() for file in FILES} == whole


def test_a_sample_of_damages_never_loads(tmp_path):
    check_damages(tmp_path, 12, 6, seed=1)


@pytest.mark.slow
def test_1000_flipped_bits_and_200_truncations_never_load(tmp_path):
    check_damages(tmp_path, 1000, 200, seed=2)


def test_opened_images_stay_readable_while_the_cache_is_replaced(tmp_path):
    images = open_cache(tmp_path, source(), write).images
    open_cache(tmp_path, source(fingerprint="def"), write)
    assert not (tmp_path / ".resnet_train" / "digits-train-8-abc").exists()
    assert np.array_equal(images, IMAGES)


def unwritable(tmp_path, name="file"):
    """Return a data_dir in which nobody, not even root, can create a folder."""
    (tmp_path / name).write_text("a regular file")
    return tmp_path / name / "data"


def test_unwritable_data_dir_falls_back_to_the_user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    data_dir = unwritable(tmp_path)
    assert_original(open_cache(data_dir, source(), write))
    assert_original(open_cache(data_dir, source(), never))
    assert len(list((tmp_path / "xdg" / "resnet_train").glob("*/digits-train-8-abc/images.npy"))) == 1


@pytest.mark.parametrize("variable", [None, ""])
def test_the_user_cache_is_in_the_home_folder_by_default(tmp_path, monkeypatch, variable):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if variable is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", variable)
    assert_original(open_cache(unwritable(tmp_path), source(), write))
    assert len(list((tmp_path / "home" / ".cache" / "resnet_train").glob("*/digits-train-8-abc"))) == 1


def test_two_unwritable_data_dirs_have_separate_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for name in ("one", "two"):
        open_cache(unwritable(tmp_path, name), source(fingerprint=name), write)
    assert len(list((tmp_path / "xdg" / "resnet_train").glob("*/digits-train-8-*"))) == 2


@pytest.fixture
def no_place(tmp_path, monkeypatch):
    """Make every place but the temporary folder unwritable, and return a data_dir."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(unwritable(tmp_path, "home")))
    _temporary_place.cache_clear()
    yield unwritable(tmp_path)
    if _temporary_place.cache_info().currsize:
        shutil.rmtree(_temporary_place())
    _temporary_place.cache_clear()


def test_without_a_writable_place_a_temporary_folder_is_used(no_place, caplog):
    for split in ("train", "test"):
        assert_original(open_cache(no_place, source(split), write))
        assert_original(open_cache(no_place, source(split), never))
    (report,) = damage_reports(caplog)
    assert str(_temporary_place()) in report
    assert "until the program ends" in report


def test_without_a_home_a_temporary_folder_is_used(no_place, caplog, monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert_original(open_cache(no_place, source(), write))
    assert len(damage_reports(caplog)) == 1


def test_a_finished_cache_is_used_where_nothing_can_be_written(tmp_path, monkeypatch):
    open_cache(tmp_path, source(), write)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: pytest.fail("wrote a file"))
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("created a folder"))
    assert_original(open_cache(tmp_path, source(), never))


def test_a_deleted_cache_is_rebuilt_without_a_warning(tmp_path, caplog):
    open_cache(tmp_path, source(), write)
    shutil.rmtree(tmp_path / ".resnet_train")
    assert_original(open_cache(tmp_path, source(), write))
    assert damage_reports(caplog) == []


# What a cache proves


def forge(folder, **changes):
    """Change values of a description and correct its checksum."""
    path = folder / "cache.json"
    content = json.loads(path.read_text())["content"]
    for name, value in changes.items():
        content[name] = value(content[name]) if callable(value) else value
    path.write_text(json.dumps({"content": content, "crc32": _json_crc32(content)}))


@pytest.mark.parametrize(
    "other",
    [
        {"split": "test"},
        {"dataset": "folder"},
        {"image_size": 16},
        {"classes": tuple("abcdeg")},
        {"classes": tuple("abcdefg"), "num_classes": 7},
        {"fingerprint": "abd"},
        {"fingerprint": "abc" + "0" * 17 + "1"},
    ],
    ids=str,
)
def test_a_cache_of_other_sources_under_this_name_is_rebuilt(tmp_path, caplog, other):
    wanted = source(fingerprint="abc" + "0" * 17)
    folder = tmp_path / ".resnet_train" / wanted.folder_name
    found = wanted.model_copy(update=other)
    open_cache(tmp_path, found.model_copy(update={"image_size": 8, "num_classes": 6, "classes": None}), write)
    (made,) = (tmp_path / ".resnet_train").glob("*-*")
    made.rename(folder)
    forge(folder, source=found.model_dump(mode="json"), facts=lambda facts: {**facts, "classes": found.classes})
    assert_original(open_cache(tmp_path, wanted, write))
    assert len(damage_reports(caplog)) == 1


@pytest.mark.parametrize("wrong", [-1, 6, 1 << 40])
def test_labels_out_of_range_are_rebuilt(tmp_path, caplog, wrong):
    open_cache(tmp_path, source(), write)
    folder = tmp_path / ".resnet_train" / source().folder_name
    labels = LABELS.copy()
    labels[2] = wrong
    np.save(folder / "labels.npy", labels, allow_pickle=False)
    crc = zlib.crc32((folder / "labels.npy").read_bytes())
    forge(folder, crc32=lambda checksums: {**checksums, "labels.npy": crc})
    assert_original(open_cache(tmp_path, source(), write))
    assert "labels " in damage_reports(caplog)[0]


HEADERS = {
    "token error": b"{'descr': '|u1', 'shape': (1, ",
    "no header": b"",
    "other keys": b"{'descr': '|u1'}",
    "not a dict": b"[1, 2, 3]",
    "not text": b"\xff\xfe\xff",
    "huge": b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999999, 3, 8, 8), }",
    "negative": b"{'descr': '|u1', 'fortran_order': False, 'shape': (-5, 3, 8, 8), }",
    "no memory": b"{'descr': '|u1', 'fortran_order': False, 'shape': (5, 3, 8, 8000000000000), }",
    "no images": b"{'descr': '|u1', 'fortran_order': False, 'shape': (0, 3, 8, 8), }",
    "objects": b"{'descr': '|O', 'fortran_order': False, 'shape': (5, 3, 8, 8), }",
    "fortran": b"{'descr': '|u1', 'fortran_order': True, 'shape': (5, 3, 8, 8), }",
    "strange type": b"{'descr': 'nonsense', 'fortran_order': False, 'shape': (5, 3, 8, 8), }",
    "nested": b"(" * 5000,
}


@pytest.mark.parametrize("header", HEADERS)
def test_an_array_header_with_a_right_checksum_is_rebuilt(tmp_path, caplog, header):
    open_cache(tmp_path, source(), write)
    folder = tmp_path / ".resnet_train" / source().folder_name
    text = HEADERS[header].ljust(117) + b"\n"
    content = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + IMAGES.tobytes()
    (folder / "images.npy").write_bytes(content)
    forge(folder, crc32=lambda checksums: {**checksums, "images.npy": zlib.crc32(content)})
    assert_original(open_cache(tmp_path, source(), write))
    assert [len(report.splitlines()) for report in damage_reports(caplog)] == [1]


DESCRIPTIONS = {
    "no facts": {"facts": {}},
    "facts of another type": {"facts": [1]},
    "mean that is no number": {"facts": {"classes": list("abcdef"), "mean": ["x"]}},
    "mean that is not finite": {"facts": {"classes": list("abcdef"), "mean": [float("nan")]}},
    "no checksums": {"crc32": {}},
    "other files": {"crc32": {"../../secret.npy": 1}},
    "source that is a list": {"source": ["digits"]},
}


@pytest.mark.parametrize("description", DESCRIPTIONS)
def test_a_description_with_a_right_checksum_is_rebuilt(tmp_path, caplog, description):
    open_cache(tmp_path, source(), write)
    forge(tmp_path / ".resnet_train" / source().folder_name, **DESCRIPTIONS[description])
    assert_original(open_cache(tmp_path, source(), write))
    assert len(damage_reports(caplog)) == 1


def plant(path, kind, target):
    """Put something at a path that is not a regular file."""
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
        (path / "inside").write_text("")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
            server.bind(path.name)
    else:
        path.symlink_to({"link": target, "dangling link": target / "nothing", "device": "/dev/zero"}[kind])


KINDS = ("link", "dangling link", "FIFO", "folder", "socket", "device")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*FILES, ".", ".lock", ".building-x"])
def test_planted_links_and_special_files_are_replaced(tmp_path, kind, name):
    """A link of the same content is planted, which a program that follows links would read."""
    root = tmp_path / "data" / ".resnet_train"
    open_cache(tmp_path / "data", source(), write)
    folder = root / source().folder_name
    path = {".": folder, ".lock": root / ".lock", ".building-x": root / ".building-x"}.get(name, folder / name)
    target = tmp_path / "target"
    if path.exists():
        path.rename(target)
    else:
        target.write_text("secret")
    before = sorted((str(p), p.read_bytes()) for p in [target, *target.rglob("*")] if p.is_file())
    plant(path, kind, target)
    for _ in range(2):
        assert_original(open_cache(tmp_path / "data", source(), write))
    assert sorted((str(p), p.read_bytes()) for p in [target, *target.rglob("*")] if p.is_file()) == before
    assert folder.is_dir()
    assert not folder.is_symlink()
    assert all((folder / file).is_file() and not (folder / file).is_symlink() for file in FILES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_root_that_is_not_a_folder_is_not_used(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for name in ("data", "target"):
        (tmp_path / name).mkdir()
    root = tmp_path / "data" / ".resnet_train"
    plant(root, kind, tmp_path / "target")
    assert_original(open_cache(tmp_path / "data", source(), write))
    assert list((tmp_path / "target").iterdir()) == []
    assert len(list((tmp_path / "xdg").rglob("cache.json"))) == (kind != "folder")


def test_another_user_may_read_the_cache(tmp_path):
    open_cache(tmp_path, source(), write)
    folder = tmp_path / ".resnet_train" / source().folder_name
    (tmp_path / "as the umask says").mkdir()
    assert folder.stat().st_mode == (tmp_path / "as the umask says").stat().st_mode
