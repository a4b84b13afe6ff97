"""scripts/slurm.sbatch against programs that stand in for srun and scontrol."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness.cli import PACKAGE_PARENT, SMALL

pytestmark = pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="there is no bash")
SCRIPT = Path(__file__).parents[1] / "scripts" / "slurm.sbatch"
SCONTROL = """\
echo "$@" >> scontrol.log
[ "$1" != show ] || printf 'node7\\nnode8\\n'
"""
# Runs until SIGTERM; what it exits with then is in `after-term`.
SRUN = """\
printf '%s\\n' "$@" > srun.log
trap 'exit $(cat after-term)' TERM
[ ! -f exit-with ] || exit $(cat exit-with)
touch started
while true; do sleep 0.02; done
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """Return a folder with srun, scontrol and a .venv."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/usr/bin/env bash\n{text}")
        program.chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("touch activated\n")
    return tmp_path


def submit(cluster: Path, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    """Start the script as SLURM does: a copy of it, in the folder from which the job was submitted."""
    shutil.copy(SCRIPT, cluster / "slurm_script")
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_GPUS_ON_NODE": "1"}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
        "PATH": f"{cluster / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        **slurm,
        **variables,
    }
    return subprocess.Popen(["bash", "slurm_script", *arguments], cwd=cluster, env=environment)


def step_of(cluster: Path, *arguments: str, **variables: str) -> list[str]:
    """Return the arguments of srun in a job that ends by itself."""
    (cluster / "exit-with").write_text("0")
    assert submit(cluster, *arguments, **variables).wait(30) == 0
    return (cluster / "srun.log").read_text().splitlines()


def value_after(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_job_runs_torchrun_with_the_users_flags(cluster: Path) -> None:
    step = step_of(cluster, "--name", "a b", SLURM_NNODES="2", SLURM_GPUS_ON_NODE="8")
    assert value_after(step, "--nnodes") == "2"
    assert value_after(step, "--nproc-per-node") == "8"
    assert value_after(step, "--rdzv-endpoint").startswith("node7:")
    assert step[-7:] == ["-m", "resnet_train", "train", "--resume", "auto", "--name", "a b"]
    assert (cluster / "activated").exists()


def test_jobs_on_one_node_have_different_ports(cluster: Path) -> None:
    endpoints = {
        value_after(step_of(cluster, SLURM_JOB_ID=job), "--rdzv-endpoint") for job in ("4711", "4712", "24710")
    }
    ports = {int(endpoint.rpartition(":")[2]) for endpoint in endpoints}
    assert len(ports) == 3
    assert all(1024 < port < 32768 for port in ports)  # below the ports that systems hand out


def test_job_array_trains_one_seed_each(cluster: Path) -> None:
    step = step_of(cluster, "--seed", "9", SLURM_ARRAY_TASK_ID="3")
    assert step[-2:] == ["--seed", "3"]
    assert "--seed" not in step_of(cluster)


def test_one_gpu_is_the_default() -> None:
    directives = [line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--gpus-per-node=1", "--nodes=1", "--requeue", "--signal=B:USR1@120"} <= set(directives)


def stop(job: subprocess.Popen[bytes], started: Path) -> int:
    """Send SIGUSR1 once the step runs, and return the exit code."""
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    return job.wait(60)


def test_job_out_of_time_stops_the_step_and_is_requeued(cluster: Path) -> None:
    (cluster / "after-term").write_text("143")
    assert stop(submit(cluster), cluster / "started") == 0
    assert "requeue 4711" in (cluster / "scontrol.log").read_text().splitlines()


def test_job_that_just_finished_is_not_requeued(cluster: Path) -> None:
    (cluster / "after-term").write_text("0")
    assert stop(submit(cluster), cluster / "started") == 0
    assert "requeue" not in (cluster / "scontrol.log").read_text()


@pytest.mark.parametrize("code", [1, 2, 3])
def test_failed_step_fails_the_job(code: int, cluster: Path) -> None:
    (cluster / "exit-with").write_text(str(code))
    assert submit(cluster).wait(30) == code
    assert "requeue" not in (cluster / "scontrol.log").read_text()


@pytest.mark.slow
def test_requeued_job_resumes_the_run(cluster: Path) -> None:
    """The step runs for real, on this machine."""
    (cluster / "bin" / "srun").write_text('#!/usr/bin/env bash\nshift\nexec "$@"\n')
    (cluster / "bin" / "scontrol").write_text('#!/usr/bin/env bash\necho "$@" >> scontrol.log\necho localhost\n')
    arguments = [*SMALL, "--epochs", "400", "--no-tensorboard", "--name", "run"]
    variables = {"PYTHONPATH": PACKAGE_PARENT, "OMP_NUM_THREADS": "1"}
    metrics = cluster / "runs" / "run" / "metrics.csv"
    assert stop(submit(cluster, *arguments, **variables), metrics) == 0
    assert "requeue 4711" in (cluster / "scontrol.log").read_text().splitlines()
    assert not (cluster / "runs" / "run" / "checkpoints" / "model.pt").exists()
    assert submit(cluster, *arguments, **variables).wait(240) == 0
    assert len(metrics.read_text().splitlines()) == 401
    assert (cluster / "runs" / "run" / "checkpoints" / "model.pt").exists()
