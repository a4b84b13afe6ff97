"""Plan a run that ends when its time is up.

The machine is measured once, before the run. Then the length is part of the config, so the run is a function of its
config like any other, and it can be resumed.
"""

from __future__ import annotations

import gc
import logging
import math
import statistics
import time
from itertools import count

import torch

from resnet_train.build import RunData
from resnet_train.config import TrainConfig, with_length
from resnet_train.jobs import measure
from resnet_train.runtime.duration import format_duration

log = logging.getLogger(__name__)

MEASURE_SHARE, MIN_MEASURE_SECONDS, MAX_MEASURE_SECONDS = 0.05, 3.0, 20.0
RESERVED_SHARE = 0.015  # share of the time to leave unused, because rates vary by 3 %
EPOCH_SECONDS = 0.03  # for logs and records between two epochs
END_SECONDS = 1.0  # from the last step to the exit, to write the final files and tear down the process
MIN_STEPS = 10  # in a whole run
ROUNDS = 5


def plan_length(config: TrainConfig, data: RunData, device: torch.device, started: float) -> TrainConfig:
    """Measure this machine for a few seconds and return the config with the length that fits into its minutes.

    Args:
        config: a run with `minutes`.
        data: its images.
        device: where it runs.
        started: when the time began, on the clock of `time.monotonic`.

    Raises:
        ValueError: the time is up before anything could be trained.
    """
    limit = 60 * config.minutes if config.minutes else 0.0
    trainer = measure.build_bench_trainer(config, data, device)

    # Train on each image size of the run, longer on those with more steps. The rounds are interleaved and the median is
    # used, so that another process that runs for a second has no effect.
    seconds = min(MAX_MEASURE_SECONDS, max(MIN_MEASURE_SECONDS, MEASURE_SHARE * limit)) / ROUNDS
    stages = dict(measure.size_stages(config))
    first = measure.rates_by_size(trainer, config, stages, steps=1, warmup=measure.warmup_calls(trainer, eager=2))
    steps = {side: max(1, round(share * seconds * first[side] / config.batch_size)) for side, share in stages.items()}
    rounds = [
        {side: measure.rates_by_size(trainer, config, [side], steps[side], warmup=1)[side] for side in stages}
        for _ in range(ROUNDS)
    ]
    rates = {side: statistics.median(rates[side] for rates in rounds) for side in stages}

    # Evaluate a few batches, and plan for what is left.
    eval_rate = measure.eval_rate(trainer, measure.EVAL_BATCHES[device.type])
    eval_images = sum(loader.num_images for loader in trainer.eval_loaders.values())

    # Free the memory of this trainer before the run builds its own: a trainer refers to itself.
    del trainer
    gc.collect()

    left = (1 - RESERVED_SHARE) * limit - END_SECONDS - (time.monotonic() - started)
    planned = choose_length(config, (len(data.train_indices), eval_images), rates, eval_rate, left)
    num_steps = planned.epochs * (planned.epoch_steps or 0)
    log.info(
        "planned for %s: %d epochs of %d steps, %.3g passes over the training images (%.0f images/s)",
        format_duration(limit),
        planned.epochs,
        planned.epoch_steps,
        num_steps * config.batch_size / len(data.train_indices),
        rates[config.image_size],
    )
    return planned


def choose_length(
    config: TrainConfig,
    num_images: tuple[int, int],
    train_rates: dict[int, float],
    eval_rate: float,
    seconds: float,
) -> TrainConfig:
    """Return the config with the most steps that fit into a time, including evaluations.

    Epochs are passes over the images. If a whole number of passes would leave time unused, there is one epoch more and
    all of them are shorter.

    Args:
        config: the run.
        num_images: numbers of training and evaluation images.
        train_rates: images per second of training by image size.
        eval_rate: images per second of evaluation.
        seconds: the time for all epochs.

    Raises:
        ValueError: the time is too short.
    """
    train_images, eval_images = num_images
    most = train_images // config.batch_size  # steps of a pass
    step_seconds = sum(share * config.batch_size / train_rates[side] for side, share in measure.size_stages(config))

    def steps_of(epochs: int) -> float:
        """Return how many steps each of these epochs can have."""
        evaluations = -(-epochs // config.eval_every) * eval_images / eval_rate
        return (seconds - evaluations - epochs * EPOCH_SECONDS) / step_seconds / epochs

    # Take the first number of epochs that are no longer than a pass, or one less with whole passes.
    epochs = next(number for number in count(1) if steps_of(number) <= most)
    steps = int(steps_of(epochs))
    if (epochs - 1) * most >= epochs * steps:
        epochs, steps = epochs - 1, most
    if epochs * steps < MIN_STEPS:
        missing = MIN_STEPS * step_seconds + eval_images / eval_rate + EPOCH_SECONDS - seconds
        enough = (config.minutes or 0) + missing / (1 - RESERVED_SHARE) / 60
        raise ValueError(
            f"minutes (={config.minutes:g}) is too short: {max(0.0, seconds):.0f} s are left after the start, a step "
            f"takes {step_seconds:.3g} s, and an evaluation {eval_images / eval_rate:.3g} s; give at least "
            f"--minutes {math.ceil(10 * enough) / 10:g}"
        )
    return with_length(config, epochs, steps)
