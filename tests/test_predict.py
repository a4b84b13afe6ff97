"""resnet-predict: any pictures, the same classes as resnet-eval, bad files named, three forms of output."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_train.runs.checkpoint import read_checkpoint, write_checkpoint
from resnet_train.runtime.terminal import count_columns, fit
from tests.harness.cli import Outcome, RunCli
from tests.test_cli_evaluate import evaluate, write_pictures


@pytest.fixture(scope="module")
def folder(trained: tuple[Path, Outcome]) -> Path:
    return trained[0]


def predict(run_cli: RunCli, *arguments: object, cwd: Path) -> Outcome:
    return run_cli("resnet-predict", *arguments, "--device", "cpu", cwd=cwd)


def test_the_classes_are_those_of_resnet_eval(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", set(range(10)))
    evaluate(run_cli, folder, "--dataset", "folder", "--data-dir", "pictures", "--predictions", "p.csv", cwd=tmp_path)
    outcome = predict(run_cli, folder, "pictures/test", "--csv", "-b", 7, cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    rows = list(csv.DictReader(io.StringIO(outcome.stdout)))
    with (tmp_path / "p.csv").open(newline="") as file:
        expected = [(f"pictures/{row['image']}", row["class_1"], row["class_3"]) for row in csv.DictReader(file)]
    assert [(row["image"], row["class_1"], row["class_3"]) for row in rows] == expected
    assert len(rows) == 360


def test_json_has_calibrated_probabilities(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", {3})
    found = json.loads(predict(run_cli, folder, "pictures", "--json", "--top", 99, cwd=tmp_path).stdout)
    assert (found["checkpoint"], found["unreadable"]) == (str(folder), [])
    for row in found["predictions"]:
        assert sum(one["probability"] for one in row["top"]) == pytest.approx(1)
        assert len(row["top"]) == 10
        assert row["calibrated"] is True
    # A temperature of 100 makes all classes nearly equally likely.
    contents = read_checkpoint(folder / "checkpoints" / "model.pt")
    contents["calibration"] |= {"temperature": 100.0, "known_from": 1e9}
    write_checkpoint(tmp_path / "flat.pt", contents)
    flat = json.loads(predict(run_cli, "flat.pt", "pictures", "--json", cwd=tmp_path).stdout)["predictions"]
    for row, other in zip(found["predictions"], flat):
        assert other["top"][0]["name"] == row["top"][0]["name"]
        assert other["top"][0]["probability"] < 0.15
        assert (other["unknown"], len(other["top"])) == (True, 3)
    assert not all(row["unknown"] for row in found["predictions"])


def test_without_validation_images_nothing_is_calibrated(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", {3})
    contents = read_checkpoint(folder / "checkpoints" / "model.pt")
    write_checkpoint(tmp_path / "plain.pt", {**contents, "calibration": None})
    outcome = predict(run_cli, "plain.pt", "pictures", "--json", cwd=tmp_path)
    assert outcome.code == 0
    assert outcome.stderr.startswith("warning: this model was trained without validation images")
    row = json.loads(outcome.stdout)["predictions"][0]
    assert (row["unknown"], row["calibrated"]) == (None, False)


@pytest.mark.parametrize("form", ["table", "--json", "--csv"])
def test_bad_files_are_named_and_the_others_done(form: str, folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", set(range(10)))
    bad = ("empty.png", "text.jpg", "cut.png")
    good = sorted((tmp_path / "pictures").rglob("*.png"))
    (tmp_path / "pictures" / "empty.png").write_bytes(b"")
    (tmp_path / "pictures" / "text.jpg").write_text("text")
    (tmp_path / "pictures" / "cut.png").write_bytes(good[0].read_bytes()[:60])
    outcome = predict(run_cli, folder, "pictures", *([] if form == "table" else [form]), cwd=tmp_path)
    assert outcome.code == 1
    *named, last = outcome.stderr.splitlines()
    assert sorted(line.split(":")[1] for line in named) == sorted(f" cannot read pictures/{name}" for name in bad)
    assert last == "error: 3 of the pictures could not be read"
    if form == "--json":
        found = json.loads(outcome.stdout)
        assert (len(found["predictions"]), len(found["unreadable"])) == (360, 3)
    else:
        assert len(outcome.stdout.splitlines()) == 361


def test_the_table_has_at_most_79_columns(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    contents = read_checkpoint(folder / "checkpoints" / "model.pt")
    contents["about"]["classes"] = [f"{digit} \x1b[31m{'犬' * 40}" for digit in range(10)]
    contents["calibration"]["known_from"] = 1e9
    write_checkpoint(tmp_path / "model.pt", contents)
    for name in ("a.png", "é" * 60 + ".png", "犬" * 40 + ".png"):
        Image.new("L", (9, 5)).save(tmp_path / name)
    names = [path.name for path in tmp_path.glob("*.png")]
    outcome = predict(run_cli, "model.pt", *names, "--top", 10, cwd=tmp_path)
    assert outcome.code == 0
    lines = outcome.stdout.splitlines()
    assert len(lines) == 4
    assert all(count_columns(line) <= 79 and line.isprintable() for line in lines)
    assert all("unknown" in line for line in lines[1:])


@pytest.mark.parametrize(
    ("text", "keep_end", "fitted"),
    [("cat", False, "cat  "), ("horses", False, "hors…"), ("horses", True, "…rses"), ("犬犬犬", False, "犬犬…")],
)
def test_text_is_fitted_to_its_columns(text: str, keep_end: bool, fitted: str) -> None:
    assert fit(text, 5, keep_end=keep_end) == fitted


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_and_size_of_picture_is_read(mode: str, folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    name = "picture.jpg" if mode == "CMYK" else "picture.png"
    Image.new(mode, (301, 7)).save(tmp_path / name)
    outcome = predict(run_cli, folder, name, cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout.splitlines()[1].startswith(name)


@pytest.mark.parametrize("content", ["picture", "names", "nothing"])
def test_stdin_is_a_picture_or_names(
    content: str, folder: Path, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "pictures", {3})
    files = sorted((tmp_path / "pictures").rglob("*.png"))
    sent = {
        "picture": files[0].read_bytes(),
        "names": "\r\n".join(map(str, files)).encode() + b"\n\nmissing.png\n",
        "nothing": b"",
    }[content]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(sent))))
    outcome = predict(run_cli, folder, "-", "--csv", cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(outcome.stdout)))
    if content == "picture":
        assert [row["image"] for row in rows] == ["-"]
        assert outcome.code == 0
    elif content == "names":
        assert [row["image"] for row in rows] == list(map(str, files))
        assert outcome.stderr.splitlines()[0] == "error: cannot read missing.png: No such file or directory"
        assert outcome.code == 1
    else:
        assert outcome.error.startswith("error: stdin is empty")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty"], "empty holds no pictures"),
        (["a.png", "--json", "--csv"], "--json and --csv cannot be combined; choose one"),
        (["a.png", "--json", "--explain", "full"], "full is not empty; choose another folder, or empty it"),
        (["a.png", "--top", "0"], "--top"),
        ([], "is taken as a checkpoint; name pictures after it"),
    ],
)
def test_bad_arguments_give_one_line(
    arguments: list[str], message: str, folder: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    outcome = run_cli("resnet-predict", folder, *arguments, cwd=tmp_path)
    assert message in outcome.error
    assert outcome.stdout == ""


def test_a_table_without_rows_has_no_header(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    outcome = predict(run_cli, folder, "missing.png", cwd=tmp_path)
    assert (outcome.code, outcome.stdout) == (1, "")


def test_explain_writes_an_overlay_for_each_picture(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        Image.effect_noise((20, 30), 80).save(tmp_path / place / "x.png")
    (tmp_path / "bad.png").write_bytes(b"")
    outcome = predict(run_cli, folder, "a/x.png", "bad.png", "b", "--explain", "seen", cwd=tmp_path)
    assert outcome.code == 1
    overlays = sorted(path.name for path in (tmp_path / "seen").iterdir())
    assert overlays == ["00001-x.png", "00002-x.png"]
    with Image.open(tmp_path / "seen" / overlays[0]) as image:
        assert (image.mode, image.size) == ("RGB", (256, 256))
        assert np.asarray(image).std() > 0
