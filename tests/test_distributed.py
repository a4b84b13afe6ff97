"""Two ranks (gloo) compute the gradients and the result of one process, and stop together, also under torchrun."""

from __future__ import annotations

import os
import re
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
from resnet_train.runtime.distributed import ALONE, Processes, join_processes
from tests.harness.cli import ON_DIGITS, PACKAGE_PARENT
from tests.harness.processes import needs_fork, run_ranks
from tests.harness.trainers import assert_same_tensors, tiny_trainer, unequal_data

pytestmark = [
    needs_fork,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo"),
]
TRAIN = [*ON_DIGITS, "--train-size", "128", "--batch-size", "16", "--no-tensorboard"]


STEPS = [(accumulate, weights) for accumulate in (1, 2) for weights in ("none", "balanced")]


@contextmanager
def torchrun(*arguments: object, cwd: Path, max_restarts: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Run `resnet-train` under torchrun, in a process group like a terminal's job; kill it at the end."""
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(max_restarts)]
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, "-m", "resnet_train.cli.train", *map(str, arguments)],
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


def run(*arguments: object, cwd: Path) -> tuple[int, str, str]:
    """Run torchrun to its end and return its exit code, stdout and stderr."""
    with torchrun(*arguments, cwd=cwd) as process:
        stdout, stderr = process.communicate(timeout=200)
        return process.returncode, stdout, stderr


def assert_same_run(left: Path, right: Path) -> None:
    """Assert that two runs have the same metrics to the byte and the same state to the bit."""
    assert (left / "metrics.csv").read_bytes() == (right / "metrics.csv").read_bytes()
    one, other = (read_checkpoint(folder / "checkpoints" / "last.pt") for folder in (left, right))
    for key in ("model", "optimizer", "averaged", "epoch", "step", "history"):
        assert_same_tensors(one[key], other[key], key)


def gradients_of_a_step(
    processes: Processes, accumulate: int, class_weights: str
) -> tuple[list[torch.Tensor], dict[str, float]]:
    """Return what one training step computes with frozen batch norms, whose statistics would be a rank's own."""
    data = unequal_data()
    trainer = tiny_trainer(data=data, accumulate=accumulate, class_weights=class_weights, mixup=1, processes=processes)
    trainer.model.eval()
    trainer.step_unless_bad = trainer.optimizer.zero_grad = lambda *_, **__: None
    trainer.train_step(next(trainer.train_loader.epoch(0)))
    return [parameter.grad for parameter in trainer.model.parameters()], trainer.read_sums()


def save_gradients() -> None:
    """Save what a rank's steps compute in the folder that the command line names."""
    with join_processes() as processes:
        results = [gradients_of_a_step(processes, *case) for case in STEPS]
        torch.save((processes.num_ranks, results), Path(sys.argv[1]) / f"{processes.rank}.pt")


def test_two_ranks_compute_the_gradients_of_one_process(tmp_path):
    for rank, ended in enumerate(run_ranks(tmp_path, cwd=tmp_path, function="tests.test_distributed:save_gradients")):
        assert ended.code == 0, ended.output
        num_ranks, results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)  # noqa: TID251 - our own
        assert num_ranks == 2
        for (_, class_weights), (other_gradients, other_sums) in zip(STEPS, results, strict=True):
            gradients, sums = gradients_of_a_step(ALONE, 1, class_weights)
            assert max(gradient.abs().max() for gradient in gradients) > 1e-3
            for one, other in zip(gradients, other_gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
            assert other_sums == pytest.approx(sums, abs=1e-5)


def test_two_ranks_train_one_run_and_resume_it(tmp_path):
    first, second = run_ranks(*TRAIN, "--epochs", 1, "--ema-decay", 0.9, "--name", "two", cwd=tmp_path)
    assert (first.code, second.code) == (0, 0), first.output + second.output
    assert first.output.count("final test accuracy") == 1
    assert second.output == ""  # only rank 0 prints
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]
    first, second = run_ranks(*TRAIN, "--resume", "runs/two", "--epochs", 2, cwd=tmp_path)
    assert (first.code, second.code) == (0, 0), first.output + second.output
    assert first.output.count("final test accuracy") == 1
    assert len(read_checkpoint(tmp_path / "runs" / "two" / "checkpoints" / "last.pt")["sums"]) == 2


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path):
    for ended in run_ranks(*TRAIN, "--batch-size", 15, "--epochs", 1, cwd=tmp_path):
        assert ended.code == 2
        assert ended.output.startswith("error: batch_size (=15) must be a multiple of the number of processes (=2)")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_finished_run_is_recognized_by_all_processes(tmp_path):
    for _ in range(2):
        code, stdout, stderr = run(*TRAIN, "--epochs", 1, "--name", "two", "--resume", "auto", cwd=tmp_path)
        assert (code, "final test accuracy" in stdout) == (0, True), stderr
    assert "nothing to do" in stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_processes_and_resume_is_exact(tmp_path, number):
    settings = [*TRAIN, "--epochs", 30, "--ema-decay", 0.9, "--name"]
    assert run(*settings, "whole", cwd=tmp_path)[0] == 0
    for epoch in (1, 8, 15):
        with torchrun(*settings, "stopped", "--resume", "auto", cwd=tmp_path) as process:
            wait_for(f" {epoch}/30 ", tmp_path / "runs" / "stopped" / "train.log", process)
            process.send_signal(number)
            process.communicate(timeout=60)
            assert process.returncode != 0
        step = read_checkpoint(tmp_path / "runs" / "stopped" / "checkpoints" / "last.pt")["step"]
        assert 0 < step < 240
    assert run(*settings, "stopped", "--resume", "auto", cwd=tmp_path)[0] == 0
    assert_same_run(tmp_path / "runs" / "whole", tmp_path / "runs" / "stopped")


@pytest.mark.slow
def test_torchrun_restarts_a_run_after_a_process_is_killed(tmp_path):
    settings = [*TRAIN, "--epochs", 30, "--resume", "auto", "--name"]
    assert run(*settings, "whole", cwd=tmp_path)[0] == 0
    with torchrun(*settings, "killed", cwd=tmp_path, max_restarts=3) as process:
        for rank in (1, 0):
            log = tmp_path / "runs" / "killed" / "train.log"
            wait_for(r" \d+/30 " if rank else r"resuming .* \d+/30 ", log, process)
            os.kill(worker(process.pid, rank), signal.SIGKILL)
        _, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
        assert stderr.count("resuming ") >= 2
    assert_same_run(tmp_path / "runs" / "whole", tmp_path / "runs" / "killed")


def wait_for(pattern: str, log: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the log of a running process contains a pattern."""
    deadline = time.monotonic() + 100
    while not (log.exists() and re.search(pattern, log.read_text(), re.DOTALL)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, pattern
        time.sleep(0.02)


def worker(agent: int, rank: int) -> int:
    """Return the process id of this rank among torchrun's children."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    for child in map(int, children):
        if f"\0RANK={rank}\0" in "\0" + Path(f"/proc/{child}/environ").read_text():
            return child
    raise AssertionError(f"no process has rank {rank}")
