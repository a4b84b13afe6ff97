"""Train runs that differ only in the seed, one after the other."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnet_train.config import PLANNED, TrainConfig, is_planned, make_config, to_plain
from resnet_train.jobs.train import train
from resnet_train.recipes import read_yaml
from resnet_train.records import RunResult
from resnet_train.runs.naming import default_name
from resnet_train.runtime.distributed import join_processes
from resnet_train.training.signals import Interrupted
from resnet_train.training.trainer import NotFinite

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SeedResults:
    """The results of runs that differ only in the seed.

    Attributes:
        runs: the finished ones, in the order of the seeds.
        not_finite: the seeds whose runs ended because a loss, a gradient or a weight was not finite.
        split: the split that the accuracies are measured on.
        mean, sd: mean and sd of the final accuracies, as shares; the sd is None for a single run.
    """

    runs: tuple[RunResult, ...]
    not_finite: tuple[int, ...]
    split: str
    mean: float
    sd: float | None

    @property
    def n(self) -> int:
        """Return the number of finished runs."""
        return len(self.runs)


def train_seeds(
    config: TrainConfig,
    seeds: Sequence[int],
    given: dict[str, Any] | None = None,
    make_name: Callable[[TrainConfig], str] = default_name,
    started: float | None = None,
) -> SeedResults | None:
    """Train a run for each seed; resume those that were stopped, and keep those that are finished.

    Each is the run that `train` gives with this seed alone. What depends on measuring the machine, the number format
    and a length in minutes, is chosen once, by the first run.

    Args:
        config: all settings but the seed. A name in it begins the names of all runs, which end in -seed0 and so on.
        seeds: the seeds, all different.
        given: the settings that the user chose; a run that is resumed keeps its settings except these.
        make_name: returns the name of a run if the config has none.
        started: see `train`.

    Returns:
        The results; None on every rank but 0.

    Raises:
        Interrupted: a signal stopped one of the runs; the same call resumes it.
        NotFinite: no run ended with finite numbers.
        ValueError: bad input.
    """
    results, not_finite, asked = [], [], config
    base = re.sub(r"-seed\d+$", "", config.name) if config.name else None  # as in the config.yaml of one of the runs
    with join_processes() as processes:
        for number, seed in enumerate(seeds, start=1):
            own = {"seed": seed} | ({"name": f"{base}-seed{seed}"} if base else {})
            run = make_config({**to_plain(config), **own})
            name = make_name(make_config({**to_plain(asked), **own}))  # without what the first run chose
            log.info("seed %d (%d of %d)", seed, number, len(seeds))
            if run.compile:
                torch.compiler.reset()  # its limit on versions counts the networks of earlier seeds
            try:
                result = train(run, {**(given or {}), **own}, "auto", name, started=started)
            except NotFinite as error:
                log.error("seed %d: %s", seed, error)
                not_finite.append(seed)
                last_error = error
                continue
            except Interrupted as error:
                message = f"{error}; the same command resumes it and trains the remaining seeds"
                raise Interrupted(error.signal_number, message) from None
            if processes.rank == 0:
                results.append(result)
                config = _take_choices(config, Path(result.folder))
        if not_finite and len(not_finite) == len(seeds):
            raise last_error
    return _summarize(results, not_finite) if results else None


def _take_choices(config: TrainConfig, folder: Path) -> TrainConfig:
    """Return the config with what a run chose by measuring the machine: the number format and the length in minutes."""
    names = ({"amp"} if config.amp == "auto" else set()) | (set() if is_planned(config) else PLANNED)
    chosen = read_yaml(folder / "config.yaml") if names else {}
    return make_config({**to_plain(config), **{name: chosen[name] for name in names}})


def _summarize(results: Sequence[RunResult], not_finite: Sequence[int]) -> SeedResults:
    split = "test" if "test" in results[0].final.scores else "val"
    accuracies = [result.final.scores[split]["accuracy"] for result in results]
    return SeedResults(
        runs=tuple(results),
        not_finite=tuple(not_finite),
        split=split,
        mean=float(np.mean(accuracies)),
        sd=float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
    )
