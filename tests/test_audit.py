"""resnet-audit: planted faults are found, the data stay as they are, and an audit that was stopped continues."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_train.config import make_config
from resnet_train.data.dataset import assign_folds, load_dataset
from resnet_train.data.pictures import read_header
from resnet_train.evaluation.duplicates import NearDuplicates, find_near, group_equal, join_groups, shrink
from resnet_train.jobs.audit import out_of_fold
from resnet_train.jobs.audit.files import write_duplicates
from resnet_train.jobs.audit.images import load_audit_images
from resnet_train.jobs.audit.out_of_fold import plan_training
from resnet_train.jobs.audit.problems import count_shares
from resnet_train.jobs.report import encode_picture
from resnet_train.loggers.time_left import FIXED_SHARE
from resnet_train.report.audit_page import AuditPictures, render_audit
from resnet_train.report.document import FORMATS
from tests.harness.cli import Outcome, RunCli
from tests.harness.trainers import tiny_trainer
from tests.test_report import HOSTILE, browser, check_inert  # noqa: F401 - browser is a fixture

CPU = torch.device("cpu")
RECIPE = "arch: resnet8\nbatch_size: 64\noptimizer: muon\nlr: 0.02\nschedule: one-cycle\nflip: none\n"
SMALL = ["--config", "tiny.yaml", "--image-size", 16, "--folds", 2, "--epochs", 1]
SMALL += ["--device", "cpu", "--output", "result"]
WRONG = 20


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_digits(folder: Path, num_train: int) -> set[str]:
    """Write digits with planted faults, and return the pictures with a wrong label."""
    images = load_dataset("digits", "train", Path(), 16)
    assert images is not None
    pixels, labels = images.images.transpose(0, 2, 3, 1), images.labels.copy()
    wrong = np.random.default_rng(0).choice(num_train, WRONG, replace=False)
    labels[wrong] = (labels[wrong] + 3) % 10
    for index in range(num_train):
        save(folder / "train" / str(labels[index]) / f"{index:04}.png", pixels[index])
    for index in range(num_train, num_train + 100):
        save(folder / "test" / str(labels[index]) / f"{index:04}.png", pixels[index])

    # One image of each kind of fault; a colored picture has details that digits do not have.
    rng = np.random.default_rng(1)
    scene = np.kron(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
    save(folder / "train" / "0" / "scene.png", scene[:, :-2])
    save(folder / "train" / "0" / "turned.png", scene[:, ::-1][:, 2:])
    save(folder / "test" / "1" / "copy.png", scene[:, :-2])
    save(folder / "train" / "2" / "gray.png", np.full((16, 16, 3), 99, np.uint8))
    save(folder / "train" / "2" / "wide.png", pixels[0].repeat(5, axis=1))
    save(folder / "train" / "2" / "mode.png", np.dstack([pixels[1], np.full((16, 16), 255, np.uint8)]))
    save(folder / "train" / "2" / "small.png", pixels[2][::2, ::2])
    (folder / "train" / "3" / "broken.png").write_text("no picture")
    return {f"train/{labels[index]}/{index:04}.png" for index in wrong.tolist()}


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def short() -> Iterator[None]:
    """Let trainings be too short to learn anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(out_of_fold, "MIN_STEPS", 1)
        yield


@pytest.fixture(scope="module")
def audited(run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory, short: None) -> tuple[Path, set[str], Outcome]:
    """Return where digits with faults were audited, the pictures with a wrong label, and the output. Read only."""
    cwd = tmp_path_factory.mktemp("audit")
    (cwd / "tiny.yaml").write_text(RECIPE)
    wrong = write_digits(cwd / "digits", 300)
    before = list_files(cwd / "digits")
    outcome = run_cli("resnet-audit", "digits/", *SMALL, cwd=cwd)
    assert outcome.code == 0, outcome
    assert list_files(cwd / "digits") == before
    return cwd, wrong, outcome


def list_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".resnet_train" not in path.parts
    }


@pytest.fixture(scope="module")
def result(audited: tuple[Path, set[str], Outcome]) -> dict[str, Any]:
    return json.loads((audited[0] / "result" / "audit.json").read_text())


# --- What is found ---------------------------------------------------------------------------------------------------


def test_the_table_of_labels_has_all_images_in_order(
    audited: tuple[Path, set[str], Outcome], result: dict[str, Any]
) -> None:
    rows = read_table(audited[0] / "result" / "labels.csv")
    assert len(rows) == len({row["image"] for row in rows}) == sum(part["n"] for part in result["splits"])
    probabilities = [float(row["self_confidence"]) for row in rows]
    assert probabilities == sorted(probabilities)
    errors = [row for row in rows if row["likely_error"] == "yes"]
    assert len(errors) == sum(result["labels"]["num_errors"].values())
    assert [row["image"] for row in errors[:48]] == [one["image"]["image"] for one in result["labels"]["errors"]]
    assert all(row["suggested"] != row["label"] for row in errors)


@pytest.mark.slow
def test_wrong_labels_come_first(run_cli: RunCli, tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    wrong = write_digits(tmp_path / "digits", 600)
    options = ["--folds", 2, "--image-size", 16, "--device", "cpu", "--output", "result"]
    outcome = run_cli("resnet-audit", "digits/", *options, cwd=tmp_path)
    assert outcome.code == 0, outcome
    rows = [row for row in read_table(tmp_path / "result" / "labels.csv") if row["split"] == "train"]
    is_wrong = [row["image"] in wrong for row in rows]
    assert roc_auc_score(is_wrong, -np.arange(len(rows))) > 0.97
    assert sum(is_wrong[: 2 * WRONG]) >= 0.75 * WRONG  # 17 to 20 of 20, depending on the number of threads


def test_problems_of_pictures_are_named(audited: tuple[Path, set[str], Outcome], result: dict[str, Any]) -> None:
    rows = read_table(audited[0] / "result" / "pictures.csv")
    found = {(row["image"], row["problem"]) for row in rows}
    assert found >= {
        ("train/3/broken.png", "unreadable"),
        ("train/2/gray.png", "blank"),
        ("train/2/wide.png", "shape"),
        ("train/2/mode.png", "mode"),
        ("train/2/small.png", "size"),
    }
    assert result["num_problems"]["unreadable"] == 1
    (broken,) = [row for row in rows if row["problem"] == "unreadable"]
    assert "PNG" in broken["detail"]


def test_equal_and_mirrored_images_are_a_leak_with_two_labels(
    audited: tuple[Path, set[str], Outcome], result: dict[str, Any]
) -> None:
    rows = read_table(audited[0] / "result" / "duplicates.csv")
    scene = [row for row in rows if row["image_1"] == "train/0/scene.png"]
    kinds = {row["image_2"]: (row["kind"], row["mirrored"], row["leak"], row["conflict"]) for row in scene}
    assert kinds == {
        "test/1/copy.png": ("equal", "no", "yes", "yes"),
        "train/0/turned.png": ("near", "yes", "no", "no"),
    }
    first = result["duplicates"]["groups"][0]
    assert {one["image"] for one in first["images"]} == {"train/0/scene.png", *kinds}
    assert (first["is_leak"], first["has_conflict"], first["n"]) == (True, True, 3)
    assert result["duplicates"]["num_leaked"]["test"] >= 1


def test_stdout_and_json_say_the_same(
    audited: tuple[Path, set[str], Outcome], result: dict[str, Any], run_cli: RunCli
) -> None:
    folder, _, outcome = audited
    assert outcome.stdout.splitlines()[1] == "unreadable  1 file"
    assert max(map(len, outcome.stdout.splitlines())) < 80
    again = run_cli("resnet-audit", "digits/", *SMALL, "--json", cwd=folder)
    printed = json.loads(again.stdout)
    assert {**printed, "date": ""} == {**result, "date": ""}


def move(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """Return an image moved by a pixel, with repeated borders."""
    side = image.shape[-1]
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), "edge")
    return padded[:, 1 - down : 1 - down + side, 1 - right : 1 - right + side]


def test_shares_are_sorted_by_number_then_by_name() -> None:
    shares = count_shares(["d", "b", "c", "a", "c"])
    assert [(share.name, share.n) for share in shares] == [("c", 2), ("a", 1), ("b", 1), ("d", 1)]


def test_the_table_of_duplicates_has_what_is_known_of_each_pair(tmp_path: Path) -> None:
    near = NearDuplicates(
        pairs=np.array([[0, 2], [1, 4]]),
        similarity=np.array([0.98765, 0.91]),
        mirrored=np.array([False, True]),
        shifts=np.array([[1, -2], [0, 3]]),
    )
    write_duplicates(tmp_path, load_audit_images("digits", tmp_path, 8), [np.array([3, 5, 6])], near)
    columns = ("kind", "similarity", "mirrored", "shift_down", "shift_right", "image_1", "image_2")
    assert [tuple(row[name] for name in columns) for row in read_table(tmp_path / "duplicates.csv")] == [
        ("equal", "1.0000", "no", "0", "0", "3", "5"),
        ("equal", "1.0000", "no", "0", "0", "3", "6"),
        ("near", "0.9877", "no", "1", "-2", "0", "2"),
        ("near", "0.9100", "yes", "0", "3", "1", "4"),
    ]


def test_a_training_run_moves_the_bar_by_one_fold() -> None:
    moved: list[float] = []
    trainer = tiny_trainer(progressive_sizes="4:0.5", epochs=2)
    bar = out_of_fold._FoldBar(SimpleNamespace(update=moved.append), trainer, full_size=8)
    for step in range(1, 2 * len(trainer.train_loader) + 1):
        bar.tick(step)
    assert sum(moved) == pytest.approx(1)
    assert moved[0] / moved[-1] == pytest.approx(FIXED_SHARE + (1 - FIXED_SHARE) / 4)  # 4 pixels instead of 8


@pytest.mark.parametrize(("kind", "mirrored"), [("shift", False), ("noise", False), ("flip", True), ("diagonal", True)])
@pytest.mark.parametrize("side", [24, 32])
def test_a_changed_image_is_a_near_duplicate(kind: str, mirrored: bool, side: int) -> None:
    rng = np.random.default_rng(0)
    images = np.kron(rng.integers(0, 256, (60, 3, 4, 4)), np.ones((side // 4, side // 4))).astype(np.uint8)
    image = images[17]
    changed = {
        "shift": move(image, 0, 1),
        "noise": (image + rng.normal(0, 9, image.shape)).clip(0, 255).astype(np.uint8),
        "flip": image[:, :, ::-1],
        "diagonal": move(image, 1, -1)[:, :, ::-1],
    }[kind]
    found = find_near(np.concatenate([images, changed[None]]), CPU)
    assert found.pairs.tolist() == [[17, 60]]
    assert found.mirrored.tolist() == [mirrored]
    expected = {"shift": [0, 1], "noise": [0, 0], "flip": [0, 0], "diagonal": [1, -1]}[kind]
    assert found.shifts[0].tolist() == expected


@pytest.mark.parametrize("num", [1, 2, 3, 2000])
def test_unlike_images_are_no_duplicates(num: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (num, 3, 8, 8), dtype=np.uint8)
    images[0] = 77  # plain
    assert len(find_near(images, CPU)) == 0


def test_images_with_few_details_need_to_be_more_alike() -> None:
    digits = load_dataset("digits", "train", Path(), 16)
    assert digits is not None
    assert find_near(digits.images[:500], CPU).similarity.min() > 0.88


def test_equal_images_are_grouped() -> None:
    images = np.zeros((6, 3, 4, 4), np.uint8)
    images[[1, 4], 0, 0, 0] = 1
    images[2, 2, 3, 3] = 1
    assert [group.tolist() for group in group_equal(images)] == [[0, 3, 5], [1, 4]]


def test_groups_are_joined_by_their_lowest_member() -> None:
    assert join_groups(6, [(4, 2), (2, 5), (0, 1)]).tolist() == [0, 0, 2, 3, 2, 2]
    assert join_groups(3, []).tolist() == [0, 1, 2]


@pytest.mark.parametrize("side", [32, 40, 64])
def test_images_are_compared_at_32_pixels(side: int) -> None:
    images = np.full((3, 3, side, side), 200, np.uint8)
    small = shrink(images)
    assert (small.shape, small.dtype, small.min()) == ((3, 3, 32, 32), np.uint8, 200)


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *(("png", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(("jpg", mode) for mode in ("L", "RGB", "CMYK")),
        *(("webp", mode) for mode in ("RGB", "RGBA")),
        ("tif", "CMYK"),
    ],
)
def test_a_header_says_mode_and_size(suffix: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    for options in ({}, {"lossless": True}) if suffix == "webp" else ({},):
        Image.new(mode, (37, 5)).save(path, **options)
        with Image.open(path) as written:
            header = read_header(path)
            assert (header.format, header.mode, header.width, header.height) == (written.format, written.mode, 37, 5)


# --- Folds -----------------------------------------------------------------------------------------------------------


def test_folds_have_equal_shares_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [50, 31, 2])
    folds = assign_folds(labels, np.arange(83), 5)
    for label in range(3):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_duplicates_are_in_one_fold() -> None:
    groups = np.arange(40)
    groups[[7, 20, 33]] = 7
    folds = assign_folds(np.zeros(40, np.int64), groups, 4)
    assert folds[7] == folds[20] == folds[33]


def test_few_images_are_trained_longer_in_smaller_batches() -> None:
    config = make_config({"arch": "resnet8", "epochs": 4, "warmup_epochs": 1, "batch_size": 128})
    few = plan_training(config, 100)
    assert (few.batch_size, few.epoch_steps) == (12, 8)
    assert few.epochs * 8 >= out_of_fold.MIN_STEPS
    assert few.warmup_epochs == pytest.approx(few.epochs / 4)
    many = plan_training(config, 50_000)
    assert (many.batch_size, many.epochs) == (128, 4)


def test_an_audit_that_was_stopped_continues(
    audited: tuple[Path, set[str], Outcome], run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[int] = []
    predict_fold = out_of_fold._predict_fold

    def stop_at_second(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict_fold(*arguments)

    monkeypatch.setattr(out_of_fold, "_predict_fold", stop_at_second)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    arguments = ["resnet-audit", audited[0] / "digits", *SMALL]
    assert run_cli(*arguments, cwd=tmp_path).code == 130
    assert run_cli(*arguments, cwd=tmp_path).code == 0
    assert len(calls) == 3
    tables = [folder / "result" / "labels.csv" for folder in (tmp_path, audited[0])]
    assert read_table(tables[0]) == read_table(tables[1])

    # Other settings, and damaged files, are trained again.
    assert run_cli(*arguments, "--epochs", 2, cwd=tmp_path).code == 0
    assert len(calls) == 5
    first = tmp_path / "result" / "folds" / "fold-1-of-2.npz"
    first.write_bytes(first.read_bytes()[:-30])
    assert run_cli(*arguments, "--epochs", 2, cwd=tmp_path).code == 0
    assert len(calls) == 6


# --- The page --------------------------------------------------------------------------------------------------------


def without_pictures(result: dict[str, Any]) -> str:
    """Return the page of a result whose pictures are a gray pixel."""
    gray = encode_picture(np.full((3, 1, 1), 128, np.uint8))
    groups = [[gray] * len(group["images"]) for group in result["duplicates"]["groups"]]
    errors = [] if result["labels"] is None else [gray] * len(result["labels"]["errors"])
    return render_audit(result, AuditPictures(groups, errors))


def test_the_numbers_of_the_page_are_those_of_the_json(
    audited: tuple[Path, set[str], Outcome], result: dict[str, Any]
) -> None:
    folder = audited[0] / "result"
    page = check_inert((folder / "audit.html").read_text(encoding="utf-8"))
    assert len(page.numbers) > 100
    for place, kind, value, text in page.numbers:
        stored = reduce(lambda part, key: part[int(key) if isinstance(part, list) else key], place.split("."), result)
        assert float(value) == stored
        assert text == FORMATS[kind](stored)
    names = {"audit.html", "audit.json", "labels.csv", "duplicates.csv", "pictures.csv", "folds"}
    assert {path.name for path in folder.iterdir()} == names


def test_hostile_names_are_text(result: dict[str, Any]) -> None:
    text = json.dumps(result)
    for name, hostile in zip(result["classes"], HOSTILE):
        text = text.replace(f'"{name}"', json.dumps(hostile))
    changed = json.loads(text)
    changed |= {"title": HOSTILE[0], "command": HOSTILE[3]}
    changed["duplicates"]["groups"][0]["images"][0]["image"] = HOSTILE[1]
    changed["problems"][0] |= {"image": HOSTILE[1], "detail": HOSTILE[0]}
    changed["pictures"]["modes"][0]["name"] = HOSTILE[3]
    html = without_pictures(changed)
    page = check_inert(html)
    assert HOSTILE[0] in page.texts["bdi"]
    assert HOSTILE[1] in page.texts["bdi"]
    assert not set(html) & set("\u202e\u2066\x00\x1b\ud800")


def test_a_page_without_findings(result: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(result))
    changed |= {"labels": None, "no_labels": "<b>", "problems": [], "num_problems": {}, "pictures": None}
    changed["duplicates"] |= {"groups": [], "num_groups": 0}
    html = without_pictures(changed)
    check_inert(html)
    assert "Labels were not checked: &lt;b&gt;." in html
    assert "No image occurs twice." in html
    assert 'id="pictures"' not in html


# --- Unusual data ----------------------------------------------------------------------------------------------------


def noise(seed: int, height: int = 20, width: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("classes", "each", "reason"),
    [
        (1, 30, "there is only one class"),
        (12, 1, "12 training images are too few to learn from"),
        (2, 1, "2 training images are too few to learn from"),
        (1, 1, "there is only one class"),
    ],
)
def test_few_images_and_classes_are_audited(
    classes: int, each: int, reason: str, run_cli: RunCli, tmp_path: Path
) -> None:
    for label in range(classes):
        for number in range(each):
            save(tmp_path / "data" / f"犬{label}" / f"{number}.png", noise(100 * label + number, 12, 40))
    outcome = run_cli("resnet-audit", "data", "--device", "cpu", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert f"not checked: {reason}" in outcome.stdout
    assert reason in (tmp_path / "audits" / "data" / "audit.html").read_text(encoding="utf-8")
    assert read_table(tmp_path / "audits" / "data" / "labels.csv") == []


def test_one_image_of_each_of_many_classes_is_not_checked(run_cli: RunCli, tmp_path: Path, short: None) -> None:
    for label in range(40):
        save(tmp_path / "data" / f"{label:02}" / "a.png", noise(label))
    save(tmp_path / "data" / "00" / "b.png", noise(99))
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    outcome = run_cli("resnet-audit", "data", *SMALL, "--json", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert json.loads(outcome.stdout)["labels"]["num_checked"] == {"train": 2}


@pytest.mark.parametrize("source", [["digits"], ["--dataset", "digits"]])
def test_a_named_data_set_is_audited(source: list[str], run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-audit", *source, "--folds", 0, "--image-size", 8, "--json", cwd=tmp_path)
    result = json.loads(outcome.stdout)
    assert (result["pictures"], result["no_labels"]) == (None, "the number of folds is 0")
    assert {part["split"]: part["n"] for part in result["splits"]} == {"train": 1437, "test": 360}
    assert result["command"] == "resnet-audit digits --folds 0 --image-size 8"
    assert (tmp_path / "audits" / "digits" / "audit.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no data set is named"),
        (["digits", "--dataset", "digits"], "are both named"),
        (["nothing"], "'nothing' is neither a data set (cifar10"),
        (["empty"], "holds no images in folders named after classes"),
        (["good", "--data-dir", "empty"], "data_dir (=empty) has no effect"),
        (["good", "--output", "good/audit"], "is inside good, the folder of the pictures"),
        (["good", "--output", "mine"], "mine holds notes.txt, which is not part of an audit"),
        (["good", "--folds", 1], "folds (=1) must be 0"),
        (["good", "--config", "quick.yaml"], "minutes (=3) in quick.yaml"),
        (["bad"], "2 of 2 images can't be read"),
        (["cifar10", "--image-size", 64], "image_size (=64) must be 32"),
    ],
)
def test_bad_input_is_one_line(arguments: list[object], message: str, run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "quick.yaml").write_text("minutes: 3\n")
    save(tmp_path / "good" / "a" / "1.png", noise(1))
    for name in ("1.png", "2.png"):
        (tmp_path / "bad" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "bad" / "a" / name).write_text("text")
    assert message in run_cli("resnet-audit", *arguments, cwd=tmp_path).error


@pytest.mark.parametrize("output", [[], ["--output", "new/result"], ["--output", "old/result"]])
def test_an_audit_that_fails_leaves_no_folder(output: list[str], run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "old" / "result").mkdir(parents=True)
    assert "holds no images" in run_cli("resnet-audit", "empty", *output, cwd=tmp_path).error
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {"empty", "old", "old/result"}


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page(
    width: int,
    browser: Any,  # noqa: F811
    audited: tuple[Path, set[str], Outcome],
) -> None:
    path = audited[0] / "result" / "audit.html"
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(path.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.get_log("browser") == []
