"""Runs that are killed without warning, and runs that start at the same time in one folder."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resnet_train.evaluation.metrics import METRICS
from resnet_train.jobs.verify import verify
from resnet_train.records import EpochTiming
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.runs.folder import RunFolder, existing_run_message
from resnet_train.training.sums import TRAIN_METRICS
from tests.harness.cli import ON_DIGITS
from tests.harness.processes import (
    KILLED,
    Child,
    Ended,
    Stop,
    assert_same_result,
    needs_fork,
    run_forked,
    run_fresh,
    start,
)

pytestmark = needs_fork
SMALL = [*ON_DIGITS, "--train-size", "64", "--batch-size", "16", "--threads", "1", "--ema-decay", "0.9"]
TINY = [*SMALL, "--epochs", "4", "--no-tensorboard"]
STEPS_PER_EPOCH = 4


# --- Killed anywhere -------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> set[str]:
    """Return all files of a run except the lock, which stays where the system can't remove it safely."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {".lock"}


def assert_no_file_is_damaged(folder: Path, saved_before: bool) -> bool:
    """Assert that checkpoints are complete and best epochs in the history; return whether there is a state."""
    found = {path.name: read_checkpoint(path) for path in (folder / "checkpoints").glob("*.pt")}
    assert "last.pt" in found or not saved_before, "the state that was there is gone"
    history = [repr(record) for record in found["last.pt"]["history"]] if "last.pt" in found else []
    assert all(repr(found[name]["metrics"]) in history for name in ("best.pt", "best-on-test.pt") if name in found)
    return "last.pt" in found


TRIES = 3  # of each stop: a run that ends before an instant is reached leaves it to the next one


def random_stops(num_kills: int, seed: int) -> list[Stop | float]:
    """Draw stops in random order: half of them inside a save, the others at a share of a whole run's duration."""
    draw = random.Random(seed)
    inside = [
        Stop("system", draw.randrange(1, 40)) if number % 2 else Stop("write", draw.randrange(1, 250))
        for number in range(num_kills // 2)
    ]
    stops = [*inside, *(draw.uniform(0.02, 0.7) for _ in range(num_kills - len(inside)))]
    draw.shuffle(stops)
    return stops


def run_and_kill(stop: Stop | float, duration: float, *arguments: object, cwd: Path) -> Ended:
    """Start the command; it kills itself at a `Stop`, or is killed after a share of `duration` seconds."""
    if isinstance(stop, Stop):
        return run_forked(*arguments, cwd=cwd, stop=stop)
    child = start(*arguments, cwd=cwd)
    time.sleep(stop * duration)
    child.kill()
    return child.wait()


def kill_and_resume(stops: list[Stop | float], cwd: Path) -> Counter[str]:
    """Train the same run over and over, killing it at the stops, and compare each finished one with an undisturbed one.

    Returns:
        The number of kills "inside a save" and "at some instant", and the number of runs.
    """
    began = time.monotonic()
    whole = run_forked(*TINY, "--name", "whole", cwd=cwd)
    duration = time.monotonic() - began
    assert whole.code == 0, whole
    expected, counts = cwd / "runs" / "whole", Counter[str]()
    pending = [(stop, TRIES) for stop in stops]
    while pending:  # each pass uses up a stop or one of its tries, so there are at most TRIES * len(stops)
        counts["runs"] += 1
        name = f"killed-{counts['runs']}"
        command = [*TINY, "--name", name, "--resume", "auto"]
        folder, saved, ended = cwd / "runs" / name, False, Ended(KILLED, "")
        for _ in range(min(10, len(pending))):
            stop, tries = pending.pop(0)
            ended = run_and_kill(stop, duration, *command, cwd=cwd)
            if ended.code != KILLED:
                if tries > 1:  # first in the next run, which starts from step 0 and so lasts longest
                    pending.insert(0, (stop, tries - 1))
                break
            counts["inside a save" if isinstance(stop, Stop) else "at some instant"] += 1
            saved = assert_no_file_is_damaged(folder, saved)
        if ended.code == KILLED:
            ended = run_forked(*command, cwd=cwd)
        assert ended.code == 0, ended
        assert_same_result(folder, expected)
        assert files_of(folder) == files_of(expected)
    return counts


def test_a_run_killed_at_random_ends_in_the_same_bits(tmp_path: Path) -> None:
    assert kill_and_resume(random_stops(4, seed=2), tmp_path)["inside a save"] == 2


@pytest.mark.slow
def test_a_run_killed_100_times_ends_in_the_same_bits(tmp_path: Path) -> None:
    counts = kill_and_resume(random_stops(100, seed=1), tmp_path)
    assert counts["inside a save"] == 50
    print(dict(counts))


# --- Two runs, one folder --------------------------------------------------------------------------------------------

NUM_STARTS = 8


@pytest.fixture
def at_once(tmp_path: Path) -> Iterator[Callable[..., tuple[Child, list[Ended]]]]:
    """Start a command eight times at once; return the process that trains and the outcomes of the others."""
    holders: list[Child] = []

    def start_all(*arguments: object) -> tuple[Child, list[Ended]]:
        start_at = time.monotonic() + 0.5
        children = [start(*arguments, cwd=tmp_path, start_at=start_at) for _ in range(NUM_STARTS)]
        wait_until(lambda: sum(child.is_alive() for child in children) <= 1)
        (holder,) = [child for child in children if child.is_alive()]  # it would train for an hour
        holders.append(holder)
        return holder, [child.wait() for child in children if child is not holder]

    yield start_all
    for holder in holders:
        holder.kill()


def check_one_trains_and_seven_leave(holder: Child, others: list[Ended]) -> None:
    """Assert that the seven name the one in one line."""
    assert len(others) == NUM_STARTS - 1
    for ended in others:
        assert ended.code == 2, ended
        assert re.fullmatch(rf"error: runs/x is being written by process {holder.pid} on \S+\n", ended.output), ended


COMMAND = [*SMALL, "--epochs", 100_000, "--name", "x", "--no-tensorboard"]
AtOnce = Callable[..., tuple[Child, list[Ended]]]


def test_of_eight_starts_at_once_one_trains_and_seven_name_it(at_once: AtOnce) -> None:
    check_one_trains_and_seven_leave(*at_once(*COMMAND, "--resume", "auto"))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("resume", [["--resume", "auto"], []], ids=["resume auto", "no resume"])
def test_a_killed_run_is_resumed_by_one_of_eight_starts(
    number: int, resume: list[str], at_once: AtOnce, tmp_path: Path
) -> None:
    holder, others = at_once(*COMMAND, *resume)
    check_one_trains_and_seven_leave(holder, others)
    last = tmp_path / "runs" / "x" / "checkpoints" / "last.pt"
    wait_until(last.exists)
    holder.kill()
    assert holder.wait().code == KILLED
    step = read_checkpoint(last)["step"]
    # Nothing has to be cleaned up: the next start resumes the run, and so does one of eight.
    ended = run_forked(*COMMAND, "--resume", "auto", cwd=tmp_path, stop=Stop("step", step + 1, "SIGTERM"))
    assert ended.code == 143, ended
    assert ended.output.startswith("resuming runs/x: ")
    check_one_trains_and_seven_leave(*at_once(*COMMAND, "--resume", "auto"))


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_start_in_a_locked_folder_names_the_writer(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "x", given=True)
    try:
        with pytest.raises(ValueError, match=rf"x is being written by process {os.getpid()} on "):
            RunFolder.create(tmp_path, "x", given=True)
    finally:
        folder.unlock()
    assert existing_run_message(folder.path).startswith(f"run {folder.path} already exists; ")


def test_a_holder_file_left_by_a_killed_process_is_ignored(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "x", given=True)
    left = (folder.path / ".holder.json").read_bytes()
    folder.unlock()
    (folder.path / ".holder.json").write_bytes(left)
    assert existing_run_message(folder.path).startswith(f"run {folder.path} already exists; ")
    again = RunFolder(folder.path)  # and looking has not locked the folder
    again.lock()
    again.unlock()


def test_a_holder_without_a_name_yet_is_waited_for(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "x", given=True)
    holder = folder.path / ".holder.json"
    written = holder.read_bytes()
    holder.write_bytes(written[:5])
    late = threading.Timer(0.2, holder.write_bytes, [written])
    late.start()
    try:
        with pytest.raises(ValueError, match=rf"x is being written by process {os.getpid()} on "):
            RunFolder(folder.path).lock()
    finally:
        late.join()
        folder.unlock()


# --- Curves of killed runs -------------------------------------------------------------------------------------------

BY_EPOCH = {("train", f"epoch/{metric}") for metric in TRAIN_METRICS}
BY_EPOCH |= {(split, f"epoch/{metric}") for metric in METRICS.names() for split in ("val", "test")}
BY_EPOCH |= {("train", f"timing/{field.name}") for field in fields(EpochTiming)}
BY_STEP = {("", f"step/{name}") for name in ("loss", "grad_norm", "lr")}
EPOCHS = 6
LAST = EPOCHS * STEPS_PER_EPOCH
NOON = 2_000_000_000.0
KILLS: list[Stop | list[Stop]] = [
    Stop("step", 3),  # before anything was saved
    Stop("record", 2),
    Stop("step", 2 * STEPS_PER_EPOCH + 3),
    Stop("system", 21),  # in the second save that the process makes
    Stop("step", 5 * STEPS_PER_EPOCH),
]
# Saved within an evaluation, which the process finishes and logs before it is killed.
SAVED_IN_EVALUATION: list[Stop | list[Stop]] = [
    [Stop("evaluation", epoch, "SIGUSR1"), Stop("step", epoch * STEPS_PER_EPOCH + steps)]
    for epoch, steps in ((1, 1), (2, 3), (3, 6), (5, 2))
]
CLOCKS = {
    "goes on": lambda number: NOON + 10 * number,
    "an hour back": lambda number: NOON - 3600 * number,
    "the same second": lambda number: NOON,
}


def curves_of(folder: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Return the steps and values of each split and tag in TensorBoard's order; their times never run backwards."""
    curves = {}
    for split in ("", "train", "val", "test"):
        events = EventAccumulator(str(folder / split), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            points = events.Scalars(tag)
            times = [point.wall_time for point in points]
            assert times == sorted(times), tag
            curves[split, tag] = [(point.step, point.value) for point in points]
    return curves


def check_curves(folder: Path, whole: Path) -> None:
    """Assert that tags have every step and CSV files every epoch once, with the values of an undisturbed run."""
    curves, expected = curves_of(folder), curves_of(whole)
    assert curves.keys() == expected.keys() == BY_EPOCH | BY_STEP
    steps = {tag: [step for step, _ in points] for tag, points in curves.items()}
    assert {tag: steps[tag] for tag in BY_STEP} == {tag: [*range(1, LAST + 1)] for tag in BY_STEP}
    assert {tag: steps[tag] for tag in BY_EPOCH} == {tag: [*range(1, EPOCHS + 1)] for tag in BY_EPOCH}
    for tag in {tag for tag in curves if not tag[1].startswith("timing/")}:
        assert curves[tag] == expected[tag], tag
    metrics, timing = ((folder / name).read_text().splitlines() for name in ("metrics.csv", "timing.csv"))
    assert [row.split(",")[:2] for row in metrics] == [row.split(",")[:2] for row in timing]
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def check_curves_of_killed_runs(
    kills: list[Stop | list[Stop]], run: Callable[..., Ended], cwd: Path, clocks: list[str], *arguments: object
) -> int:
    """Kill a run at each of these places, resume it, and compare its curves with an undisturbed run's."""
    command = [*SMALL, "--epochs", EPOCHS, "--val-size", 50, "--log-every", 1, *arguments]
    whole = run(*command, "--name", "whole", cwd=cwd)
    assert whole.code == 0, whole
    num_kills = 0
    for clock in clocks:
        name = clock.replace(" ", "-")
        for number, stop in enumerate([*kills, None]):
            ended = run(*command, "--name", name, "--resume", "auto", cwd=cwd, stop=stop, clock=CLOCKS[clock](number))
            assert ended.code == (0 if stop is None else KILLED), ended
            num_kills += stop is not None
        check_curves(cwd / "runs" / name, cwd / "runs" / "whole")
        assert verify(cwd / "runs" / name).difference is None
    return num_kills


def test_curves_have_every_step_once_after_two_kills(tmp_path: Path) -> None:
    check_curves_of_killed_runs(KILLS[1:3], run_forked, tmp_path, ["an hour back"])


def test_a_save_within_an_evaluation_repeats_no_point(tmp_path: Path) -> None:
    arguments = ["--save-every", EPOCHS]
    check_curves_of_killed_runs(SAVED_IN_EVALUATION[1:2], run_forked, tmp_path, ["the same second"], *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("clock", CLOCKS)
def test_curves_have_every_step_once_after_five_kills(clock: str, tmp_path: Path) -> None:
    assert check_curves_of_killed_runs(KILLS, run_fresh, tmp_path, [clock]) == 5


@pytest.mark.slow
@pytest.mark.parametrize("clock", CLOCKS)
def test_saves_within_evaluations_repeat_no_point(clock: str, tmp_path: Path) -> None:
    arguments = ["--save-every", EPOCHS]
    assert check_curves_of_killed_runs(SAVED_IN_EVALUATION, run_forked, tmp_path, [clock], *arguments) == 4
