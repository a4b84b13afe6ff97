"""What resnet-bench, the dry run and the benchmarks measure with. Clocks are fake: no test depends on a real time."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from resnet_train.build import RunData
from resnet_train.config import TrainConfig, make_config
from resnet_train.data.dataset import DATASETS, FACTS
from resnet_train.data.sources.cifar import CIFAR10
from resnet_train.jobs import bench, measure
from resnet_train.jobs.bench import Change, ChangeResult, changes_to_try, dry_run, start_changes
from resnet_train.jobs.measure import PHASES, WARMUP_STEPS, Spread, estimate_run, random_data, size_stages
from resnet_train.training.trainer import Trainer
from tests.harness.replay import captured_trainer
from tests.harness.trainers import CPU

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = {
    "arch": "resnet8",
    "dataset": "digits",
    "image_size": 8,
    "train_size": 48,
    "batch_size": 8,
    "device": "cpu",
    "amp": "off",
}


def tiny_config(**settings: Any) -> TrainConfig:
    return make_config({**TINY, **settings})


def tiny_bench_trainer(config: TrainConfig) -> Trainer:
    return measure.build_bench_trainer(config, random_data(config), CPU)


class Clock:
    """Replace the `time` module by a clock that only the test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def advance_after(self, seconds: Iterator[float] | float, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that calls `function` and then advances the clock."""

        def advancing(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self.now += seconds if isinstance(seconds, float) else next(seconds)
            return result

        return advancing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def _small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MATRIX_SIDE", 32)


# --- Rates -----------------------------------------------------------------------------------------------------------


def test_a_rate_is_of_timed_steps_until_the_device_is_done(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def training() -> measure.Training:
        for seconds in (100.0, 50.0, 1.0, 2.0, 5.0, 1000.0):  # two to warm up, three timed
            clock.now += seconds
            yield 10

    monkeypatch.setattr(measure, "synchronize", clock.advance_after(iter([20.0, 4.0]), lambda device: None))
    assert measure.rate(training, 3, CPU, warmup=2) == 30 / 12


def test_a_rate_ends_the_training(clock: Clock) -> None:
    ended = False

    def training() -> measure.Training:
        nonlocal ended
        try:
            while True:
                clock.now += 1
                yield 1
        finally:
            ended = True

    measure.rate(training, 1, CPU)
    assert ended


def test_every_other_round_is_in_reverse_order() -> None:
    order: list[str] = []

    def rate(name: str, value: float) -> float:
        order.append(name)
        return value

    rates = measure.interleave({"a": lambda: rate("a", 1.0), "b": lambda: rate("b", 2.0)}, rounds=3)
    assert "".join(order) == "abbaab"
    assert rates == {"a": [1.0] * 3, "b": [2.0] * 3}


def test_measures_below_the_minimum_ratio_are_timed_once() -> None:
    rates = {"base": 10.0, "half": 5.0, "less": 4.9}
    found = measure.interleave({name: lambda name=name: rates[name] for name in rates}, 3, "base", min_ratio=0.5)
    assert {name: len(values) for name, values in found.items()} == {"base": 3, "half": 3, "less": 1}


def test_ratios_are_taken_within_a_round() -> None:
    assert Spread.of_ratios([2.0, 6.0, 12.0], [1.0, 2.0, 3.0]) == Spread(median=3.0, min=2.0, max=4.0)
    assert Spread.of_ratios([5.0], [10.0, 1.0]) == Spread.of([0.5])


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.1, 1.3, "faster"), (0.7, 0.9, "slower"), (0.9, 1.1, ""), (1.0, 1.2, ""), (0.8, 1, "")],
)
def test_a_verdict_needs_the_whole_range_on_one_side_of_1(low: float, high: float, verdict: str) -> None:
    ratio = Spread(median=(low + high) / 2, min=low, max=high)
    assert ChangeResult(flag="--x", note="", rounds=2, ratio=ratio).verdict == verdict


def test_training_resnet18_on_an_image_takes_6_flops_per_mac() -> None:
    assert measure.training_flops(make_config({"arch": "resnet18"}), 10) == 6 * 555_422_720


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_the_matrix_rate_is_that_of_the_fastest_product(
    precision: torch.dtype | None, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each product is between two synchronizations; all take 4 s but one, which takes 2 s.
    formats, randn = [], torch.randn
    monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: formats.append(kwargs) or randn(*args, **kwargs))
    seconds = iter([100.0, 4.0] * 3 + [100.0, 2.0] + [100.0, 4.0] * 6)
    monkeypatch.setattr(measure, "synchronize", clock.advance_after(seconds, lambda device: None))
    assert measure.matrix_rate(CPU, precision, side=16) == 2 * 16**3 / 2
    assert formats == [{"device": CPU, "dtype": precision or torch.float32}] * 2
    assert next(seconds, None) is None


def test_an_evaluation_is_timed_after_its_first_batch(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_bench_trainer(tiny_config())
    trainer.eval_loaders["test"].batch_size = 100
    forward = clock.advance_after(iter([50.0, 1.0, 3.0]), trainer.model.forward)
    monkeypatch.setattr(trainer.model, "forward", forward)
    assert measure.eval_rate(trainer, num_batches=2) == 200 / 4


# --- Data ------------------------------------------------------------------------------------------------------------


def test_random_images_have_the_shape_of_the_config() -> None:
    data = random_data(make_config({"dataset": "cifar100", "train_size": 70, "batch_size": 64}))
    assert data.train.images.shape == (70, 3, 32, 32)
    assert len(data.train.classes) == 100


@pytest.mark.parametrize("dataset", DATASETS.names())
def test_the_images_of_a_run_are_counted_without_its_data(dataset: str) -> None:
    facts = FACTS.get(dataset, CIFAR10)
    config = make_config({"dataset": dataset, "val_size": 100})
    assert measure.count_images(config) == (facts.num_train - 100, facts.num_test + 100)
    assert measure.count_images(tiny_config(dataset=dataset)) == (48, facts.num_test)
    assert measure.count_images(make_config({"dataset": dataset, "val_size": 60_000}))[0] == 0


def test_large_images_are_fewer_but_fill_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MAX_RANDOM_BYTES", 10 * 3 * 8 * 8)
    data = random_data(tiny_config())
    assert (len(data.train), len(data.test or ())) == (10, 10)
    assert len(random_data(tiny_config(batch_size=16)).train) == 16


def test_a_benchmark_refuses_what_a_run_refuses() -> None:
    with pytest.raises(ValueError, match=r"^nesterov \(=true\) has no effect with optimizer adamw"):
        bench.bench(tiny_config(optimizer="adamw", nesterov=True), steps=1, rounds=1, try_compile=False)


def test_a_batch_is_at_most_the_training_set() -> None:
    assert tiny_bench_trainer(tiny_config(train_size=8))
    with pytest.raises(ValueError, match=r"batch_size \(=8\) must be at most .* \(=7\)"):
        tiny_bench_trainer(tiny_config(train_size=7))


# --- Phases ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event of torch's profiler; times are in nanoseconds."""

    span: tuple[int, int]
    label: str = "aten::op"
    device: str = "CPU"
    id: int = 0
    launched_by: int = 0
    annotation: bool = False

    def device_type(self) -> SimpleNamespace:
        return SimpleNamespace(name=self.device)

    def name(self) -> str:
        return self.label

    def start_ns(self) -> int:
        return self.span[0]

    def end_ns(self) -> int:
        return self.span[1]

    def duration_ns(self) -> int:
        return self.span[1] - self.span[0]

    def correlation_id(self) -> int:
        return self.id

    def linked_correlation_id(self) -> int:
        return self.launched_by

    def is_user_annotation(self) -> bool:
        return self.annotation


# The marks of two steps, the second of which accumulates gradients, and torch's annotation of its optimizer.
SPANS = {
    "host": [(0, 100)],
    "data": [(0, 10), (40, 44)],
    "forward": [(10, 18), (44, 50), (60, 66)],
    "backward": [(18, 30), (50, 60), (66, 78)],
    "optimizer": [(32, 35), (80, 85)],
    "Optimizer.step#SGD.step": [(32, 35), (80, 85)],
}
MARKS = [Event(span=span, label=name, annotation=True) for name, spans in SPANS.items() for span in spans]


def test_without_a_device_phases_are_the_times_between_marks() -> None:
    operations = [Event(span=(12, 17), id=1), Event(span=(19, 29), id=2)]
    seconds = measure.add_up_phases([*operations, *reversed(MARKS)])
    nanoseconds = {phase: round(value * 1e9) for phase, value in seconds.items()}
    assert nanoseconds == {"data": 14, "forward": 20, "backward": 34, "optimizer": 8, "host": 24}


def test_on_a_device_phases_are_the_times_of_its_operations() -> None:
    host = [Event(span=(start, start + 1), id=number) for number, start in enumerate([5, 12, 31, 33, 36, 19], 1)]
    runtime = Event(span=(3, 4), label="cudaLaunchKernel", id=2, launched_by=1)  # its id is none of torch's
    device = [
        Event(span=(20, 25), device="CUDA", launched_by=1),  # data, and the wait for it
        Event(span=(25, 55), device="CUDA", launched_by=2),  # forward
        Event(span=(30, 50), device="CUDA", launched_by=3),  # after backward, hidden behind the one before
        Event(span=(55, 58), device="CUDA", launched_by=6),  # backward
        Event(span=(60, 90), device="CUDA", launched_by=4),  # optimizer, and the wait for it
        Event(span=(90, 97), device="CUDA", launched_by=5),  # after the step
        Event(span=(10, 55), device="CUDA", label="forward", annotation=True),
        Event(span=(97, 99), device="CUDA", launched_by=99),  # launched by an unknown operation
    ]
    seconds = measure.add_up_phases([*reversed(device), *host, runtime, *MARKS])
    nanoseconds = {phase: round(value * 1e9) for phase, value in seconds.items()}
    assert nanoseconds == {"data": 25, "forward": 30, "backward": 3, "optimizer": 32, "host": 9}


@pytest.mark.parametrize("settings", [{"optimizer": "muon"}, {"accumulate": 2, "amp": "bf16", "ema_decay": 0.9}])
def test_a_profile_of_a_training_holds_every_phase(settings: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    trainer = tiny_bench_trainer(config := tiny_config(**settings))
    seconds = measure.phases(partial(measure.train, trainer, config), 2, CPU, warmup=1)
    assert tuple(seconds) == PHASES
    assert all(value > 0 for value in seconds.values())
    assert trainer.progress.step == 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_profile_of_a_gpu_holds_every_phase() -> None:
    config, device = tiny_config(device="cuda"), torch.device("cuda")
    trainer = measure.build_bench_trainer(config, random_data(config), device)
    seconds = measure.phases(partial(measure.train, trainer, config), 2, device)
    assert all(value > 0 for value in seconds.values())


def test_measuring_keeps_the_weights_and_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    config, set_to = tiny_config(threads=3, weight_decay=0.1), []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    trainer = tiny_bench_trainer(config)
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    measure.rate(partial(measure.train, trainer, config), 2, CPU)
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.parameters))
    assert set_to == [3, 5]


def test_a_measured_training_reads_the_loss_as_a_run_does() -> None:
    trainer, read_at = tiny_bench_trainer(config := tiny_config(log_every=3)), []
    trainer.log_step = lambda: read_at.append(trainer.progress.step)  # type: ignore[method-assign]
    measure.rate(partial(measure.train, trainer, config), 7, CPU, warmup=0)
    assert read_at == [3, 6]


# --- A whole run -----------------------------------------------------------------------------------------------------


def test_the_stages_of_a_run_share_its_steps() -> None:
    assert size_stages(tiny_config()) == [(8, 1.0)]
    stages = size_stages(tiny_config(progressive_sizes="4:0.25,6:0.75"))
    assert stages == [(4, 0.25), (6, 0.5), (8, 0.25)]


def test_each_size_is_measured_and_the_full_one_restored() -> None:
    trainer, sides = tiny_bench_trainer(config := tiny_config()), []
    trainer.model.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    assert list(measure.rates_by_size(trainer, config, [4, 6], steps=1)) == [4, 6]
    assert sides == [4] * (WARMUP_STEPS + 1) + [6] * (WARMUP_STEPS + 1)
    assert next(trainer.train_loader.epoch(0)).images.shape[-1] == 8


def test_a_runs_time_is_that_of_its_stages_evaluations_and_start() -> None:
    config = tiny_config(epochs=10, eval_every=4, progressive_sizes="4:0.5", val_size=40)
    run = estimate_run(config, (48, 400), {4: 96.0, 8: 48.0}, eval_rate=100.0, start_seconds=2.0)
    assert (run.epochs, run.steps, run.train_images, run.eval_images) == (10, 60, 48, 400)
    assert [asdict(stage) for stage in run.stages] == [
        {"side": 4, "share": 0.5, "images_per_second": 96.0},
        {"side": 8, "share": 0.5, "images_per_second": 48.0},
    ]
    assert run.train_seconds == pytest.approx(30 * 8 / 96 + 30 * 8 / 48)
    assert run.eval_seconds == pytest.approx(3 * 400 / 100)
    assert run.total_seconds == pytest.approx(2 + run.train_seconds + run.eval_seconds)


@pytest.mark.parametrize(("steps_per_epoch", "sizes"), [(1, None), (7, None), (4, "4:0.5")])
def test_a_dry_run_times_whole_steps_and_evaluations(
    steps_per_epoch: int, sizes: str | None, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first step and the first evaluation warm up; the others take 1 s and 4 s.
    stages = 2 if sizes else 1
    step_seconds = iter([90.0, 1.0, 1.0, 1.0] * stages)
    monkeypatch.setattr(Trainer, "train_step", clock.advance_after(step_seconds, Trainer.train_step))
    monkeypatch.setattr(measure, "evaluate", clock.advance_after(iter([90.0, 4.0]), measure.evaluate))
    config = tiny_config(train_size=8 * steps_per_epoch, epochs=10, eval_every=4, progressive_sizes=sizes)
    result = dry_run(config)
    assert next(step_seconds, None) is None
    assert (result.step_seconds, result.images_per_second) == (1.0, 8.0)
    assert result.eval_images_per_second == 360 / 4
    assert result.total_seconds == pytest.approx(10 * steps_per_epoch + 3 * 4)


def test_a_dry_run_of_a_captured_run_times_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    trainers, with_graph = list[Trainer](), []

    def build(_config: TrainConfig, data: RunData, _device: torch.device) -> Trainer:
        trainers.append(captured_trainer(monkeypatch, data=data, **TINY))
        return trainers[0]

    # The device is synchronized before the first timed step and after the last.
    monkeypatch.setattr(bench, "build_trainer", build)
    monkeypatch.setattr(measure, "synchronize", lambda _: with_graph.append(bool(trainers[0].run_step.graphs)))  # type: ignore[attr-defined]
    dry_run(tiny_config())
    assert with_graph == [True, True]
    assert trainers[0].run_forward.graphs  # type: ignore[attr-defined]


def test_a_dry_run_checks_the_config() -> None:
    with pytest.raises(ValueError, match=r"progressive_sizes .* must be at least 8, the stride of resnet18"):
        dry_run(tiny_config(arch="resnet18", progressive_sizes="4:0.5"))


def test_a_dry_run_that_is_not_finite_fails() -> None:
    from resnet_train.training.trainer import NotFinite

    with pytest.raises(NotFinite, match="not finite at step"):
        dry_run(tiny_config(lr=1e30, warmup_epochs=0))


# --- What would be faster --------------------------------------------------------------------------------------------


def test_each_change_is_the_other_choice_of_one_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(bench, "can_compile", lambda _: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    flags = [change.flag for change in changes_to_try(tiny_config(), CPU)]
    assert flags == ["--no-channels-last", "--amp bf16", "--threads 8", "--batch-size 16"]
    assert "--threads 8" not in [change.flag for change in changes_to_try(tiny_config(), torch.device("mps"))]
    on_gpu = [change.flag for change in changes_to_try(tiny_config(), torch.device("cuda"))]
    assert on_gpu == ["--no-channels-last", "--amp bf16", "--amp fp16", "--no-capture", "--batch-size 16"]
    on_gpu = [change.flag for change in changes_to_try(tiny_config(amp="fp16", capture=False), torch.device("cuda"))]
    assert on_gpu == ["--no-channels-last", "--amp off", "--capture", "--batch-size 16"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert "--threads 4" in [change.flag for change in changes_to_try(tiny_config(), CPU)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
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


def test_compilation_is_tried_only_with_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert not bench.can_compile(CPU)
    assert not bench.can_compile(torch.device("cuda"))
    assert "--compile" not in [change.flag for change in changes_to_try(tiny_config(), CPU, try_compile=True)]
    compiling = tiny_config(compile=True)
    assert "--no-compile" in [change.flag for change in changes_to_try(compiling, CPU, try_compile=True)]
    monkeypatch.setenv("CXX", "my-compiler")
    monkeypatch.setattr("shutil.which", lambda name: name == "my-compiler")
    assert bench.can_compile(CPU)
    monkeypatch.setattr("shutil.which", lambda name: name == "clang")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "triton" or None)
    assert bench.can_compile(torch.device("cuda"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not bench.can_compile(torch.device("cuda"))


def test_a_change_that_fails_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    monkeypatch.setattr(measure, "rate", fail)
    config = tiny_config(batch_size=32)
    changes = [Change("amp", "bf16"), Change("batch_size", 64)]
    trainings, left_out, compile_seconds = start_changes(config, changes, random_data(config), CPU)
    assert (trainings, compile_seconds) == ({}, None)
    assert left_out == {
        "--amp bf16": "CUDA out of memory.",
        "--batch-size 64": "batch_size (=64) must be at most the number of training images (=48)",
    }


@pytest.mark.parametrize(("batches_at_once", "steps"), [(0, 20), (170, 170), (500, 390)])
def test_the_steps_to_time_include_building_their_batches(batches_at_once: int, steps: int) -> None:
    loader = tiny_bench_trainer(tiny_config(train_size=8 * 390)).train_loader
    loader.chunk_bytes = batches_at_once * 8 * 4 * 3 * 8 * 8
    assert bench.default_steps(loader) == steps


def test_a_recipe_is_compared_within_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    flops = measure.training_flops(config := tiny_config(), 10)
    rates = {
        "as given": [10.0, 20.0],
        "matrix FLOP/s": [100.0 * flops, 50.0 * flops],
        "--no-channels-last": [12.0, 18.0],
        "--amp bf16": [4.0],
    }

    def interleave(measures: dict[str, Any], rounds: int, base: str, min_ratio: float) -> dict[str, list[float]]:
        assert rates.keys() <= measures.keys()
        assert (rounds, base, min_ratio) == (2, "as given", 0.5)
        return rates

    monkeypatch.setattr(measure, "interleave", interleave)
    result = bench.bench(config, steps=1, rounds=2, try_compile=False)
    assert result.images_per_second == Spread(median=15, min=10, max=20)
    assert result.run.stages[-1].images_per_second == 15
    assert result.flops_per_second == Spread(median=15 * flops, min=10 * flops, max=20 * flops)
    assert result.matrix_share == Spread(median=0.25, min=0.1, max=0.4)
    assert result.changes == [
        ChangeResult(flag="--no-channels-last", note="", rounds=2, ratio=Spread(median=1.05, min=0.9, max=1.2)),
        ChangeResult(
            flag="--amp bf16", note="rounds differently", rounds=1, ratio=Spread(median=0.4, min=0.4, max=0.4)
        ),
    ]


def test_compilation_is_timed_for_every_size_and_an_evaluation(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_bench_trainer(config := tiny_config(progressive_sizes="4:0.5"))
    forward = clock.advance_after(iter([60.0, 30.0, 10.0, 5.0, 1.0]), trainer.model.forward)
    monkeypatch.setattr(trainer.model, "forward", forward)

    monkeypatch.setattr(bench, "time", clock)
    monkeypatch.setattr(measure, "build_bench_trainer", lambda *_: trainer)
    _, _, seconds = start_changes(config, [bench.COMPILE], random_data(config), CPU)
    assert seconds == 60 + 30 + 10 + 5  # two sizes; an evaluation and its warm-up


def test_a_change_saves_its_share_of_the_training_time() -> None:
    run = estimate_run(tiny_config(), (48, 360), {8: 10.0}, 100.0)
    half = ChangeResult(flag="--x", note="", rounds=2, ratio=Spread(median=2.0, min=1.5, max=3.0))
    assert half.seconds_saved(run) == run.train_seconds / 2


# --- The programs in benchmarks/ -------------------------------------------------------------------------------------


def load_program(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a program of benchmarks/, which is not a package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_throughput_compares_gains_with_the_plain_loop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = load_program("throughput", monkeypatch)
    compiled = {"compilation", "default-compiled"}  # compiling takes seconds
    program.main(
        arch="resnet8",
        batch_size=4,
        wanted_steps=1,
        rounds=1,
        variants=",".join(name for name in program.VARIANTS if name not in compiled),
        device_name="cpu",
        threads=0,
        workers="0",
        num_images=32,
        memory=False,
        json_path=tmp_path / "result.json",
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert {"graph-capture", "airbench"} < result["left_out"].keys() < set(program.VARIANTS)
    assert result["variants"].keys() | result["left_out"].keys() == set(program.VARIANTS) - compiled
    for row in result["variants"].values():
        assert len(row["images_per_second"]) == 1
        assert 0 < row["over_plain"]["min"] <= row["over_plain"]["median"] <= row["over_plain"]["max"]
    assert result["variants"]["plain"]["over_plain"] == {"median": 1, "min": 1, "max": 1}
    assert sum(result["phases"]["shares"].values()) == pytest.approx(1)
    assert result["flops_per_image"] == measure.training_flops(make_config({"arch": "resnet8"}), 10)
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
def test_a_fresh_process_reports_its_memory_and_its_start(
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
