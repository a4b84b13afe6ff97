"""The data sets: digits, splits, statistics, and both CIFARs from small archives in the original format."""

from __future__ import annotations

import hashlib
import io
import shutil
import struct
import tarfile
from typing import NamedTuple

import numpy as np
import pytest
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from resnet_train.data.dataset import (
    DATASETS,
    FACTS,
    channel_statistics,
    load_dataset,
    split_indices,
)

FEW = settings(max_examples=20, deadline=None, database=None)
LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=80).map(lambda labels: np.array(labels, dtype=np.int64))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Return the training and the test split of digits at 32 pixels."""
    folder = tmp_path_factory.mktemp("digits")
    splits = [load_dataset("digits", split, folder) for split in ("train", "test")]
    assert list(folder.iterdir()) == []
    return splits


def test_digits_have_their_sizes_and_types(digits):
    for part, size in zip(digits, (FACTS["digits"].num_train, FACTS["digits"].num_test), strict=True):
        assert len(part) == size
        assert part.images.shape == (size, 3, 32, 32)
        assert part.images.dtype == np.uint8
        assert part.labels.shape == (size,)
        assert part.labels.dtype == np.int64
        assert part.classes == tuple("0123456789")
        assert part.title == FACTS["digits"].title == "digits, not CIFAR-10"
    assert [len(part) for part in digits] == [1437, 360]


def test_digits_are_stratified(digits):
    train, test = (np.bincount(part.labels) for part in digits)
    for digit, share in enumerate(test / (train + test)):
        assert share == pytest.approx(0.2, abs=1 / 170), digit


def test_digits_of_8_pixels_are_the_scans_each_used_once(tmp_path):
    scans, labels = load_digits(return_X_y=True)
    expected = sorted(
        (label, np.round(scan * (255 / 16)).astype(np.uint8).tobytes()) for scan, label in zip(scans, labels.tolist())
    )
    parts = [load_dataset("digits", split, tmp_path, 8) for split in ("train", "test")]
    found = [(label, image[0].tobytes()) for part in parts for image, label in zip(part.images, part.labels.tolist())]
    assert sorted(found) == expected


def test_digits_are_gray_and_do_not_change_between_loads(tmp_path, digits):
    first, second = digits[1], load_dataset("digits", "test", tmp_path, 32)
    assert np.array_equal(first.images[:, 0], first.images[:, 1])
    assert np.array_equal(first.images[:, 0], first.images[:, 2])
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.labels, second.labels)


def test_digits_statistics_are_those_of_the_training_images(digits):
    train, test = digits
    assert (train.mean, train.std) == (test.mean, test.std)
    assert train.mean == pytest.approx((train.images / 255).mean((0, 2, 3)), abs=1e-6)
    assert train.std == pytest.approx((train.images / 255).std((0, 2, 3)), abs=1e-6)


# Of the training images, as torchvision's and most other scripts give them (rounded to four digits).
@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ],
)
def test_cifar_statistics_are_the_published_ones(name, mean, std):
    assert (FACTS[name].mean, FACTS[name].std) == (mean, std)


def test_unknown_data_set_gives_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="unknown data set 'cifar-10'; did you mean 'cifar10'"):
        load_dataset("cifar-10", "train", tmp_path)
    assert {"cifar10", "digits", "folder"} <= set(DATASETS.names())


@given(LABELS, st.data())
@FEW
def test_split_sizes_are_honoured_and_the_parts_are_disjoint(labels, data):
    val_size = data.draw(st.integers(0, len(labels) - len(np.unique(labels))))
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
def test_split_is_class_balanced_if_there_are_enough_images(num_classes, each, shuffler, data):
    labels = np.repeat(np.arange(num_classes), each)
    shuffler.shuffle(labels)
    val_size = data.draw(st.integers(0, len(labels) - num_classes))
    train_size = data.draw(st.none() | st.integers(1, len(labels) - val_size))
    for part in split_indices(labels, val_size, train_size):
        counts = np.bincount(labels[part], minlength=num_classes)
        assert counts.max() - counts.min() <= 1


@given(LABELS, st.data())
@FEW
def test_unequal_classes_are_held_out_in_proportion(labels, data):
    there = np.bincount(labels, minlength=5)
    val_size = data.draw(st.integers(0, len(labels) - np.count_nonzero(there)))
    train, val = split_indices(labels, val_size, None)
    share, held = there * val_size / len(labels), np.bincount(labels[val], minlength=5)
    capped = held == there - 1
    assert (np.bincount(labels[train], minlength=5)[there > 0] >= 1).all()
    assert (np.floor(share) <= held).all()
    assert (held[~capped] <= np.ceil(share[~capped])).all() or capped[there > 0].any()


@pytest.mark.parametrize(
    ("there", "val_size", "held"),
    [
        ([40, 5, 2], 15, [13, 1, 1]),
        ([40, 5, 2], 44, [39, 4, 1]),
        ([2, 1, 1], 1, [1, 0, 0]),
        ([90, 1, 1, 1, 1, 1], 50, [50, 0, 0, 0, 0, 0]),
        ([3, 3, 3], 4, [2, 1, 1]),
        ([30, 0, 10], 8, [6, 0, 2]),
    ],
)
def test_held_out_images_per_class_by_largest_remainder(there, val_size, held):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(there)), there))
    train, val = split_indices(labels, val_size, None)
    assert np.bincount(labels[val], minlength=len(there)).tolist() == held
    subset = split_indices(labels, val_size, min(len(train), np.count_nonzero(there)))[0]
    assert len(np.unique(labels[subset])) == min(len(train), np.count_nonzero(there))


def test_split_that_leaves_a_class_untrained_is_refused():
    labels = np.repeat([0, 1, 2], [40, 5, 2])
    with pytest.raises(ValueError, match=r"val_size \(=45\) must be at most 44, so that every class keeps a training"):
        split_indices(labels, 45, None)


@pytest.mark.parametrize(
    ("num_classes", "val_size", "train_size", "digest"),
    [(10, 5000, None, "2b1babb76f2db91d"), (10, 137, 2003, "aba371abef756713"), (100, 1234, 77, "ed0da8966dcff770")],
)
def test_split_of_equal_classes_is_what_it_always_was(num_classes, val_size, train_size, digest):
    labels = np.random.default_rng(0).permutation(np.arange(50_000) % num_classes)
    train, val = split_indices(labels, val_size, train_size)
    assert hashlib.sha256(train.tobytes() + val.tobytes()).hexdigest()[:16] == digest


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


def test_a_larger_training_subset_contains_the_smaller():
    labels = np.arange(1000) % 10
    small, large = (set(split_indices(labels, 100, size)[0].tolist()) for size in (50, 300))
    assert small < large


def test_split_picks_from_the_whole_list():
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


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_refuses_another_image_size(tmp_path, name):
    with pytest.raises(ValueError, match=rf"image_size \(=64\) must be 32 for {FACTS[name].title}$"):
        load_dataset(name, "train", tmp_path, image_size=64)
    assert list(tmp_path.iterdir()) == []


def test_published_facts_of_cifar():
    sizes = {name: (FACTS[name].num_train, FACTS[name].num_test) for name in ("cifar10", "cifar100")}
    assert sizes == {"cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000)}
    assert (FACTS["cifar10"].num_classes, FACTS["cifar100"].num_classes) == (10, 100)
    assert FACTS["cifar10"].mean == (0.4914, 0.4822, 0.4465)
    assert FACTS["cifar10"].std == (0.2470, 0.2435, 0.2616)
    assert FACTS["cifar100"].mean == (0.5071, 0.4865, 0.4409)
    assert FACTS["cifar100"].std == (0.2673, 0.2564, 0.2762)


def as_python_2(value):
    """Return the pickle opcodes (protocol 2, as the original archive) of text, numbers, lists, dicts and matrices."""
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


class SmallCifar(NamedTuple):
    """A small archive in the original format, and the images and labels of each split."""

    name: str
    archive: bytes
    splits: dict[str, tuple[np.ndarray, list[int]]]
    classes: tuple[str, ...]
    kind: type[torchvision.datasets.CIFAR10]

    def put_archive(self, data_dir):
        path = data_dir / self.kind.filename
        path.write_bytes(self.archive)
        return path

    def unpack(self, data_dir):
        with tarfile.open(fileobj=io.BytesIO(self.archive)) as packed:
            packed.extractall(data_dir, filter="data")
        return data_dir / self.kind.base_folder

    def assert_loads(self, data_dir):
        for split, (images, labels) in self.splits.items():
            part = load_dataset(self.name, split, data_dir)
            assert np.array_equal(part.images, images)
            assert part.labels.tolist() == labels


def small_cifar(name, monkeypatch):
    """Make torchvision's class expect a small archive: 20 training and 4 test images."""
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    classes = tuple(f"class {number}" for number in range(FACTS[name].num_classes))
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(24) * 7 % len(classes)).tolist()
    pixels = rng.integers(0, 256, (24, 3072), dtype=np.uint8)

    # The files of the archive: batches of pixels and labels, and the class names.
    if name == "cifar10":
        cuts = {f"data_batch_{i + 1}": slice(4 * i, 4 * i + 4) for i in range(5)} | {"test_batch": slice(20, 24)}
        test_file, labels_key = "test_batch", "labels"
    else:
        cuts = {"train": slice(20), "test": slice(20, 24)}
        test_file, labels_key = "test", "fine_labels"
    files = {file: {labels_key: labels[cut], "data": pixels[cut]} for file, cut in cuts.items()}
    files[kind.meta["filename"]] = {kind.meta["key"]: list(classes)}
    pickled = {file: b"\x80\x02" + as_python_2(content) + b"." for file, content in files.items()}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for file, content in pickled.items():
            entry = tarfile.TarInfo(f"{kind.base_folder}/{file}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))

    # The checksums that torchvision expects.
    md5 = {file: hashlib.md5(content).hexdigest() for file, content in pickled.items()}
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(stream.getvalue()).hexdigest())
    monkeypatch.setattr(kind, "train_list", [[file, md5[file]] for file in cuts if file != test_file])
    monkeypatch.setattr(kind, "test_list", [[test_file, md5[test_file]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5[kind.meta["filename"]]})
    images = pixels.reshape(-1, 3, 32, 32)
    splits = {"train": (images[:20], labels[:20]), "test": (images[20:], labels[20:])}
    return SmallCifar(name=name, archive=stream.getvalue(), splits=splits, classes=classes, kind=kind)


@pytest.fixture
def offline(monkeypatch):
    """Make every mirror unreachable."""
    monkeypatch.delenv("RESNET_TRAIN_MIRROR", raising=False)
    monkeypatch.setattr("resnet_train.data.sources.cifar.MIRRORS", {"cifar-10-python.tar.gz": ()})


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, monkeypatch):
    return small_cifar(request.param, monkeypatch)


@pytest.fixture
def cifar10(monkeypatch, offline):
    return small_cifar("cifar10", monkeypatch)


@pytest.mark.usefixtures("offline")
def test_cifar_is_read_from_an_archive_without_network(tmp_path, cifar):
    cifar.put_archive(tmp_path)
    cifar.assert_loads(tmp_path)
    facts = FACTS[cifar.name]
    for split in ("train", "test"):
        part = load_dataset(cifar.name, split, tmp_path)
        assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int64)
        assert part.classes == cifar.classes
        assert (part.mean, part.std, part.title) == (facts.mean, facts.std, facts.title)


@pytest.mark.parametrize("split", ["test", "train"])
def test_the_split_loaded_after_a_download_is_the_right_one(tmp_path, monkeypatch, cifar, split):
    (tmp_path / "mirror").mkdir()
    url = cifar.put_archive(tmp_path / "mirror").as_uri()
    monkeypatch.setattr("resnet_train.data.sources.cifar.MIRRORS", {cifar.kind.filename: (url,)})
    images, labels = cifar.splits[split]
    part = load_dataset(cifar.name, split, tmp_path / "data")
    assert np.array_equal(part.images, images)
    assert part.labels.tolist() == labels


def test_cifar_is_read_from_its_cache_the_second_time(tmp_path, cifar10):
    archive = cifar10.put_archive(tmp_path)
    cifar10.assert_loads(tmp_path)
    archive.unlink()
    shutil.rmtree(tmp_path / cifar10.kind.base_folder)
    cifar10.assert_loads(tmp_path)
    assert load_dataset("cifar10", "train", tmp_path).classes == cifar10.classes


def test_cifar_unpacked_by_torchvision_is_used(tmp_path, cifar10):
    cifar10.unpack(tmp_path)
    cifar10.assert_loads(tmp_path)
    assert not (tmp_path / cifar10.kind.filename).exists()


@pytest.mark.parametrize("batch", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_damaged_batch_is_unpacked_again_not_unpickled(tmp_path, cifar10, batch):
    cifar10.put_archive(tmp_path)
    path = cifar10.unpack(tmp_path) / batch
    original = path.read_bytes()
    path.write_bytes(original[:-20] + bytes([original[-20] ^ 1]) + original[-19:])
    cifar10.assert_loads(tmp_path)
    assert path.read_bytes() == original


def test_cifar_without_files_and_network_says_what_to_do(tmp_path, cifar10):
    with pytest.raises(ConnectionError, match=r"--dataset digits, .* need no download"):
        load_dataset("cifar10", "train", tmp_path)


def test_every_data_set_refuses_an_unknown_split(tmp_path):
    for name in DATASETS.names():
        with pytest.raises(ValueError, match="unknown split 'dev'; use train, val or test"):
            load_dataset(name, "dev", tmp_path)


def test_the_data_dir_may_be_text(tmp_path):
    as_text, as_path = (load_dataset("digits", "test", place, 8) for place in (str(tmp_path), tmp_path))
    assert np.array_equal(as_text.images, as_path.images)
    with pytest.raises(ValueError, match="nowhere' is not a folder"):
        load_dataset("folder", "train", str(tmp_path / "nowhere"), 8)


def test_fingerprints_of_splits_and_sizes_differ(tmp_path, digits):
    small, again = (load_dataset("digits", "train", tmp_path, 8) for _ in range(2))
    assert len({part.fingerprint for part in [*digits, small]}) == 3
    assert again.fingerprint == small.fingerprint
