"""Learning rate schedules: functions of the step, without state to save or restore."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from resnet_train.registry import Registry

Schedule = Callable[[int], float]  # from the number of optimizer steps so far to a factor on the peak learning rate

NEVER = 1e9  # epochs; later milestones mean the same, and 1e308 would overflow as a step


@dataclass(frozen=True)
class Timeline:
    """The lengths of a schedule, in optimizer steps.

    Attributes:
        total: steps of the whole run.
        warmup: steps of the linear warm-up; None is the default of the schedule.
        milestones: steps at which the multi-step schedule decays. The first one is the period of the step schedule.
            None is the default of the schedule.
        gamma: factor of each decay.
    """

    total: int
    warmup: int | None = None
    milestones: Sequence[int] | None = None
    gamma: float = 0.1


SCHEDULES: Registry[Callable[[Timeline], Schedule]] = Registry("schedule")


def build_schedule(
    name: str,
    *,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float | None = None,
    milestones: Sequence[float] | None = None,
    gamma: float = 0.1,
) -> Schedule:
    """Build a schedule from lengths in epochs.

    Raises:
        ValueError: unknown name.
    """
    warmup = None if warmup_epochs is None else round(warmup_epochs * steps_per_epoch)
    steps = None if milestones is None else [max(1, round(min(m, NEVER) * steps_per_epoch)) for m in milestones]
    return SCHEDULES[name](Timeline(epochs * steps_per_epoch, warmup, steps, gamma))


def _with_warmup(warmup: int, schedule: Schedule) -> Schedule:
    """Return a schedule that rises linearly to 1 in `warmup` steps (Goyal et al. 2017, section 2.2) before another."""
    return lambda step: (step + 1) / warmup if step < warmup else schedule(step)


@SCHEDULES.register("cosine")
def cosine(timeline: Timeline) -> Schedule:
    """Fall along half a cosine to 0 after the last step (Loshchilov & Hutter 2017)."""
    warmup = timeline.warmup or 0
    length = max(1, timeline.total - warmup)
    return _with_warmup(warmup, lambda step: 0.5 * (1 + math.cos(math.pi * (step - warmup) / length)))


@SCHEDULES.register("multi-step")
def multi_step(timeline: Timeline) -> Schedule:
    """Decay by gamma at each milestone (He et al. 2016a, section 4.2: after 32k and 48k of 64k steps)."""
    milestones = timeline.milestones
    if milestones is None:
        milestones = [timeline.total // 2, timeline.total * 3 // 4]
    return _with_warmup(timeline.warmup or 0, lambda step: timeline.gamma ** sum(step >= m for m in milestones))


@SCHEDULES.register("step")
def step_decay(timeline: Timeline) -> Schedule:
    """Decay by gamma every N epochs (--milestones N), by default every third of the run."""
    period = timeline.milestones[0] if timeline.milestones else max(1, -(-timeline.total // 3))
    return _with_warmup(timeline.warmup or 0, lambda step: timeline.gamma ** (step // period))


@SCHEDULES.register("constant")
def constant(timeline: Timeline) -> Schedule:
    """Stay at the peak learning rate after the warm-up."""
    return _with_warmup(timeline.warmup or 0, lambda _: 1.0)


@SCHEDULES.register("one-cycle")
def one_cycle(timeline: Timeline) -> Schedule:
    """Rise from 1/25 and fall to 1/250,000 along half cosines; the rise is 30 % of the run unless warm-up is given.

    Smith & Topin 2018, "Super-Convergence" (arXiv:1708.07120), with the defaults of torch's OneCycleLR.
    """
    start, end = 1 / 25, 1 / 25 / 1e4
    rise = (0.3 * timeline.total if timeline.warmup is None else timeline.warmup) - 1
    fall = max(1, timeline.total - 1 - rise)

    def factor(step: int) -> float:
        if step <= rise:
            return _half_cosine(start, 1.0, step / max(1, rise))
        return _half_cosine(1.0, end, (step - rise) / fall)

    return factor


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))
