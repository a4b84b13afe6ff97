"""Average the probabilities of several networks, and of several views of each image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

View = Callable[[Tensor], Tensor]  # images float [B, 3, H, W] to images of the same shape
SHIFT_SHARE = 32  # views are shifted by 1/32 of the side length, at least one pixel


def keep(images: Tensor) -> Tensor:
    """Return the images unchanged."""
    return images


def flip(images: Tensor) -> Tensor:
    """Return the images mirrored left to right."""
    return images.flip(-1)


def shift(images: Tensor, direction: int) -> Tensor:
    """Return the images moved along the diagonal, with mirrored borders; `direction` is 1 or -1."""
    side = images.shape[-1]
    pixels = max(1, side // SHIFT_SHARE)
    start = pixels * (1 - direction)
    padded = F.pad(images, [pixels] * 4, mode="reflect")
    return padded[..., start : start + side, start : start + side]


def flip_and_shift(images: Tensor, direction: int) -> Tensor:
    """Return the images mirrored and moved."""
    return flip(shift(images, direction))


# Test-time augmentation by name: the views of an image whose probabilities are averaged.
SHIFTED = [partial(change, direction=direction) for direction in (1, -1) for change in (shift, flip_and_shift)]
TTA_VIEWS: dict[str, tuple[View, ...]] = {"flip": (keep, flip), "flip-shift": (keep, flip, *SHIFTED)}


class Average(nn.Module):
    """Average the probabilities of several networks and views.

    Shape: images float [B, 3, H, W] → the logarithm of the mean probabilities, float [B, C], which serves as logits.
    """

    def __init__(self, networks: Sequence[nn.Module], views: Sequence[View] = (keep,)) -> None:
        super().__init__()
        self.networks, self.views = nn.ModuleList(networks), views

    def forward(self, images: Tensor) -> Tensor:
        views = [view(images) for view in self.views]
        logs = [network(view).float().log_softmax(dim=1) for network in self.networks for view in views]
        return torch.stack(logs).logsumexp(dim=0) - math.log(len(logs))  # [B, C]


class Rescale(nn.Module):
    """Turn images normalized with one mean and deviation per channel into images normalized with others."""

    scale: Tensor
    offset: Tensor

    def __init__(self, given: tuple[Sequence[float], ...], wanted: tuple[Sequence[float], ...]) -> None:
        super().__init__()
        (mean, std), (new_mean, new_std) = (torch.tensor(pair)[:, :, None, None] for pair in (given, wanted))
        self.register_buffer("scale", std / new_std)  # [3, 1, 1]
        self.register_buffer("offset", (mean - new_mean) / new_std)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.offset
