"""The learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from resnet_train.registry import Registry

# step (0-based, optimizer steps since the start) → factor on the peak lr
Schedule = Callable[[int], float]

NEVER = 1e9  # epochs; milestones behind it are as good as each other, and 1e308 would overflow as a step


@dataclass(frozen=True)
class Timeline:
    """What schedules are made from; all lengths in optimizer steps.

    Attributes:
        total: steps of the whole run.
        warmup: steps of the linear warm-up; None leaves the schedule its own default.
        milestones: steps at which the multi-step schedule falls; the step schedule falls every so many steps as the
            first one says. None leaves each its own default.
        gamma: the factor by which it falls.
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
    """The schedule of a run, from lengths in epochs.

    Raises:
        ValueError: unknown name.
    """
    return SCHEDULES[name](
        Timeline(
            total=epochs * steps_per_epoch,
            warmup=None if warmup_epochs is None else round(warmup_epochs * steps_per_epoch),
            milestones=None
            if milestones is None
            else [max(1, round(min(m, NEVER) * steps_per_epoch)) for m in milestones],
            gamma=gamma,
        )
    )


def _with_warmup(warmup: int, schedule: Schedule) -> Schedule:
    """Rises linearly to 1 over the first `warmup` steps, then follows `schedule` (Goyal et al. 2017, section 2.2)."""
    return lambda step: (step + 1) / warmup if step < warmup else schedule(step)


@SCHEDULES.register("cosine")
def cosine(timeline: Timeline) -> Schedule:
    """Half a cosine, from the end of the warm-up down to 0 after the last step (Loshchilov & Hutter 2017)."""
    warmup = timeline.warmup or 0
    length = max(1, timeline.total - warmup)
    return _with_warmup(warmup, lambda step: 0.5 * (1 + math.cos(math.pi * (step - warmup) / length)))


@SCHEDULES.register("multi-step")
def multi_step(timeline: Timeline) -> Schedule:
    """Falls by gamma at each milestone (He et al. 2016a, section 4.2: at 32k and 48k of 64k steps)."""
    milestones = timeline.milestones
    if milestones is None:
        milestones = [timeline.total // 2, timeline.total * 3 // 4]
    return _with_warmup(timeline.warmup or 0, lambda step: timeline.gamma ** sum(step >= m for m in milestones))


@SCHEDULES.register("step")
def step_decay(timeline: Timeline) -> Schedule:
    """Falls by gamma again and again, every --milestones N epochs; not given: every third of the run."""
    period = timeline.milestones[0] if timeline.milestones else max(1, -(-timeline.total // 3))
    return _with_warmup(timeline.warmup or 0, lambda step: timeline.gamma ** (step // period))


@SCHEDULES.register("constant")
def constant(timeline: Timeline) -> Schedule:
    """Stays as it is after the warm-up."""
    return _with_warmup(timeline.warmup or 0, lambda _: 1.0)


@SCHEDULES.register("one-cycle")
def one_cycle(timeline: Timeline) -> Schedule:
    """Up from 1/25 and down to 1/250,000 along half cosines; the rise takes 30 % of the run unless warm-up is given.

    Smith & Topin 2018, "Super-Convergence" (arXiv:1708.07120), with the numbers of torch's OneCycleLR.
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
