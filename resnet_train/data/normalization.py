"""The mean and the standard deviation of pixels for normalization, as a user gives them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from resnet_train.data.dataset import FACTS

# From the 1.2 million training images, as in torchvision and in most code that uses it.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CHANNELS = 3


@dataclass(frozen=True)
class Normalization:
    """The mean and the standard deviation of the channels, on a 0–1 scale."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        return f"mean {_list(self.mean)}, std {_list(self.std)}"


def parse_normalization(text: str) -> Normalization:
    """Return the meaning of `cifar10`, `cifar100`, `imagenet`, or of numbers `M,S`, one or three of each.

    Raises:
        ValueError: it is none of these.
    """
    known = {name: (facts.mean, facts.std) for name, facts in FACTS.items() if facts.mean} | {"imagenet": IMAGENET}
    if text in known:
        return Normalization(*known[text])
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 2:
        numbers = [number for number in numbers for _ in range(CHANNELS)]
    if len(numbers) != 2 * CHANNELS or not all(map(math.isfinite, numbers)) or min(numbers[CHANNELS:]) <= 0:
        raise ValueError(
            f"normalize (={text!r}) must be {', '.join(known)}, or the mean and the standard deviation of pixels from "
            f"0 to 1, one or three of each, such as 0.5,0.25"
        )
    return Normalization(tuple(numbers[:CHANNELS]), tuple(numbers[CHANNELS:]))


def _list(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:g}" for number in numbers)
