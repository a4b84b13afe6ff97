"""resnet-eval: its numbers agree with the run's, labels go by class names, and bad input gives one line."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from resnet_train.data.dataset import ImageDataset, load_dataset
from resnet_train.jobs.trained_model import load_model
from resnet_train.runs.checkpoint import read_checkpoint, write_checkpoint
from resnet_train.runtime import precision
from resnet_train.training.trainer import Trainer
from tests.harness.cli import SMALL, Outcome, RunCli

DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def folder(trained: tuple[Path, Outcome]) -> Path:
    """Return the folder of a finished run."""
    return trained[0]


def digits_test() -> ImageDataset:
    images = load_dataset("digits", "test", Path(), 8)
    assert images is not None
    return images


def write_pictures(target: Path, digits: set[int], prefix: str = "") -> None:
    """Write the digits' test images as PNGs into test/<prefix><digit>/."""
    source = digits_test()
    for number, (image, label) in enumerate(zip(source.images, source.labels.tolist())):
        if label in digits:
            path = target / "test" / f"{prefix}{label}" / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)


def evaluate(run_cli: RunCli, *arguments: object, cwd: Path) -> dict[str, Any]:
    outcome = run_cli("resnet-eval", *arguments, "--json", "--device", "cpu", cwd=cwd)
    assert (outcome.code, outcome.stderr) == (0, ""), outcome
    numbers = json.loads(outcome.stdout)
    assert isinstance(numbers, dict)
    return numbers


def test_json_has_the_numbers_as_fractions(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    numbers = evaluate(run_cli, folder / "checkpoints" / "model.pt", cwd=tmp_path)
    assert {"top1", "top5", "loss", "n", "ci95", "per_class"} <= set(numbers)
    assert (numbers["n"], numbers["split"], numbers["arch"], numbers["epoch"]) == (360, "test", "resnet8", 2)
    assert numbers["title"] == "digits, not CIFAR-10"
    low, high = numbers["ci95"]
    assert 0 <= low < numbers["top1"] < high <= 1
    assert numbers["top1"] <= numbers["top5"] <= 1
    assert [row["name"] for row in numbers["per_class"]] == DIGITS
    assert sum(row["n"] for row in numbers["per_class"]) == 360
    correct = sum(row["accuracy"] * row["n"] for row in numbers["per_class"])
    assert correct / 360 == pytest.approx(numbers["top1"])
    assert list(tmp_path.iterdir()) == []


def test_half_precision_is_evaluated_as_in_the_run(run_cli: RunCli, tmp_path: Path) -> None:
    command = [*SMALL, "--epochs", 1, "--amp", "bf16", "--name", "half"]
    assert run_cli("resnet-train", *command, cwd=tmp_path).code == 0
    (row,) = csv.DictReader((tmp_path / "runs" / "half" / "metrics.csv").read_text().splitlines())
    assert f"{evaluate(run_cli, 'runs/half', cwd=tmp_path)['loss']:.6g}" == f"{float(row['test_loss']):.6g}"


def test_the_numbers_are_those_of_the_training(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    with (folder / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    for split in ("test", "val"):
        numbers = evaluate(run_cli, folder, "--split", split, cwd=tmp_path)
        assert numbers["top1"] == pytest.approx(float(last[f"{split}_accuracy"]), abs=1e-6)
        assert numbers["loss"] == pytest.approx(float(last[f"{split}_loss"]), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 360, 1000])
def test_the_batch_size_leaves_the_numbers_alone(
    batch_size: int, folder: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    whole = evaluate(run_cli, folder, cwd=tmp_path)
    batched = evaluate(run_cli, folder, "-b", batch_size, cwd=tmp_path)
    assert batched["n"] == 360
    assert batched["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert batched["top1"] == pytest.approx(whole["top1"], abs=1e-9)


def test_text_has_top_1_with_its_interval_top_5_and_every_class(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    numbers = evaluate(run_cli, folder, cwd=tmp_path)
    outcome = run_cli("resnet-eval", folder, "--device", "cpu", cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    lines = outcome.stdout.splitlines()
    low, high = numbers["ci95"]
    assert f"top-1       {numbers['top1']:.2%}   (95 % interval {low:.2%} to {high:.2%})" in lines
    assert f"top-5       {numbers['top5']:.2%}" in lines
    assert "images      360 test images of digits, not CIFAR-10" in lines
    assert lines[-11].split() == ["class", "accuracy", "precision", "images"]
    assert [line.split()[0] for line in lines[-10:]] == DIGITS
    for line, row in zip(lines[-10:], numbers["per_class"]):
        assert line.split()[1] == f"{row['accuracy']:.2%}"
        assert line.split()[3] == str(row["n"])


@pytest.mark.parametrize("name", ["checkpoints/model.pt", "checkpoints/last.pt", "."])
def test_a_folder_means_its_final_model(name: str, folder: Path, run_cli: RunCli) -> None:
    numbers = evaluate(run_cli, name, cwd=folder)
    assert numbers["checkpoint"] == ("checkpoints/model.pt" if name == "." else name)
    assert numbers["epoch"] == 2


def test_the_best_model_is_the_best_on_validation(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    with (folder / "metrics.csv").open(newline="") as file:
        best = max(csv.DictReader(file), key=lambda row: float(row["val_accuracy"]))
    numbers = evaluate(run_cli, folder / "checkpoints" / "best.pt", "--split", "val", cwd=tmp_path)
    assert numbers["epoch"] == int(best["epoch"])
    assert numbers["top1"] == pytest.approx(float(best["val_accuracy"]), abs=1e-6)


def test_the_model_chosen_on_validation_is_also_reported(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row["val_accuracy"]))
    numbers = evaluate(run_cli, folder, cwd=tmp_path)
    assert numbers["top1"] == pytest.approx(float(rows[-1]["test_accuracy"]), abs=1e-6)
    assert (numbers["best_epoch"], numbers["best_top1"]) == (
        int(best["epoch"]),
        pytest.approx(float(best["test_accuracy"]), abs=1e-6),
    )
    chosen = evaluate(run_cli, folder, "--best", cwd=tmp_path)
    assert (chosen["top1"], chosen["best_top1"]) == (numbers["best_top1"], None)
    assert (chosen["chosen_on"], Path(chosen["checkpoint"]).name) == ("val", "best.pt")
    text = run_cli("resnet-eval", folder, "--device", "cpu", cwd=tmp_path).stdout
    line = f"best epoch  {best['epoch']}, top-1 {numbers['best_top1']:.2%} (selected on the validation images)"
    assert line in text.splitlines()
    assert text.splitlines()[0] == f"checkpoint  {folder / 'checkpoints' / 'model.pt'}"
    error = run_cli("resnet-eval", folder / "checkpoints" / "model.pt", "--best", cwd=tmp_path).error
    assert "is not the folder of a run with checkpoints/best.pt, which --val-size makes" in error


def test_validation_and_training_images_are_those_of_the_run(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    assert evaluate(run_cli, folder, "--split", "val", cwd=tmp_path)["n"] == 60
    assert evaluate(run_cli, folder, "--split", "train", cwd=tmp_path)["n"] == 64


def test_names_reach_the_terminal_as_plain_text(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    contents = read_checkpoint(folder / "checkpoints" / "model.pt")
    contents["about"]["classes"][3] = "\x1b[2J3"
    write_checkpoint(tmp_path / "model.pt", contents)
    write_pictures(tmp_path / "pictures", {1})
    data = ["--dataset", "folder", "--data-dir", "pictures", "--device", "cpu"]
    text = run_cli("resnet-eval", "model.pt", *data, cwd=tmp_path).stdout
    assert all(line.isprintable() for line in text.splitlines())
    assert "\\x1b[2J3" in text


# --- Other data ------------------------------------------------------------------------------------------------------


def test_the_same_images_in_folders_give_the_same_numbers(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", set(range(10)))
    expected = evaluate(run_cli, folder, cwd=tmp_path)
    found = evaluate(run_cli, folder, "--dataset", "folder", "--data-dir", "pictures", cwd=tmp_path)
    assert found["title"] == "folder pictures"
    assert found["per_class"] == expected["per_class"]
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-6)


def test_a_subset_of_the_classes_keeps_their_numbers(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", {3, 7, 9})
    expected = evaluate(run_cli, folder, cwd=tmp_path)["per_class"]
    found = evaluate(run_cli, folder, "--dataset", "folder", "--data-dir", "pictures", cwd=tmp_path)
    assert found["n"] == sum(expected[digit]["n"] for digit in (3, 7, 9))
    for digit, row in enumerate(found["per_class"]):
        if digit in (3, 7, 9):
            assert (row["n"], row["accuracy"]) == (expected[digit]["n"], expected[digit]["accuracy"])
        else:
            assert (row["n"], row["accuracy"]) == (0, None)
    text = run_cli("resnet-eval", folder, "--dataset", "folder", "--data-dir", "pictures", cwd=tmp_path).stdout
    assert re.search(r"^0 +–  ", text, re.MULTILINE)


def test_classes_in_another_order_are_matched_by_name(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    expected = evaluate(run_cli, folder, cwd=tmp_path)
    contents = read_checkpoint(folder / "checkpoints" / "model.pt")
    order = [7, 2, 9, 0, 1, 8, 3, 6, 5, 4]
    contents["about"]["classes"] = [str(digit) for digit in order]
    for name in ("linear.weight", "linear.bias"):
        contents["model"][name] = contents["model"][name][order]
    write_checkpoint(tmp_path / "shuffled.pt", contents)
    write_pictures(tmp_path / "pictures", set(range(10)))
    for data in ([], ["--dataset", "folder", "--data-dir", "pictures"]):
        found = evaluate(run_cli, "shuffled.pt", *data, cwd=tmp_path)
        assert [row["name"] for row in found["per_class"]] == contents["about"]["classes"]
        assert sorted(found["per_class"], key=lambda row: row["name"]) == expected["per_class"]
        assert found["top1"] == expected["top1"]


def test_a_class_that_the_checkpoint_does_not_know_is_refused(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", {3}, prefix="number ")
    arguments = [folder, "--dataset", "folder", "--data-dir", "pictures"]
    error = run_cli("resnet-eval", *arguments, cwd=tmp_path).error
    assert error == (
        "error: the data has a class 'number 3' that the checkpoint does not know (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)"
    )


def test_a_flat_folder_of_classes_has_no_test_images(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", {3, 7})
    arguments = [folder, "--dataset", "folder", "--data-dir", "pictures/test"]
    error = run_cli("resnet-eval", *arguments, cwd=tmp_path).error
    assert error.startswith(f"error: {Path('pictures/test')} has no test images; move its classes into a folder test/")


def test_no_folder_is_created_because_a_checkpoint_names_it(
    folder: Path, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Path] = []

    def fetch(data_dir: Path, filename: str, md5: str) -> None:
        fetched.append(data_dir)
        raise ConnectionError("no network")

    monkeypatch.setattr("resnet_train.data.sources.cifar.fetch_archive", fetch)
    contents = read_checkpoint(folder / "checkpoints" / "model.pt")
    contents["config"] |= {"dataset": "cifar10", "image_size": 32, "data_dir": str(tmp_path / "named")}
    write_checkpoint(tmp_path / "model.pt", contents)
    assert run_cli("resnet-eval", "model.pt", cwd=tmp_path).code == 1
    assert fetched == [Path("data")]
    assert not (tmp_path / "named").exists()


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "tests"], "unknown split 'tests'; use test, val or train"),
        (["--dataset", "digit"], "unknown data set 'digit'; did you mean 'digits'"),
        (["--dataset", "folder", "--data-dir", "nowhere"], "data_dir 'nowhere' is not a folder"),
        (["--dataset", "folder", "--data-dir", "."], "holds no images in folders named after classes"),
        (["--batch-size", "0"], "'--batch-size'"),
        (["--batch-size", "x"], "'--batch-size'"),
        (["--threads", "-1"], "'--threads'"),
        (["--device", "abacus"], "unknown device 'abacus'"),
    ],
)
def test_bad_arguments_give_one_line(
    arguments: list[str], message: str, folder: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    outcome = run_cli("resnet-eval", folder, *arguments, cwd=tmp_path)
    assert re.search(message, outcome.error)
    assert outcome.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read some.pt: No such file or directory"),
        (b"", "some.pt is damaged or not a checkpoint"),
        (b"not a checkpoint", "some.pt is damaged or not a checkpoint"),
        ("folder", "some.pt is a folder without checkpoints/model.pt or last.pt"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(
    content: bytes | str | None, message: str, run_cli: RunCli, tmp_path: Path
) -> None:
    if content == "folder":
        (tmp_path / "some.pt").mkdir()
    elif isinstance(content, bytes):
        (tmp_path / "some.pt").write_bytes(content)
    assert message in run_cli("resnet-eval", "some.pt", cwd=tmp_path).error


@pytest.mark.parametrize("missing", ["about", "config", "model"])
def test_a_checkpoint_that_lacks_a_part_is_refused_in_one_line(
    missing: str, folder: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    contents = read_checkpoint(folder / "checkpoints" / "model.pt")
    del contents[missing]
    write_checkpoint(tmp_path / "part.pt", contents)
    assert missing in run_cli("resnet-eval", "part.pt", cwd=tmp_path).error


def test_a_run_without_validation_images_has_no_split_of_them(run_cli: RunCli, folder: Path, tmp_path: Path) -> None:
    contents = read_checkpoint(folder / "checkpoints" / "model.pt")
    contents["config"]["val_size"] = 0
    write_checkpoint(tmp_path / "no-val.pt", contents)
    error = run_cli("resnet-eval", "no-val.pt", "--split", "val", cwd=tmp_path).error
    assert error == "error: split val: this model was trained without validation images (--val-size)"


# --- Running states and chosen epochs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with averaged weights, stopped after 3 epochs and 1 of 2 steps."""
    cwd = tmp_path_factory.mktemp("stopped")

    def step_and_stop(trainer: Trainer, batch: object) -> None:
        train_step(trainer, batch)  # type: ignore[arg-type]
        if trainer.progress.step == 7:
            trainer.signals.stop = 15

    train_step = Trainer.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", step_and_stop)
        arguments = [*SMALL, "--epochs", 5, "--ema-decay", 0.5, "--val-size", 60, "--no-tensorboard", "--name", "x"]
        assert run_cli("resnet-train", *arguments, cwd=cwd).code == 143
    return cwd / "runs" / "x"


def test_a_running_state_uses_its_averaged_weights(stopped: Path, run_cli: RunCli, tmp_path: Path) -> None:
    state = read_checkpoint(stopped / "checkpoints" / "last.pt")
    assert any((state["model"][name] != tensor).any() for name, tensor in state["averaged"]["model"].items())
    found = evaluate(run_cli, stopped, cwd=tmp_path)
    for kind in ("averaged", "plain"):
        weights = state["averaged"]["model"] if kind == "averaged" else state["model"]
        parts = {name: state[name] for name in ("about", "config", "environment")}
        write_checkpoint(tmp_path / f"{kind}.pt", {**parts, "model": weights})
    assert found["loss"] == evaluate(run_cli, "averaged.pt", cwd=tmp_path)["loss"]
    assert found["loss"] != evaluate(run_cli, "plain.pt", cwd=tmp_path)["loss"]
    model = load_model(stopped)
    assert model.about.model_dump() == state["about"]
    assert not model.training
    assert all(
        (model.network.state_dict()[name] == tensor).all() for name, tensor in state["averaged"]["model"].items()
    )


def test_a_running_state_tells_epochs_and_steps(stopped: Path, run_cli: RunCli, tmp_path: Path) -> None:
    numbers = evaluate(run_cli, stopped, cwd=tmp_path)
    assert (numbers["epoch"], numbers["steps_after_epoch"], numbers["chosen_on"]) == (3, 1, None)
    text = run_cli("resnet-eval", stopped, "--device", "cpu", cwd=tmp_path).stdout
    assert "network     resnet8, 3 epochs and 1 step" in text.splitlines()
    assert "This epoch was chosen" not in text
    described = json.loads(run_cli("resnet-info", stopped, "--json", cwd=tmp_path).stdout)
    assert (described["epoch"], described["steps_after_epoch"]) == (3, 1)


def test_whole_epochs_have_no_steps_beside_them(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    text = run_cli("resnet-eval", folder / "checkpoints" / "last.pt", "--device", "cpu", cwd=tmp_path).stdout
    assert re.search(r"^network     resnet8, \d+ epochs$", text, re.MULTILINE)


def test_more_than_one_step_are_steps(stopped: Path, run_cli: RunCli, tmp_path: Path) -> None:
    contents = read_checkpoint(stopped / "checkpoints" / "last.pt")
    contents["step"] = 10
    write_checkpoint(tmp_path / "some.pt", contents)
    text = run_cli("resnet-eval", "some.pt", "--device", "cpu", cwd=tmp_path).stdout
    assert "network     resnet8, 3 epochs and 4 steps" in text.splitlines()


def test_a_state_before_its_first_epoch_has_steps_only(stopped: Path, run_cli: RunCli, tmp_path: Path) -> None:
    contents = read_checkpoint(stopped / "checkpoints" / "last.pt")
    contents.update(history=[], epoch=0, step=1, best_epoch=0, best_accuracy=-1.0)
    write_checkpoint(tmp_path / "some.pt", contents)
    text = run_cli("resnet-eval", "some.pt", "--device", "cpu", cwd=tmp_path).stdout
    assert "network     resnet8, 0 epochs and 1 step" in text.splitlines()


def test_a_model_evaluated_on_its_selection_split_says_so(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    best = folder / "checkpoints" / "best.pt"
    remark = "This epoch was selected on the val images: do not report this accuracy."
    on_val = run_cli("resnet-eval", best, "--split", "val", "--device", "cpu", cwd=tmp_path).stdout
    assert on_val.splitlines()[-1] == remark
    assert remark not in run_cli("resnet-eval", best, "--device", "cpu", cwd=tmp_path).stdout
    assert evaluate(run_cli, best, cwd=tmp_path)["chosen_on"] == "val"
    final = run_cli("resnet-eval", folder, "--split", "val", "--device", "cpu", cwd=tmp_path).stdout
    assert remark not in final
    contents = read_checkpoint(best)
    write_checkpoint(tmp_path / "best-on-test.pt", {**contents, "chosen_on": "test"})
    on_test = run_cli("resnet-eval", "best-on-test.pt", "--device", "cpu", cwd=tmp_path).stdout
    assert on_test.splitlines()[-1] == remark.replace("val", "test")


def test_without_validation_the_best_was_chosen_on_test(run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli("resnet-train", *SMALL, "--no-tensorboard", "--name", "x", cwd=tmp_path).code == 0
    found = evaluate(run_cli, "runs/x/checkpoints/best-on-test.pt", cwd=tmp_path)
    assert (found["chosen_on"], found["split"], found["steps_after_epoch"]) == ("test", "test", 0)


def test_a_model_loads_by_the_folder_of_its_run(folder: Path) -> None:
    model = load_model(str(folder))
    assert list(model.classes) == DIGITS
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    with pytest.raises(ValueError, match="cannot read"):
        load_model(folder / "nothing.pt")


@pytest.mark.parametrize("amp", ["bf16", "off"])
def test_an_evaluation_repeats_the_last_line_of_the_run(
    amp: str, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "cpu_capabilities", lambda: {"avx512_bf16": True})
    outcome = run_cli("resnet-train", *SMALL, "--amp", amp, "--no-tensorboard", "--json", cwd=tmp_path)
    final = json.loads(outcome.stdout)["final"]["scores"]["test"]
    folder = next((tmp_path / "runs").iterdir())
    numbers = evaluate(run_cli, folder, cwd=tmp_path)
    assert (numbers["top1"], numbers["loss"]) == (final["accuracy"], final["loss"])

    # The other format gives another loss, so the numbers above are those of this one.
    monkeypatch.setattr(precision, "PRECISIONS", {"bf16": None, "off": torch.bfloat16})
    assert evaluate(run_cli, folder, cwd=tmp_path)["loss"] != final["loss"]


def test_a_format_that_would_be_emulated_is_not_used(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "cpu_capabilities", dict)
    outcome = run_cli("resnet-train", *SMALL, "--amp", "bf16", "--no-tensorboard", "--json", cwd=tmp_path)
    final = json.loads(outcome.stdout)["final"]["scores"]["test"]
    evaluated = run_cli("resnet-eval", next((tmp_path / "runs").iterdir()), "--json", cwd=tmp_path)
    assert json.loads(evaluated.stdout)["loss"] == final["loss"]
    assert "evaluating in float32, because cpu (1 thread) has no units for bf16" in evaluated.stderr
