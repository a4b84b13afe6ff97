"""Randomness as a function: the draws of an epoch depend only on the seed, the epoch and a stream's name.

No generator state lives between epochs, so an exact resume needs no saved state, and switching one augmentation on
leaves the draws of all others as they were.

A plan addresses images by position: 0 … N-1 among the N images that a loader uses, which may be a subset of a data
set. Only the loader's image sources know the indices in the data set.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from resnet_train.data.augment import Transform
from resnet_train.data.mix import Mix, MixPlan


def generator(seed: int, epoch: int, stream: str) -> np.random.Generator:
    """Return the random number generator of one named stream in one epoch."""
    return np.random.default_rng([seed, epoch, zlib.crc32(stream.encode())])


@dataclass(frozen=True)
class EpochPlan:
    """Every random choice of one epoch, on the CPU.

    Attributes:
        order: int64, the positions in the order in which the images are used.
        parameters: The draws of each transform by stream name, [N, …], one row per position.
        mix: The partners and weights if images are mixed.
    """

    order: np.ndarray
    parameters: dict[str, np.ndarray] = field(default_factory=dict)
    mix: MixPlan | None = None


def draw_plan(
    seed: int,
    epoch: int,
    num_images: int,
    transforms: Sequence[Transform],
    mix: Mix | None = None,
    length: int | None = None,
) -> EpochPlan:
    """Draw the order of the images, the parameters of each transform for each image, and the mixing.

    Args:
        seed, epoch: what the draws depend on.
        num_images: N.
        transforms, mix: the augmentations.
        length: number of images in an epoch; if not given, all of them.
    """
    order = draw_order(seed, epoch, num_images, length or num_images)
    parameters = {}
    for transform in transforms:
        assert transform.stream not in parameters, f"two transforms share the stream {transform.stream!r}"
        # A transform that keeps its draws (alternating flip) draws those of epoch 0 every time.
        rng = generator(seed, epoch if transform.redraws else 0, transform.stream)
        parameters[transform.stream] = transform.draw(rng, num_images, epoch)
    return EpochPlan(order, parameters, mix.draw(generator(seed, epoch, "mix"), num_images) if mix else None)


def draw_order(seed: int, epoch: int, num_images: int, length: int) -> np.ndarray:
    """Return the positions of an epoch, int64 [length].

    A shorter epoch continues the pass over all images where the previous one stopped, so that all images are used
    equally often.
    """
    first, last = epoch * length, (epoch + 1) * length - 1
    passes = range(first // num_images, last // num_images + 1)
    orders = [generator(seed, number, "order").permutation(num_images) for number in passes]
    return np.concatenate(orders)[first - passes[0] * num_images :][:length]


def fixed_plan(num_images: int) -> EpochPlan:
    """Return the plan of an evaluation: every image once, in order, unchanged."""
    return EpochPlan(np.arange(num_images))
