"""Other images and averages: corruptions, CIFAR-10-C, CIFAR-10.1, test-time augmentation, ensembles, unknown images."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_train.data.dataset import load_dataset
from resnet_train.evaluation.averaging import TTA_VIEWS, Average, Rescale, flip, shift
from resnet_train.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from resnet_train.jobs.evaluate import EvaluationOptions, evaluate_checkpoint
from resnet_train.jobs.robustness import evaluate_cifar10_c
from resnet_train.jobs.subject import load_subject
from resnet_train.models import create_model
from resnet_train.runs.checkpoint import read_checkpoint, write_checkpoint
from tests.harness.cli import Outcome, RunCli
from tests.test_cli_evaluate import evaluate

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def folder(trained: tuple[Path, Outcome]) -> Path:
    return trained[0]


def pictures(count: int = 6, size: int = 32) -> np.ndarray:
    """Return smooth images with some detail, uint8 [N, 3, S, S]."""
    rng = np.random.default_rng(0)
    waves = np.sin(np.arange(size) / 3)[None, None, :, None] * np.cos(np.arange(size) / 2)[None, None, None, :]
    values = 120 + 60 * waves * rng.uniform(0.5, 1, (count, 3, 1, 1)) + rng.normal(0, 10, (count, 3, size, size))
    return values.clip(0, 255).astype(np.uint8)


# --- Corruptions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORRUPTIONS.names())
def test_a_corruption_gives_the_same_bits_in_any_batch(name: str) -> None:
    images, indices = pictures(), np.array([5, 0, 7, 2, 3, 9])
    for severity in SEVERITIES:
        whole = CORRUPTIONS[name](images, severity, indices)
        assert (whole.shape, whole.dtype) == (images.shape, np.uint8)
        assert np.array_equal(whole, CORRUPTIONS[name](images, severity, indices))
        parts = [CORRUPTIONS[name](images[i : i + 1], severity, indices[i : i + 1]) for i in range(6)]
        assert np.array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("name", CORRUPTIONS.names())
@pytest.mark.parametrize("size", [8, 32, 48])
def test_a_higher_severity_changes_images_more(name: str, size: int) -> None:
    images = pictures(size=size)
    changes = [
        np.abs(CORRUPTIONS[name](images, severity, np.arange(6)).astype(float) - images).mean()
        for severity in SEVERITIES
    ]
    assert 0 < changes[0] < changes[-1]
    assert all(later >= 0.97 * earlier for earlier, later in pairwise(changes))


def test_each_image_has_noise_of_a_known_size() -> None:
    images = np.full((2, 3, 32, 32), 128, np.uint8)
    noisy = CORRUPTIONS["noise"](images, 5, np.array([1, 2])).astype(float) / 255
    assert not np.array_equal(noisy[0], noisy[1])
    assert noisy.std() == pytest.approx(0.10, rel=0.03)


def test_contrast_keeps_the_mean_and_brightness_the_hue() -> None:
    images = pictures()
    flat = CORRUPTIONS["contrast"](images, 5, np.arange(6)).astype(float)
    assert flat.mean(axis=(2, 3)) == pytest.approx(images.mean(axis=(2, 3)), abs=0.6)
    assert flat.std() < 0.4 * images.std()
    color = np.array([100, 50, 0], np.uint8)[None, :, None, None] * np.ones((1, 3, 4, 4), np.uint8)
    assert CORRUPTIONS["brightness"](color, 5, np.arange(1))[0, :, 0, 0].tolist() == [176, 88, 0]
    assert CORRUPTIONS["brightness"](0 * color, 5, np.arange(1))[0, :, 0, 0].tolist() == [76, 76, 76]


def test_the_table_has_every_corruption_and_severity(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    arguments = [folder, "--split", "val", "--corruptions", "--device", "cpu"]
    outcome = run_cli("resnet-eval", *arguments, "--json", cwd=tmp_path)
    assert outcome.code == 0, outcome
    numbers = json.loads(outcome.stdout)
    (table,) = numbers["robustness"]
    assert [row["name"] for row in table["corruptions"]] == CORRUPTIONS.names()
    cells = [value for row in table["corruptions"] for value in row["accuracies"]]
    assert len(cells) == 5 * len(CORRUPTIONS.names())
    assert table["mean_accuracy"] == pytest.approx(np.mean(cells))
    assert table["clean_accuracy"] == numbers["top1"]
    text = run_cli("resnet-eval", *arguments, cwd=tmp_path).stdout
    assert f"mean corruption accuracy {table['mean_accuracy']:.2%}, without corruption {numbers['top1']:.2%}" in text
    assert max(map(len, text.splitlines()[1:])) <= 79


# --- CIFAR-10-C and CIFAR-10.1 ---------------------------------------------------------------------------------------


@pytest.fixture
def cifar_checkpoint(tmp_path: Path, folder: Path) -> Path:
    """Return a checkpoint with the classes and the image size of CIFAR-10."""
    contents = read_checkpoint(folder / "checkpoints" / "model.pt")
    contents["about"] |= {"classes": CIFAR_CLASSES, "image_size": 32, "dataset": "cifar10"}
    contents["config"] |= {"dataset": "cifar10", "image_size": 32}
    write_checkpoint(tmp_path / "cifar.pt", contents)
    return tmp_path / "cifar.pt"


def write_arrays(folder: Path, images: str, labels: str, count: int) -> None:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    np.save(folder / images, rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
    np.save(folder / labels, rng.integers(0, 10, count).astype(np.int32))


def test_cifar10_1_is_a_data_set(cifar_checkpoint: Path, run_cli: RunCli, tmp_path: Path) -> None:
    write_arrays(tmp_path / "v6", "cifar10.1_v6_data.npy", "cifar10.1_v6_labels.npy", 20)
    found = evaluate(run_cli, cifar_checkpoint, "--dataset", "cifar10.1", "--data-dir", "v6", cwd=tmp_path)
    assert (found["n"], found["title"]) == (20, "CIFAR-10.1 v6")
    images = load_dataset("cifar10.1", "test", tmp_path / "v6")
    assert images is not None
    raw = np.load(tmp_path / "v6" / "cifar10.1_v6_data.npy")
    assert np.array_equal(images.images[3], raw[3].transpose(2, 0, 1))
    with pytest.raises(ValueError, match="has only test images; train on cifar10"):
        load_dataset("cifar10.1", "train", tmp_path / "v6")


def test_cifar10_c_has_five_severities_in_each_file(cifar_checkpoint: Path, tmp_path: Path) -> None:
    write_arrays(tmp_path / "c", "fog.npy", "labels.npy", 50)
    subject = load_subject([cifar_checkpoint], None, torch.device("cpu"))
    clean = subject.evaluate(load_test_digits(), None, 500)
    table = evaluate_cifar10_c(subject, tmp_path / "c", clean, 500)
    assert [(row.name, len(row.accuracies)) for row in table.corruptions] == [("fog", 5)]
    labels = np.load(tmp_path / "c" / "labels.npy")
    images = np.load(tmp_path / "c" / "fog.npy").transpose(0, 3, 1, 2)
    with torch.inference_mode():
        predicted = subject.network(subject.normalize(torch.from_numpy(images))).argmax(1).numpy()
    expected = [(predicted[i : i + 10] == labels[i : i + 10]).mean() for i in range(0, 50, 10)]
    assert table.corruptions[0].accuracies == pytest.approx(expected)


def load_test_digits():
    images = load_dataset("digits", "test", Path(), 32)
    assert images is not None
    return images


@pytest.mark.parametrize("fault", ["pickle", "shape", "dtype", "count", "labels", "header", "zip", "missing"])
def test_other_arrays_are_refused(fault: str, tmp_path: Path) -> None:
    write_arrays(tmp_path, "cifar10.1_v6_data.npy", "cifar10.1_v6_labels.npy", 20)
    data, labels = tmp_path / "cifar10.1_v6_data.npy", tmp_path / "cifar10.1_v6_labels.npy"
    if fault == "pickle":
        np.save(data, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif fault == "shape":
        np.save(data, np.zeros((20, 3, 32, 32), np.uint8))
    elif fault == "dtype":
        np.save(data, np.zeros((20, 32, 32, 3), np.float32))
    elif fault == "count":
        np.save(labels, np.zeros(19, np.int64))
    elif fault == "labels":
        np.save(labels, np.full(20, 10))
    elif fault == "header":
        data.write_bytes(data.read_bytes().replace(b"(20, 32", b"(9999999, 32"))
    elif fault == "zip":
        np.savez(tmp_path / "x.npz", np.zeros(3))
        data.write_bytes((tmp_path / "x.npz").read_bytes())
    else:
        labels.unlink()
    with pytest.raises(ValueError, match=r"cifar10\.1_v6_(data|labels)\.npy"):
        load_dataset("cifar10.1", "test", tmp_path)


# --- Averages --------------------------------------------------------------------------------------------------------


def test_an_average_is_that_of_the_probabilities() -> None:
    networks = [create_model("resnet8").eval() for _ in range(2)]
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        expected = torch.stack([network(x).softmax(1) for network in networks for x in (images, images.flip(-1))])
        found = Average(networks, TTA_VIEWS["flip"])(images)
    torch.testing.assert_close(found.softmax(1), expected.mean(0))
    torch.testing.assert_close(found.exp().sum(1), torch.ones(4))


def test_views_move_by_a_pixel_and_mirror() -> None:
    images = torch.arange(48.0).view(1, 3, 4, 4)
    assert torch.equal(shift(images, 1)[..., 1:, 1:], images[..., :-1, :-1])
    assert torch.equal(shift(images, -1)[..., :-1, :-1], images[..., 1:, 1:])
    views = [view(images) for view in TTA_VIEWS["flip-shift"]]
    assert len(views) == len({tuple(view.flatten().tolist()) for view in views}) == 6
    assert torch.equal(views[1], flip(views[0]))
    assert shift(torch.zeros(1, 3, 64, 64), 1).shape == (1, 3, 64, 64)


def test_members_with_other_statistics_get_their_own() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    first, second = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]), ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    normalized = [
        (pixels - torch.tensor(m)[:, None, None]) / torch.tensor(s)[:, None, None] for m, s in (first, second)
    ]
    torch.testing.assert_close(Rescale(first, second)(normalized[0]), normalized[1])


def test_an_ensemble_of_one_network_is_that_network(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    single = evaluate(run_cli, folder, cwd=tmp_path)
    double = evaluate(run_cli, folder, folder, cwd=tmp_path)
    assert double["ensemble"] == [single["checkpoint"]] * 2
    assert (double["top1"], double["loss"]) == (single["top1"], pytest.approx(single["loss"], abs=1e-6))
    assert double["calibration"]["fitted_on"] == "the other half of the test images"
    assert (single["ensemble"], double["best_top1"]) == ([], None)


def test_an_ensemble_says_so_and_refuses_strangers(
    folder: Path, cifar_checkpoint: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    best = folder / "checkpoints" / "best.pt"
    text = run_cli("resnet-eval", folder, best, "--device", "cpu", cwd=tmp_path).stdout
    assert "ensemble    the probabilities of 2 checkpoints, averaged" in text.splitlines()
    error = run_cli("resnet-eval", folder, cifar_checkpoint, cwd=tmp_path).error
    assert "has classes" in error
    assert "their probabilities can't be averaged" in error


def test_tta_is_named_in_the_result(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    plain = evaluate(run_cli, folder, cwd=tmp_path)
    for tta in TTA_VIEWS:
        found = evaluate(run_cli, folder, "--tta", tta, cwd=tmp_path)
        assert (plain["tta"], found["tta"]) == (None, tta)
        assert found["loss"] != plain["loss"]
        text = run_cli("resnet-eval", folder, "--tta", tta, "--device", "cpu", cwd=tmp_path).stdout
        assert f"tta         {tta}: the probabilities of several views, averaged" in text.splitlines()
    error = run_cli("resnet-eval", folder, "--tta", "flop", cwd=tmp_path).error
    assert error == "error: unknown tta 'flop'; use flip or flip-shift; did you mean 'flip'?"


# --- Unknown images --------------------------------------------------------------------------------------------------


def test_unknown_images_have_an_auroc_and_a_share_found(folder: Path, tmp_path: Path) -> None:
    for number in range(12):
        Image.effect_noise((40, 30), 5 * number).save(tmp_path / f"{number}.png")
    result = evaluate_checkpoint([folder], EvaluationOptions(unknown=str(tmp_path), device="cpu"))
    unknown = result.unknown
    assert unknown is not None
    assert (unknown.n, unknown.title) == (12, f"folder {tmp_path.name}")
    assert 0 <= unknown.auroc <= 1
    assert unknown.found is not None
    assert 0 < (unknown.false_alarms or 0) < 0.2
    same = evaluate_checkpoint([folder], EvaluationOptions(unknown="digits", device="cpu")).unknown
    assert same is not None
    assert (same.auroc, same.found) == (0.5, same.false_alarms)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--unknown", "nothing"], "'nothing' is neither a data set"),
        (["--unknown", "empty"], "empty holds no pictures that can be read"),
        (["--unknown", "digits", "--tta", "flip"], "by the outputs of a single checkpoint, without --tta"),
        (["--cifar10-c", "empty"], "empty does not hold CIFAR-10-C"),
        (["--dataset", "cifar10.1", "--data-dir", "empty"], "image_size|has no file cifar10.1_v6_data.npy"),
    ],
)
def test_missing_images_give_one_line(
    arguments: list[str], message: str, folder: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    error = run_cli("resnet-eval", folder, *arguments, "--device", "cpu", cwd=tmp_path).error
    assert any(part in error for part in message.split("|"))
