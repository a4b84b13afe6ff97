"""resnet-export: every format holds the network that was trained, says so, and overwrites nothing unasked."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resnet_train.cli.export import FORMAT_NAMES
from resnet_train.config import make_config
from resnet_train.export import FORMATS, output
from resnet_train.export.agreement import Agreement, compare_outputs
from resnet_train.export.output import written
from resnet_train.runs.checkpoint import read_checkpoint, read_model, write_checkpoint
from resnet_train.runs.folder import RunFolder
from tests.harness.cli import SMALL, Outcome, RunCli
from tests.harness.trainers import assert_same_tensors

OWN = ["pt", "safetensors"]  # that hold a checkpoint
FILES = [
    pytest.param(name, marks=() if name in OWN else pytest.mark.slow)
    for name in FORMATS.names()
    if not FORMATS[name].files
]


@pytest.fixture(scope="module")
def model(trained: tuple[Path, Outcome]) -> Path:
    return trained[0] / "checkpoints" / "model.pt"


def export(run_cli: RunCli, checkpoint: Path, *arguments: object, cwd: Path) -> Outcome:
    return run_cli("resnet-export", checkpoint, *arguments, "--images", 40, cwd=cwd)


def test_help_lists_the_registered_formats() -> None:
    assert sorted(FORMAT_NAMES) == sorted(FORMATS.names())


@pytest.mark.parametrize("name", OWN)
def test_an_exported_model_holds_the_same_bits(name: str, model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    outcome = export(run_cli, model, "--format", name, cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "top-1       equal on 40 of 40\nlogits      equal in every bit" in outcome.stdout
    before, after = read_model(model), read_model(tmp_path / f"model.{name}")
    assert (after.about, after.metrics, after.calibration) == (before.about, before.metrics, before.calibration)
    assert_same_tensors(before.weights, after.weights)


@pytest.mark.parametrize("name", OWN)
def test_every_command_reads_an_exported_model(name: str, model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    assert export(run_cli, model, "-f", name, "-o", f"x.{name}", cwd=tmp_path).code == 0
    evaluations = []
    for path in (model, f"x.{name}"):
        outcome = run_cli("resnet-eval", path, "--json", "--predictions", "p.csv", cwd=tmp_path)
        found = json.loads(outcome.stdout)
        del found["checkpoint"], found["images_per_second"]
        evaluations.append((found, (tmp_path / "p.csv").read_text()))
    assert evaluations[0] == evaluations[1]
    assert json.loads(run_cli("resnet-info", f"x.{name}", "--json", cwd=tmp_path).stdout)["arch"] == "resnet8"
    start = ["--weights", f"x.{name}", "--epochs", 1, "--lr", 1e-9, "--name", "tuned"]
    assert run_cli("resnet-train", *SMALL[:-2], *start, cwd=tmp_path).code == 0
    before, after = (
        read_model(path).weights["conv1.weight"] for path in (model, RunFolder(tmp_path / "runs" / "tuned").model)
    )
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OWN)
def test_an_exported_model_has_no_folders_of_this_machine(
    name: str, model: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    assert export(run_cli, model, "-f", name, "-o", "x", cwd=tmp_path).code == 0
    contents = read_checkpoint(tmp_path / "x")
    assert contents["data_path"] is None
    assert {"data_dir", "output_dir"} & contents["config"].keys() == set()
    make_config(contents["config"])


@pytest.mark.parametrize("name", ["x.onnx", "x.html"])
def test_an_export_for_other_programs_is_named_as_such(name: str, run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    error = run_cli("resnet-info", name, cwd=tmp_path).error
    assert error.startswith(f"error: {name} is for other programs; use the run ")


def test_a_read_only_file_system_is_what_the_error_says(
    model: Path, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(output, "open_regular", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    outcome = export(run_cli, model, "-f", "pt", "-o", "x.pt", cwd=tmp_path)
    assert outcome == (1, "", "error: cannot write x.pt: Read-only file system\n")


@pytest.mark.parametrize("name", OWN)
def test_half_stores_float16_and_says_what_changes(name: str, model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    outcome = export(run_cli, model, "-f", name, "--half", "-o", "x", cwd=tmp_path)
    assert "apart; the largest is" in outcome.stdout
    weights = read_model(tmp_path / "x").weights
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.float16", "torch.int64"}
    assert export(run_cli, model, "--check", "x", "-f", name, cwd=tmp_path).code == 0


def test_a_check_finds_a_change_that_no_logit_shows(model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    assert export(run_cli, model, "-f", "pt", "-o", "x.pt", cwd=tmp_path).code == 0
    contents = read_checkpoint(tmp_path / "x.pt")
    contents["model"]["bn1.num_batches_tracked"] += 1
    write_checkpoint(tmp_path / "x.pt", contents)
    outcome = export(run_cli, model, "--check", "x.pt", "-f", "pt", cwd=tmp_path)
    assert outcome.stderr == "error: x.pt has other weights: bn1.num_batches_tracked differs\n"
    assert outcome.code == 1


def test_half_refuses_weights_that_float16_cannot_hold(model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    contents = read_checkpoint(model)
    contents["model"]["linear.bias"][3] = 1e6
    write_checkpoint(tmp_path / "large.pt", contents)
    error = export(run_cli, tmp_path / "large.pt", "-f", "pt", "-o", "x.pt", "--half", cwd=tmp_path).error
    assert error == "error: linear.bias has values of up to 1e+06, too large for --half (65504)"
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_replaced_only_with_force(name: str, model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    error = export(run_cli, model, "-f", name, "-o", "x", cwd=tmp_path).error
    assert error == "error: x exists; choose another --output, or replace it with --force"
    assert (tmp_path / "x").read_text() == "mine"
    assert export(run_cli, model, "-f", name, "-o", "x", "--force", cwd=tmp_path).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_that_appears_meanwhile_is_kept(
    model: Path, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(*arguments: Any) -> Agreement:
        (tmp_path / "x").write_text("mine")
        return compare_outputs(*arguments)

    monkeypatch.setattr("resnet_train.jobs.export.compare_outputs", compare)
    assert "x exists" in export(run_cli, model, "-f", "pt", "-o", "x", cwd=tmp_path).error
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("place", ["folder", "link"])
def test_force_replaces_nothing_but_a_file(place: str, model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("mine")
    error = export(run_cli, model, "-f", "pt", "-o", place, "--force", cwd=tmp_path).error
    assert error == f"error: {place} exists and is not a regular file; choose another --output"
    assert (tmp_path / "mine").read_text() == "mine"


def test_near_ties_are_counted_with_their_largest_gap(
    model: Path, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.tensor([[5.0, 0.0], [2.0, 1.75], [1.5, 1.0]])
    swapped = torch.tensor([[5.0, 0.0], [1.75, 2.0], [1.0, 1.5]])
    images = np.zeros((3, 3, 8, 8), dtype=np.uint8)
    agreement = compare_outputs(lambda _: logits, lambda _: swapped, images, tolerance=0.1)
    assert (agreement.num_images, agreement.num_equal, agreement.largest_gap) == (3, 1, 0.5)
    assert (agreement.largest_logit, agreement.largest_difference, agreement.holds) == (5.0, 0.5, True)

    monkeypatch.setattr("resnet_train.jobs.export.compare_outputs", lambda *_: agreement)
    printed = export(run_cli, model, "-f", "pt", cwd=tmp_path).stdout.splitlines()
    assert printed[-3:] == [
        "top-1       equal on 1 of 3",
        "            on the others the logits of both classes are at most 0.5 apart",
        "logits      at most 0.5 apart; the largest is 5",
    ]


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_a_file_that_fails_its_check_is_not_kept(
    is_interrupted: bool, model: Path, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(*arguments: Any) -> Agreement:
        if is_interrupted:
            raise KeyboardInterrupt
        return replace(compare_outputs(*arguments), largest_difference=float("nan"))

    monkeypatch.setattr("resnet_train.jobs.export.compare_outputs", compare)
    (tmp_path / "x").write_text("older")
    outcome = export(run_cli, model, "-f", "pt", "-o", "x", "--force", cwd=tmp_path)
    assert outcome.code == (130 if is_interrupted else 1)
    assert is_interrupted or "error: x does not compute what the network computes" in outcome.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]


ONE_AND_TWO = [(b"1", b"2"), ({"a": b"1"}, {"a": b"2"})]


def contents_of(path: Path) -> bytes:
    return (path / "a" if path.is_dir() else path).read_bytes()


@pytest.mark.parametrize("encoded", ONE_AND_TWO)
@pytest.mark.parametrize("name", ["x", "猫" * 85])
def test_two_exports_to_one_target_are_both_whole(name: str, encoded: tuple[Any, Any], tmp_path: Path) -> None:
    target = tmp_path / name
    with written(target, encoded[0], force=True) as first, written(target, encoded[1], force=True) as second:
        assert [contents_of(path) for path in (first, second)] == [b"1", b"2"]
    assert contents_of(target) == b"1"  # the last one that was renamed
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("encoded", ONE_AND_TWO)
def test_an_export_that_cannot_be_renamed_changes_nothing(
    encoded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x"
    with written(target, encoded[0], force=False):
        pass

    def refuse(source: Path, place: Path) -> None:
        if place == target and contents_of(source) == b"2":
            raise PermissionError(errno.EACCES, "Permission denied")
        source.replace(place)

    monkeypatch.setattr("resnet_train.export.output.replace_file", refuse)
    with pytest.raises(OSError, match=r"cannot write .*x: Permission denied"), written(target, encoded[1], force=True):
        pass
    assert contents_of(target) == b"1"
    assert list(tmp_path.iterdir()) == [target]


def test_the_checkpoint_itself_is_never_replaced(model: Path, run_cli: RunCli) -> None:
    before = model.read_bytes()
    error = export(run_cli, model, "-f", "pt", "--force", cwd=model.parent).error
    assert error == "error: model.pt is the checkpoint itself; choose another --output"
    assert model.read_bytes() == before


@pytest.mark.parametrize("name", OWN)
def test_a_check_finds_every_changed_bit(name: str, model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    path = tmp_path / f"x.{name}"
    assert export(run_cli, model, "-f", name, "-o", path, cwd=tmp_path).code == 0
    assert export(run_cli, model, "--check", path, cwd=tmp_path).code == 0
    data = path.read_bytes()
    for place in range(0, len(data), len(data) // 6):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        outcome = export(run_cli, model, "--check", path, cwd=tmp_path)
        assert (outcome.code, outcome.stderr.count("\n")) == (1, 1), (place, outcome)


@pytest.mark.parametrize("part", ["classes", "calibration", "weights", "metrics"])
@pytest.mark.parametrize("name", OWN)
def test_a_check_finds_another_description(part: str, name: str, model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    contents = read_checkpoint(model)
    if part == "classes":
        contents["about"]["classes"].reverse()
    elif part == "calibration":
        contents["calibration"]["temperature"] += 0.01
    elif part == "metrics":
        contents["metrics"]["scores"]["test"]["accuracy"] = 1.0
    else:
        contents["model"]["conv1.weight"][0, 0, 0, 0] += torch.finfo(torch.float32).eps
    write_checkpoint(tmp_path / "other.pt", contents)
    assert export(run_cli, tmp_path / "other.pt", "-f", name, "-o", "x", cwd=tmp_path).code == 0
    outcome = export(run_cli, model, "--check", "x", "-f", name, cwd=tmp_path)
    assert outcome.code == 1
    assert outcome.stderr.startswith("error: x "), outcome


def test_options_that_have_no_effect_are_refused(model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    assert "give --format (" in export(run_cli, model, cwd=tmp_path).error
    assert "unknown format 'ptt'; did you mean 'pt'?" in export(run_cli, model, "-f", "ptt", cwd=tmp_path).error
    assert "--check writes nothing" in export(run_cli, model, "--check", "x", "--half", cwd=tmp_path).error
    assert "there is no file x" in export(run_cli, model, "--check", "x", cwd=tmp_path).error
    assert "there is no folder no" in export(run_cli, model, "-f", "pt", "-o", "no/x", cwd=tmp_path).error
    assert list(tmp_path.iterdir()) == []


def test_without_test_images_random_ones_are_used(model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    contents = read_checkpoint(model)
    contents["config"]["dataset"] = contents["about"]["dataset"] = "cifar10"
    write_checkpoint(tmp_path / "x.pt", contents)
    outcome = export(run_cli, tmp_path / "x.pt", "-f", "pt", "-o", "y.pt", cwd=tmp_path)
    assert "checked     on 40 random images, because the test images are not here" in outcome.stdout
    assert export(run_cli, tmp_path / "x.pt", "-f", "pt", "-o", "z.pt", "--data-dir", "no", cwd=tmp_path).code != 0
    many = run_cli("resnet-export", "x.pt", "-f", "pt", "-o", "m.pt", "--images", 10**15, cwd=tmp_path)
    assert "checked     on 1,000 random images" in many.stdout


def test_the_result_is_printed_as_json(model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    found = json.loads(export(run_cli, model, "-f", "pt", "-o", "x.pt", "--json", cwd=tmp_path).stdout)
    assert found["num_bytes"] == (tmp_path / "x.pt").stat().st_size
    assert found["agreement"]["num_equal"] == found["agreement"]["num_images"] == 40
