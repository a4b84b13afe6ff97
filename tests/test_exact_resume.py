"""A run that is stopped and resumed in new processes is bit-identical to an uninterrupted one."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from resnet_train.runs.checkpoint import read_checkpoint
from tests.harness.cli import ON_DIGITS
from tests.harness.processes import (
    KILLED,
    Ended,
    Stop,
    assert_same_result,
    needs_fork,
    result_of,
    run_forked,
    run_fresh,
)

EPOCHS, STEPS_PER_EPOCH = 3, 4
LAST_STEP = EPOCHS * STEPS_PER_EPOCH
TINY = [*ON_DIGITS, "--train-size", "64", "--batch-size", "16", "--epochs", str(EPOCHS), "--threads", "1",
        "--no-tensorboard", "--amp", "off"]  # fmt: skip
WIDE = ["--arch", "resnet18", "--drop-path", "0.5"]
EVERYTHING = ["--ema-decay", "0.9", "--mixup", "0.4", "--cutmix", "1", "--accumulate", "2", "--optimizer", "muon",
              "--lr", "0.01", "--trivial-augment", "--random-erasing", "0.5", "--flip", "alternating",
              "--clip-grad", "0.5", "--label-smoothing", "0.1", "--val-size", "50"]  # fmt: skip

SETTINGS = {
    "sgd": [],
    "averaged weights": ["--ema-decay", "0.9"],
    "mixup": ["--mixup", "0.4"],
    "drop path": WIDE,
    "accumulation": ["--accumulate", "4"],
    "bf16": ["--amp", "bf16"],
    "adamw": ["--optimizer", "adamw", "--lr", "0.003"],
    "muon": ["--optimizer", "muon", "--lr", "0.003"],
    "progressive sizes": ["--image-size", "16", "--progressive-sizes", "8:0.5"],
    "everything": EVERYTHING,
}
STOPS = {
    "in the middle of an epoch": Stop("step", 6, "SIGINT"),
    "at the end of an epoch": Stop("step", STEPS_PER_EPOCH, "SIGTERM"),
    "after the last step": Stop("step", LAST_STEP, "SIGTERM"),
    "in the last evaluation": Stop("evaluation", EPOCHS, "SIGINT"),
    "killed in the middle of an epoch": Stop("step", 6),
    "killed between two epochs": Stop("saved", 2),
    "killed after the last step": Stop("step", LAST_STEP),
    "killed in the last evaluation": Stop("evaluation", EPOCHS),
    "killed before the last save": Stop("record", EPOCHS),
    "killed between the last save and model.pt": Stop("final", 0),
}
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": KILLED}


def has_cpp_compiler() -> bool:
    """Return whether torch.compile works on this CPU."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def check_exact_resume(settings: list[str], stop: Stop, *, cwd: Path, forked: bool = False, **environment: str) -> None:
    """Train a run without a stop (unless done here before) and one with a stop, and compare their files."""
    run = run_forked if forked else partial(run_fresh, **environment)
    arguments = [*TINY, *settings]
    whole, stopped = (cwd / "runs" / name for name in ("whole", "stopped"))
    if not whole.exists():
        ended = run(*arguments, "--name", "whole", cwd=cwd)
        assert ended.code == 0, ended
    shutil.rmtree(stopped, ignore_errors=True)
    interrupted = run(*arguments, "--name", "stopped", cwd=cwd, stop=stop)
    assert interrupted.code == CODES[stop.by], interrupted
    assert_stands_where_it_was_stopped(stopped, stop, interrupted)
    resumed = run(*arguments, "--name", "stopped", "--resume", "auto", cwd=cwd)
    assert resumed.code == 0, resumed
    assert_same_result(stopped, whole)


def assert_stands_where_it_was_stopped(folder: Path, stop: Stop, ended: Ended) -> None:
    """Assert that the run was stopped at the right place, not at its end."""
    assert not (folder / "checkpoints" / "model.pt").exists(), ended
    state = read_checkpoint(folder / "checkpoints" / "last.pt")
    done = stop.number if stop.at == "step" else stop.number * STEPS_PER_EPOCH
    if stop.by == "SIGKILL" and stop.at in {"step", "evaluation", "record"}:
        done = (done - 1) // STEPS_PER_EPOCH * STEPS_PER_EPOCH  # of the last save, which was at an epoch's end
    if stop.at == "final":
        done = LAST_STEP
    assert state["step"] == done, ended
    # Stopped in an epoch, or after its last step but before it was recorded, that epoch is not finished.
    saved_at_an_end = stop.by == "SIGKILL" or stop.at in {"saved", "final"}
    assert state["epoch"] == (done if saved_at_an_end else done - 1) // STEPS_PER_EPOCH


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a folder for each set of settings, so that its uninterrupted run is trained once."""
    return {name: tmp_path_factory.mktemp("exact") for name in SETTINGS}


@needs_fork
@pytest.mark.parametrize(
    "stop", ["in the middle of an epoch", "in the last evaluation", "killed between the last save and model.pt"]
)
def test_a_stopped_run_ends_in_the_bits_of_one_that_was_not(
    stop: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cwd = tmp_path_factory.getbasetemp() / "in-forks"
    cwd.mkdir(exist_ok=True)
    check_exact_resume(EVERYTHING, STOPS[stop], cwd=cwd, forked=True)


@pytest.mark.slow
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("settings", ["sgd", "everything"])
def test_a_run_stopped_anywhere_ends_in_the_same_bits(settings: str, stop: str, folders: dict[str, Path]) -> None:
    check_exact_resume(SETTINGS[settings], STOPS[stop], cwd=folders[settings])


@pytest.mark.slow
@pytest.mark.parametrize("settings", [name for name in SETTINGS if name not in {"sgd", "everything"}])
@pytest.mark.parametrize("stop", ["in the middle of an epoch", "in the last evaluation"])
def test_a_run_with_any_setting_resumes_to_the_same_bits(settings: str, stop: str, folders: dict[str, Path]) -> None:
    check_exact_resume(SETTINGS[settings], STOPS[stop], cwd=folders[settings])


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="torch.compile on a CPU needs a C++ compiler")
def test_a_compiled_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    kernels = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kernels")}
    check_exact_resume(["--compile"], STOPS["in the middle of an epoch"], cwd=tmp_path, **kernels)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_in_two_processes(tmp_path: Path) -> None:
    for name, seed in (("first", 5), ("second", 5), ("other", 6)):
        ended = run_fresh(*TINY, *EVERYTHING, "--seed", seed, "--name", name, cwd=tmp_path)
        assert ended.code == 0, ended
    first, second, other = (tmp_path / "runs" / name for name in ("first", "second", "other"))
    assert_same_result(first, second)
    assert result_of(other)["metrics.csv"] != result_of(first)["metrics.csv"]
