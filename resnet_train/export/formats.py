"""What is exported, what a format is, and all formats by name."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from resnet_train.data.augment import Normalize
from resnet_train.records import About
from resnet_train.registry import Registry
from resnet_train.runs.checkpoint import ModelCheckpoint, dump, read_model
from resnet_train.runs.restore import restore_model

Forward = Callable[[Tensor], Tensor]  # from uint8 [N, 3, S, S] to logits float32 [N, C]
Files = dict[str, bytes]  # the files of a folder by name


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained network to export.

    Attributes:
        checkpoint: its weights and description, without the paths of this machine.
        network: maps normalized images float32 [N, 3, S, S] to logits float32 [N, C], on the CPU, in evaluation mode.
        evaluation: its numbers as `resnet-eval --json` prints them; None if it was not evaluated.
    """

    checkpoint: ModelCheckpoint
    network: nn.Module
    evaluation: Mapping[str, Any] | None = None

    @property
    def about(self) -> About:
        """Return the description of the network."""
        return self.checkpoint.about

    @property
    def normalize(self) -> Normalize:
        """Return the function from pixels to what the network takes."""
        return Normalize(tuple(self.about.mean), tuple(self.about.std), channels_last=False)

    @torch.inference_mode()
    def compute_logits(self, pixels: Tensor) -> Tensor:
        """Return the logits float32 [N, C] of images uint8 [N, 3, S, S]."""
        return self.network(self.normalize(pixels)).float()


@dataclass(frozen=True)
class Opened:
    """What an exported file computes, and how far it may be from the network, as a share of the largest logit."""

    forward: Forward
    tolerance: float


class Format(ABC):
    """A kind of file that a network is exported to.

    A format registers under its name with `@FORMATS.register(name)`. The first line of its docstring describes it.

    Attributes:
        suffix: the end of the names of its files or folders.
        files: the files in its folder; empty if it is a single file.
        modules: optional packages that it imports.
        needs_evaluation: whether `Source.evaluation` is used.
    """

    suffix: ClassVar[str]
    files: ClassVar[tuple[str, ...]] = ()
    modules: ClassVar[tuple[str, ...]] = ()
    needs_evaluation: ClassVar[bool] = False

    def check_options(self, options: Mapping[str, Any]) -> None:  # noqa: B027 - most have no values to check
        """Check the values of options that `encode` takes, before anything takes time.

        Raises:
            ValueError: one is wrong.
        """

    @abstractmethod
    def encode(self, source: Source) -> bytes | Files:
        """Return the contents of the file, or of a folder.

        Subclasses may take options as keyword arguments; those of their signature can be given to `export`.
        """

    def open(self, path: Path, source: Source) -> Opened | None:
        """Return what a file computes, to compare it with the network; None if that is not possible.

        Raises:
            ValueError: the file is damaged, or describes another network than `source`.
        """
        return None


HALF_TOLERANCE = 0.02  # of the largest logit; float16 keeps 11 bits of each weight

FORMATS: Registry[type[Format]] = Registry("format")


def with_precision(checkpoint: ModelCheckpoint, half: bool) -> dict[str, Tensor]:
    """Return the weights, contiguous; with `half`, those that are floats as float16.

    Raises:
        ValueError: a weight is too large for float16.
    """
    weights = {name: tensor.contiguous() for name, tensor in checkpoint.weights.items()}
    if not half:
        return weights
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            weights[name] = tensor.half()
            if not weights[name].isfinite().all():
                raise ValueError(f"{name} has values of up to {tensor.abs().max():g}, too large for --half (65504)")
    return weights


def open_checkpoint(path: Path, source: Source) -> Opened:
    """Return what a checkpoint computes if it has the description and the weights of `source`; see `Format.open`."""
    checkpoint, expected = read_model(path), source.checkpoint
    found = dump(checkpoint)
    for name, wanted in dump(expected).items():
        # Compare as JSON, in which tuples are lists and NaN equals itself.
        if name != "model" and json.dumps(found.get(name)) != json.dumps(wanted):
            raise ValueError(f"{path} describes another network: its {name} differs")

    # Check that the weights are the same, except for rounding.
    weights = checkpoint.weights
    for name, tensor in expected.weights.items():
        if name not in weights or not torch.equal(weights[name], tensor.to(weights[name].dtype)):
            raise ValueError(f"{path} has other weights: {name} differs")
    is_half = any(tensor.dtype == torch.float16 for tensor in weights.values())
    copy = Source(checkpoint=expected, network=restore_model(checkpoint, path))
    return Opened(copy.compute_logits, HALF_TOLERANCE if is_half else 0.0)
