"""`resnet-info env`, for bug reports: versions and hardware, without names and secrets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from resnet_train.jobs.machine import describe_machine, hide_home
from tests.harness.cli import RunCli


def test_machine_is_described(run_cli: RunCli, tmp_path: Path) -> None:
    described = json.loads(run_cli("resnet-info", "env", "--json", cwd=tmp_path).stdout)
    assert {"resnet_train", "python", "torch", "cpu", "gpus", "threads", "package", "variables"} <= set(described)
    assert described["cpu_instructions"]
    text = run_cli("resnet-info", "env", cwd=tmp_path)
    assert (text.code, text.stderr) == (0, "")
    assert f"torch              {described['torch']}" in text.stdout.splitlines()


def test_usable_cpus_memory_and_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="A100", total_memory=40 << 30, major=8, minor=0)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3} if pid == 0 else set(), raising=False)
    monkeypatch.setattr("resnet_train.jobs.machine.free_memory_bytes", lambda device: 3 << 29)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: gpu)
    described = describe_machine()
    assert (described["cpu_usable"], described["memory_free_gib"]) == (1, 1.5)
    assert described["gpus"] == ["A100, 40 GiB, compute capability 8.0"]


def test_no_secrets_and_no_names_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    monkeypatch.setattr("pathlib.Path.home", lambda: Path("/home/alice"))
    secrets = {
        "RESNET_TRAIN_MIRROR": "https://bob:hunter2@host/data?signature=hunter2",
        "RESNET_TRAIN_DATA_DIR": "/scratch/alice/data",
        "PYTHONPATH": "/home/alice/lib:/opt/x",
        "TORCH_HUB_TOKEN": "hunter2",
        "CUDA_API_KEY": "hunter2",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "SLURM_JOB_USER": "alice",
        "SLURM_NNODES": "2",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    described = describe_machine()
    assert "hunter2" not in str(described)
    assert "alice" not in str(described)
    shown = described["variables"]
    assert shown["RESNET_TRAIN_MIRROR"] == "https://host/data"
    assert shown["RESNET_TRAIN_DATA_DIR"] == "/scratch/USER/data"
    assert shown["PYTHONPATH"] == "~/lib:/opt/x"
    assert shown["SLURM_NNODES"] == "2"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/home/alice", "~"),
        ("/home/alice/x", "~/x"),
        ("/home/alice2/x", "/home/alice2/x"),
        ("/data/alice/x", "/data/USER/x"),
        ("/data/malice/x", "/data/malice/x"),
        ("/opt", "/opt"),
    ],
)
def test_home_is_hidden_in_paths(path: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    monkeypatch.setattr("pathlib.Path.home", lambda: Path("/home/alice"))
    assert hide_home(path) == shown


def test_user_without_a_name_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise OSError("no such user")

    monkeypatch.setattr("getpass.getuser", fail)
    assert hide_home("/opt/x") == "/opt/x"


@pytest.mark.skipif(os.name == "nt", reason="paths of Linux")
def test_root_as_home_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlib.Path.home", lambda: Path("/"))
    monkeypatch.setattr("getpass.getuser", lambda: "nobody")
    assert hide_home("/opt/x") == "/opt/x"
