"""Learning-rate schedules at every step, against closed forms and against torch's own schedulers."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim import lr_scheduler

from resnet_train.optim.schedules import SCHEDULES
from resnet_train.registry import call_with

TOTALS = [2, 3, 10, 97, 1000]


def table_of_torch(total, make_scheduler):
    """The lr of torch's scheduler at each step, for a peak lr of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, table = make_scheduler(optimizer), []
    for step in range(total):
        table.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < total - 1:
            scheduler.step()
    return table


def build_schedule(name, **settings):
    return call_with(SCHEDULES[name], settings)


def table_of(name, total, *, warmup=None, **settings):
    schedule = build_schedule(name, epochs=total, steps_per_epoch=1, warmup_epochs=warmup, **settings)
    return [schedule(step) for step in range(total)]


@pytest.mark.parametrize("total", [1, *TOTALS])
@pytest.mark.parametrize("warmup", [None, 0, 1, 7])
def test_cosine_equals_its_closed_form(total, warmup):
    start = warmup or 0
    expected = [
        (step + 1) / start if step < start else math.cos(math.pi * (step - start) / (total - start) / 2) ** 2
        for step in range(total)
    ]
    assert table_of("cosine", total, warmup=warmup) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("total", TOTALS)
def test_cosine_equals_torch(total):
    expected = table_of_torch(total, lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, total))
    assert table_of("cosine", total) == pytest.approx(expected, abs=1e-9)


def test_cosine_reaches_zero_one_step_after_the_last():
    schedule = build_schedule("cosine", epochs=100, steps_per_epoch=1, warmup_epochs=10)
    assert schedule(99) > 0
    assert schedule(100) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("gamma", [0.1, 0.5])
@pytest.mark.parametrize(("total", "milestones"), [(10, [3, 8]), (97, [1, 50, 51]), (97, [40]), (97, []), (10, [20])])
def test_multi_step_equals_torch(total, milestones, gamma):
    expected = table_of_torch(total, lambda optimizer: lr_scheduler.MultiStepLR(optimizer, milestones, gamma))
    assert table_of("multi-step", total, milestones=milestones, gamma=gamma) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("total", "half", "three_quarters"), [(64_000, 32_000, 48_000), (100, 50, 75), (10, 5, 7)])
def test_multi_step_decays_at_half_and_three_quarters(total, half, three_quarters):
    expected = [1.0] * half + [0.1] * (three_quarters - half) + [0.01] * (total - three_quarters)
    assert table_of("multi-step", total) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("total", "milestones", "period"), [(10, [3], 3), (97, [40, 50], 40), (97, None, 33), (9, None, 3), (3, None, 1)]
)
def test_step_equals_torch(total, milestones, period):
    expected = table_of_torch(total, lambda optimizer: lr_scheduler.StepLR(optimizer, period, gamma=0.3))
    assert table_of("step", total, milestones=milestones, gamma=0.3) == pytest.approx(expected, rel=1e-9)


def test_constant_stays_at_the_peak():
    assert table_of("constant", 10, milestones=[3]) == [1.0] * 10


@pytest.mark.parametrize("total", TOTALS)
def test_one_cycle_equals_torch(total):
    expected = table_of_torch(
        total,
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=1.0,
            total_steps=total,
            pct_start=0.3,
            anneal_strategy="cos",
            div_factor=25,
            final_div_factor=1e4,
            cycle_momentum=False,
        ),
    )
    assert table_of("one-cycle", total) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("total", "warmup"), [(100, 10), (100, 50), (97, 2)])
def test_one_cycle_rises_during_the_warm_up_and_equals_torch(total, warmup):
    expected = table_of_torch(
        total,
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer, max_lr=1.0, total_steps=total, pct_start=warmup / total, cycle_momentum=False
        ),
    )
    table = table_of("one-cycle", total, warmup=warmup)
    assert table == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert table[0] == pytest.approx(1 / 25)
    assert table.index(max(table)) == warmup - 1
    assert table[-1] == pytest.approx(1 / 25 / 1e4)


@pytest.mark.parametrize("name", ["cosine", "multi-step", "step", "constant"])
@pytest.mark.parametrize("warmup", [1, 5, 12])
def test_warm_up_is_linear_and_ends_at_the_peak(name, warmup):
    table = table_of(name, 100, warmup=warmup)
    assert table[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert table[warmup - 1] == table[warmup] == 1.0
    assert table[warmup:] == sorted(table[warmup:], reverse=True)


def test_milestones_count_from_the_start_of_the_run():
    table = table_of("multi-step", 20, warmup=4, milestones=[6, 10])
    assert table == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1] + [0.1] * 4 + [0.01] * 10)


@pytest.mark.parametrize("warmup", [None, 0, 1, 2, 5, 30])
@pytest.mark.parametrize("total", [1, 2, 30, 31])
@pytest.mark.parametrize("name", SCHEDULES.names())
def test_factors_of_the_shortest_runs_lie_between_0_and_1(name, total, warmup):
    assert all(0 <= factor <= 1 + 1e-12 for factor in table_of(name, total, warmup=warmup))


def test_lengths_in_epochs_become_steps():
    options = {"epochs": 10, "steps_per_epoch": 7}
    schedule = build_schedule("cosine", **options, warmup_epochs=1.5)
    expected = build_schedule("cosine", epochs=70, steps_per_epoch=1, warmup_epochs=10)
    assert [schedule(step) for step in range(70)] == [expected(step) for step in range(70)]
    schedule = build_schedule("multi-step", **options, milestones=[2, 5.5], gamma=0.3)
    expected = build_schedule("multi-step", epochs=70, steps_per_epoch=1, milestones=[14, 38], gamma=0.3)
    assert [schedule(step) for step in range(70)] == [expected(step) for step in range(70)]
    assert build_schedule("multi-step", **options)(34) == 1
    assert build_schedule("multi-step", **options)(35) == pytest.approx(0.1)


def test_schedule_is_a_function_of_the_step_alone():
    schedule = build_schedule("one-cycle", epochs=3, steps_per_epoch=10)
    forward = [schedule(step) for step in range(30)]
    assert [schedule(step) for step in reversed(range(30))] == forward[::-1]


def test_unknown_name_gives_the_nearest():
    with pytest.raises(ValueError, match="unknown schedule 'cosin'; did you mean 'cosine'"):
        build_schedule("cosin", epochs=1, steps_per_epoch=1)


def test_name_like_no_other_gives_all_names():
    with pytest.raises(ValueError, match="unknown schedule 'x'; known: ") as refusal:
        build_schedule("x", epochs=1, steps_per_epoch=1)
    assert all(name in str(refusal.value) for name in SCHEDULES.names())


@pytest.mark.parametrize(("name", "milestones"), [("step", [0.01]), ("multi-step", [0.01, 0.02])])
def test_a_milestone_is_at_least_one_step(name, milestones):
    schedule = build_schedule(name, epochs=2, steps_per_epoch=4, milestones=milestones, gamma=0.5)
    per_step = [schedule(step) for step in range(3)]
    assert per_step == ([1, 0.5, 0.25] if name == "step" else [1, 0.25, 0.25])
