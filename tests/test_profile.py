"""--profile: a trace of the steps after the first, and the operations that cost most."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

from resnet_train.loggers.profile import describe_operations
from tests.harness.cli import SMALL, RunCli

QUICK = [*SMALL, "--no-tensorboard", "--name", "x", "--epochs", 2]


def forwards_in(trace: Path) -> int:
    """Return how many forward passes a Chrome trace has."""
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return sum(event.get("name") == "forward" and event.get("ph") == "X" for event in events)


def test_a_profile_has_the_steps_after_the_first(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", *QUICK, "--profile", 2, cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert forwards_in(tmp_path / "runs" / "x" / "trace.json") == 2
    assert "trace.json has 2 steps" in outcome.stderr
    assert "convolution" in outcome.stderr
    assert max(map(len, outcome.stderr.splitlines())) <= 110


def test_a_profile_of_more_steps_than_the_run_has_is_written(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", *QUICK, "--profile", 100, "--json", cwd=tmp_path)
    assert forwards_in(tmp_path / "runs" / "x" / "trace.json") == 3
    assert json.loads(outcome.stdout)["epochs"] == 2


def test_a_run_of_one_step_has_no_profile_and_says_so(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", *QUICK, "--epochs", 1, "--batch-size", 64, "--profile", 1, cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert "--profile skips the first one" in outcome.stderr
    assert not (tmp_path / "runs" / "x" / "trace.json").exists()


def operation(name: str, cpu: float, device: float = 0.0, *, is_mark: bool = False) -> SimpleNamespace:
    """Return the averages of an operation as torch has them, in microseconds."""
    times = {"self_cpu_time_total": cpu, "self_device_time_total": device}
    return SimpleNamespace(key=name, count=20, is_user_annotation=is_mark, **times)


def test_operations_are_listed_by_their_own_time() -> None:
    averages = [operation(f"op{number}", cpu=1000.0 * number) for number in range(12)]
    averages.append(operation("forward", cpu=1e9, is_mark=True))
    head, *lines = describe_operations(averages, steps=10)
    assert head.split() == ["operation", "calls", "a", "step", "ms", "a", "step", "share"]
    assert [line.split()[0] for line in lines] == [f"op{number}" for number in range(11, 1, -1)]
    assert lines[0].split() == ["op11", "2.0", "1.10", "17%"]


def test_operations_of_a_gpu_are_listed_by_its_time() -> None:
    averages = [operation("host", cpu=9e6), operation("kernel" * 20, 1.0, 2000.0)]
    _, first, _ = describe_operations(averages, steps=1)
    assert first.startswith("kernelkernel")
    assert max(map(len, describe_operations(averages, steps=1))) <= 79
