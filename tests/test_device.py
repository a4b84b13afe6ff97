"""Devices, precision and the variables of torchrun; CUDA is faked."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from resnet_train.runtime import precision, ranks
from resnet_train.runtime.device import memory_format, peak_memory_bytes, prepare_machine, select_device, sum_dtype
from resnet_train.runtime.environment import describe_environment
from resnet_train.runtime.precision import choose_precision, eval_precision, resolve_amp
from tests.harness.cli import SMALL, RunCli

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_is_cuda_then_apples_gpu_then_the_cpu(monkeypatch: pytest.MonkeyPatch, no_gpu: None) -> None:
    assert select_device("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert select_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device("auto") == CUDA


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "sees no CUDA GPU"),
        ("mps", "no Apple GPU"),
        ("tpu", "unknown device 'tpu'"),
        ("meta", "unknown device"),
    ],
)
def test_a_device_that_is_not_here_is_refused(name: str, message: str, no_gpu: None) -> None:
    with pytest.raises(ValueError, match=message):
        select_device(name)


def test_a_gpu_beyond_the_last_one_is_refused(two_gpus: None) -> None:
    assert select_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="'cuda:2' asked for, but there are 2 CUDA GPUs"):
        select_device("cuda:2")


def test_under_torchrun_each_process_gets_its_own_gpu(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert select_device("cuda") == CUDA
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert select_device("cuda") == torch.device("cuda", 1)
    assert select_device("cuda:0") == torch.device("cuda", 0)


def test_deterministic_kernels_are_exact_ones() -> None:
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    try:
        prepare_machine("cpu", threads=1, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.benchmark
        assert not torch.backends.cudnn.allow_tf32
        prepare_machine("cpu", threads=1)
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("amp", "device", "has_bf16", "expected"),
    [
        ("auto", torch.device("mps"), True, None),
        ("auto", CUDA, True, torch.bfloat16),
        ("auto", CUDA, False, torch.float16),
        ("off", CUDA, True, None),
        ("bf16", CPU, False, torch.bfloat16),
        ("fp16", CUDA, True, torch.float16),
    ],
)
def test_the_precision_fits_the_device(
    amp: str, device: torch.device, has_bf16: bool, expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    assert choose_precision(amp, device) == expected


@pytest.mark.parametrize(
    ("units", "gain", "expected"),
    [
        (["amx_bf16", "avx512_bf16"], None, ("bf16", "this CPU has AMX")),
        (["avx512_bf16"], 1.5, ("bf16", "a probe trains 1.50 times as fast in bf16")),
        (["avx512_bf16"], 0.8, ("off", "a probe trains 0.80 times as fast in bf16")),
        ([], None, ("off", "this CPU has no bf16 units")),
    ],
)
def test_a_cpu_uses_bf16_where_it_gains(
    units: list[str], gain: float | None, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "cpu_capabilities", lambda: dict.fromkeys(units, True))
    monkeypatch.setattr(precision, "probe_bf16", lambda: gain)  # None can't be compared: it must not be asked
    assert resolve_amp("auto", CPU) == expected
    assert resolve_amp("fp16", CPU) == ("fp16", "")


@pytest.mark.parametrize(
    ("amp", "units", "warns"),
    [
        ("off", [], False),
        ("bf16", [], True),
        ("bf16", ["avx512_bf16"], False),
        ("fp16", ["avx512_fp16"], True),  # it computes forward only
        ("fp16", ["amx_fp16"], False),
    ],
)
def test_a_format_that_is_slow_on_a_cpu_is_announced(
    amp: str, units: list[str], warns: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "cpu_capabilities", lambda: dict.fromkeys(units, True))
    precision.warn_if_slow(amp, CPU)
    expected = f"training with amp (={amp}) is slow on this CPU; --amp auto uses the fastest format"
    assert caplog.messages == [expected] * warns


def test_new_and_resumed_runs_warn_of_a_slow_format(
    monkeypatch: pytest.MonkeyPatch, run_cli: RunCli, tmp_path: Path
) -> None:
    monkeypatch.setattr(precision, "cpu_capabilities", dict)
    for start in (["--amp", "bf16", "--name", "x"], ["--resume", "runs/x", "--epochs", 3]):
        settings = SMALL if "--name" in start else []
        outcome = run_cli("resnet-train", *settings, *start, cwd=tmp_path)
        assert outcome.code == 0, outcome
        assert outcome.stderr.count("training with amp (=bf16) is slow on this CPU") == 1


def test_older_torch_reports_the_same_bf16_units(monkeypatch: pytest.MonkeyPatch) -> None:
    units = ("amx_bf16", "avx512_bf16")
    newer = {name: bool(precision.cpu_capabilities().get(name)) for name in units}
    older = SimpleNamespace(**{name: getattr(torch.cpu, name) for name in dir(torch.cpu) if name.startswith("_is_")})
    monkeypatch.setattr(torch, "cpu", older)
    assert precision.cpu_capabilities() == newer


def test_a_probe_times_both_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    formats: list[torch.dtype | None] = []
    autocast = precision.autocast

    def record(device: torch.device, asked: torch.dtype | None) -> Any:
        formats.append(asked)
        return autocast(device, asked)

    monkeypatch.setattr(precision, "autocast", record)
    monkeypatch.setattr(precision, "PROBE_SECONDS", 0.0)
    before = torch.random.get_rng_state()
    assert precision.probe_bf16.__wrapped__() > 0
    assert formats == [None, torch.bfloat16] * 2
    assert torch.equal(torch.random.get_rng_state(), before)


def test_evaluation_never_emulates_a_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_capabilities", lambda: {"avx512_bf16": True})
    assert eval_precision(torch.bfloat16, CPU) is torch.bfloat16
    assert eval_precision(torch.float16, CPU) is None
    assert eval_precision(None, CPU) is None


def test_sums_are_float64_where_the_device_has_it() -> None:
    assert [sum_dtype(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [
        torch.float64,
        torch.float64,
        torch.float32,
    ]


def test_the_memory_format_is_channels_last_on_request() -> None:
    assert memory_format(True) == torch.channels_last
    assert memory_format(False) == torch.contiguous_format


def test_the_peak_of_memory_is_in_bytes() -> None:
    peak = peak_memory_bytes(CPU)
    assert peak is None or 50e6 < peak < 500e9


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs /proc")
def test_the_cpu_has_its_models_name() -> None:
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert describe_environment(torch.device("cpu"))["cpu"] in (names or [platform.processor() or platform.machine()])


def test_ranks_are_those_of_torchrun_or_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    for name in (*variables, "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert (ranks.rank(), ranks.local_rank(), ranks.num_ranks(), ranks.num_restarts()) == (0, None, 1, 0)
    assert ranks.is_one_machine()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert (ranks.rank(), ranks.local_rank(), ranks.num_ranks(), ranks.num_restarts()) == (5, 1, 8, 2)
    assert not ranks.is_one_machine()


def test_many_more_threads_than_cpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(ValueError, match=r"threads \(=4096\) must be at most 8, 4 for each of the 2 CPUs here"):
        prepare_machine("cpu", threads=4096)
