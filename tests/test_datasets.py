"""The data sets: digits, splits, statistics, and CIFAR-10 from a small archive of the original's format."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from resnet_train.data.dataset import (
    DATASETS,
    balanced_order,
    channel_statistics,
    load_dataset,
    split_indices,
)

FEW = settings(max_examples=40, deadline=None, database=None)
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=80).map(lambda labels: np.array(labels, dtype=np.int64))


def test_digits_train_and_test_have_their_sizes_and_types(tmp_path):
    train, test = (load_dataset("digits", split, tmp_path) for split in ("train", "test"))
    for part, size in ((train, 1437), (test, 360)):
        assert len(part) == size
        assert part.images.shape == (size, 3, 32, 32)
        assert part.images.dtype == np.uint8
        assert part.labels.shape == (size,)
        assert part.labels.dtype == np.int64
        assert part.classes == tuple("0123456789")
        assert part.title == "digits, not CIFAR-10"
    assert list(tmp_path.iterdir()) == []


def test_digits_are_stratified(tmp_path):
    train, test = (load_dataset("digits", split, tmp_path, 8).labels for split in ("train", "test"))
    for digit, share in enumerate(np.bincount(test) / np.bincount(np.concatenate([train, test]))):
        assert share == pytest.approx(0.2, abs=1 / 170), digit


def test_digits_of_8_pixels_are_the_scans_and_every_one_is_used_once(tmp_path):
    scans, labels = load_digits(return_X_y=True)
    expected = sorted(
        (label, np.round(scan * (255 / 16)).astype(np.uint8).tobytes()) for scan, label in zip(scans, labels.tolist())
    )
    parts = [load_dataset("digits", split, tmp_path, 8) for split in ("train", "test")]
    found = [(label, image[0].tobytes()) for part in parts for image, label in zip(part.images, part.labels.tolist())]
    assert sorted(found) == expected


def test_digits_are_gray_and_do_not_change_between_loads(tmp_path):
    first, second = (load_dataset("digits", "test", tmp_path, 16) for _ in range(2))
    assert first.images.shape == (360, 3, 16, 16)
    assert np.array_equal(first.images[:, 0], first.images[:, 1])
    assert np.array_equal(first.images[:, 0], first.images[:, 2])
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.labels, second.labels)


def test_digits_statistics_are_of_the_training_images_in_both_splits(tmp_path):
    train, test = (load_dataset("digits", split, tmp_path) for split in ("train", "test"))
    assert (train.mean, train.std) == (test.mean, test.std)
    assert train.mean == pytest.approx((train.images / 255).mean((0, 2, 3)), abs=1e-6)
    assert train.std == pytest.approx((train.images / 255).std((0, 2, 3)), abs=1e-6)


def test_unknown_data_set_gives_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="unknown data set 'cifar-10'; did you mean 'cifar10'"):
        load_dataset("cifar-10", "train", tmp_path)
    assert {"cifar10", "digits", "folder"} <= set(DATASETS.names())


@given(LABELS, st.data())
@FEW
def test_split_sizes_are_honoured_and_the_parts_are_disjoint(labels, data):
    val_size = data.draw(st.integers(0, len(labels) - 1))
    train_size = data.draw(st.none() | st.integers(1, len(labels) - val_size))
    train, val = split_indices(labels, val_size, train_size)
    assert len(val) == val_size
    assert len(train) == (len(labels) - val_size if train_size is None else train_size)
    both = np.concatenate([train, val])
    assert len(np.unique(both)) == len(both)
    assert set(both.tolist()) <= set(range(len(labels)))
    assert np.array_equal(train, np.sort(train))
    assert np.array_equal(val, np.sort(val))


@given(st.integers(2, 10), st.integers(5, 30), st.randoms(), st.data())
@FEW
def test_split_is_class_balanced_where_there_are_enough_images(num_classes, each, shuffler, data):
    labels = np.repeat(np.arange(num_classes), each)
    shuffler.shuffle(labels)
    val_size = data.draw(st.integers(0, len(labels) - 1))
    train_size = data.draw(st.none() | st.integers(1, len(labels) - val_size))
    for part in split_indices(labels, val_size, train_size):
        counts = np.bincount(labels[part], minlength=num_classes)
        assert counts.max() - counts.min() <= 1


@given(LABELS, st.data())
@FEW
def test_split_of_uneven_classes_is_as_balanced_as_they_last(labels, data):
    val_size = data.draw(st.integers(0, len(labels) - 1))
    held = np.bincount(labels[split_indices(labels, val_size, None)[1]], minlength=5)
    there = np.bincount(labels, minlength=5)
    for label in range(5):
        assert held[label] == there[label] or held[label] >= held.max() - 1


@given(LABELS)
@FEW
def test_balanced_order_holds_every_image_once(labels):
    assert sorted(balanced_order(labels).tolist()) == list(range(len(labels)))


def test_split_does_not_depend_on_any_random_state():
    labels = np.random.default_rng(0).integers(0, 10, 1000)
    state = np.random.get_state()  # noqa: NPY002 - the global state is what must not matter
    results = []
    for seed in (0, 1):
        np.random.seed(seed)  # noqa: NPY002
        results.append(split_indices(labels, 100, 500))
    np.random.set_state(state)  # noqa: NPY002
    assert np.array_equal(results[0][0], results[1][0])
    assert np.array_equal(results[0][1], results[1][1])


def test_split_does_not_change_between_versions():
    train, val = split_indices(np.arange(20) % 4, 4, 8)
    assert val.tolist() == [7, 12, 13, 14]
    assert train.tolist() == [0, 3, 4, 5, 6, 11, 17, 18]


def test_larger_subset_of_the_training_images_contains_the_smaller():
    labels = np.arange(1000) % 10
    small, large = (set(split_indices(labels, 100, size)[0].tolist()) for size in (50, 300))
    assert small < large


def test_split_picks_from_all_over_the_list():
    _, val = split_indices(np.repeat(np.arange(10), 100), 100, None)
    assert len(np.unique(val % 100)) > 40


@pytest.mark.parametrize("val_size", [10, 11])
def test_too_many_validation_images_are_refused_with_the_values(val_size):
    with pytest.raises(ValueError, match=rf"val_size \(={val_size}\) must be less than .* \(=10\)"):
        split_indices(np.zeros(10, dtype=np.int64), val_size, None)


def test_too_many_training_images_are_refused_with_the_values():
    labels = np.zeros(10, dtype=np.int64)
    with pytest.raises(ValueError, match=r"train_size \(=11\) must be at most the 10 training images$"):
        split_indices(labels, 0, 11)
    with pytest.raises(ValueError, match=r"train_size \(=8\) .* the 7 training images after val_size \(=3\)"):
        split_indices(labels, 3, 8)


@pytest.mark.parametrize("num_images", [1, 7, 1024, 1025, 2500])
def test_channel_statistics_equal_numpys(num_images):
    rng = np.random.default_rng(num_images)
    images = rng.integers(0, [[[120]], [[200]], [[256]]], size=(num_images, 3, 6, 5)).astype(np.uint8)
    mean, std = channel_statistics(images)
    assert mean == pytest.approx((images / 255).mean((0, 2, 3)), abs=1e-6)
    assert std == pytest.approx((images / 255).std((0, 2, 3)), abs=1e-6)
    assert all(type(value) is float for value in (*mean, *std))


def test_channel_statistics_of_one_color_can_be_divided_by():
    mean, std = channel_statistics(np.full((3, 3, 4, 4), 255, dtype=np.uint8))
    assert mean == (1, 1, 1)
    assert all(0 < value < 1e-5 for value in std)


def test_cifar10_refuses_another_image_size(tmp_path):
    with pytest.raises(ValueError, match=r"image_size \(=64\) must be 32 for CIFAR-10"):
        load_dataset("cifar10", "train", tmp_path, image_size=64)
    assert list(tmp_path.iterdir()) == []


def as_python_2(value):
    """Pickle opcodes (protocol 2, as in the original archive) of text, numbers, lists, dicts and uint8 matrices."""
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode()
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(as_python_2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(as_python_2(key) + as_python_2(item) for key, item in value.items()) + b"u"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    pixels = b"T" + struct.pack("<i", value.size) + value.tobytes()
    shape = as_python_2(value.shape[0]) + as_python_2(value.shape[1]) + b"\x86"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + pixels + b"tb"


def small_cifar10(monkeypatch):
    """torchvision's CIFAR10 expecting a small archive; returns that archive and the images and labels of each split."""
    rng = np.random.default_rng(0)
    numbers = rng.permutation(np.arange(24) % 10).tolist()
    pixels = rng.integers(0, 256, (24, 3072), dtype=np.uint8)
    cuts = {f"data_batch_{i + 1}": slice(4 * i, 4 * i + 4) for i in range(5)} | {"test_batch": slice(20, 24)}
    files = {
        name: {"batch_label": name, "labels": numbers[cut], "data": pixels[cut], "filenames": ["x.png"] * 4}
        for name, cut in cuts.items()
    }
    files["batches.meta"] = {"num_cases_per_batch": 4, "label_names": list(CIFAR_CLASSES), "num_vis": 3072}
    pickled = {name: b"\x80\x02" + as_python_2(content) + b"." for name, content in files.items()}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in pickled.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    digest = {name: hashlib.md5(content).hexdigest() for name, content in pickled.items()}
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(stream.getvalue()).hexdigest())
    monkeypatch.setattr(kind, "train_list", [[name, digest[name]] for name in cuts if name != "test_batch"])
    monkeypatch.setattr(kind, "test_list", [["test_batch", digest["test_batch"]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": digest["batches.meta"]})
    images = pixels.reshape(-1, 3, 32, 32)
    return stream.getvalue(), {
        "train": (images[:20], numbers[:20]),
        "test": (images[20:], numbers[20:]),
    }


@pytest.fixture
def offline(monkeypatch):
    """No mirror can be reached."""
    monkeypatch.delenv("RESNET_TRAIN_MIRROR", raising=False)
    monkeypatch.setattr("resnet_train.data.sources.cifar.MIRRORS", {"cifar-10-python.tar.gz": ()})


@pytest.mark.usefixtures("offline")
def test_cifar10_is_read_from_an_archive_in_the_data_dir_without_network(tmp_path, monkeypatch):
    archive, expected = small_cifar10(monkeypatch)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    for split, (images, labels) in expected.items():
        part = load_dataset("cifar10", split, tmp_path)
        assert np.array_equal(part.images, images)
        assert part.images.dtype == np.uint8
        assert part.labels.tolist() == labels
        assert part.labels.dtype == np.int64
        assert part.classes == CIFAR_CLASSES
        assert part.mean == (0.4914, 0.4822, 0.4465)
        assert part.std == (0.2470, 0.2435, 0.2616)
        assert part.title == "CIFAR-10"


@pytest.mark.usefixtures("offline")
def test_cifar10_is_read_from_its_cache_the_second_time(tmp_path, monkeypatch):
    archive, expected = small_cifar10(monkeypatch)
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(archive)
    load_dataset("cifar10", "train", tmp_path)
    path.unlink()
    for batch in (tmp_path / "cifar-10-batches-py").iterdir():
        batch.unlink()
    images, labels = expected["train"]
    part = load_dataset("cifar10", "train", tmp_path)
    assert np.array_equal(part.images, images)
    assert part.labels.tolist() == labels
    assert part.classes == CIFAR_CLASSES


@pytest.mark.usefixtures("offline")
def test_cifar10_already_unpacked_by_torchvision_is_used(tmp_path, monkeypatch):
    archive, expected = small_cifar10(monkeypatch)
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        packed.extractall(tmp_path, filter="data")
    assert np.array_equal(load_dataset("cifar10", "test", tmp_path).images, expected["test"][0])
    assert not (tmp_path / "cifar-10-python.tar.gz").exists()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("batch", ["data_batch_3", "test_batch", "batches.meta"])
def test_cifar10_batch_with_a_flipped_bit_is_never_unpickled_but_unpacked_again(tmp_path, monkeypatch, batch):
    archive, expected = small_cifar10(monkeypatch)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        packed.extractall(tmp_path, filter="data")
    path = tmp_path / "cifar-10-batches-py" / batch
    original = path.read_bytes()
    path.write_bytes(original[:-20] + bytes([original[-20] ^ 1]) + original[-19:])
    for split, (images, labels) in expected.items():
        part = load_dataset("cifar10", split, tmp_path)
        assert np.array_equal(part.images, images)
        assert part.labels.tolist() == labels
    assert path.read_bytes() == original


@pytest.mark.usefixtures("offline")
def test_cifar10_without_files_and_network_says_what_to_do(tmp_path, monkeypatch):
    small_cifar10(monkeypatch)
    with pytest.raises(ConnectionError, match="--dataset digits needs no download"):
        load_dataset("cifar10", "train", tmp_path)


def test_an_unknown_split_is_refused_by_every_data_set(tmp_path):
    for name in DATASETS.names():
        with pytest.raises(ValueError, match="unknown split 'val'; use train or test"):
            load_dataset(name, "val", tmp_path)


def test_the_data_directory_may_be_text(tmp_path):
    as_text, as_path = (load_dataset("digits", "test", place, 8) for place in (str(tmp_path), tmp_path))
    assert np.array_equal(as_text.images, as_path.images)
    with pytest.raises(ValueError, match="nowhere' is not a folder"):
        load_dataset("folder", "train", str(tmp_path / "nowhere"), 8)


def test_the_fingerprint_tells_splits_and_sizes_apart(tmp_path):
    prints = {
        load_dataset("digits", split, tmp_path, size).fingerprint for split in ("train", "test") for size in (8, 9)
    }
    assert len(prints) == 4
    assert load_dataset("digits", "train", tmp_path, 8).fingerprint in prints
