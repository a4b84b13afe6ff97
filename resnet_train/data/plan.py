"""Randomness as a function: what an epoch draws depends on the seed, the epoch and a stream's name, on nothing else.

No generator state lives between epochs, so nothing has to be saved to resume exactly, and switching one augmentation
on leaves the draws of all others as they were.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resnet_train.data.augment import Transform
from resnet_train.data.mix import Mix, MixPlan

Array = np.ndarray


def generator(seed: int, epoch: int, stream: str) -> np.random.Generator:
    """The random numbers of one named stream in one epoch."""
    return np.random.default_rng([seed, epoch, zlib.crc32(stream.encode())])


@dataclass(frozen=True)
class EpochPlan:
    """Every random choice of one epoch, on the CPU.

    Attributes:
        order: int64 [N], image numbers in the order they are seen.
        parameters: for each transform its draws, one row an image (by image number, not by position), or None.
        mix: partners and weights, if images are mixed.
    """

    order: Array
    parameters: tuple[Array | None, ...]
    mix: MixPlan | None = None


def draw_plan(
    seed: int, epoch: int, num_images: int, transforms: Sequence[Transform], mix: Mix | None = None
) -> EpochPlan:
    """Draws the whole epoch: the order of the images, each transform's parameters for each image, and the mixing."""
    order = generator(seed, epoch, "order").permutation(num_images)
    parameters = []
    for transform in transforms:
        # A transform that keeps its draws over epochs (alternating flip) draws them in epoch 0.
        rng = generator(seed, epoch if transform.redraws else 0, transform.stream)
        parameters.append(transform.draw(rng, num_images, epoch))
    return EpochPlan(order, tuple(parameters), mix.draw(generator(seed, epoch, "mix"), num_images) if mix else None)


def fixed_plan(num_images: int) -> EpochPlan:
    """Every image once, in its place: the plan of an evaluation."""
    return EpochPlan(np.arange(num_images), ())
