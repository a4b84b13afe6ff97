"""`resnet-info RUN --verify`: what a run's files say of each other, and what a replay of its last stretch gives."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_train.jobs.verify import verify
from resnet_train.loggers.events import find_event_files, read_events
from resnet_train.runs.checkpoint import read_checkpoint, write_checkpoint
from tests.harness.cli import FIXED, RunCli, run_in_process

CLASSES = ("ant", "bee", "cat")
SETTINGS = ["--dataset", "folder", "--arch", "resnet8", "--image-size", "8", *FIXED, "--batch-size", "8"]
SETTINGS += ["--val-size", "9", "--ema-decay", "0.9", "--log-every", "1", "--lr", "0.05"]
Tamper = Callable[[Path], object]


def make_images(folder: Path) -> None:
    """Write 12 training and 3 test images of each class, darker or brighter by their class."""
    draw = np.random.default_rng(3)
    for split, count in (("train", 12), ("test", 3)):
        for number, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for image in range(count):
                pixels = draw.integers(0, 90, (8, 8, 3)) + 80 * number
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{image:02}.png")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images in data/, the finished run x, extended from 2 to 3 epochs, and another run y."""
    cwd = tmp_path_factory.mktemp("verified")
    make_images(cwd / "data")
    for arguments in (
        [*SETTINGS, "--epochs", "2", "--name", "x"],
        ["--resume", "runs/x", "--epochs", "3"],
        [*SETTINGS, "--epochs", "3", "--name", "y", "--seed", "1"],
    ):
        outcome = run_in_process("resnet-train", *arguments, cwd=cwd)
        assert outcome.code == 0, outcome
    return cwd


@pytest.fixture
def run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the run x, beside copies of everything else."""
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "runs" / "x" / "checkpoints").glob("*.pt"):
        change(path, lambda contents: contents.update(data_path=str(tmp_path / "data")))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "x"


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit what a checkpoint holds; all its checksums are right afterwards."""
    contents = read_checkpoint(path)
    edit(contents)
    write_checkpoint(path, {name: value for name, value in contents.items() if name not in ("format", "version")})


def edits(name: str, edit: Callable[[dict[str, Any]], object]) -> Tamper:
    """Return what edits one checkpoint."""
    return lambda run: change(run / "checkpoints" / f"{name}.pt", edit)


def flip(tensor: torch.Tensor) -> None:
    """Flip the lowest bit of the first element."""
    tensor[(0,) * tensor.ndim].view(torch.int32).bitwise_xor_(1)


def conv(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return next(value for name, value in weights.items() if value.ndim == 4)


def replace_text(name: str, old: str, new: str | Callable[[re.Match[str]], str]) -> Tamper:
    """Return what replaces the first match in a file."""

    def edit(run: Path) -> None:
        text = (run / name).read_text()
        changed = re.sub(old, new, text, count=1)
        assert changed != text
        (run / name).write_text(changed)

    return edit


def change_point(tag: str, step: int) -> Tamper:
    """Return what changes a point of a curve; the checksum of its event is right afterwards."""

    def edit(run: Path) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        for path in event_files(run):
            events = [event for _, event in read_events(path)]
            for event in events:
                for value in event.summary.value:
                    if (value.tag, event.step) == (tag, step):
                        value.simple_value *= 1.001
            with path.open("wb") as file:
                for event in events:
                    RecordWriter(file).write(event.SerializeToString())

    return edit


def event_files(run: Path) -> list[Path]:
    return [path for split in (".", "train", "val", "test") for path in find_event_files(run / split)]


def change_picture(run: Path) -> None:
    """Change a byte of the picture of augmented images; its event is damaged then."""
    path = event_files(run / "train")[0]
    content = path.read_bytes()
    position = content.index(b"IDAT") + 40
    path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])


def swap_images(run: Path) -> None:
    one, other = (run.parents[1] / "data" / "train" / "ant" / f"0{number}.png" for number in (1, 2))
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def change_pixel(run: Path) -> None:
    path = run.parents[1] / "data" / "train" / "bee" / "03.png"
    pixels = np.array(Image.open(path))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)


def take(name: str) -> Tamper:
    """Return what replaces a checkpoint by one of the run y."""

    def copy(run: Path) -> None:
        shutil.copy(run.parent / "y" / "checkpoints" / f"{name}.pt", run / "checkpoints" / f"{name}.pt")

    return copy


def everywhere(edit: Callable[[dict[str, Any]], object]) -> Tamper:
    """Return what edits all checkpoints."""

    def edit_all(run: Path) -> None:
        for path in (run / "checkpoints").glob("*.pt"):
            change(path, edit)

    return edit_all


def forge_lr(run: Path) -> None:
    """Change the learning rate wherever it is written."""
    everywhere(lambda c: c["config"].update(lr=0.04))(run)
    replace_text("config.yaml", "lr: 0.05", "lr: 0.04")(run)


def swap_averages(contents: dict[str, Any]) -> None:
    contents["model"], contents["averaged"]["model"] = contents["averaged"]["model"], contents["model"]


def buffer_of(contents: dict[str, Any]) -> torch.Tensor:
    return contents["optimizer"]["state"][0]["momentum_buffer"]


TAMPERINGS: dict[str, tuple[Tamper, str]] = {
    "a bit of a weight": (
        edits("last", lambda c: flip(conv(c["model"]))),
        r"last.pt.model.conv1.weight\[0, 0, 0, 0\] is ",
    ),
    "a weight, huge": (
        edits("last", lambda c: conv(c["model"])[1, 0, 0, 0].fill_(1e30)),
        r"last.pt.model.conv1.weight\[1, 0, 0, 0\] is 1.0+15",
    ),
    "an average": (edits("last", lambda c: flip(conv(c["averaged"]["model"]))), r"model.pt: model|last.pt.averaged"),
    "averages for weights": (edits("last", swap_averages), r"model.pt: model\.\S+"),
    "a buffer of the optimizer": (
        edits("last", lambda c: flip(buffer_of(c))),
        r"last.pt.optimizer.state.0.momentum_buf",
    ),
    "a running variance": (
        edits("last", lambda c: next(v for n, v in c["model"].items() if "var" in n).mul_(2)),
        r"last.pt.model.\S*running_var\[0\] is ",
    ),
    "the sums": (
        edits("last", lambda c: c["sums"][0].__setitem__(5, 1.5)),
        r"last.pt.sums.0.5 is 1.5, but 0.0 in the re",
    ),
    "lr in the state": (
        edits("last", lambda c: c["config"].update(lr=0.04)),
        r"config.lr is 0.05, but 0.04 in last.pt",
    ),
    "lr everywhere": (forge_lr, r"last.pt.model.* is \S+, but \S+ in the replay"),
    "the seed in the state": (
        edits("last", lambda c: c["config"].update(seed=7)),
        r"config.seed is 0, but 7 in last.pt",
    ),
    "the step": (edits("last", lambda c: c.update(step=10)), r"last.pt: step is 10|last.pt is not a complete|step 10"),
    "the best epoch": (
        edits("last", lambda c: c.update(best_epoch=5)),
        r"best_epoch \(=5\) must be \d, as in the history",
    ),
    "a loss in the history": (
        edits("last", lambda c: c["history"][0]["scores"]["train"].update(loss=1.25)),
        r"history of epoch 1.scores.train.loss is \S+, but 1.25 in last.pt",
    ),
    "the last loss in the history": (
        edits("last", lambda c: c["history"][2]["scores"]["test"].update(loss=1.25)),
        r"metrics.csv: the row of epoch 3 has test_loss \S+, but the checkpoint has 1.25",
    ),
    "class names": (edits("last", lambda c: c["about"]["classes"].reverse()), r"about.classes.0 is 'ant', but 'cat'"),
    "class names everywhere": (
        everywhere(lambda c: c["about"]["classes"].reverse()),
        r"about.classes.0 is 'cat', but 'ant' in the data",
    ),
    "the mean": (
        everywhere(lambda c: c["about"]["mean"].reverse()),
        r"last.pt: about.mean.0 is \S+, but \S+ in the data",
    ),
    "a pixel of an image": (change_pixel, r"last.pt: about\.\S+ is \S+, but \S+ in the data"),
    "the order of two images": (swap_images, r"last.pt: about.fingerprint is \S+, but \S+ in the data"),
    "a digit of metrics.csv": (
        replace_text("metrics.csv", r"(?m)(?<=\d)(\d)$", lambda m: str(9 - int(m[1]))),
        r"metrics.csv: the row of epoch 1 has test_",
    ),
    "a row of metrics.csv": (replace_text("metrics.csv", r"\n2,.*", ""), r"metrics.csv: the row of epoch 2 is 3,"),
    "a row twice": (
        replace_text("metrics.csv", r"(\n2,.*)", r"\1\1"),
        r"metrics.csv has 4 rows, but the run has 3 epochs",
    ),
    "a digit of timing.csv": (
        replace_text("timing.csv", r"\n1,3,\d\.", "\n1,3,7."),
        r"timing/train_seconds at epoch 1 is \S+, but 7.\d+ in timing",
    ),
    "a row of timing.csv": (replace_text("timing.csv", r"\n1,.*", ""), r"timing.csv: the row of epoch 1 is 2,6"),
    "config.yaml": (
        replace_text("config.yaml", "log_every: 1", "log_every: 9"),
        r"config.yaml: log_every is 9, but 1 in last.pt",
    ),
    "environment.json": (
        replace_text("environment.json", r'"torch": "', r'"torch": "9.'),
        r"environment.json.torch is '9.",
    ),
    "the best model for another": (take("best"), r"best.pt: config.seed is 1, but 0 in last.pt"),
    "the final model as the best": (
        lambda run: shutil.copy(run / "checkpoints/model.pt", run / "checkpoints/best.pt"),
        r"best.pt: (metrics.epoch is 3|chosen_on is None)",
    ),
    "a bit of the best model": (
        edits("best", lambda c: [flip(v) for v in c["model"].values() if v.ndim == 4]),
        r"best.pt: ",
    ),
    "no best model": (lambda run: (run / "checkpoints/best.pt").unlink(), r"best.pt is missing"),
    "the final model of another run": (take("model"), r"model.pt: config.seed is 1, but 0 in last.pt"),
    "a bit of the final model": (
        edits("model", lambda c: flip(conv(c["model"]))),
        r"model.pt: model.conv1.weight\[0, 0, 0, 0\] is \S+, but \S+ in last.pt",
    ),
    "the state before of another run": (take("previous"), r"previous.pt: config.seed is 1, but 0 in last.pt"),
    "a bit of the state before": (
        edits("previous", lambda c: flip(conv(c["model"]))),
        r"last.pt.model.* is \S+, but \S+ in the replay",
    ),
    "a loss within an epoch": (
        change_point("step/loss", 1),
        r"event files: \S+ or one before was changed or removed after step",
    ),
    "a loss of an epoch": (
        change_point("epoch/loss", 2),
        r"event files: train/epoch/loss at epoch 2 is \S+, but \S+ in the checkpoint",
    ),
    "all event files": (lambda run: [path.unlink() for path in event_files(run)], r"the event files are missing"),
    "an event file of the steps": (
        lambda run: event_files(run)[0].unlink(),
        r"event files: \S+ or one before was changed",
    ),
    "an event file of a split": (
        lambda run: event_files(run)[-1].unlink(),
        r"event files: test/epoch/\S+ at epoch 3 is miss",
    ),
    "a picture": (change_picture, r"event files: \S+ is damaged or incomplete after \d+ bytes"),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_what_was_tampered_with_is_named(name: str, run: Path) -> None:
    tamper, expected = TAMPERINGS[name]
    tamper(run)
    difference = verify(run).difference
    assert difference is not None, "nothing differs"
    assert re.search(expected, difference), difference
    assert "\n" not in difference


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_that_agrees_is_identical_and_untouched(run: Path, run_cli: RunCli) -> None:
    before, num_tensors = contents_of(run), len(read_checkpoint(run / "checkpoints" / "last.pt")["model"])
    outcome = run_cli("resnet-info", run, "--verify", cwd=run.parents[1])
    assert outcome.code == 0, outcome
    found = re.match(r"(\d+) tensors identical\n", outcome.stdout)
    assert found, outcome
    assert int(found[1]) > 2 * num_tensors  # weights, averages, momentum
    assert "not checked" not in outcome.stdout
    assert contents_of(run) == before


def test_a_difference_is_one_line_and_exit_code_1(run: Path, run_cli: RunCli) -> None:
    (run / "metrics.csv").write_text("epoch\n")
    text = run_cli("resnet-info", run, "--verify", cwd=run.parents[1])
    assert (text.code, text.stdout) == (1, "")
    assert re.fullmatch(r"error: \S+x: metrics.csv: the header is epoch\n", text.stderr)
    found = run_cli("resnet-info", run, "--verify", "--json", cwd=run.parents[1])
    assert found.code == 1
    assert json.loads(found.stdout)["difference"] == "metrics.csv: the header is epoch"


def test_a_finished_run_without_states_is_checked_as_far_as_possible(run: Path) -> None:
    for name in ("last.pt", "previous.pt"):
        (run / "checkpoints" / name).unlink()
    found = verify(run)
    assert (found.difference, found.num_tensors) == (None, 0)
    assert any("the replay: last.pt and previous.pt are not here" in part for part in found.not_checked)
    edits("model", lambda c: [value.mul_(1.1) for value in c["model"].values() if value.ndim == 4])(run)
    assert "model.pt: metrics.scores" in str(verify(run).difference)


def test_a_run_in_its_first_epoch_is_replayed_from_step_0(run: Path, run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli("resnet-train", *SETTINGS, "--epochs", "1", "--name", "z", cwd=tmp_path).code == 0
    found = verify(tmp_path / "runs" / "z")
    assert found.difference is None
    assert found.num_tensors > 0
    edits("last", lambda c: flip(conv(c["model"])))(tmp_path / "runs" / "z")
    assert "last.pt.model" in str(verify(tmp_path / "runs" / "z").difference)


def test_a_long_run_without_the_state_before_is_not_replayed(run: Path) -> None:
    (run / "checkpoints" / "previous.pt").unlink()
    edits("last", lambda c: c.update(epoch_seconds=601.0))(run)
    found = verify(run)
    assert (found.difference, found.num_tensors) == (None, 0)
    assert any(part.startswith("the replay: previous.pt is missing") for part in found.not_checked)


def test_an_extended_run_is_not_replayed_from_step_0(run: Path) -> None:
    (run / "checkpoints" / "previous.pt").unlink()
    found = verify(run)
    assert (found.difference, found.num_tensors) == (None, 0)
    assert any("the schedule was different before" in part for part in found.not_checked)


def test_what_cannot_be_replayed_here_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere(lambda c: c["environment"].update(device="cuda", device_name="GPU"))(run)
    (run / "environment.json").write_text(json.dumps(read_checkpoint(run / "checkpoints" / "last.pt")["environment"]))
    found = verify(run)
    assert found.difference is None
    assert any("the run was trained on GPU, but this is cpu" in part for part in found.not_checked)


def test_other_versions_make_the_bits_incomparable(run: Path) -> None:
    edit = edits("last", lambda c: (c["environment"].update(torch="2.0"), flip(buffer_of(c))))
    edit(run)
    (run / "environment.json").write_text(json.dumps(read_checkpoint(run / "checkpoints" / "last.pt")["environment"]))
    found = verify(run)
    assert (found.difference, found.num_tensors) == (None, 0)
    assert any("torch was 2.0 and is" in part and "momentum_buffer" in part for part in found.not_checked)


def test_missing_data_is_said(run: Path) -> None:
    shutil.rmtree(run.parents[1] / "data")
    found = verify(run)
    assert found.difference is None
    assert any(part.startswith("the data, the best model's scores and the replay: ") for part in found.not_checked)


@pytest.mark.parametrize("path", [".", "notes.txt", "nowhere", "x" * 300])
def test_a_path_that_is_no_run_is_bad_input(path: str, run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert "is not the folder of a run with" in run_cli("resnet-info", path, "--verify", cwd=tmp_path).error
