"""Two processes under torchrun (gloo): the gradients, the result and the stops of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.runtime.distributed import ALONE, Processes
from tests.harness.cli import ON_DIGITS, PACKAGE_PARENT
from tests.harness.trainers import assert_same_tensors, tiny_trainer

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
TRAIN = ["-m", "resnet_train.cli.train", *ON_DIGITS, "--train-size", "128", "--batch-size", "16", "--no-tensorboard"]
TWO = ["--standalone", "--nproc-per-node", "2"]


@contextmanager
def torchrun(*arguments: object, cwd: Path, nproc: list[str] = TWO) -> Iterator[subprocess.Popen[str]]:
    """A running torchrun, in a process group of its own as a terminal's jobs are; ended when left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *nproc, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run(*arguments: object, cwd: Path, nproc: list[str] = TWO) -> tuple[int, str, str]:
    """torchrun from start to end: exit code, stdout, stderr."""
    with torchrun(*arguments, cwd=cwd, nproc=nproc) as process:
        stdout, stderr = process.communicate(timeout=200)
        return process.returncode, stdout, stderr


def assert_same_run(left: Path, right: Path) -> None:
    """The same metrics to the byte and the same state to the bit."""
    assert (left / "metrics.csv").read_bytes() == (right / "metrics.csv").read_bytes()
    one, other = (read_checkpoint(folder / "checkpoints" / "last.pt") for folder in (left, right))
    for key in ("model", "optimizer", "averaged", "epoch", "step", "history"):
        assert_same_tensors(one[key], other[key], key)


def gradients_of_a_step(processes: Processes, accumulate: int) -> tuple[list[torch.Tensor], dict[str, float]]:
    """What one step of training computes, batch norm frozen: its statistics would be those of a part of the batch."""
    trainer = tiny_trainer(accumulate=accumulate, processes=processes)
    trainer.train_loader.rank, trainer.train_loader.num_ranks = processes.rank, processes.num_ranks
    trainer.model.eval()
    trainer.step_unless_bad = trainer.optimizer.zero_grad = lambda *_, **__: None
    trainer.train_step(next(trainer.train_loader.epoch(0)))
    return [parameter.grad for parameter in trainer.model.parameters()], trainer.read_sums()


def test_two_processes_compute_the_gradients_of_one(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, torch\n"
        "from resnet_train.runtime.distributed import join_processes\n"
        "from tests.test_distributed import gradients_of_a_step\n"
        "with join_processes() as processes:\n"
        "    results = [gradients_of_a_step(processes, accumulate) for accumulate in (1, 2)]\n"
        "    if processes.rank == 0:\n"
        "        torch.save((processes.num_ranks, results), sys.argv[1])\n"
    )
    code, _, stderr = run(program, tmp_path / "result.pt", cwd=Path(__file__).parents[1])
    assert code == 0, stderr
    num_ranks, results = torch.load(tmp_path / "result.pt", weights_only=True)  # noqa: TID251 - our own
    assert num_ranks == 2
    gradients, sums = gradients_of_a_step(ALONE, 1)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3
    for other_gradients, other_sums in results:
        for one, other in zip(gradients, other_gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        assert other_sums == pytest.approx(sums, abs=1e-5)


def test_two_processes_train_as_one_run_and_are_resumed(tmp_path):
    code, stdout, stderr = run(*TRAIN, "--epochs", 1, "--ema-decay", 0.9, "--name", "two", cwd=tmp_path)
    assert code == 0, stderr
    assert len(stdout.splitlines()) == 3, stdout  # the first process speaks, the other is silent
    assert stderr.count("epoch 1/1") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]
    code, stdout, stderr = run(*TRAIN, "--resume", "runs/two", "--epochs", 2, cwd=tmp_path)
    assert code == 0, stderr
    assert "epoch 2, seed 0" in stdout
    assert len(read_checkpoint(tmp_path / "runs" / "two" / "checkpoints" / "last.pt")["sums"]) == 2


def test_a_batch_that_cannot_be_divided_is_refused_by_name(tmp_path):
    code, _, stderr = run(*TRAIN, "--batch-size", 15, "--epochs", 1, cwd=tmp_path)
    assert code == 1  # torchrun's own
    assert "error: batch_size (=15) must be a multiple of the number of processes (=2)" in stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_finished_run_is_recognized_by_all_processes(tmp_path):
    for _ in range(2):
        code, stdout, stderr = run(*TRAIN, "--epochs", 1, "--name", "two", "--resume", "auto", cwd=tmp_path)
        assert (code, "epoch 1, seed 0" in stdout) == (0, True), stderr
    assert "nothing to do" in stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_processes_and_the_run_goes_on_exactly(tmp_path, number):
    settings = [*TRAIN, "--epochs", 30, "--ema-decay", 0.9, "--name"]
    assert run(*settings, "whole", cwd=tmp_path)[0] == 0
    for delay in (0.0, 0.3, 0.7):
        with torchrun(*settings, "stopped", "--resume", "auto", cwd=tmp_path) as process:
            wait_for_step(tmp_path / "runs" / "stopped" / "train.log", process)
            time.sleep(delay)
            process.send_signal(number)
            start = time.monotonic()
            process.communicate(timeout=60)
            assert process.returncode != 0
            assert time.monotonic() - start < 20  # torchrun itself takes seconds to leave
        step = read_checkpoint(tmp_path / "runs" / "stopped" / "checkpoints" / "last.pt")["step"]
        assert 0 < step < 240
    assert run(*settings, "stopped", "--resume", "auto", cwd=tmp_path)[0] == 0
    assert_same_run(tmp_path / "runs" / "whole", tmp_path / "runs" / "stopped")


@pytest.mark.slow
def test_torchrun_restarts_a_run_one_of_whose_processes_was_killed(tmp_path):
    settings = [*TRAIN, "--epochs", 30, "--resume", "auto", "--name"]
    assert run(*settings, "whole", cwd=tmp_path)[0] == 0
    with torchrun("--max-restarts", 3, *settings, "killed", cwd=tmp_path) as process:
        for rank in (1, 0):
            log = tmp_path / "runs" / "killed" / "train.log"
            wait_for_step(log, process, after=log.stat().st_size if log.exists() else 0)
            os.kill(worker(process.pid, rank), signal.SIGKILL)
        _, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
        assert stderr.count("resuming ") >= 2
    assert_same_run(tmp_path / "runs" / "whole", tmp_path / "runs" / "killed")


def wait_for_step(log: Path, process: subprocess.Popen[str], after: int = 0) -> None:
    """Until the run has finished an epoch since the log had this size."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if log.exists() and "epoch" in log.read_text()[after:].replace(" epochs,", ""):
            return
        time.sleep(0.02)
    raise AssertionError("no epoch was finished")


def worker(agent: int, rank: int) -> int:
    """The process of this rank among torchrun's children."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    for child in map(int, children):
        if f"\0RANK={rank}\0" in "\0" + Path(f"/proc/{child}/environ").read_text():
            return child
    raise AssertionError(f"no process has rank {rank}")
