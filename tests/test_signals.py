"""Runs that are told to stop or to save by a signal, at random instants, and saves by the clock."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.training.signals import SignalWatch
from tests.harness.cli import ON_DIGITS, run_python
from tests.harness.processes import KILLED, Child, Stop, assert_same_result, needs_fork, run_forked, start

pytestmark = needs_fork
TINY = [*ON_DIGITS, "--train-size", "64", "--batch-size", "16", "--threads", "1", "--ema-decay", "0.9",
        "--no-tensorboard", "--epochs"]  # fmt: skip
STEPS_PER_EPOCH = 4
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def epochs_shown(log: Path) -> int:
    """Return how many rows the table of epochs has."""
    return len(re.findall(r"^ *\d+/\d+ ", log.read_text(), re.MULTILINE)) if log.exists() else 0


def wait_until_it_trains(child: Child, num_epochs: int) -> bool:
    """Wait until the process has finished this many epochs; return false if it ends before."""
    while child.is_alive():
        if epochs_shown(child.log) >= num_epochs:
            return True
        time.sleep(0.005)
    return False


def steps_done(last: Path) -> int:
    return read_checkpoint(last)["step"]


def signal_until_done(num_signals: int, epochs: int, cwd: Path, seed: int) -> Counter[str]:
    """Stop runs with random signals at random instants, and resume each until it ends.

    Returns:
        How often each signal was sent, and the most seconds from a signal to the process's end.
    """
    assert run_forked(*TINY, epochs, "--name", "whole", cwd=cwd).code == 0
    draw, counts = random.Random(seed), Counter[str]()
    numbers = [draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]) for _ in range(num_signals)]
    while numbers:
        counts["runs"] += 1
        name, code = f"signalled-{counts['runs']}", -1
        last = cwd / "runs" / name / "checkpoints" / "last.pt"
        while code != 0:
            child = start(*TINY, epochs, "--name", name, "--resume", "auto", cwd=cwd)
            if numbers and wait_until_it_trains(child, draw.randrange(1, 4)):
                number = numbers.pop()
                time.sleep(draw.uniform(0, 0.03))
                epochs_before = epochs_shown(child.log)
                os.kill(child.pid, number)
                counts[number.name] += 1
                if number == signal.SIGUSR1:
                    code = child.wait().code
                    assert code == 0, child.log.read_text()
                    continue
                ended = child.wait()
                code = ended.code
                assert code in (CODES[number], 0), ended  # 0: it was at its end when the signal came
                if code:
                    assert "the state is saved; continue with: resnet-train --resume" in ended.output
                    assert steps_done(last) >= epochs_before  # at least what was reported is there
            else:
                code = child.wait().code
                assert code == 0, child.log.read_text()
        assert_same_result(last.parents[1], cwd / "runs" / "whole")
    return counts


def test_signals_at_random_instants_leave_the_same_bits(tmp_path: Path) -> None:
    counts = signal_until_done(2, epochs=20, cwd=tmp_path, seed=1)
    assert sum(counts[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1")) == 2


@pytest.mark.slow
def test_signals_at_thirty_instants_leave_the_same_bits(tmp_path: Path) -> None:
    counts = signal_until_done(30, epochs=30, cwd=tmp_path, seed=2)
    print(dict(counts))
    assert sum(counts[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1")) == 30
    assert min(counts[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1")) > 3


def test_sigusr1_saves_after_the_step_and_training_continues(tmp_path: Path) -> None:
    whole = [*TINY, 3, "--save-every", 3, "--name"]
    assert run_forked(*whole, "whole", cwd=tmp_path).code == 0
    ended = run_forked(*whole, "asked", cwd=tmp_path, stop=Stop("step", 6, "SIGUSR1"))
    assert ended.code == 0, ended
    checkpoints = tmp_path / "runs" / "asked" / "checkpoints"
    assert steps_done(checkpoints / "previous.pt") == 6  # the only save before that of the last epoch
    assert_same_result(tmp_path / "runs" / "asked", tmp_path / "runs" / "whole")


def test_a_hangup_saves_and_exits_with_129(tmp_path: Path) -> None:
    ended = run_forked(*TINY, 3, "--name", "x", cwd=tmp_path, stop=Stop("step", 6, "SIGHUP"))
    assert ended.code == 129, ended
    assert "SIGHUP: stopping after this step\n" in ended.output
    assert steps_done(tmp_path / "runs" / "x" / "checkpoints" / "last.pt") == 6


def test_a_hangup_ignored_by_nohup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalWatch() as watch:
            signal.raise_signal(signal.SIGHUP)
            assert watch.stop == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_first_ctrl_c_is_answered_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with SignalWatch() as watch:
        signal.raise_signal(signal.SIGINT)
        assert capfd.readouterr().err == "SIGINT: stopping after this step; press Ctrl-C again to stop at once\n"
        signal.raise_signal(signal.SIGTERM)
    assert (watch.stop, capfd.readouterr().err) == (signal.SIGINT, "")
    with SignalWatch(announces=False):
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == ""


def test_ctrl_c_while_importing_is_one_line(tmp_path: Path) -> None:
    code = (
        "import signal, sys; sys.argv = ['resnet-train']; import resnet_train.cli; signal.raise_signal(signal.SIGINT)"
    )
    assert run_python("-c", code, cwd=tmp_path) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    ("program", "variables", "count"),
    [
        ("resnet-train", {}, "10000"),
        ("-m", {}, "10000"),
        ("notebook", {}, "None"),
        ("resnet-train", {"OMP_NUM_THREADS": "1"}, "None"),
        ("resnet-train", {"KMP_BLOCKTIME": "0"}, "None"),
        ("resnet-train", {"GOMP_SPINCOUNT": "7"}, "7"),
    ],
)
def test_scripts_limit_spinning_unless_the_user_set_up_openmp(
    program: str, variables: dict[str, str], count: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("OMP_", "GOMP_", "KMP_"))]:
        monkeypatch.delenv(name)
    code = (
        f"import os, sys; sys.argv = [{program!r}]; import resnet_train.cli; "
        "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    assert run_python("-c", code, cwd=tmp_path, **variables) == (0, f"{count} False\n", "")


def test_a_killed_run_resumes_from_its_save_within_an_epoch(tmp_path: Path) -> None:
    command = [*TINY, 3, "--save-every", 3, "--resume", "auto", "--name"]
    assert run_forked(*command, "whole", cwd=tmp_path).code == 0
    every_step = ["--save-every-minutes", 1e-9]
    ended = run_forked(*command, "killed", *every_step, cwd=tmp_path, stop=Stop("step", 6))
    assert ended.code == KILLED
    last = tmp_path / "runs" / "killed" / "checkpoints" / "last.pt"
    assert steps_done(last) == 5  # killed after the sixth step, before its save
    assert run_forked(*command, "killed", *every_step, cwd=tmp_path).code == 0
    assert_same_result(tmp_path / "runs" / "killed", tmp_path / "runs" / "whole")
