"""What resnet-bench and the benchmarks measure with: rounds, ratios, phases, changes. No test looks at a time."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from resnet_train.config import TrainConfig, make_config
from resnet_train.data.dataset import load_dataset
from resnet_train.jobs import bench
from resnet_train.jobs.bench import (
    PHASES,
    Variant,
    changes_to_try,
    data_size,
    enter_changes,
    expected_run,
    interleave,
    measure_phases,
    measure_rate,
    measure_stages,
    random_data,
    ratios,
    shares,
    size_stages,
    spread,
    training_flops,
    verdict,
)
from resnet_train.training.trainer import Trainer
from tests.harness.trainers import CPU

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = {"arch": "resnet8", "dataset": "digits", "image_size": 8, "train_size": 48, "batch_size": 8, "device": "cpu"}


def tiny_config(**settings: Any) -> TrainConfig:
    return make_config({**TINY, **settings})


def tiny_bench_trainer(config: TrainConfig) -> Trainer:
    return bench.build_bench_trainer(config, random_data(config), CPU)


# --- Rates -----------------------------------------------------------------------------------------------------------


def test_a_rate_counts_the_images_of_timed_steps_only() -> None:
    steps = 0

    @contextmanager
    def enter() -> Iterator[bench.Step]:
        def step() -> None:
            nonlocal steps
            steps += 1

        yield step

    assert measure_rate(Variant(10, enter), 3, CPU, warmup=2) > 0
    assert steps == 5


def test_every_other_round_is_in_reverse_order() -> None:
    order: list[str] = []

    def measure(name: str, rate: float) -> float:
        order.append(name)
        return rate

    values = interleave({"a": lambda: measure("a", 1.0), "b": lambda: measure("b", 2.0)}, rounds=3)
    assert "".join(order) == "abbaab"
    assert values == {"a": [1.0] * 3, "b": [2.0] * 3}


def test_what_is_hopeless_is_measured_once() -> None:
    rates = {"base": 10.0, "half": 5.0, "less": 4.9}
    values = interleave({name: lambda name=name: rates[name] for name in rates}, 3, "base", hopeless=0.5)
    assert {name: len(found) for name, found in values.items()} == {"base": 3, "half": 3, "less": 1}


def test_ratios_are_taken_within_a_round() -> None:
    assert ratios([2.0, 6.0, 12.0], [1.0, 2.0, 3.0]) == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert ratios([5.0], [10.0, 1.0]) == spread([0.5])


@pytest.mark.parametrize(
    ("low", "high", "word"), [(1.1, 1.3, "faster"), (0.7, 0.9, "slower"), (0.9, 1.1, ""), (1.0, 1.2, "")]
)
def test_a_verdict_needs_the_whole_range_on_one_side_of_1(low: float, high: float, word: str) -> None:
    assert verdict({"median": (low + high) / 2, "min": low, "max": high}) == word


def test_training_on_an_image_of_resnet18_takes_the_known_operations() -> None:
    assert training_flops(make_config({"arch": "resnet18"}), 10) == 6 * 555_422_720


def test_the_rate_of_matrix_products_is_positive_in_each_format() -> None:
    assert bench.matrix_rate(CPU, None, side=16) > 0
    assert bench.matrix_rate(CPU, torch.bfloat16, side=16) > 0


# --- Data ------------------------------------------------------------------------------------------------------------


def test_the_sizes_of_digits_are_those_of_the_data_set() -> None:
    train, test = (load_dataset("digits", split, "", 8) for split in ("train", "test"))
    assert train is not None
    assert test is not None
    assert bench.DATA_SIZES["digits"] == bench.DataSize(len(train), len(test), len(train.classes))


def test_random_images_have_the_shape_that_the_config_asks_for() -> None:
    data = random_data(make_config({"dataset": "cifar100", "train_size": 70, "batch_size": 64}))
    assert data.train.images.shape == (70, 3, 32, 32)
    assert len(data.train.classes) == 100
    assert data_size(make_config({"dataset": "folder"})) == bench.CIFAR10_SIZE


def test_large_images_are_fewer_but_fill_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MAX_RANDOM_BYTES", 1)
    assert len(random_data(tiny_config()).train) == 8


def test_a_batch_must_not_be_larger_than_the_training_images() -> None:
    with pytest.raises(ValueError, match=r"batch_size \(=8\) must be at most .* \(=7\)"):
        random_data(tiny_config(train_size=7))


# --- Phases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"optimizer": "muon"}, {"accumulate": 2}, {"amp": "bf16", "ema_decay": 0.9}])
def test_every_phase_of_a_step_takes_time_and_their_shares_sum_to_1(settings: dict[str, Any]) -> None:
    config = tiny_config(**settings)
    trainer = tiny_bench_trainer(config)
    seconds = measure_phases(trainer, config, steps=2, warmup=1)
    assert tuple(seconds) == PHASES
    assert all(value > 0 for value in seconds.values())
    assert sum(shares(seconds).values()) == pytest.approx(1)
    assert trainer.progress.step == 3


def test_the_phases_come_in_the_order_of_a_step_and_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    config, backward = tiny_config(), torch.Tensor.backward
    trainer, started = tiny_bench_trainer(config), []
    monkeypatch.setattr(bench.PhaseClock, "start", lambda clock, phase: started.append(phase))
    measure_phases(trainer, config, steps=1, warmup=0)
    assert started == ["data", "host", "forward", "backward", "host", "optimizer", "host", "host"]
    assert torch.Tensor.backward is backward
    assert "autocast" not in vars(trainer)
    assert not trainer.optimizer._optimizer_step_pre_hooks
    assert not trainer.optimizer._optimizer_step_post_hooks


def test_measuring_leaves_the_weights_and_the_threads_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    config, set_to = tiny_config(threads=3, weight_decay=0.1), []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    trainer = tiny_bench_trainer(config)
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    measure_rate(bench.our_training(trainer, config), 2, CPU)
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.parameters))
    assert set_to == [3, 5]


@pytest.mark.gpu
def test_the_phases_of_a_gpu_are_timed_by_its_own_clock() -> None:
    config = tiny_config(device="cuda")
    trainer = bench.build_bench_trainer(config, random_data(config), torch.device("cuda"))
    seconds = measure_phases(trainer, config, steps=2, warmup=1)
    assert all(value > 0 for value in seconds.values())


# --- A run, and what would help --------------------------------------------------------------------------------------


def test_the_stages_of_a_run_share_its_steps() -> None:
    assert size_stages(tiny_config()) == [(8, 1.0)]
    stages = size_stages(tiny_config(progressive_sizes="4:0.25,6:0.75"))
    assert stages == [(4, 0.25), (6, 0.5), (8, 0.25)]


def test_each_smaller_size_is_measured_and_the_full_one_is_back_after() -> None:
    config = tiny_config(progressive_sizes="4:0.25,6:0.75")
    trainer, sides = tiny_bench_trainer(config), []
    trainer.model.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    assert list(measure_stages(trainer, config, steps=1)) == [4, 6]
    assert sides == [4] * (bench.WARMUP_STEPS + 1) + [6] * (bench.WARMUP_STEPS + 1)
    assert next(trainer.train_loader.epoch(0)).images.shape[-1] == 8


def test_the_time_of_a_run_is_that_of_its_stages_evaluations_and_start() -> None:
    config = tiny_config(epochs=10, eval_every=4, progressive_sizes="4:0.5", val_size=40)
    run = expected_run(config, {4: 96.0, 8: 48.0}, eval_rate=100.0, start_seconds=2.0)
    assert (run["steps"], run["train_images"], run["eval_images"]) == (60, 48, 400)
    assert run["train_seconds"] == pytest.approx(30 * 8 / 96 + 30 * 8 / 48)
    assert run["eval_seconds"] == pytest.approx(3 * 400 / 100)
    assert run["total_seconds"] == pytest.approx(2 + run["train_seconds"] + run["eval_seconds"])


def test_each_change_is_the_other_choice_of_one_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(bench, "can_compile", lambda _: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    flags = [change.flag for change in changes_to_try(tiny_config(), CPU)]
    assert flags == ["--no-channels-last", "--amp bf16", "--threads 8", "--batch-size 16"]
    other = tiny_config(channels_last=False, amp="bf16", deterministic=True, accumulate=2, compile=True)
    assert [change.flag for change in changes_to_try(other, CPU, try_compile=True)] == [
        "--channels-last",
        "--amp off",
        "--threads 8",
        "--no-deterministic",
        "--accumulate 1",
        "--batch-size 16",
        "--no-compile",
    ]


def test_compilation_is_tried_only_where_there_is_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert not bench.can_compile(CPU)
    assert not bench.can_compile(torch.device("cuda"))
    assert "--compile" not in [change.flag for change in changes_to_try(tiny_config(), CPU, try_compile=True)]


def test_a_change_that_fails_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(batch_size=32)
    changes = [bench.Change("--amp bf16", {"amp": "bf16"}), bench.Change("--batch-size 64", {"batch_size": 64})]

    def fail(*_: Any, **__: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    monkeypatch.setattr(bench, "measure_rate", fail)
    variants, left_out = enter_changes(config, changes, random_data(config), CPU)
    assert variants == {}
    assert left_out == {"--amp bf16": "CUDA out of memory.", "--batch-size 64": "there are 48 training images"}


# --- The programs in benchmarks/ -------------------------------------------------------------------------------------


def load_program(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A program of benchmarks/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MATRIX_SIDE", 32)


def test_throughput_measures_the_gains_beside_the_plain_loop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = load_program("throughput", monkeypatch)
    program.main(
        arch="resnet8",
        batch_size=4,
        wanted_steps=1,
        rounds=2,
        variants=",".join(name for name in program.VARIANTS if name != "compilation"),  # seconds of compiling
        device_name="cpu",
        threads=0,
        workers="0",
        num_images=32,
        memory=False,
        json_path=tmp_path / "result.json",
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert {"graph-capture", "airbench"} < result["left_out"].keys() < set(program.VARIANTS)
    assert result["variants"].keys() | result["left_out"].keys() == set(program.VARIANTS) - {"compilation"}
    for row in result["variants"].values():
        assert len(row["images_per_second"]) == 2
        assert 0 < row["over_plain"]["min"] <= row["over_plain"]["median"] <= row["over_plain"]["max"]
    assert result["variants"]["plain"]["over_plain"] == {"median": 1, "min": 1, "max": 1}
    assert sum(result["phases"]["shares"].values()) == pytest.approx(1)
    assert result["flops_per_image"] == training_flops(make_config({"arch": "resnet8"}), 10)
    assert "default " in capsys.readouterr().out


def test_throughput_knows_its_variants_and_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    program = load_program("throughput", monkeypatch)
    assert program.choose_variants("channels-last,default") == ["plain", "default", "channels-last"]
    with pytest.raises(program.typer.BadParameter, match="unknown variant 'fast'"):
        program.choose_variants("fast")
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert program.worker_numbers("auto") == [0, 1, 2, 4, 6]
    assert program.worker_numbers("2,3") == [2, 3]


def test_scaling_relates_every_case_to_the_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load_program("scaling", monkeypatch).main(
        archs="resnet8,resnet14",
        batch_sizes="2,4",
        batch_size=4,
        steps=1,
        rounds=1,
        device_name="cpu",
        threads=0,
        num_images=16,
        json_path=tmp_path / "result.json",
    )
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [(row["arch"], row["batch_size"]) for row in rows] == [("resnet8", 4), ("resnet14", 4), ("resnet8", 2)]
    assert rows[0]["cost"] == {"median": 1, "min": 1, "max": 1}
    assert all(row["cost"]["median"] > 0 for row in rows)


@pytest.mark.parametrize("kind", ["bare", "ours"])
def test_a_fresh_process_tells_its_memory_and_its_start(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = load_program("fresh", monkeypatch)
    program.main(
        kind,
        arch="resnet8",
        batch_size=4,
        device_name="cpu",
        threads=0,
        train_size=16,
        dataset=None,
        data_dir="data",
    )
    result = json.loads(capsys.readouterr().out)
    assert result["data_bytes"] == (16 * 3 * 32 * 32 if kind == "ours" else 0)
    assert result["first_step_seconds"] > 0
    assert result["peak_bytes"] is None or result["peak_bytes"] >= result["imported_bytes"] > 0
