"""Golden runs: metrics.csv of tiny runs, bit for bit, shows that a refactoring changed nothing.

Each folder of `data/golden_runs` was recorded on one CPU with one version of torch. Other CPUs and versions round
differently, so only the first epoch's training loss is compared there, with a tolerance.
`python -m tests.test_golden_runs` records this machine's folder, again for a change that is meant to change results.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from resnet_train.runtime.environment import describe_environment
from tests.harness.cli import ON_DIGITS, run_in_process
from tests.harness.processes import Stop, needs_fork, run_forked

GOLDEN = Path(__file__).parent / "data" / "golden_runs"
COMMON = [*ON_DIGITS, "--train-size", 64, "--batch-size", 16, "--threads", 1, "--amp", "off", "--no-tensorboard"]
THREE = [*COMMON, "--epochs", 3]

RUNS: dict[str, list[object]] = {
    "plain": THREE,
    "ema-mixup-cutmix": [*THREE, "--ema-decay", 0.9, "--mixup", 0.4, "--cutmix", 1],
    "adamw-cutout-erasing": [
        *[*THREE, "--optimizer", "adamw", "--lr", 0.002, "--cutout", 4, "--random-erasing", 0.5],
        *["--flip", "alternating", "--padding-mode", "reflect", "--no-decay-norm-bias", "--clip-grad", 1],
    ],
    "muon-one-cycle-sizes": [
        *[*COMMON, "--image-size", 16, "--epochs", 4, "--optimizer", "muon", "--lr", 0.01],
        *["--schedule", "one-cycle", "--progressive-sizes", "8:0.5"],
    ],
    "validation-trivial-augment": [*THREE, "--val-size", 60, "--trivial-augment", "--schedule", "multi-step"],
    "drop-path-accumulate-smoothing": [
        *[*THREE, "--arch", "resnet18", "--drop-path", 0.2, "--accumulate", 2, "--label-smoothing", 0.1],
        *["--warmup-epochs", 1, "--nesterov", "--bn-momentum", 0.2],
    ],
}


def record_run(name: str, cwd: Path) -> bytes:
    """Train one golden run in `cwd` and return its metrics.csv."""
    arguments = ["--name", name]
    if name == "two-processes":
        done = subprocess.run(
            [
                *[sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
                *["-m", "resnet_train.cli.train", *map(str, THREE), *arguments],
            ],
            cwd=cwd,
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    elif name == "stopped-and-resumed":
        command = [*RUNS["ema-mixup-cutmix"], *arguments]
        assert run_forked(*command, cwd=cwd, stop=Stop("step", 6, "SIGTERM")).code == 143
        assert run_forked(*command, "--resume", "auto", cwd=cwd).code == 0
    else:
        outcome = run_in_process("resnet-train", *RUNS[name], *arguments, cwd=cwd)
        assert outcome.code == 0, outcome
    return (cwd / "runs" / name / "metrics.csv").read_bytes()


NAMES = [*RUNS, "two-processes", "stopped-and-resumed"]


def machine() -> dict[str, object]:
    """Return what the bits depend on."""
    environment = describe_environment(torch.device("cpu"))
    return {key: environment[key] for key in ("torch", "cpu")} | {"kernels": torch.backends.cpu.get_cpu_capability()}


def recorded_folder() -> Path | None:
    """Return the folder that was recorded on a machine like this one."""
    folders = (path.parent for path in GOLDEN.glob("*/machine.json") if json.loads(path.read_text()) == machine())
    return next(folders, None)


@needs_fork
@pytest.mark.parametrize("name", NAMES)
def test_metrics_equal_the_golden_run(name: str, tmp_path: Path) -> None:
    folder = recorded_folder()
    golden = rows_of(((folder or next(GOLDEN.iterdir())) / f"{name}.csv").read_bytes())
    rows = rows_of(record_run(name, tmp_path))
    if folder is None:
        # The largest difference between two recorded CPUs is 2e-5, for drop path on resnet18.
        assert float(rows[0]["train_loss"]) == pytest.approx(float(golden[0]["train_loss"]), rel=5e-4)
        pytest.skip(f"the first training loss fits; bits were not recorded on {machine()}")
    # A metric that was registered later adds columns; those that were recorded must not change.
    assert [{column: row[column] for column in golden[0]} for row in rows] == golden


def rows_of(text: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(text.decode().splitlines()))


if __name__ == "__main__":
    this = recorded_folder() or GOLDEN / re.sub(r"\W+", "-", " ".join(map(str, machine().values()))).lower()
    this.mkdir(parents=True, exist_ok=True)
    (this / "machine.json").write_text(json.dumps(machine(), indent=2) + "\n")
    for run in NAMES:
        with tempfile.TemporaryDirectory() as scratch:
            (this / f"{run}.csv").write_bytes(record_run(run, Path(scratch)))
