"""resnet-train from end to end: invalid input, new runs, resumed runs, and what they print and write."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import shutil
import signal
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image

from resnet_train.cli.app import describe_error, log_to_stderr
from resnet_train.config import make_config
from resnet_train.data.dataset import load_dataset
from resnet_train.data.sources import cifar
from resnet_train.evaluation.metrics import confidence_interval
from resnet_train.jobs import measure
from resnet_train.jobs import train as jobs_train
from resnet_train.jobs.train import train
from resnet_train.models import list_models
from resnet_train.recipes import read_yaml
from resnet_train.runs.checkpoint import read_checkpoint, write_checkpoint
from resnet_train.runs.folder import RunFolder
from resnet_train.training.signals import Interrupted
from resnet_train.training.trainer import NotFinite, Trainer
from tests.harness.cli import ON_DIGITS, SMALL, Outcome, RunCli, epochs_shown

QUICK = [*SMALL, "--no-tensorboard"]
DEFAULT_NAME = "resnet8-digits-image-size8-train-size64-epochs2-batch-size32-amp-off"
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files_below(folder: Path) -> set[str]:
    """Return the relative paths of all files in a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- Invalid input ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with files and folders that are not valid input."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "runs" / "taken").mkdir(parents=True)
    (folder / "a-folder").mkdir()
    (folder / "file").write_text("")
    (folder / "unknown-key.yaml").write_text("leraning_rate: 0.1\n")
    (folder / "list.yaml").write_text("- lr: 0.1\n")
    (folder / "garbage.yaml").write_text("lr: [0.1\nepochs: }\n")
    (folder / "control.yaml").write_text("lr: \x07\n")
    (folder / "tag.yaml").write_text("lr: !!timestamp today\n")
    (folder / "binary.yaml").write_bytes(b"\x89PNG\r\n")
    (folder / "boolean.yaml").write_text("seed: true\n")
    torch.save({"model": {}}, folder / "foreign.pt")
    for split in ("train", "test"):
        (folder / "one-class" / split / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "one-class" / split / "cat" / "1.png")
        load_dataset("folder", split, folder / "one-class", 8)  # builds the cache before a command could
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "resnt18"], r"unknown architecture 'resnt18'; did you mean 'resnet18'\?"),
        (["--arch", "resnet19"], "unknown architecture 'resnet19'.* resnet14 and resnet20"),
        (["--arch", "resnet2"], "unknown architecture 'resnet2'.* resnet8 and resnet14"),
        (["--arch", ""], "unknown architecture ''"),
        (["--arch", "resnet18", "--shortcut", "projection"], "resnet18 has no option 'shortcut'"),
        (["--arch", "resnet18", "--stem", "imagenet", "--image-size", "31"], r"image_size \(=31\) .* at least 32"),
        (["--arch", "resnet18", "--shortcut", "pad"], r"resnet18 has no option 'shortcut'; its options: .*stem"),
        (["--arch", "resnet20", "--stem", "cifar"], r"resnet20 has no option 'stem'; its options: shortcut"),
        (["--arch", "resnet9", "--drop-path", "0"], r"resnet9 has no option 'drop_path'; its options: none"),
        (["--arch", "preact_resnet18", "--no-zero-init-residual"], "has no option 'zero_init_residual'"),
        (
            ["--arch", "resnet18", "--batch-size", "1"],
            r"batch_size \(=1\) must be more than accumulate \(=1\) .* 8 pixels",
        ),
        (["--arch", "resnet18", "--batch-size", "4", "--accumulate", "4"], r"more than accumulate \(=4\)"),
        (["--optimizer", "adamw", "--nesterov"], r"nesterov \(=true\) has no effect with optimizer adamw; .* sgd$"),
        (["--optimizer", "muon", "--nesterov"], r"nesterov \(=true\) has no effect with optimizer muon; .* sgd$"),
        (["--optimizer", "adamw", "--momentum", "0.8"], r"momentum \(=0.8\) has no effect with .* sgd, muon\b"),
        (["--milestones", "2"], r"milestones \(=2\) has no effect with schedule cosine; .* multi-step, step$"),
        (["--gamma", "0.2", "--schedule", "constant"], r"gamma \(=0.2\) has no effect with schedule constant"),
        (["--schedule", "step", "--milestones", "1,2"], r"milestones \(=1,2\) must be a single period .*multi-step"),
        (
            ["--crop-padding", "0", "--padding-mode", "reflect"],
            r"padding_mode \(=reflect\) has no effect with crop_padding 0; it is used by --crop-padding$",
        ),
        (["--no-decay-norm-bias", "--weight-decay", "0"], "no_decay_norm_bias .* has no effect with weight_decay 0"),
        (["--dataset", "cifar"], r"unknown data set 'cifar'; did you mean 'cifar10'\?"),
        (["--optimizer", "sdg"], r"unknown optimizer 'sdg'; did you mean 'sgd'\?"),
        (["--schedule", "cosin"], r"unknown schedule 'cosin'; did you mean 'cosine'\?"),
        (["--config", "resnet2O"], r"config 'resnet2O' is neither a recipe nor a readable file; did you mean"),
        (["--config", "missing.yaml"], "config 'missing.yaml' is neither a recipe nor a readable file"),
        (["--config", "a-folder"], "config 'a-folder' is neither a recipe nor a readable file"),
        (["--config", "x" * 300], "is neither a recipe nor a readable file"),
        (["--config", "unknown-key.yaml"], r"unknown setting 'leraning_rate' in .*unknown-key\.yaml"),
        (["--config", "list.yaml"], r"list\.yaml must be a mapping of settings .* not a list"),
        (["--config", "garbage.yaml"], r"garbage\.yaml, line \d+ is not valid YAML"),
        (["--config", "control.yaml"], r"control\.yaml is not valid YAML"),
        (["--config", "tag.yaml"], r"tag\.yaml.* is not valid YAML"),
        (["--config", "binary.yaml"], r"binary\.yaml, line 1 is not UTF-8 text"),
        (["--config", "boolean.yaml"], r"seed \(=true\) must not be true or false in .*boolean\.yaml"),
        (["--epochs", "0"], r"epochs \(='0'\) must be greater than or equal to 1"),
        (["--epochs", "1.5"], r"epochs \(='1\.5'\) must be a whole number"),
        (["--name", ""], r"name \(=''\) must have at least 1 character"),
        (["--epochs", ""], r"epochs \(=''\) must be a whole number"),
        (["--lr", "nan"], r"lr \(='nan'\) must be a finite number"),
        (["--lr", "inf"], r"lr \(='inf'\) must be a finite number"),
        (["--lr", "fast"], r"lr \(='fast'\) must be a number"),
        (["--batch-size", "-1"], r"batch_size \(='-1'\) must be greater than or equal to 1"),
        (["--image-size", "4"], r"image_size \(='4'\) must be greater than or equal to 8"),
        (["--seed", "-1"], r"seed \(='-1'\)"),
        (["--name", "a/b"], r"name \(='a/b'\) must be a plain folder name"),
        (["--name", "ö" * 101], "must be at most 200 bytes long"),
        (["--name", "a\x1b[2Jb"], r"name \(=.*must be a plain folder name"),
        (["--config", "a\x1b[2Jb"], r"config .* is neither a recipe nor a readable file"),
        (["--data-dir", "a\x1b[2J\x9bb", "--dataset", "folder"], "is not a folder"),
        (["--resume", "a\x1b[2Jb"], r"cannot read a\\x1b\[2Jb"),
        (["--name", "x" * 200, "--output-dir", "file"], "cannot create the run folder"),
        (["--milestones", "150,100"], r"milestones \(="),
        (["--momentum", "0", "--nesterov"], "momentum .* must be greater than 0 with nesterov"),
        (["--resume", "missing"], "cannot read missing: No such file or directory"),
        (["--resume", "garbage.yaml"], r"garbage\.yaml is damaged or not a checkpoint"),
        (["--resume", "foreign.pt"], r"foreign\.pt is not a checkpoint of resnet_train"),
        (
            ["--resume", "a-folder"],
            "a-folder has no checkpoint to resume from; start it with its settings and --resume auto",
        ),
        (["--resume", ""], "has no checkpoint to resume from; start it with its settings"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--device", ""], "unknown device ''"),
        (["--device", "meta"], "unknown device 'meta'"),
        pytest.param(["--device", "cuda"], "device 'cuda' asked for, but .* sees no CUDA GPU", marks=without_cuda),
        pytest.param(["--device", "cuda:7"], "device 'cuda:7' asked for, but", marks=without_cuda),
        (["--name", "taken"], "run .*taken already exists; choose another --name, or continue it with --resume"),
        (["--val-size", "1437"], r"val_size \(=1437\) must be less than the number of training images \(=1437\)"),
        (["--train-size", "1438"], r"train_size \(=1438\) must be at most the 1437 training images"),
        (["--val-size", "37", "--train-size", "1401"], r"train_size \(=1401\) must be at most the 1400 .* val_size"),
        (["--batch-size", "1438"], r"batch_size \(=1438\) must be at most the number of training images \(=1437\)"),
        (["--train-size", "64"], r"batch_size \(=128\) must be at most the number of training images \(=64\)"),
        (["--dataset", "folder", "--data-dir", "nowhere"], "data_dir 'nowhere' is not a folder"),
        (["--dataset", "folder", "--data-dir", "file"], "data_dir 'file' is not a folder"),
        (["--dataset", "folder", "--data-dir", "a-folder"], "a-folder holds no images in folders named after classes"),
        (
            ["--dataset", "folder", "--data-dir", "one-class"],
            "one-class has only one class \\('cat'\\); there is nothing",
        ),
        (["--dataset", "cifar10", "--image-size", "8"], r"image_size \(=8\) must be 32 for CIFAR-10"),
    ],
)
def test_invalid_input_gives_one_line_and_leaves_nothing(
    arguments: list[str], message: str, run_cli: RunCli, inputs: Path
) -> None:
    before = sorted(inputs.rglob("*"))
    outcome = run_cli("resnet-train", *ON_DIGITS, "--no-tensorboard", *arguments, cwd=inputs)
    assert re.search(message, outcome.error)
    assert outcome.error.isprintable()
    assert outcome.stdout == ""
    assert sorted(inputs.rglob("*")) == before


def test_debug_shows_the_traceback(run_cli_process: RunCli, tmp_path: Path) -> None:
    outcome = run_cli_process("resnet-train", "--lr", "nan", "--debug", cwd=tmp_path)
    assert outcome.code == 1
    assert outcome.stderr.startswith("Traceback (most recent call last):")
    assert outcome.stderr.splitlines()[-1] == "ValueError: lr (='nan') must be a finite number"


def test_unexpected_error_is_one_line_with_its_type(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(jobs_train, "train", fail)
    outcome = run_cli("resnet-train", cwd=tmp_path)
    assert outcome == (1, "", "error: 'surprise' (KeyError; --debug shows the traceback)\n")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("lr (=0)"), ("error: lr (=0)", 2)),
        (OSError("no space\nleft"), ("error: no space left", 1)),
        (OSError(28, "No space left on device"), ("error: No space left on device", 1)),
        (PermissionError(13, "Permission denied", "runs/a"), ("error: runs/a: Permission denied", 1)),
        (NotFinite("at step 3"), ("error: at step 3", 3)),
        (Interrupted(signal.SIGINT, "saved"), ("stopped: saved", 130)),
        (Interrupted(signal.SIGTERM, "saved"), ("stopped: saved", 143)),
        (RuntimeError(), ("error: RuntimeError (RuntimeError; --debug shows the traceback)", 1)),
    ],
)
def test_exception_has_its_line_and_its_exit_code(error: Exception, expected: tuple[str, int]) -> None:
    assert describe_error(error) == expected


def test_diverging_run_exits_3_and_saves_nothing(run_cli: RunCli, tmp_path: Path) -> None:
    arguments = [*ON_DIGITS, "--no-tensorboard", "--lr", "1e5", "--epochs", "1", "--name", "x"]
    outcome = run_cli("resnet-train", *arguments, cwd=tmp_path)
    assert outcome.code == 3, outcome
    assert re.match(
        r"error: .* not finite at step \d+.*; start a new run with a smaller --lr", outcome.stderr.splitlines()[-1]
    )
    assert list((tmp_path / "runs" / "x" / "checkpoints").iterdir()) == []
    assert rows_of(tmp_path / "runs" / "x" / "metrics.csv") == []
    assert "Traceback" not in outcome.stderr
    last = (tmp_path / "runs" / "x" / "train.log").read_text().splitlines()[-1]
    assert " ERROR NotFinite: " in last


def test_infinite_test_loss_fails_after_the_last_epoch(run_cli: RunCli, tmp_path: Path) -> None:
    """After 2 steps at this learning rate, weights and statistics are finite, but the test logits overflow."""
    outcome = run_cli("resnet-train", *QUICK, "--lr", "1e5", "--epochs", "1", "--name", "x", cwd=tmp_path)
    assert outcome.code == 3, outcome
    assert outcome.stderr.splitlines()[-1].startswith("error: the test loss after epoch 1 is not finite; start a new")
    assert not (tmp_path / "runs" / "x" / "checkpoints" / "model.pt").exists()
    longer = run_cli("resnet-train", *QUICK, "--lr", "1e5", "--epochs", "2", "--name", "y", cwd=tmp_path)
    assert longer.code == 3, longer
    assert "warning: the test loss after epoch 1 is not finite" in longer.stderr.splitlines()


def test_every_family_accepts_the_default_settings(run_cli: RunCli, tmp_path: Path) -> None:
    smallest = {entry.family: entry.name for entry in reversed(list_models())}
    for arch in smallest.values():
        outcome = run_cli("resnet-train", "--arch", arch, "--print-config", cwd=tmp_path)
        assert outcome.code == 0, outcome
        assert "stem: null" in outcome.stdout.splitlines()
        assert "shortcut: null" in outcome.stdout.splitlines()


# --- New runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three_runs(run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """Return the folder of three runs without names, two of them with the same seed, and their outcomes."""
    cwd = tmp_path_factory.mktemp("three")
    outcomes = [run_cli("resnet-train", *QUICK, "--seed", seed, "--json", cwd=cwd) for seed in (0, 0)]
    outcomes.append(run_cli("resnet-train", *QUICK, "--seed", 1, cwd=cwd))
    assert [outcome.code for outcome in outcomes] == [0, 0, 0]
    return cwd / "runs", outcomes


def test_files_of_a_run_with_validation(trained: tuple[Path, Outcome]) -> None:
    files = files_below(trained[0]) - {".lock"}
    events = {file for file in files if file.rpartition("/")[2].startswith("events.out.tfevents.")}
    assert events
    assert files - events == {
        "config.yaml",
        "metrics.csv",
        "timing.csv",
        "train.log",
        "environment.json",
        "checkpoints/last.pt",
        "checkpoints/previous.pt",
        "checkpoints/model.pt",
        "checkpoints/best.pt",
    }


def test_best_model_selected_on_test_is_named_so(three_runs: tuple[Path, list[Outcome]]) -> None:
    runs, outcomes = three_runs
    files = files_below(runs / f"{DEFAULT_NAME}-seed1")
    assert "checkpoints/best-on-test.pt" in files
    assert "checkpoints/best.pt" not in files
    assert not [file for file in files if "tfevents" in file]
    pattern = r"^best epoch [12] +\S+ %   \(selected on the test images: do not report it\)$"
    assert re.search(pattern, outcomes[-1].stdout, re.MULTILINE)


def test_first_line_is_the_final_test_accuracy(trained: tuple[Path, Outcome]) -> None:
    folder, outcome = trained
    last = rows_of(folder / "metrics.csv")[-1]
    first, second, third = outcome.stdout.splitlines()
    accuracy = float(last["test_accuracy"])
    low, high = confidence_interval(round(360 * accuracy), 360)
    interval = f"95 % interval {100 * low:.2f} to {100 * high:.2f}, n 360"
    assert first == f"final test accuracy  {100 * accuracy:.2f} %   ({interval})"
    best = max(rows_of(folder / "metrics.csv"), key=lambda row: float(row["val_accuracy"]))
    assert second.startswith(f"best epoch {best['epoch']} ")
    chosen = f"{100 * float(best['val_accuracy']):.2f} %   (validation, which selected it; test "
    assert second.endswith(f"{chosen}{100 * float(best['test_accuracy']):.2f} %)")
    assert re.fullmatch(r"took \d+ s +runs/run", third)


def test_csv_files_have_one_row_per_epoch(trained: tuple[Path, Outcome]) -> None:
    metrics, timing = rows_of(trained[0] / "metrics.csv"), rows_of(trained[0] / "timing.csv")
    assert [row["epoch"] for row in metrics] == [row["epoch"] for row in timing] == ["1", "2"]
    assert [row["step"] for row in metrics] == ["2", "4"]
    for row in metrics:
        assert all(row.values())
        assert all(0 <= float(row[name]) <= 1 for name in row if name.endswith("accuracy"))


def test_config_and_environment_files_can_be_read(trained: tuple[Path, Outcome]) -> None:
    config = make_config(read_yaml(trained[0] / "config.yaml"))
    assert (config.arch, config.dataset, config.val_size, config.name) == ("resnet8", "digits", 60, "run")
    environment = json.loads((trained[0] / "environment.json").read_text())
    assert environment["torch"] == torch.__version__.split("+")[0] or environment["torch"] == torch.__version__
    assert environment["device"] == "cpu"


def test_checkpoints_hold_their_epoch(trained: tuple[Path, Outcome]) -> None:
    folder = trained[0] / "checkpoints"
    assert read_checkpoint(folder / "last.pt")["epoch"] == 2
    assert read_checkpoint(folder / "previous.pt")["epoch"] == 1
    metrics = {row["epoch"]: row for row in rows_of(trained[0] / "metrics.csv")}
    assert read_checkpoint(folder / "model.pt")["metrics"]["scores"]["test"]["accuracy"] == float(
        metrics["2"]["test_accuracy"]
    )
    best = max(metrics.values(), key=lambda row: float(row["val_accuracy"]))
    assert read_checkpoint(folder / "best.pt")["metrics"]["epoch"] == int(best["epoch"])


def test_log_file_has_the_lines_of_stderr(trained: tuple[Path, Outcome]) -> None:
    logged = [line.split(" INFO ", 1)[1] for line in (trained[0] / "train.log").read_text().splitlines()]
    assert logged == trained[1].stderr.splitlines()


def test_stderr_off_a_terminal_has_one_plain_line_per_epoch(trained: tuple[Path, Outcome]) -> None:
    stderr = trained[1].stderr
    assert "\r" not in stderr
    assert "\x1b" not in stderr
    assert epochs_shown(stderr) == ["1/2", "2/2"]
    assert len(stderr.splitlines()) == 4 + 1 + 2
    assert max(map(len, stderr.splitlines())) <= 79


def test_json_is_the_whole_result(three_runs: tuple[Path, list[Outcome]]) -> None:
    runs, outcomes = three_runs
    result = json.loads(outcomes[1].stdout)
    assert {key: result[key] for key in ("arch", "seed", "epochs", "folder", "best_split")} == {
        "arch": "resnet8",
        "seed": 0,
        "epochs": 2,
        "folder": f"runs/{DEFAULT_NAME}-seed0-2",
        "best_split": "test",
    }
    last = rows_of(runs / f"{DEFAULT_NAME}-seed0-2" / "metrics.csv")[-1]
    assert result["final"]["scores"]["test"]["accuracy"] == float(last["test_accuracy"])


def test_same_seed_gives_the_same_metrics_and_a_numbered_name(three_runs: tuple[Path, list[Outcome]]) -> None:
    folders = sorted(three_runs[0].iterdir())
    assert [path.name for path in folders] == [
        f"{DEFAULT_NAME}-seed0",
        f"{DEFAULT_NAME}-seed0-2",
        f"{DEFAULT_NAME}-seed1",
    ]
    first, second, other = ((path / "metrics.csv").read_bytes() for path in folders)
    assert first == second
    assert first != other


def test_epochs_without_evaluation_have_empty_cells(run_cli: RunCli, tmp_path: Path) -> None:
    arguments = [*QUICK, "--epochs", 3, "--eval-every", 2, "--save-every", 3, "--name", "x"]
    assert run_cli("resnet-train", *arguments, cwd=tmp_path).code == 0
    rows = rows_of(tmp_path / "runs" / "x" / "metrics.csv")
    assert [row["test_accuracy"] != "" for row in rows] == [False, True, True]
    assert not (tmp_path / "runs" / "x" / "checkpoints" / "previous.pt").exists()


def test_a_dry_run_estimates_and_leaves_nothing_behind(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    outcome = run_cli("resnet-train", *SMALL, "--dry-run", cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout.startswith("resnet8 (75,290 parameters) on digits, not CIFAR-10, cpu (")
    assert re.search(r"^whole run   about \d+ s$", outcome.stdout, re.MULTILINE)
    assert re.search(r"^memory      [\d,]+ MiB at its peak$", outcome.stdout, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_without_the_data_uses_random_images(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "_fetch", lambda *_: pytest.fail("it downloads"))
    arguments = ["--arch", "resnet8", "--train-size", 500, "--batch-size", 10, "--device", "cpu", "--dry-run"]
    outcome = run_cli("resnet-train", *arguments, cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert "resnet8 (75,290 parameters) on random images (data does not hold CIFAR-10), cpu" in outcome.stdout


def test_a_failed_download_names_three_ways_out(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cifar.MIRRORS, "cifar-10-python.tar.gz", ("http://127.0.0.1:1/a",))
    monkeypatch.delenv(cifar.MIRROR_VARIABLE, raising=False)
    outcome = run_cli("resnet-train", "--arch", "resnet8", cwd=tmp_path)
    assert outcome.code == 1
    what, failed, by_hand, mirror, without = outcome.stderr.splitlines()[-5:]
    assert what == "error: cannot download cifar-10-python.tar.gz"
    assert failed.startswith("  failed    http://127.0.0.1:1/a: ")
    assert by_hand.startswith("  by hand   put the file (MD5 c58f30108f718f92721af3b95e74349a) into data/")
    assert cifar.MIRROR_VARIABLE in mirror
    assert "--dry-run" in without


def test_a_dry_run_as_json_has_the_numbers(run_cli: RunCli, tmp_path: Path) -> None:
    estimate = json.loads(run_cli("resnet-train", *SMALL, "--dry-run", "--json", cwd=tmp_path).stdout)
    assert estimate["params"] == 75_290
    for name in ("step_seconds", "images_per_second", "eval_images_per_second", "total_seconds", "checkpoint_bytes"):
        assert estimate[name] > 0


def test_run_cli_restores_the_log_handlers(run_cli: RunCli, tmp_path: Path) -> None:
    before = list(logging.getLogger("resnet_train").handlers)
    run_cli("resnet-train", "--print-config", cwd=tmp_path)
    assert logging.getLogger("resnet_train").handlers == before


# --- Resumed runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_epoch_run(run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of one epoch. Read only."""
    cwd = tmp_path_factory.mktemp("one-epoch")
    assert run_cli("resnet-train", *QUICK, "--epochs", 1, "--name", "same", cwd=cwd).code == 0
    return cwd / "runs" / "same"


@pytest.fixture
def one_epoch(one_epoch_run: Path, tmp_path: Path) -> Path:
    """Return a copy of that folder: <tmp_path>/runs/same."""
    return shutil.copytree(one_epoch_run, tmp_path / "runs" / "same")


def test_resume_auto_starts_a_run_if_there_is_none(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", *QUICK, "--resume", "auto", cwd=tmp_path)
    assert outcome.code == 0
    assert f"runs/{DEFAULT_NAME}-seed0" in outcome.stderr
    assert "resuming" not in outcome.stderr


def test_resume_continues_a_run_with_more_epochs(one_epoch: Path, run_cli: RunCli, tmp_path: Path) -> None:
    before = (one_epoch / "metrics.csv").read_text()
    outcome = run_cli("resnet-train", "--resume", "runs/same", "--epochs", 2, cwd=tmp_path)
    assert outcome.code == 0, outcome
    warning, first, *_ = outcome.stderr.splitlines()
    assert warning == "warning: epochs was 1 and is now 2: the lr schedule is stretched over all of them"
    assert first.startswith("resuming runs/same: ")
    assert epochs_shown(outcome.stderr) == ["2/2"]
    assert (one_epoch / "metrics.csv").read_text().startswith(before)
    assert [row["epoch"] for row in rows_of(one_epoch / "metrics.csv")] == ["1", "2"]
    assert [row["epoch"] for row in rows_of(one_epoch / "timing.csv")] == ["1", "2"]
    assert make_config(read_yaml(one_epoch / "config.yaml")).epochs == 2
    assert read_checkpoint(one_epoch / "checkpoints" / "model.pt")["metrics"]["epoch"] == 2


@pytest.mark.parametrize("epoch", [0, 1])
def test_failed_run_resumes_to_the_same_metrics(
    epoch: int, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate_or_fail(trainer: Trainer, number: int) -> object:
        if number == epoch:
            raise OSError("the power is out")
        return evaluate(trainer, number)

    evaluate = Trainer.evaluate
    assert run_cli("resnet-train", *QUICK, "--name", "whole", cwd=tmp_path).code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", evaluate_or_fail)
        stopped = run_cli("resnet-train", *QUICK, "--name", "cut", cwd=tmp_path)
    assert (stopped.code, stopped.stderr.splitlines()[-1]) == (1, "error: the power is out")
    outcome = run_cli("resnet-train", *QUICK, "--name", "cut", "--resume", "auto", cwd=tmp_path)
    assert outcome.code == 0, outcome
    whole, cut = tmp_path / "runs" / "whole", tmp_path / "runs" / "cut"
    assert (cut / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.mark.parametrize("target", ["runs/same", "runs/same/checkpoints/last.pt", "auto"])
def test_finished_run_has_nothing_to_do(target: str, one_epoch: Path, run_cli: RunCli, tmp_path: Path) -> None:
    files = {path: path.read_bytes() for path in one_epoch.rglob("*") if path.is_file()}
    arguments = [*QUICK, "--epochs", 1, *(["--name", "same"] if target == "auto" else []), "--resume", target]
    outcome = run_cli("resnet-train", *arguments, cwd=tmp_path)
    assert outcome.code == 0
    assert outcome.stderr.rstrip().endswith("same is finished; nothing to do (a larger --epochs extends it)")
    assert outcome.stdout.startswith("final test accuracy  ")
    assert {path: path.read_bytes() for path in one_epoch.rglob("*") if path.is_file()} == files


def test_run_resumes_from_its_folder_alone(one_epoch: Path, run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", "--resume", one_epoch, "--epochs", 2, cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert len(rows_of(one_epoch / "metrics.csv")) == 2


def test_changed_setting_is_an_error_with_both_values(one_epoch: Path, run_cli: RunCli, tmp_path: Path) -> None:
    before = (one_epoch / "config.yaml").read_text()
    error = run_cli("resnet-train", "--resume", one_epoch, "--epochs", 2, "--lr", 0.2, cwd=tmp_path).error
    assert error.startswith("error: lr (=0.2) cannot change when a run is resumed (it was 0.1);")
    assert (one_epoch / "config.yaml").read_text() == before


def test_fewer_epochs_are_an_error_on_resume(three_runs: tuple[Path, list[Outcome]], run_cli: RunCli) -> None:
    folder = three_runs[0] / f"{DEFAULT_NAME}-seed0"
    error = run_cli("resnet-train", "--resume", folder, "--epochs", 1, cwd=folder).error
    assert error == "error: epochs (=1) must not be less than at the start of the run (=2)"


def test_model_file_cannot_be_resumed(one_epoch: Path, run_cli: RunCli, tmp_path: Path) -> None:
    error = run_cli("resnet-train", "--resume", one_epoch / "checkpoints" / "model.pt", cwd=tmp_path).error
    assert "holds a model but not the state of a run" in error


def test_state_outside_a_run_folder_cannot_be_resumed(one_epoch: Path, run_cli: RunCli, tmp_path: Path) -> None:
    (one_epoch / "checkpoints" / "last.pt").rename(tmp_path / "lost.pt")
    assert "is not inside a run folder" in run_cli("resnet-train", "--resume", "lost.pt", cwd=tmp_path).error


def test_damaged_state_falls_back_to_the_previous_one(run_cli: RunCli, tmp_path: Path) -> None:
    arguments = [*QUICK, "--name", "same"]
    assert run_cli("resnet-train", *arguments, cwd=tmp_path).code == 0
    folder = tmp_path / "runs" / "same"
    metrics = (folder / "metrics.csv").read_bytes()
    last = folder / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    outcome = run_cli("resnet-train", *arguments, "--resume", "auto", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert re.match(r"warning: .*last\.pt is damaged .*; falling back to .*previous\.pt\n", outcome.stderr)
    assert (folder / "metrics.csv").read_bytes() == metrics


def test_run_locked_by_another_writer_cannot_be_resumed(one_epoch: Path, run_cli: RunCli, tmp_path: Path) -> None:
    other = RunFolder(one_epoch)
    other.lock()
    try:
        error = run_cli("resnet-train", "--resume", one_epoch, "--epochs", 2, cwd=tmp_path).error
    finally:
        other.unlock()
    assert "same is being written by process " in error


def test_resume_warns_of_another_thread_count(one_epoch: Path, run_cli: RunCli, tmp_path: Path) -> None:
    last = one_epoch / "checkpoints" / "last.pt"
    contents = read_checkpoint(last)
    contents["environment"]["threads"] = 99
    write_checkpoint(last, contents)
    outcome = run_cli("resnet-train", "--resume", one_epoch, "--epochs", 2, "--threads", 1, cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert "warning: " in outcome.stderr
    assert "the result may differ in its last bits" in outcome.stderr


# --- Lost terminals --------------------------------------------------------------------------------------------------


class Gone(io.StringIO):
    """A stream whose reader has quit."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stderr", [Gone(), None])
def test_training_continues_if_nobody_reads_stderr(
    stderr: io.StringIO | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = logging.getLogger("resnet_train")
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setattr(package, "handlers", [])
    monkeypatch.setattr(package, "propagate", False)
    monkeypatch.setattr(package, "level", package.level)
    log_to_stderr()
    values = {"dataset": "digits", "arch": "resnet8", "image_size": 8, "batch_size": 32, "device": "cpu", "amp": "off"}
    config = make_config(
        {**values, "epochs": 2, "train_size": 64, "tensorboard": False, "output_dir": tmp_path, "name": "x"}
    )
    result = train(config)
    assert result.final.epoch == 2
    lines = (tmp_path / "x" / "train.log").read_text().splitlines()
    assert epochs_shown("\n".join(line.split(" INFO ")[1] for line in lines)) == ["1/2", "2/2"]


def test_command_without_stdout_and_stderr_trains(run_cli: RunCli, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("contextlib.redirect_stdout", lambda _: redirect_stdout(None))
        patch.setattr("contextlib.redirect_stderr", lambda _: redirect_stderr(None))
        outcome = run_cli("resnet-train", *QUICK, "--epochs", 1, "--name", "x", cwd=tmp_path)
    assert outcome == (0, "", "")
    assert (tmp_path / "runs" / "x" / "checkpoints" / "model.pt").exists()


def test_name_of_200_bytes_can_be_a_folder(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", *QUICK, "--epochs", 1, "--name", "ö" * 100, cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert (tmp_path / "runs" / ("ö" * 100) / "metrics.csv").exists()


def test_compile_without_a_compiler_is_one_line(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    error = run_cli("resnet-train", *SMALL, "--compile", cwd=tmp_path).error
    assert error.startswith("error: compile (=true) needs a C++ compiler, which is not here")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("arch", "way_out"), [("resnet18", "--config resnet20-10min"), ("resnet8", "fewer --epochs")])
def test_a_long_run_on_a_cpu_says_so_before_it_starts(
    arch: str, way_out: str, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "matrix_rate", lambda device, precision: 1e9)
    monkeypatch.setattr(Trainer, "fit", lambda trainer: (_ for _ in ()).throw(OSError("the power is out")))
    arguments = ["--dataset", "digits", "--arch", arch, "--device", "cpu", "--epochs", 1000, "--no-tensorboard"]
    outcome = run_cli("resnet-train", *arguments, cwd=tmp_path)
    assert re.match(rf"warning: about \d+ (days|h).* on this CPU; try {way_out}\n", outcome.stderr), outcome


def test_a_short_run_on_a_cpu_starts_without_a_warning(trained: tuple[Path, Outcome]) -> None:
    assert "on this CPU" not in trained[1].stderr
