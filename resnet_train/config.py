"""The settings of a training run: name, default, range, help text and help panel of each.

The command line, YAML recipes, checkpoints and `--help` are generated from `TrainConfig`. This module does not import
torch, so `--help` stays fast.
"""

from __future__ import annotations

import math
import re
import reprlib
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from resnet_train.registry import nearest, on_unload

# In the order of `--help`: what most users set comes first.
PANELS = (
    NETWORK := "Network",
    DATA := "Data",
    OPTIMIZATION := "Optimization",
    RUN := "Run",
    MACHINE := "Machine",
    AUGMENTATION := "Augmentation",
    NETWORK_OPTIONS := "Network options",
    FINE_TUNING := "Fine-tuning",
)

PIN_DIGITS = 16
PINNED = re.compile(rf"(.+)@([0-9a-f]{{{PIN_DIGITS}}})", re.DOTALL)

# The settings that `minutes` chooses.
PLANNED = {"epochs", "epoch_steps", "warmup_epochs", "milestones"}

OnResume = Literal["fixed", "may be raised", "free"]


def _option(default: Any, panel: str, *, short: str = "", on_resume: OnResume = "fixed", **limits: Any) -> Any:
    """Return a field with the metadata that the command line needs.

    Args:
        default: the default value.
        panel: title of the help panel.
        short: short flag, such as "-a".
        on_resume: whether a resumed run may change it: "free" settings do not affect the result, the others define the
            experiment.
        limits: validation arguments of `pydantic.Field`.
    """
    extra: dict[str, Any] = {"panel": panel, "short": short, "on_resume": on_resume}
    return Field(default, json_schema_extra=extra, **limits)


Stages = tuple[tuple[int, float], ...]  # (image size in pixels, share of the run until which it is used)


def _format_stages(stages: Stages | None) -> str | None:
    return None if stages is None else ",".join(f"{size}:{share}" for size, share in stages)


Names = tuple[str, ...]


def _format_names(names: Names | None) -> str | None:
    return None if names is None else ",".join(names)


class TrainConfig(BaseModel):
    """The settings of one training run. Frozen: use `make_config({**old, ...})` for a modified copy."""

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
    """Batch-norm momentum: weight of the newest batch in the running statistics."""

    # --- Network options: keyword arguments of a constructor; None leaves the network's own default ----------------
    stem: Literal["cifar", "imagenet"] | None = _option(None, NETWORK_OPTIONS)
    """resnet18 to resnet152: 3×3 convolution, or ImageNet's 7×7 with stride 2 and max pooling."""
    norm_order: Literal["conv-bn-relu", "conv-relu-bn"] | None = _option(None, NETWORK_OPTIONS)
    """resnet18 to resnet152: batch norm before the ReLU, as in the paper, or after it."""
    zero_init_residual: bool | None = _option(None, NETWORK_OPTIONS)
    """resnet18 to resnet152: initialize the last norm of each block to zero."""
    drop_path: float | None = _option(None, NETWORK_OPTIONS, ge=0, lt=1)
    """resnet18 to resnet152: stochastic depth; drop probability of the last block, lower for earlier ones."""
    shortcut: Literal["pad", "projection"] | None = _option(None, NETWORK_OPTIONS)
    """resnet20 and other 6n+2 networks: pad shortcuts with zeros, as in the paper, or project them (1×1)."""
    final_norm: bool | None = _option(None, NETWORK_OPTIONS)
    """preact_resnet18 to preact_resnet1001: end with a norm and a ReLU, as in the paper; many implementations don't."""

    # --- Fine-tuning -----------------------------------------------------------------------------------------------
    weights: Path | None = _option(None, FINE_TUNING)
    """Start from the weights of a checkpoint, a run or a file from other code; it sets the network unless --arch
    does."""
    freeze: Annotated[Names | None, PlainSerializer(_format_names)] = _option(None, FINE_TUNING)
    """Freeze these modules and the statistics of their norms: conv1,bn1,layer* (may be repeated)."""
    head_lr_scale: float = _option(1.0, FINE_TUNING, gt=0, le=1e6)
    """Learning rate of the last layer, as a multiple of that of the others."""

    # --- Data ----------------------------------------------------------------------------------------------------
    dataset: str = _option("cifar10", DATA)
    """Data set: cifar10, cifar100, digits (bundled, no download) or folder (your own images)."""
    data_dir: Path = _option(Path("data"), DATA, on_resume="free")
    """Directory of the data and of downloads; for folder, it holds train/ and test/, or the classes.
    RESNET_TRAIN_DATA_DIR in the environment changes the default."""
    image_size: int = _option(32, DATA, ge=8, le=1024)
    """Height and width of the images in pixels; always 32 for CIFAR."""
    normalize: str | None = _option(None, DATA)
    """Mean and std of the pixels: cifar10, imagenet, or M,S; if not given, those of --weights or of the images."""
    train_size: int | None = _option(None, DATA, ge=1)
    """Train on only N images, drawn class-balanced; if not given, on all of them."""
    val_size: int = _option(0, DATA, ge=0)
    """Hold out N training images, in proportion to the classes, and select best.pt on them."""
    test_size: int = _option(0, DATA, ge=0)
    """folder without test/: hold out N images, in proportion to the classes, as test images; 0 holds out none."""
    max_unreadable: float = _option(0.05, DATA, on_resume="free", ge=0, le=1)
    """folder: share of images that may be unreadable and are skipped; one is always allowed, unless this is 0."""

    # --- Augmentation --------------------------------------------------------------------------------------------
    crop_padding: int = _option(4, AUGMENTATION, ge=0, le=256)
    """Random crop: pad each side by N pixels, then crop to the image size; 0 disables it."""
    padding_mode: Literal["zeros", "reflect"] = _option("zeros", AUGMENTATION)
    """Pad the crop with zeros (black) or with the mirrored image."""
    flip: Literal["random", "alternating", "none"] = _option("random", AUGMENTATION)
    """Horizontal flip: at random, or alternating, so that each image is mirrored every other epoch."""
    cutout: int = _option(0, AUGMENTATION, ge=0, le=1024)
    """Mask a random N×N square (the paper uses 16 for CIFAR-10); 0 disables it."""
    random_erasing: float = _option(0.0, AUGMENTATION, ge=0, le=1)
    """Probability of erasing a rectangle of random size and shape."""
    trivial_augment: bool = _option(False, AUGMENTATION)
    """Apply one random operation (shear, rotate, color, …) of random strength to each image."""
    mixup: float = _option(0.0, AUGMENTATION, ge=0, le=100)
    """Blend each image with another, with a weight from Beta(A, A); 0 disables it."""
    cutmix: float = _option(0.0, AUGMENTATION, ge=0, le=100)
    """Paste a box of another image, its area from Beta(A, A); 0 disables it. Each image gets either mixup or cutmix."""

    progressive_sizes: Annotated[Stages | None, PlainSerializer(_format_stages)] = _option(None, AUGMENTATION)
    """Train on smaller images first: 16:0.4,24:0.7 is 16 pixels until 40 % of the run, 24 until 70 %."""

    # --- Optimization --------------------------------------------------------------------------------------------
    epochs: int = _option(200, OPTIMIZATION, on_resume="may be raised", ge=1, le=1_000_000)
    """Number of passes over the training images."""
    minutes: float | None = _option(None, OPTIMIZATION, gt=0, le=1e6)
    """Instead of epochs: measure this machine, then train as many steps as fit into N minutes."""
    epoch_steps: int | None = _option(None, OPTIMIZATION, ge=1)
    """Optimizer steps per epoch; if not given, one pass over the training images. --minutes chooses it."""
    batch_size: int = _option(128, OPTIMIZATION, short="-b", ge=1)
    """Images per optimizer step."""
    optimizer: str = _option("sgd", OPTIMIZATION)
    """Optimizer; `resnet-info optimizers` lists them."""
    lr: float = _option(0.1, OPTIMIZATION, gt=0)
    """Peak learning rate."""
    momentum: float = _option(0.9, OPTIMIZATION, ge=0, lt=1)
    """Momentum of SGD and Muon."""
    nesterov: bool = _option(False, OPTIMIZATION)
    """Use Nesterov momentum."""
    ns_steps: int = _option(5, OPTIMIZATION, ge=1, le=10)
    """Muon: Newton-Schulz steps per update; 3 is faster and was better in runs of 3 epochs."""
    weight_decay: float = _option(5e-4, OPTIMIZATION, ge=0)
    """Weight decay; an L2 penalty for sgd, decoupled for adamw and muon."""
    no_decay_norm_bias: bool = _option(False, OPTIMIZATION)
    """Exclude norms and biases from weight decay."""
    schedule: str = _option("cosine", OPTIMIZATION)
    """Learning rate schedule; `resnet-info schedules` lists them."""
    warmup_epochs: float | None = _option(None, OPTIMIZATION, ge=0)
    """Epochs of linear warm-up; if not given, 0, or 30 % of the run for one-cycle."""
    milestones: tuple[float, ...] | None = _option(None, OPTIMIZATION)
    """multi-step: epochs at which lr drops, such as 100,150 (none: 50 and 75 % of the run); step: the period."""
    gamma: float = _option(0.1, OPTIMIZATION, gt=0, le=1)
    """Factor by which step and multi-step drop lr."""
    label_smoothing: float = _option(0.0, OPTIMIZATION, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes."""
    class_weights: Literal["none", "balanced"] = _option("none", OPTIMIZATION)
    """Weight of each class in the training loss; balanced: inversely proportional to its training images."""
    clip_grad: float = _option(0.0, OPTIMIZATION, ge=0)
    """Clip the L2 norm of the gradient to this value; 0 disables it."""
    accumulate: int = _option(1, OPTIMIZATION, ge=1)
    """Compute each batch in N parts to save memory; the batch size stays the same."""
    ema_decay: float = _option(0.0, OPTIMIZATION, ge=0, lt=1)
    """Evaluate an exponential moving average of the weights with this decay, such as 0.999; 0 disables it."""

    # --- Run -----------------------------------------------------------------------------------------------------
    seed: int = _option(0, RUN, ge=0, lt=2**63)
    """Seed of the initial weights and of every random choice in training."""
    name: str | None = _option(None, RUN, on_resume="free", min_length=1, max_length=200)
    """Name of the run's folder in the output directory; if not given, it says what differs from the defaults."""
    output_dir: Path = _option(Path("runs"), RUN, on_resume="free")
    """Directory of the run folders."""
    eval_every: int = _option(1, RUN, on_resume="free", ge=1)
    """Evaluate every N epochs and after the last one."""
    save_every_minutes: float = _option(10.0, RUN, on_resume="free", ge=0)
    """Save once the last save is N minutes old, or 5 % of the run so far (at least 30 s); 0 saves only at the end."""
    save_every: int | None = _option(None, RUN, on_resume="free", ge=1)
    """Also save after every N epochs."""
    log_every: int = _option(20, RUN, on_resume="free", ge=1)
    """Log the loss every N optimizer steps, and check that it is finite."""
    tensorboard: bool = _option(True, RUN, on_resume="free")
    """Write TensorBoard event files to the run folder."""
    plugin: tuple[str, ...] = _option((), RUN, on_resume="free")
    """Python file that adds networks, augmentations, metrics and so on; may be given several times."""

    # --- Machine -------------------------------------------------------------------------------------------------
    device: str = _option("auto", MACHINE, on_resume="free")
    """Device: auto, cpu, cuda, cuda:1 or mps."""
    threads: int = _option(0, MACHINE, on_resume="free", ge=0, le=4096)
    """Number of CPU threads; 0 is torch's default."""
    amp: Literal["auto", "off", "bf16", "fp16"] = _option("auto", MACHINE)
    """Mixed precision; auto is bf16 or fp16 on a CUDA GPU, bf16 on a CPU that gains from it, and off elsewhere."""
    compile: bool = _option(False, MACHINE, on_resume="free")
    """Compile the network with torch.compile; pays off in long runs."""
    capture: bool | None = _option(None, MACHINE, on_resume="free")
    """Replay steps from CUDA graphs; if not given, on a single GPU unless the network or optimizer is a plugin's."""
    deterministic: bool = _option(False, MACHINE)
    """Use only deterministic kernels, as a CPU always does; slower on a GPU."""
    sync_bn: bool = _option(False, MACHINE)
    """Several GPUs: compute batch-norm statistics over all of them instead of on each separately."""
    channels_last: bool = _option(True, MACHINE)
    """Store images and weights in channels-last (NHWC) memory format."""

    @model_validator(mode="before")
    @classmethod
    def _reject_booleans(cls, values: Any) -> Any:
        """Raise if a setting that is not a switch is true or false: pydantic would read `seed: true` as 1."""
        for name, value in dict(values).items():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and field.annotation not in (bool, bool | None):
                raise ValueError(f"{name} (={str(value).lower()}) must not be true or false")
        return values

    @field_validator("plugin", mode="before")
    @classmethod
    def _parse_plugin(cls, value: Any) -> Any:
        """Parse a single file from YAML."""
        return [value] if isinstance(value, str) else value

    @field_validator("milestones", mode="before")
    @classmethod
    def _parse_milestones(cls, value: Any) -> Any:
        """Parse `100,150` from the command line, `none`, which clears a recipe's, and a single number from YAML."""
        if value == "none":
            return None
        if isinstance(value, str):
            return [part for part in value.split(",") if part.strip()]
        if isinstance(value, list) and any(isinstance(part, bool) for part in value):
            raise ValueError("must be numbers, not true or false")
        return [value] if isinstance(value, int | float) else value

    @field_validator("milestones")
    @classmethod
    def _check_milestones(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and (not value or value[0] <= 0 or list(value) != sorted(set(value))):
            raise ValueError("must be increasing epochs greater than 0")
        return value

    @field_validator("freeze", mode="before")
    @classmethod
    def _parse_freeze(cls, value: Any) -> Any:
        """Parse `conv1,layer1`, and `none`, which clears a recipe's."""
        if value == "none":
            return None
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("freeze")
    @classmethod
    def _check_freeze(cls, value: Names | None) -> Names | None:
        if value is not None and not value:
            raise ValueError("must name modules or parameters, such as conv1,layer1")
        return value

    @field_validator("progressive_sizes", mode="before")
    @classmethod
    def _parse_progressive_sizes(cls, value: Any) -> Any:
        """Parse `16:0.4,24:0.7`."""
        if isinstance(value, str):
            value = [part.split(":") for part in value.split(",") if part.strip()]
        if value is None:
            return None
        if not isinstance(value, list | tuple) or any(not isinstance(s, list | tuple) or len(s) != 2 for s in value):
            raise ValueError("must be SIZE:SHARE pairs, such as 16:0.4,24:0.7")
        return value

    @field_validator("progressive_sizes")
    @classmethod
    def _check_progressive_sizes(cls, value: Stages | None) -> Stages | None:
        if value is None:
            return None
        sizes, shares = [size for size, _ in value], [share for _, share in value]
        increasing = sizes == sorted(set(sizes)) and shares == sorted(set(shares))
        if not value or not increasing or sizes[0] < 4 or shares[0] <= 0 or shares[-1] >= 1:
            raise ValueError("must have increasing sizes of at least 4 pixels and increasing shares between 0 and 1")
        return value

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str | None) -> str | None:
        if value is not None and len(value.encode()) > 200:
            raise ValueError("must be at most 200 bytes long")
        if value is not None and (value in {".", ".."} or not value.isprintable() or set(value) & set("/\\")):
            raise ValueError("must be a plain folder name")
        return value

    @field_validator("data_dir", "output_dir", "weights")
    @classmethod
    def _check_path(cls, value: Path | None) -> Path | None:
        if "\0" in str(value):
            raise ValueError("must not contain a null character")
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> TrainConfig:
        """Raise if settings contradict each other."""
        if self.nesterov and self.momentum == 0:
            raise ValueError("momentum (=0) must be greater than 0 with nesterov")
        if self.warmup_epochs is not None and self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs (={self.warmup_epochs:g}) must be at most epochs (={self.epochs})")
        if self.padding_mode == "reflect" and self.crop_padding >= self.image_size:
            raise ValueError(
                f"crop_padding (={self.crop_padding}) must be less than image_size (={self.image_size}) "
                f"with padding_mode reflect"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size (={self.batch_size}) must be a multiple of accumulate (={self.accumulate})")
        if self.progressive_sizes and self.progressive_sizes[-1][0] >= self.image_size:
            largest = self.progressive_sizes[-1][0]
            raise ValueError(f"progressive_sizes (up to {largest}) must be less than image_size (={self.image_size})")
        if self.cutout > 2 * self.image_size:
            raise ValueError(f"cutout (={self.cutout}) must be at most twice image_size (={self.image_size})")
        return self


# What other programs call a setting. The command line accepts these names; error messages about YAML suggest ours.
ALIASES = {
    **dict.fromkeys(("model", "architecture", "network", "net"), "arch"),
    **dict.fromkeys(("data_path", "data_root"), "data_dir"),
    **dict.fromkeys(("img_size", "input_size"), "image_size"),
    **dict.fromkeys(("num_epochs", "max_epochs"), "epochs"),
    **dict.fromkeys(("bs", "batch", "batchsize", "train_batch_size"), "batch_size"),
    **dict.fromkeys(("opt", "optim"), "optimizer"),
    **dict.fromkeys(("learning_rate", "base_lr", "max_lr"), "lr"),
    "wd": "weight_decay",
    **dict.fromkeys(("lr_scheduler", "lr_schedule", "scheduler", "sched"), "schedule"),
    **dict.fromkeys(("warmup", "lr_warmup_epochs"), "warmup_epochs"),
    "lr_milestones": "milestones",
    "lr_gamma": "gamma",
    "smoothing": "label_smoothing",
    **dict.fromkeys(("clip_grad_norm", "grad_clip", "gradient_clip_val"), "clip_grad"),
    **dict.fromkeys(("accumulation_steps", "grad_accum", "gradient_accumulation_steps"), "accumulate"),
    "model_ema_decay": "ema_decay",
    "mixup_alpha": "mixup",
    "cutmix_alpha": "cutmix",
    **dict.fromkeys(("random_erase", "reprob"), "random_erasing"),
    **dict.fromkeys(("run_name", "exp_name", "experiment"), "name"),
    **dict.fromkeys(("random_seed", "manual_seed"), "seed"),
    **dict.fromkeys(("output", "out_dir", "save_dir", "log_dir", "logdir"), "output_dir"),
    **dict.fromkeys(("print_freq", "log_interval"), "log_every"),
    **dict.fromkeys(("eval_interval", "val_interval"), "eval_every"),
    "num_threads": "threads",
    **dict.fromkeys(("precision", "mixed_precision"), "amp"),
    "sync_batchnorm": "sync_bn",
}


def add_setting(
    name: str,
    kind: Any,
    default: Any,
    help: str,  # noqa: A002 - as in typer and argparse
    *,
    panel: str = RUN,
    on_resume: OnResume = "fixed",
    **limits: Any,
) -> None:
    """Add a plugin's setting: a flag, a YAML key, a keyword of `train`, and an argument of whatever names it.

    Args:
        name: its name in Python; the flag of `se_reduction` is `--se-reduction`.
        kind: bool, int, float, str, `Path`, a `Literal`, or one of these with `| None`.
        default: its default value; None for an option of a network, so that networks without it still work.
        help: what it does, with units, and from which value on it has an effect.
        panel: title of its help panel, one of `PANELS`.
        on_resume: "fixed", "may be raised", or "free" for one that does not affect the result.
        limits: bounds of its values, such as `ge=0`; see `pydantic.Field`.

    Raises:
        ValueError: the name is taken or not valid.
    """
    if name in TrainConfig.model_fields:
        raise ValueError(f"setting {name!r} already exists; choose another name")
    if panel not in PANELS:
        raise ValueError(f"setting {name!r}: panel (={panel!r}) must be one of {', '.join(PANELS)}")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or hasattr(TrainConfig, name):
        raise ValueError(f"setting {name!r} must be a name such as se_reduction that pydantic does not use")

    field = FieldInfo.from_annotated_attribute(kind, _option(default, panel, on_resume=on_resume, **limits))
    field.description = help
    TrainConfig.__pydantic_fields__[name] = field
    TrainConfig.__annotations__[name] = kind
    TrainConfig.model_rebuild(force=True)

    def remove() -> None:
        del TrainConfig.__pydantic_fields__[name], TrainConfig.__annotations__[name]
        TrainConfig.model_rebuild(force=True)

    try:
        make_config({} if default is None else {name: default})
    except ValueError as error:
        remove()
        raise ValueError(f"setting {name!r}: its default {default!r} is not valid: {error}") from None
    on_unload(remove)


def option_names() -> list[str]:
    """Return the names of all settings in the order of `--help`."""
    return list(TrainConfig.model_fields)


def option_metadata(name: str) -> dict[str, Any]:
    """Return a setting's `panel`, `short` flag, and whether it may change `on_resume`."""
    extra = TrainConfig.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return extra


def without_none(annotation: Any) -> Any:
    """Return the annotation `X` for `X | None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = [part for part in get_args(annotation) if part is not type(None)]
    return annotation


def make_config(values: dict[str, Any], source: str = "") -> TrainConfig:
    """Build a config from plain values and defaults.

    Args:
        values: settings by name.
        source: where they come from, for error messages.

    Raises:
        ValueError: a name or value is invalid. The message is one line with the setting, its value, what is allowed,
            and `source`.
    """
    where = f" in {source}" if source else ""
    for name in values:
        if name not in TrainConfig.model_fields:
            raise ValueError(f"unknown setting {name!r}{where}{_nearest_setting(str(name))}")
    try:
        return TrainConfig(**values)
    except ValidationError as error:
        raise ValueError("; ".join(_one_line(detail) for detail in error.errors()) + where) from None


def _nearest_setting(name: str) -> str:
    """Return a hint that names the setting other programs call by this name, or one with a similar name."""
    name = name.lower().replace("-", "_")
    return f"; did you mean {ALIASES[name]!r}?" if name in ALIASES else nearest(name, option_names())


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """Return the config as strings, numbers, lists and None, as stored in YAML files and checkpoints."""
    return config.model_dump(mode="json")


NUMBERS = {"integer": "a whole number", "number": "a number, such as 0.1"}


def reword(message: str) -> str:
    """Return a pydantic message as the end of a sentence about a value: `must be …`."""
    message = message.removeprefix("Value error, ").replace("Input should be", "must be", 1)
    message = message.replace("String should have", "must have", 1)
    message = re.sub(r"a valid (integer|number), .*", lambda kind: NUMBERS[kind[1]], message)
    return re.sub(r"a valid path for <class '[\w.]*'>", "a path", message)


def _one_line(detail: Any) -> str:
    """Return a pydantic error as `setting (=value) must be …`."""
    message = reword(detail["msg"])
    location = [part for part in detail["loc"] if isinstance(part, str)]
    if not location:
        return message

    # Infinite values fail pydantic's range checks first; say what is wrong with them instead.
    value = detail["input"]
    if isinstance(value, float) and not math.isfinite(value):
        message = "must be a finite number"
    return f"{location[0]} (={reprlib.repr(value)}) {message}"


def is_planned(config: TrainConfig) -> bool:
    """Return whether the length of the run is known: `minutes` is not given or has been turned into steps."""
    return config.minutes is None or config.epoch_steps is not None


def with_length(config: TrainConfig, epochs: int, epoch_steps: int | None = None) -> TrainConfig:
    """Return the config with another length; warm-up and milestones keep their shares of the run."""
    share, changes = epochs / config.epochs, dict[str, Any](epochs=epochs, epoch_steps=epoch_steps)
    if config.warmup_epochs is not None:
        changes["warmup_epochs"] = config.warmup_epochs * share
    if config.milestones is not None:
        changes["milestones"] = [epoch * share for epoch in config.milestones]
    return make_config({**to_plain(config), **changes})


def pin(weights: Path, digest: str) -> Path:
    """Append the start of their SHA-256 to the path of weights; runs are compared by it, whatever the path."""
    return Path(f"{weights}@{digest[:PIN_DIGITS]}")


def unpin(weights: Path) -> tuple[Path, str]:
    """Return the path of weights and the start of their SHA-256, "" if it has none."""
    match = PINNED.fullmatch(str(weights))
    return (Path(match[1]), match[2]) if match else (weights, "")


def result_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that affect the result, in the order of `--help`; for weights, their content."""
    return {name: _identity(config, name) for name in option_names() if option_metadata(name)["on_resume"] != "free"}


def changed_settings(before: TrainConfig, after: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Return the settings that affect the result and differ, with both values, in the order of `--help`."""
    old, new = result_settings(before), result_settings(after)
    return {name: (getattr(before, name), getattr(after, name)) for name in old if old[name] != new[name]}


def _identity(config: TrainConfig, name: str) -> Any:
    """Return what makes two values of a setting the same: for weights, their content."""
    value = getattr(config, name)
    return (unpin(value)[1] or value) if name == "weights" and value is not None else value


def merge_on_resume(saved: dict[str, Any], given: dict[str, Any]) -> TrainConfig:
    """Return the config of a resumed run: the saved one, updated with the given settings.

    Raises:
        ValueError: a given setting would change the result. The message has both values.
    """
    # Keep what was chosen when the run started.
    chosen = {"amp"} if given.get("amp") == "auto" else set()
    if "minutes" in given and make_config({"minutes": given["minutes"]}).minutes == saved.get("minutes"):
        chosen |= PLANNED
    given = {name: value for name, value in given.items() if name not in chosen}
    before, merged = make_config(saved, "the checkpoint"), make_config({**saved, **given})
    for name, (old, new) in changed_settings(before, merged).items():
        if option_metadata(name)["on_resume"] == "fixed":
            raise ValueError(
                f"{name} (={new}) cannot change when a run is resumed (it was {old}); "
                f"leave it out, or start a new run with another --name"
            )
        if new < old:
            raise ValueError(f"{name} (={new}) must not be less than at the start of the run (={old})")
    return merged
