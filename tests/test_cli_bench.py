"""resnet-bench: the report and its JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from resnet_train.config import TrainConfig
from resnet_train.jobs import bench, measure
from resnet_train.jobs.bench import BenchResult, ChangeResult
from resnet_train.jobs.measure import RunEstimate, Spread, Stage
from tests.harness.cli import RunCli

TINY = ["--arch", "resnet8", "--dataset", "digits", "--image-size", "8", "--train-size", "32", "--batch-size", "16"]
QUICK = [*TINY, "--device", "cpu", "--amp", "off", "--steps", "1", "--rounds", "2"]

RESULT = BenchResult(
    arch="resnet20",
    params=269_722,
    batch_size=128,
    image_size=32,
    precision="bfloat16",
    data="random images",
    steps=20,
    rounds=3,
    images_per_second=Spread(median=1000.4, min=900, max=1234.5),
    flops_per_image=246_000_000,
    flops_per_second=Spread(median=0.246e12, min=0.2214e12, max=0.3037e12),
    matrix_flops_per_second=Spread(median=1.23e12, min=1.2e12, max=1.3e12),
    matrix_share=Spread(median=0.2, min=0.18, max=0.25),
    changes=[
        ChangeResult(flag="--no-channels-last", note="", rounds=3, ratio=Spread(median=1.05, min=0.9, max=1.2)),
        ChangeResult(flag="--amp off", note="rounds differently", rounds=3, ratio=Spread(median=1.5, min=1.25, max=2)),
        ChangeResult(flag="--threads 1", note="", rounds=1, ratio=Spread(median=0.4, min=0.4, max=0.4)),
    ],
    left_out={"--batch-size 256": "CUDA out of memory."},
    phases={"data": 0.011, "forward": 0.358, "backward": 0.614, "optimizer": 0.004, "host": 0.013},
    phase_seconds={"data": 1.1, "forward": 35.8, "backward": 61.4, "optimizer": 0.4, "host": 1.3},
    start_seconds=2.25,
    peak_memory_bytes=3 << 29,
    eval_images_per_second=2613.4,
    run=RunEstimate(
        epochs=200,
        steps=78_000,
        train_images=50_000,
        eval_images=10_000,
        stages=[
            Stage(side=16, share=0.25, images_per_second=4000.0),
            Stage(side=32, share=0.75, images_per_second=1000.4),
        ],
        train_seconds=10_000.0,
        eval_seconds=800.0,
        total_seconds=10_921.0,
    ),
    environment={"device_name": "NVIDIA H100", "cpu": "AMD EPYC", "torch": "2.14.1"},
)

REPORT = """\
network     resnet20, 269,722 parameters
machine     NVIDIA H100, AMD EPYC, torch 2.14.1
batches     128 random images of 32×32, bfloat16
training    1,000 (900 to 1,234) images/s, 3 rounds of 20 steps
arithmetic  0.246 TFLOP/s, 20% (18% to 25%) of the 1.23 of a matrix product
a step      data 1.1%, forward 35.8%, backward 61.4%, optimizer 0.4%, host 1.3%
evaluation  2,613 images/s
memory      1,536 MiB at its peak
start       2.2 s until the first step is done, without reading the data
images/s at 16 pixels 4,000 (25% of the steps), 32 pixels 1,000 (75% of the steps)
whole run   about 3 h 2 min: 200 epochs of 50,000 images, evaluations included

one change          times as fast  range over the rounds
--no-channels-last           1.05  0.90 to 1.20
--amp off                    1.50  1.25 to 2.00
--threads 1                  0.40  0.40 to 0.40, 1 round only
--batch-size 256                –  not tried: CUDA out of memory.

--amp off is faster here (it rounds differently).
--threads 1 is slower here.
"""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TrainConfig, int | None, int, bool]]:
    """Replace the measuring by `RESULT` and return the list of the arguments that it is called with."""
    seen: list[tuple[TrainConfig, int | None, int, bool]] = []

    def fake_bench(config: TrainConfig, steps: int | None, rounds: int, try_compile: bool) -> BenchResult:
        seen.append((config, steps, rounds, try_compile))
        return RESULT

    monkeypatch.setattr(bench, "bench", fake_bench)
    return seen


def test_the_numbers_as_json_hold_together(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MATRIX_SIDE", 32)
    monkeypatch.setattr(bench, "_thread_counts", lambda: [1])
    outcome = run_cli("resnet-bench", *QUICK, "--epochs", 3, "--progressive-sizes", "4:0.5", "--json", cwd=tmp_path)
    assert outcome.code == 0, outcome
    result = json.loads(outcome.stdout)
    assert (result["steps"], result["rounds"], result["precision"]) == (1, 2, "float32")
    rate, ratio = result["images_per_second"], result["changes"][0]["ratio"]
    assert 0 < rate["min"] <= rate["median"] <= rate["max"]
    assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert result["flops_per_second"]["max"] == pytest.approx(rate["max"] * result["flops_per_image"])
    assert list(result["phases"]) == ["data", "forward", "backward", "optimizer", "host"]
    assert sum(result["phases"].values()) == pytest.approx(1)
    assert (result["run"]["steps"], result["run"]["train_images"], result["run"]["eval_images"]) == (6, 32, 360)
    assert [stage["side"] for stage in result["run"]["stages"]] == [4, 8]
    assert result["run"]["stages"][1]["images_per_second"] == rate["median"]
    assert result["run"]["total_seconds"] > result["run"]["train_seconds"] > 0
    flags = [change["flag"] for change in result["changes"]]
    assert {"--no-channels-last", "--amp bf16", "--batch-size 32"} <= set(flags)
    assert "round 2 of 2" in outcome.stderr
    assert not list(tmp_path.iterdir())


def test_the_report_is_aligned_lines(run_cli: RunCli, tmp_path: Path, calls: list) -> None:
    assert run_cli("resnet-bench", *QUICK, cwd=tmp_path).stdout == REPORT


def test_one_round_allows_no_advice(
    run_cli: RunCli, tmp_path: Path, calls: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "bench", lambda *_: replace(RESULT, rounds=1))
    outcome = run_cli("resnet-bench", *QUICK, cwd=tmp_path)
    assert outcome.stdout.splitlines()[-1] == "One round has no range, so there is no advice."


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [
        (62.0, "pays off in this run: it saves 33 min 20 s and takes 1 min 2 s to compile"),
        (2001.0, "does not pay off in this run: it saves 33 min 20 s and takes 33 min 21 s to compile"),
    ],
)
def test_compilation_is_recommended_where_it_pays_off(
    seconds: float, verdict: str, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratio = Spread(median=1.25, min=1.2, max=1.3)  # of 10,000 s of training
    change = ChangeResult(flag="--compile", note="", rounds=3, ratio=ratio, compile_seconds=seconds)
    monkeypatch.setattr(bench, "bench", lambda *_: replace(RESULT, changes=[change]))
    outcome = run_cli("resnet-bench", *QUICK, cwd=tmp_path)
    assert outcome.stdout.splitlines()[-1] == f"--compile is faster here, and {verdict}."


def test_a_run_of_one_size_has_no_rates_by_size(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_size = replace(RESULT, run=replace(RESULT.run, stages=RESULT.run.stages[1:]))
    monkeypatch.setattr(bench, "bench", lambda *_: one_size)
    assert "images/s at" not in run_cli("resnet-bench", *QUICK, cwd=tmp_path).stdout


def test_flags_override_a_recipe_and_defaults(run_cli: RunCli, tmp_path: Path, calls: list) -> None:
    (tmp_path / "mine.yaml").write_text("arch: resnet14\nbatch_size: 8\n")
    run_cli("resnet-bench", "--config", "mine.yaml", *QUICK[2:], cwd=tmp_path)
    run_cli("resnet-bench", cwd=tmp_path)
    run_cli("resnet-bench", "--try-compile", cwd=tmp_path)
    assert [(config.arch, config.batch_size) for config, *_ in calls] == [
        ("resnet14", 16),
        ("resnet18", 128),
        ("resnet18", 128),
    ]
    assert [options for _, *options in calls] == [[1, 2, False], [None, 5, False], [None, 5, True]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arch", "resnet19"], "resnet19"),
        (["--batch-size", "64"], "batch_size (=64) must be at most the number of training images (=32)"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--steps", "0"], "'--steps'"),
        (["--config", "nothing"], "config 'nothing' is neither a recipe nor a readable file"),
    ],
)
def test_bad_input_is_one_line(options: list[str], message: str, run_cli: RunCli, tmp_path: Path) -> None:
    assert message in run_cli("resnet-bench", *QUICK, *options, cwd=tmp_path).error
