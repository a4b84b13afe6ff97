"""Learning rate schedules: functions of the step, without state to save or restore."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from resnet_train.registry import Registry

Schedule = Callable[[int], float]  # maps the number of optimizer steps so far to a factor on the peak learning rate

NEVER = 1e9  # epochs; later milestones mean the same, and 1e308 would overflow as a step


# Each takes the settings that its signature names, and `steps_per_epoch`, because settings are lengths in epochs.
SCHEDULES: Registry[Callable[..., Schedule]] = Registry("schedule")


def _with_warmup(warmup: int, schedule: Schedule) -> Schedule:
    """Return another schedule after a linear rise to 1 in `warmup` steps (Goyal et al. 2017, section 2.2)."""
    return lambda step: (step + 1) / warmup if step < warmup else schedule(step)


def _milestone_step(epoch: float, steps_per_epoch: int) -> int:
    return max(1, round(min(epoch, NEVER) * steps_per_epoch))


@SCHEDULES.register("cosine")
def cosine(epochs: int, steps_per_epoch: int, warmup_epochs: float | None = None) -> Schedule:
    """Fall along half a cosine, reaching 0 after the last step (Loshchilov & Hutter 2017)."""
    warmup = round((warmup_epochs or 0) * steps_per_epoch)
    length = max(1, epochs * steps_per_epoch - warmup)
    return _with_warmup(warmup, lambda step: 0.5 * (1 + math.cos(math.pi * (step - warmup) / length)))


@SCHEDULES.register("multi-step")
def multi_step(
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float | None = None,
    milestones: Sequence[float] | None = None,
    gamma: float = 0.1,
) -> Schedule:
    """Decay by gamma at each milestone (He et al. 2016a, section 4.2: after 32k and 48k of 64k steps)."""
    total = epochs * steps_per_epoch
    drops = [total // 2, total * 3 // 4]
    if milestones is not None:
        drops = [_milestone_step(epoch, steps_per_epoch) for epoch in milestones]
    warmup = round((warmup_epochs or 0) * steps_per_epoch)
    return _with_warmup(warmup, lambda step: gamma ** sum(step >= drop for drop in drops))


@SCHEDULES.register("step")
def step_decay(
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float | None = None,
    milestones: Sequence[float] | None = None,
    gamma: float = 0.1,
) -> Schedule:
    """Decay by gamma every N epochs (--milestones N), by default every third of the run."""
    period = max(1, -(-epochs * steps_per_epoch // 3))
    if milestones:
        period = _milestone_step(milestones[0], steps_per_epoch)
    warmup = round((warmup_epochs or 0) * steps_per_epoch)
    return _with_warmup(warmup, lambda step: gamma ** (step // period))


@SCHEDULES.register("constant")
def constant(steps_per_epoch: int, warmup_epochs: float | None = None) -> Schedule:
    """Stay at the peak learning rate after the warm-up."""
    return _with_warmup(round((warmup_epochs or 0) * steps_per_epoch), lambda _: 1.0)


@SCHEDULES.register("one-cycle")
def one_cycle(epochs: int, steps_per_epoch: int, warmup_epochs: float | None = None) -> Schedule:
    """Rise from 1/25 and fall to 1/250,000 along half cosines; the rise is 30 % of the run unless warm-up is given.

    Smith & Topin 2018, "Super-Convergence" (arXiv:1708.07120), with the defaults of torch's OneCycleLR.
    """
    start, end, total = 1 / 25, 1 / 25 / 1e4, epochs * steps_per_epoch
    rise = (0.3 * total if warmup_epochs is None else round(warmup_epochs * steps_per_epoch)) - 1
    fall = max(1, total - 1 - rise)

    def factor(step: int) -> float:
        if step <= rise:
            return _half_cosine(start, 1.0, step / max(1, rise))
        return _half_cosine(1.0, end, (step - rise) / fall)

    return factor


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))
