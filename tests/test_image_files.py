"""resnet-eval --predictions and --wrong: a row for each image, copies of the wrong ones, no foreign file changed."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_train.data.dataset import ImageDataset, load_dataset
from resnet_train.data.pictures import read_image
from resnet_train.evaluation.evaluate import Evaluation
from resnet_train.jobs.image_files import check_predictions_file, copy_wrong_images, empty_folder
from resnet_train.runtime.names import safe_names
from tests.harness.cli import Outcome, RunCli
from tests.test_cli_evaluate import evaluate, write_pictures


@pytest.fixture(scope="module")
def folder(trained: tuple[Path, Outcome]) -> Path:
    return trained[0]


def data_set(
    images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], files: tuple[Path, ...] | None = None
) -> ImageDataset:
    facts: dict[str, Any] = {"mean": (0, 0, 0), "std": (1, 1, 1), "title": "t", "fingerprint": "f"}
    return ImageDataset(images=images, labels=labels, classes=classes, files=files, **facts)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_have_a_row_for_each_image(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    numbers = evaluate(run_cli, folder, "--predictions", "p.csv", cwd=tmp_path)
    rows = read_rows(tmp_path / "p.csv")
    assert [row["image"] for row in rows] == [str(index) for index in range(360)]
    assert np.mean([row["class_1"] == row["label"] for row in rows]) == pytest.approx(numbers["top1"])
    assert np.mean([float(row["loss"]) for row in rows]) == pytest.approx(numbers["loss"], rel=1e-4)
    for row in rows:
        ranked = [float(row[f"probability_{rank}"]) for rank in range(1, 6)]
        assert ranked == sorted(ranked, reverse=True)
        if row["class_1"] == row["label"]:
            assert ranked[0] == pytest.approx(math.exp(-float(row["loss"])), abs=1e-5)


def test_predictions_of_the_validation_split_have_its_indices(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    evaluate(run_cli, folder, "--split", "val", "--predictions", "p.csv", cwd=tmp_path)
    rows = read_rows(tmp_path / "p.csv")
    train = load_dataset("digits", "train", Path(), 8)
    assert train is not None
    assert len(rows) == 60
    assert all(row["label"] == train.classes[train.labels[int(row["image"])]] for row in rows)


def test_predictions_name_the_picture_files(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", set(range(10)))
    damaged = tmp_path / "pictures" / "test" / "4" / "0000-damaged.png"
    damaged.write_bytes(b"not a picture")
    arguments = [folder, "--dataset", "folder", "--data-dir", "pictures", "--device", "cpu"]
    for _ in range(2):  # the second time from the cache
        outcome = run_cli("resnet-eval", *arguments, "--predictions", "p.csv", "--wrong", "w", cwd=tmp_path)
        assert outcome.code == 0, outcome
        rows = read_rows(tmp_path / "p.csv")
        assert len(rows) == 360
        names = {path.relative_to(tmp_path / "pictures").as_posix() for path in tmp_path.glob("pictures/test/*/*.png")}
        assert {row["image"] for row in rows} == names - {"test/4/0000-damaged.png"}
        assert all(row["image"].split("/")[1] == row["label"] for row in rows)
        wrong = {f"{r['label']}/{r['class_1']}/{Path(r['image']).name}" for r in rows if r["label"] != r["class_1"]}
        copies = [path for path in (tmp_path / "w").rglob("*") if path.is_file()]
        assert {path.relative_to(tmp_path / "w").as_posix() for path in copies} == wrong
        for copy in copies:
            original = tmp_path / "pictures" / "test" / copy.parent.parent.name / copy.name
            assert copy.read_bytes() == original.read_bytes()
            copy.unlink()
        (tmp_path / "w").rename(tmp_path / f"w{len(list(tmp_path.iterdir()))}")


def test_wrong_images_without_files_become_pictures(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    numbers = evaluate(run_cli, folder, "--wrong", "w", "--predictions", "p.csv", cwd=tmp_path)
    copies = [path for path in (tmp_path / "w").rglob("*") if path.is_file()]
    wrong = [row for row in read_rows(tmp_path / "p.csv") if row["label"] != row["class_1"]]
    assert numbers["num_wrong_copied"] == len(copies) == len(wrong) > 0
    digits = load_dataset("digits", "test", Path(), 8)
    assert digits is not None
    for row in wrong:
        copy = tmp_path / "w" / row["label"] / row["class_1"] / f"{int(row['image']):05}.png"
        assert np.array_equal(read_image(copy, 8), digits.images[int(row["image"])])


def test_a_folder_that_holds_something_is_refused(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "mine.txt").write_text("mine")
    error = run_cli("resnet-eval", folder, "--wrong", "w", cwd=tmp_path).error
    assert error == "error: w is not empty; choose another folder, or empty it"
    error = run_cli("resnet-eval", folder, "--wrong", "w/mine.txt", cwd=tmp_path).error
    assert error.startswith("error: cannot create the folder w/mine.txt: ")
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["mine.txt"]


def test_only_an_older_table_is_replaced(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    error = run_cli("resnet-eval", folder, "--predictions", "mine.csv", cwd=tmp_path).error
    assert error == "error: mine.csv exists and is not a table of predictions; choose another name"
    assert (tmp_path / "mine.csv").read_text() == "a,b\n1,2\n"
    error = run_cli("resnet-eval", folder, "--predictions", "no/p.csv", cwd=tmp_path).error
    assert error == "error: cannot write no/p.csv: there is no folder no"
    for _ in range(2):
        evaluate(run_cli, folder, "--predictions", "p.csv", cwd=tmp_path)
    (tmp_path / "link.csv").symlink_to(tmp_path / "p.csv")
    with pytest.raises(ValueError, match="is a link or a special file"):
        check_predictions_file(tmp_path / "link.csv")


HOSTILE = (
    *("../..", "/etc", "a\0b", "", ".", "..", "con\nsole", "x" * 300, "ü" * 300, "Cat", "cat", "\x1b[31m", "\udcff"),
)


def test_hostile_class_names_stay_in_the_folder(tmp_path: Path) -> None:
    count = len(HOSTILE)
    pixels = np.zeros((count, 3, 4, 4), np.uint8)
    images = data_set(pixels, np.arange(count), HOSTILE)
    logits = torch.eye(count).roll(1, 0)
    evaluation = Evaluation(loss=0.0, logits=logits, labels=torch.arange(count))
    target = tmp_path / "a" / "w"
    with empty_folder(target):
        assert copy_wrong_images(target, evaluation, images, np.arange(count), tmp_path) == count
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert list((tmp_path / "a").iterdir()) == [target]
    assert len(list(target.iterdir())) == count
    assert len([path for path in target.rglob("*.png") if path.is_file()]) == count


def test_safe_names_are_plain_and_differ() -> None:
    names = safe_names(HOSTILE)
    assert len({name.casefold() for name in names}) == len(HOSTILE)
    for name in names:
        assert name.isprintable()
        assert name[0] != "."
        assert not set(name) & set("/\\\0:")
        assert len(name.encode()) <= 110
    assert safe_names(["cat", "maple_tree", "número 3", "犬"]) == ["cat", "maple_tree", "número 3", "犬"]


def test_the_same_name_from_two_folders_is_numbered(tmp_path: Path) -> None:
    paths = []
    for number in range(2):
        path = Path("test") / str(number) / "x.png"
        (tmp_path / path).parent.mkdir(parents=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / path)
        paths.append(path)
    pixels = np.zeros((2, 3, 4, 4), np.uint8)
    images = data_set(pixels, np.zeros(2, np.int64), ("a", "b"), tuple(paths))
    evaluation = Evaluation(loss=0.0, logits=torch.tensor([[0.0, 1.0]] * 2), labels=torch.zeros(2, dtype=torch.int64))
    assert copy_wrong_images(tmp_path / "w", evaluation, images, np.arange(2), tmp_path) == 2
    assert sorted(path.name for path in (tmp_path / "w" / "a" / "b").iterdir()) == ["x-2.png", "x.png"]


def test_json_has_the_calibration(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-eval", folder, "--json", "--device", "cpu", cwd=tmp_path)
    numbers = json.loads(outcome.stdout)
    assert numbers["calibration"]["fitted_on"] == "60 validation images"
    assert numbers["calibration"]["ece"] == pytest.approx(numbers["scores"]["ece"], abs=1e-6)
    text = run_cli("resnet-eval", folder, "--device", "cpu", cwd=tmp_path).stdout
    assert f"ECE         {numbers['calibration']['ece']:.2%}" in text
    assert max(map(len, text.splitlines()[1:])) <= 79
