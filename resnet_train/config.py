"""Every hyper-parameter of a training run, once: its name, default, range, help text and help panel.

The command line, YAML recipes, checkpoints and `--help` are all made from this one class. Nothing here imports
another module of the project except `registry.nearest`, so `--help` stays quick.
"""

from __future__ import annotations

import math
import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError, field_validator, model_validator

from resnet_train.registry import nearest

NETWORK, NETWORK_OPTIONS, DATA, AUGMENTATION, OPTIMIZATION, RUN, MACHINE = (
    "Network",
    "Network options",
    "Data",
    "Augmentation",
    "Optimization",
    "Run",
    "Machine",
)


def _option(default: Any, panel: str, *, short: str = "", on_resume: bool = False, **limits: Any) -> Any:
    """A field; `on_resume` marks the ones that may be given anew when a run is resumed.

    They leave the weights alone, but for `epochs`, which may be raised to train on.
    """
    extra: dict[str, Any] = {"panel": panel, "short": short, "on_resume": on_resume}
    return Field(default, json_schema_extra=extra, **limits)


Stages = tuple[tuple[int, float], ...]


def _stages_as_text(stages: Stages | None) -> str | None:
    return None if stages is None else ",".join(f"{size}:{share}" for size, share in stages)


class TrainConfig(BaseModel):
    """The settings of one training run. Frozen; a changed copy comes from `make_config({**old, ...})`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    # --- Network -------------------------------------------------------------------------------------------------
    arch: str = _option("resnet18", NETWORK, short="-a")
    """Architecture; `resnet-info` lists them."""

    bn_momentum: float = _option(0.1, NETWORK, gt=0, le=1)
    """Weight of the newest batch in the batch norms' running statistics."""

    # --- Options that only some networks have; each is a keyword argument of their constructors --------------------
    stem: Literal["cifar", "imagenet"] | None = _option(None, NETWORK_OPTIONS)
    """resnet18 … resnet152: start with a 3×3 convolution, or ImageNet's 7×7 with stride 2 and pooling."""
    norm_order: Literal["conv-bn-relu", "conv-relu-bn"] | None = _option(None, NETWORK_OPTIONS)
    """resnet18 … resnet152: the norm before the activation (the paper) or behind it."""
    zero_init_residual: bool | None = _option(None, NETWORK_OPTIONS)
    """resnet18 … resnet152: start each block as the identity, the weight of its last norm at 0."""
    drop_path: float | None = _option(None, NETWORK_OPTIONS, ge=0, lt=1)
    """resnet18 … resnet152: skip the last block with this probability, earlier ones less (stochastic depth)."""
    shortcut: Literal["pad", "projection"] | None = _option(None, NETWORK_OPTIONS)
    """resnet20 and other 6n+2 networks: shortcuts widen with zeros (the paper) or a 1×1 convolution."""

    # --- Data ----------------------------------------------------------------------------------------------------
    dataset: str = _option("cifar10", DATA)
    """cifar10, cifar100, digits (embedded, needs no download) or folder (your own images)."""
    data_dir: Path = _option(Path("data"), DATA, on_resume=True)
    """Where the data is, or where to download it; for `folder` the directory that holds train/ and test/."""
    image_size: int = _option(32, DATA, ge=8, le=1024)
    """Side of the square images in pixels; cifar10 and cifar100 are always 32."""
    train_size: int | None = _option(None, DATA, ge=1)
    """Train on this many images only, drawn class by class."""
    val_size: int = _option(0, DATA, ge=0)
    """Hold out this many training images, class-balanced; best.pt is then chosen on them."""

    # --- Augmentation --------------------------------------------------------------------------------------------
    crop_padding: int = _option(4, AUGMENTATION, ge=0, le=256)
    """Random crop: pad each side by this many pixels and cut the image's size back out; 0 is off."""
    padding_mode: Literal["zeros", "reflect"] = _option("zeros", AUGMENTATION)
    """What the crop pads with: black, or the mirrored image."""
    flip: Literal["random", "alternating", "none"] = _option("random", AUGMENTATION)
    """Horizontal flip: by a coin each epoch, or every other epoch so that both sides are seen equally often."""
    cutout: int = _option(0, AUGMENTATION, ge=0, le=1024)
    """Blank a random square with this side in pixels (16 is the paper's for CIFAR-10); 0 is off."""
    random_erasing: float = _option(0.0, AUGMENTATION, ge=0, le=1)
    """Blank a rectangle of random size and shape with this probability."""
    trivial_augment: bool = _option(False, AUGMENTATION)
    """One random operation (shear, rotate, colour …) of random strength for each image."""
    mixup: float = _option(0.0, AUGMENTATION, ge=0, le=100)
    """Blend each image with another by a weight from Beta(A, A); 0 is off."""
    cutmix: float = _option(0.0, AUGMENTATION, ge=0, le=100)
    """Paste a box of another image, its area from Beta(A, A); 0 is off; with --mixup too, a coin decides."""

    progressive_sizes: Annotated[Stages | None, PlainSerializer(_stages_as_text)] = _option(None, AUGMENTATION)
    """Train on images scaled down at first: sides in pixels, each until a share of the run, as 16:0.4,24:0.7."""

    # --- Optimization --------------------------------------------------------------------------------------------
    epochs: int = _option(200, OPTIMIZATION, on_resume=True, ge=1, le=1_000_000)
    """Passes over the training images."""
    batch_size: int = _option(128, OPTIMIZATION, short="-b", ge=1)
    """Images per optimizer step."""
    optimizer: str = _option("sgd", OPTIMIZATION)
    """Optimizer; `resnet-info optimizers` lists them."""
    lr: float = _option(0.1, OPTIMIZATION, gt=0)
    """Peak learning rate."""
    momentum: float = _option(0.9, OPTIMIZATION, ge=0, lt=1)
    """Momentum of SGD and Muon."""
    nesterov: bool = _option(False, OPTIMIZATION)
    """Nesterov's momentum."""
    weight_decay: float = _option(5e-4, OPTIMIZATION, ge=0)
    """L2 penalty on the weights; decoupled from the gradient with adamw and muon."""
    no_decay_norm_bias: bool = _option(False, OPTIMIZATION)
    """Leave norms and biases out of the weight decay."""
    schedule: str = _option("cosine", OPTIMIZATION)
    """Learning rate over time; `resnet-info schedules` lists them."""
    warmup_epochs: float | None = _option(None, OPTIMIZATION, ge=0)
    """Linear warm-up, in epochs; not given: none, and 30 % of the run for one-cycle."""
    milestones: tuple[float, ...] | None = _option(None, OPTIMIZATION)
    """multi-step: epochs at which lr falls, as 100,150 (not given: 50 % and 75 % of the run); step: every how many."""
    gamma: float = _option(0.1, OPTIMIZATION, gt=0, le=1)
    """step and multi-step: the factor by which lr falls."""
    label_smoothing: float = _option(0.0, OPTIMIZATION, ge=0, lt=1)
    """Share of the target spread evenly over all classes."""
    clip_grad: float = _option(0.0, OPTIMIZATION, ge=0)
    """Scale the gradient down to this L2 norm when it is longer; 0 is off."""

    accumulate: int = _option(1, OPTIMIZATION, ge=1)
    """Compute each step's batch in this many parts: less memory, the same number of images a step."""
    ema_decay: float = _option(0.0, OPTIMIZATION, ge=0, lt=1)
    """Average the weights with this decay (0.999) and judge the average; 0 is off."""

    # --- Run -----------------------------------------------------------------------------------------------------
    seed: int = _option(0, RUN, ge=0, lt=2**63)
    """Decides the initial weights and every random choice of the training."""
    name: str | None = _option(None, RUN, on_resume=True, min_length=1, max_length=200)
    """Folder of this run under the output directory; not given: <arch>-<dataset>-seed<N>."""
    output_dir: Path = _option(Path("runs"), RUN, on_resume=True)
    """Where run folders go."""
    eval_every: int = _option(1, RUN, on_resume=True, ge=1)
    """Evaluate every so many epochs; the last epoch always is."""
    save_every: int = _option(1, RUN, on_resume=True, ge=1)
    """Save last.pt every so many epochs; the last epoch always is."""
    save_every_minutes: float = _option(10.0, RUN, on_resume=True, ge=0)
    """Save last.pt within an epoch, too, when the last save is so many minutes ago; 0 is off."""
    log_every: int = _option(20, RUN, on_resume=True, ge=1)
    """Optimizer steps between two reads of the loss (progress bar, TensorBoard, the check that it is finite)."""
    tensorboard: bool = _option(True, RUN, on_resume=True)
    """Write TensorBoard event files into the run folder."""

    # --- Machine -------------------------------------------------------------------------------------------------
    device: str = _option("auto", MACHINE, on_resume=True)
    """auto, cpu, cuda, cuda:1 or mps."""
    threads: int = _option(0, MACHINE, on_resume=True, ge=0, le=4096)
    """CPU threads; 0 leaves the choice to torch."""
    amp: Literal["auto", "off", "bf16", "fp16"] = _option("auto", MACHINE)
    """Mixed precision; auto: bf16 or fp16 on a CUDA GPU, off elsewhere."""
    compile: bool = _option(False, MACHINE, on_resume=True)
    """Compile the network with torch.compile; pays off on long runs."""
    deterministic: bool = _option(False, MACHINE)
    """Use only kernels that give the same bits each time (a CPU always does); slower on a GPU."""
    sync_bn: bool = _option(False, MACHINE)
    """Several GPUs: batch norm over the images of all of them, not of each by itself."""
    channels_last: bool = _option(True, MACHINE)
    """Keep images and weights in NHWC memory order."""

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: Any) -> Any:
        """Refuses `seed: true`, which pydantic would read as 1."""
        for name, value in dict(values).items():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and field.annotation not in (bool, bool | None):
                raise ValueError(f"{name} (={str(value).lower()}) must not be true or false")
        return values

    @field_validator("milestones", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        """Reads `100,150` as the command line gives it, and a lone number as YAML does."""
        if isinstance(value, str):
            return [part for part in value.split(",") if part.strip()]
        if isinstance(value, list) and any(isinstance(part, bool) for part in value):
            raise ValueError("must be numbers, not true or false")
        return [value] if isinstance(value, int | float) else value

    @field_validator("milestones")
    @classmethod
    def _must_rise(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and (not value or value[0] <= 0 or list(value) != sorted(set(value))):
            raise ValueError("must be rising epochs greater than 0")
        return value

    @field_validator("progressive_sizes", mode="before")
    @classmethod
    def _split_stages(cls, value: Any) -> Any:
        """Reads `16:0.4,24:0.7`."""
        if isinstance(value, str):
            value = [part.split(":") for part in value.split(",") if part.strip()]
        if value is None:
            return None
        if not isinstance(value, list | tuple) or any(not isinstance(s, list | tuple) or len(s) != 2 for s in value):
            raise ValueError("must be pairs of a side and a share of the run, as 16:0.4,24:0.7")
        return value

    @field_validator("progressive_sizes")
    @classmethod
    def _stages_must_rise(cls, value: Stages | None) -> Stages | None:
        if value is None:
            return None
        sizes, shares = [size for size, _ in value], [share for _, share in value]
        rising = sizes == sorted(set(sizes)) and shares == sorted(set(shares))
        if not value or not rising or sizes[0] < 4 or shares[0] <= 0 or shares[-1] >= 1:
            raise ValueError("must be rising sides of at least 4 pixels with rising shares between 0 and 1")
        return value

    @field_validator("name")
    @classmethod
    def _must_be_one_folder(cls, value: str | None) -> str | None:
        if value is not None and len(value.encode()) > 200:
            raise ValueError("must be at most 200 bytes long")
        if value is not None and (value in {".", ".."} or not value.isprintable() or set(value) & set("/\\")):
            raise ValueError("must be a plain folder name")
        return value

    @field_validator("data_dir", "output_dir")
    @classmethod
    def _must_be_a_path(cls, value: Path) -> Path:
        if "\0" in str(value):
            raise ValueError("must not contain a null character")
        return value

    @model_validator(mode="after")
    def _must_fit_together(self) -> TrainConfig:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov (=true) needs momentum (=0) greater than 0")
        if self.warmup_epochs is not None and self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs (={self.warmup_epochs:g}) must not be greater than epochs (={self.epochs})"
            )
        if self.padding_mode == "reflect" and self.crop_padding >= self.image_size:
            raise ValueError(
                f"crop_padding (={self.crop_padding}) must be less than image_size (={self.image_size}) "
                f"for padding_mode reflect"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size (={self.batch_size}) must be a multiple of accumulate (={self.accumulate})")
        if self.progressive_sizes and self.progressive_sizes[-1][0] >= self.image_size:
            largest = self.progressive_sizes[-1][0]
            raise ValueError(f"progressive_sizes (up to {largest}) must be less than image_size (={self.image_size})")
        if self.cutout > 2 * self.image_size:
            raise ValueError(f"cutout (={self.cutout}) must be at most twice image_size (={self.image_size})")
        return self


def option_names() -> list[str]:
    """The names of all settings, in the order of the help page."""
    return list(TrainConfig.model_fields)


def option_metadata(name: str) -> dict[str, Any]:
    """A setting's `panel`, `short` flag and whether it may change `on_resume`."""
    extra = TrainConfig.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return extra


def make_config(values: dict[str, Any], source: str = "") -> TrainConfig:
    """Builds the config from plain values; every other setting has its default.

    Raises:
        ValueError: one line that names the setting, its value, what is allowed and `source`, where it came from.
    """
    where = f" in {source}" if source else ""
    for name in values:
        if name not in TrainConfig.model_fields:
            raise ValueError(f"unknown setting {name!r}{where}{nearest(str(name), option_names())}")
    try:
        return TrainConfig(**values)
    except ValidationError as error:
        raise ValueError("; ".join(_one_line(detail) for detail in error.errors()) + where) from None


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """The config as strings, numbers, lists and None only: what YAML and checkpoints hold."""
    return config.model_dump(mode="json")


def _one_line(detail: Any) -> str:
    """One pydantic error as `field (=value) must be …`."""
    message = detail["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be", 1)
    message = re.sub(r"a valid path for <class '[\w.]*'>", "a path", message)
    location = [part for part in detail["loc"] if isinstance(part, str)]
    if not location:
        return message
    value = detail["input"]
    if isinstance(value, float) and not math.isfinite(value):
        message = "must be a finite number"
    shown = reprlib.repr(value)
    return f"{location[0]} (={shown}) {message}"


def merge_on_resume(saved: dict[str, Any], given: dict[str, Any]) -> TrainConfig:
    """The config of a resumed run: what was saved, with the settings given again that leave the result alone.

    Raises:
        ValueError: a given setting would change the result; the message has both values.
    """
    before, asked = make_config(saved, "the checkpoint"), make_config({**saved, **given})
    for name in given:
        old, new = getattr(before, name), getattr(asked, name)
        if old != new and not option_metadata(name)["on_resume"]:
            raise ValueError(
                f"{name} (={new}) is not what the run to resume was started with (={old}); "
                f"leave it out, or start a new run with another --name"
            )
    return asked
