"""Fixtures that several test files share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from tests.harness.cli import MODULES, SMALL, Outcome, RunCli, run_in_process, run_python

torch.set_num_threads(1)

# Under nohup or in the background of a script these signals are ignored, and child processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def run_cli() -> RunCli:
    """Return a function that runs a command in this process: `run_cli("resnet-train", "--epochs", 0, cwd=tmp_path)`."""
    return run_in_process


@pytest.fixture(scope="session")
def run_cli_process() -> RunCli:
    """Return a function that runs a command in a new process."""
    return lambda command, *arguments, cwd, **environment: run_python(
        "-m", MODULES[command], *arguments, cwd=cwd, **environment
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Return the folder of a finished run of two epochs with validation images, and its output. Read only."""
    cwd = tmp_path_factory.mktemp("trained")
    outcome = run_in_process("resnet-train", *SMALL, "--val-size", 60, "--log-every", 1, "--name", "run", cwd=cwd)
    assert outcome.code == 0, outcome
    return cwd / "runs" / "run", outcome
