"""Typed records of a run: its description, its epochs, its network and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Scores = dict[str, dict[str, float]]  # {split: {metric: value}}
Scalars = dict[str, float]  # {"lr": …, "test/accuracy": …}


class About(BaseModel):
    """The description of a network in its checkpoint: enough to build it and to prepare images for it."""

    model_config = ConfigDict(allow_inf_nan=False, frozen=True)

    arch: str
    arch_options: dict[str, Any]
    classes: list[str] = Field(min_length=2)
    image_size: int = Field(ge=1)
    mean: list[float] = Field(min_length=3, max_length=3)  # per channel, on a 0–1 scale
    std: list[Annotated[float, Field(gt=0)]] = Field(min_length=3, max_length=3)
    dataset: str
    title: str  # of the data set
    fingerprint: str  # of the training images
    test_fingerprint: str | None = None  # of the test images, "" if there are none; None in files of older versions
    val_fingerprint: str | None = None  # likewise, of validation images that are not held out of the training images


class Origin(BaseModel):
    """The origin of weights that other code trained.

    Attributes:
        layout: the repository whose parameter names the file had.
        entry: the entry of the file that held the weights, "" if the file was a `state_dict` itself.
        normalize: the mean and the standard deviation of its images, as given or assumed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: str
    entry: str
    normalize: str


class Calibration(BaseModel):
    """What the validation images say about the outputs of a model; stored with its weights.

    Attributes:
        temperature: logits divided by it give calibrated probabilities.
        known_from: 95 % of the validation images have at least this score; an image with less is called unknown.
        num_images: the number of images that both were fitted on.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    temperature: float = Field(gt=0)
    known_from: float
    num_images: int = Field(ge=1)


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """The numbers of one finished epoch: a function of config and seed alone, so without times.

    The scores of the split "train" are those of training itself: on augmented images, with weights that change from
    step to step, and with label smoothing, mixing and class weights in the loss. The other splits are evaluated on
    plain images, and every image counts equally in their loss.

    Attributes:
        epoch: finished epochs.
        step: optimizer steps since the start.
        lr: learning rate of the epoch's last step.
        grad_norm: mean L2 norm of the gradient over the epoch's steps, before clipping.
        scores: metrics by split; accuracies are 0–1.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # for records that are read from a file

    epoch: int
    step: int
    lr: float
    grad_norm: float
    scores: Scores

    def scalars(self) -> Scalars:
        """Return the flat names and values that loggers take, such as ``{"lr": 0.1, "test/accuracy": 0.93}``."""
        scores = {f"{split}/{name}": value for split, row in self.scores.items() for name, value in row.items()}
        return {"lr": self.lr, "grad_norm": self.grad_norm, **scores}

    def to_plain(self) -> dict[str, Any]:
        """Return the nested plain values that a checkpoint stores."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class EpochTiming:
    """The time and memory that one epoch took; unlike `EpochRecord` it differs from run to run."""

    train_seconds: float
    eval_seconds: float
    images_per_second: float
    peak_memory_bytes: int | None

    def scalars(self) -> Scalars:
        """Return the known values under names such as ``timing/train_seconds``."""
        return {f"timing/{name}": value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What is known about a run before its first step.

    Attributes:
        name: the name of the run's folder.
        folder: its path.
        title: the name of the data set.
        config: all settings as plain values.
        device, precision: their names for readers.
        num_params, num_classes: the size of the network.
        num_images: images by split, "train" first.
        sizes: each size of the training images in pixels, and the step at which it ends; the full size comes last.
        epochs, steps_per_epoch, batch_size: the extent of the run.
        first_step: steps that are already done; greater than 0 if the run is resumed.
        history: records of the epochs that are already done.
        splits: "train" and the splits that the model is evaluated on.
        scalar_names: every name that `EpochRecord.scalars` can have in this run, in the order of CSV columns.
    """

    name: str
    title: str
    config: dict[str, Any]
    device: str
    epochs: int
    steps_per_epoch: int
    batch_size: int
    folder: str = ""
    precision: str = "float32"
    num_params: int = 0
    num_classes: int = 0
    num_images: Mapping[str, int] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ()
    first_step: int = 0
    history: tuple[EpochRecord, ...] = ()
    splits: tuple[str, ...] = ("train",)
    scalar_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The outcome of a finished run.

    Attributes:
        name, folder: those of the run.
        title: the name of the data set.
        arch, seed, epochs: as in the config.
        final: the record of the last epoch.
        records: those of all epochs; only that of the last one if the run is finished and its states were deleted.
        num_images: images that its accuracy is measured on; None if no longer known.
        seconds: the time of training and evaluation in all epochs; None if unknown.
        best_split, best_epoch, best_accuracy: the epoch with the highest accuracy on the split that selects.
        best_test_accuracy: test accuracy of the epoch chosen on the validation split; None without such a split.
    """

    name: str
    title: str
    arch: str
    seed: int
    epochs: int
    folder: str
    final: EpochRecord
    records: tuple[EpochRecord, ...]
    num_images: int | None
    seconds: float | None
    best_split: str
    best_epoch: int
    best_accuracy: float
    best_test_accuracy: float | None
