"""Build the parts of a run from its config: data, model, optimizer, schedule, trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from resnet_train.config import TrainConfig, option_metadata, to_plain
from resnet_train.data.augment import AUGMENTATIONS, OFF, Normalize, build_transforms
from resnet_train.data.dataset import DATASETS, ImageDataset, load_dataset, split_indices
from resnet_train.data.loader import BatchLoader, eval_loader, fits_on
from resnet_train.data.mix import Mix
from resnet_train.data.normalization import parse_normalization
from resnet_train.data.plan import draw_plan
from resnet_train.data.progressive import size_schedule, stage_ends
from resnet_train.loggers.base import LOGGERS, Logger
from resnet_train.loggers.guard import Guard
from resnet_train.models import create_model, find_model, list_models
from resnet_train.models.blocks import set_bn_momentum
from resnet_train.optim.ema import ExponentialMovingAverage
from resnet_train.optim.groups import freeze, head_name
from resnet_train.optim.optimizers import OPTIMIZERS
from resnet_train.optim.schedules import SCHEDULES
from resnet_train.records import About, RunInfo
from resnet_train.registry import accepts, call_with
from resnet_train.runtime.capture import is_capturable
from resnet_train.runtime.compilation import can_compile, compile_mode, compile_networks
from resnet_train.runtime.device import device_name, memory_format
from resnet_train.runtime.distributed import ALONE, Processes
from resnet_train.runtime.precision import choose_precision, resolve_amp
from resnet_train.training.trainer import Trainer, list_scalars

PRECISION_NAMES = {None: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# Size of the batches made at once on a GPU, in float32 bytes: 21,845 images of 32 pixels; one launch serves many steps.
CUDA_CHUNK_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The images of a run.

    Attributes:
        train, test: the splits of the data set; some data sets have no test images.
        train_indices, val_indices: int64, the training images to train on and those held out (may be empty).
        val: the data set's own validation images; if it has any, none are held out.
    """

    train: ImageDataset
    test: ImageDataset | None
    train_indices: np.ndarray
    val_indices: np.ndarray
    val: ImageDataset | None = None

    @property
    def fingerprints(self) -> tuple[str, str, str]:
        """Return the fingerprints of the training, test and validation images, "" if there are none."""
        test, val = (part.fingerprint if part else "" for part in (self.test, self.val))
        return self.train.fingerprint, test, val

    @property
    def skipped(self) -> list[str]:
        """Return a line for each file of the data that is not among the images."""
        parts = (("training", self.train), ("validation", self.val), ("test", self.test))
        return [f"skipped among the {name} images: {line}" for name, part in parts if part for line in part.skipped]


def describe_network(config: TrainConfig, data: RunData) -> About:
    """Return what a checkpoint says about its network, which is enough to use it."""
    fingerprint, test_fingerprint, val_fingerprint = data.fingerprints
    return About(
        arch=config.arch,
        arch_options=arch_options(config),
        classes=list(data.train.classes),
        image_size=config.image_size,
        mean=list(data.train.mean),
        std=list(data.train.std),
        dataset=config.dataset,
        title=data.train.title,
        fingerprint=fingerprint,
        test_fingerprint=test_fingerprint,
        val_fingerprint=val_fingerprint,
    )


def describe_run(config: TrainConfig, data: RunData, trainer: Trainer, folder: Path) -> RunInfo:
    """Return what loggers are told about a run before its first step."""
    return RunInfo(
        name=folder.name,
        folder=str(folder),
        title=data.train.title,
        config=to_plain(config),
        device=device_name(trainer.device),
        epochs=config.epochs,
        steps_per_epoch=len(trainer.train_loader),
        batch_size=config.batch_size,
        precision=PRECISION_NAMES[trainer.precision],
        num_params=sum(parameter.numel() for parameter in trainer.model.parameters()),
        num_classes=len(data.train.classes),
        num_images={
            split: loader.num_images
            for split, loader in {"train": trainer.train_loader, **trainer.eval_loaders}.items()
        },
        sizes=stage_ends(config.progressive_sizes or (), config.image_size, config.epochs * len(trainer.train_loader)),
        first_step=trainer.progress.step,
        history=tuple(trainer.progress.history),
        splits=("train", *trainer.eval_loaders),
        scalar_names=list_scalars(),
    )


def check_config(config: TrainConfig, *, resumed: bool = False) -> None:
    """Check everything that can be wrong without looking at data.

    Args:
        config: all settings.
        resumed: accept settings without effect, which earlier versions did not refuse.

    Raises:
        ValueError: an unknown architecture, data set, optimizer or schedule, a setting without effect, or images too
            small for the network.
    """
    # What plugins registered.
    for switch in AUGMENTATIONS.names():
        if switch not in TrainConfig.model_fields:
            raise ValueError(f"augmentation {switch!r} needs a setting with its name, which switches it on")

    # Check the names of all components.
    choices = ((DATASETS, config.dataset), (OPTIMIZERS, config.optimizer), (SCHEDULES, config.schedule))
    for registry, name in choices:
        registry[name]  # raises if the name is unknown
    if not resumed:
        _check_effects(config)

    # Build the network on the meta device, which takes no memory and no arithmetic.
    with torch.device("meta"):
        model = create_model(config.arch, **arch_options(config))
        freeze(model, config.freeze or ())
        if config.head_lr_scale != 1 and not model.get_submodule(head_name(model)).weight.requires_grad:
            raise _without_effect(config, "head_lr_scale", f"freeze {','.join(config.freeze or ())}", "the last layer")
        stride: Any = model.stride
    if config.normalize is not None:
        parse_normalization(config.normalize)

    # Check the smallest images that it will see.
    smallest = config.progressive_sizes[0][0] if config.progressive_sizes else config.image_size
    if smallest < stride:
        name = "progressive_sizes (from " if config.progressive_sizes else "image_size (="
        raise ValueError(f"{name}{smallest}) must be at least {stride}, the stride of {config.arch}")
    if smallest == stride and config.batch_size == config.accumulate:
        raise ValueError(
            f"batch_size (={config.batch_size}) must be more than accumulate (={config.accumulate}) for images of "
            f"{stride} pixels: the last norms would see a single value"
        )


def _check_effects(config: TrainConfig) -> None:
    """Check that each setting that differs from its default is used by a component of the run.

    A component uses the settings that its signature names. Those in the help panel of the setting that selects the
    component belong to components of this kind; the others, such as the image size, always have an effect.

    Raises:
        ValueError: a setting has no effect; the message names the components that use it.
    """
    changed = [name for name, field in TrainConfig.model_fields.items() if getattr(config, name) != field.default]

    # Components that are selected by name.
    for registry, selector in ((OPTIMIZERS, "optimizer"), (SCHEDULES, "schedule"), (DATASETS, "dataset")):
        chosen = getattr(config, selector)
        for name in _of_same_panel(changed, selector):
            users = [user for user in registry.names() if accepts(registry[user], name)]
            if users and chosen not in users and not accepts(Trainer, name):
                raise _without_effect(config, name, f"{selector} {chosen}", ", ".join(users))

    # Augmentations, each switched on by its setting.
    for name in changed:
        switches = [s for s in AUGMENTATIONS.names() if name in _of_same_panel([name], s)]
        users = [switch for switch in switches if accepts(AUGMENTATIONS[switch], name)]
        if users and all(getattr(config, switch) in OFF for switch in users) and name not in users:
            shown = " or ".join(f"--{user.replace('_', '-')}" for user in users)
            raise _without_effect(config, name, f"{users[0]} {getattr(config, users[0])}", shown)

    # Values that change nothing although their components are selected.
    if config.schedule == "step" and len(config.milestones or ()) > 1:
        raise ValueError(
            f"milestones (={_shown(config.milestones)}) must be a single period with schedule step; "
            f"schedule multi-step uses several"
        )
    if config.no_decay_norm_bias and not config.weight_decay:
        raise _without_effect(config, "no_decay_norm_bias", "weight_decay 0", "--weight-decay greater than 0")


def _of_same_panel(names: list[str], selector: str) -> list[str]:
    panel = option_metadata(selector)["panel"]
    return [name for name in names if option_metadata(name)["panel"] == panel]


def _without_effect(config: TrainConfig, name: str, where: str, users: str) -> ValueError:
    value = _shown(getattr(config, name))
    return ValueError(f"{name} (={value}) has no effect with {where}; it is used by {users}")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(f"{part:g}" for part in value) if isinstance(value, tuple) else str(value)


def load_data(config: TrainConfig) -> RunData:
    """Load all images of a run.

    Raises:
        ValueError: the splits are larger than the data, or no images are left to evaluate the model on.
    """
    place = (config.data_dir, config.image_size, dict(config))
    train_set, val_set, test_set = (load_dataset(config.dataset, split, *place) for split in ("train", "val", "test"))
    assert train_set is not None
    if config.normalize is not None:
        chosen = parse_normalization(config.normalize)
        train_set = replace(train_set, mean=chosen.mean, std=chosen.std)

    # Check that there is something to learn and something to evaluate on.
    for name, part in (("validation", val_set), ("test", test_set)):
        if part is not None and part.classes != train_set.classes:
            raise ValueError(f"train and {name} images have different classes")
    if val_set is not None and config.val_size:
        raise ValueError(
            f"val_size (={config.val_size}) has no effect: {config.data_dir} has {len(val_set):,} validation images; "
            f"leave --val-size out"
        )
    if test_set is None and val_set is None and not config.val_size:
        size = min(1000, -(-len(train_set.labels) // 5))  # a fifth of a small folder
        raise ValueError(
            f"{config.data_dir} has no test images; hold out some of its {len(train_set.labels):,} images to evaluate "
            f"on, with --test-size {size} or --val-size {size}"
        )
    if len(train_set.classes) < 2:
        raise ValueError(
            f"{config.data_dir} has only one class ({train_set.classes[0]!r}); there is nothing to tell apart"
        )

    train_indices, val_indices = split_indices(train_set.labels, config.val_size, config.train_size)
    return RunData(train=train_set, test=test_set, train_indices=train_indices, val_indices=val_indices, val=val_set)


def arch_options(config: TrainConfig) -> dict[str, Any]:
    """Return the network options that were given; the others keep the default of the network's constructor."""
    known = {option for model in list_models() for option in model.options}
    return {name: value for name, value in config if name in known and value is not None}


def resolve_auto(config: TrainConfig, device: torch.device) -> tuple[TrainConfig, str]:
    """Return the config with the number format that `amp` resolves to on this device, and a sentence that says why."""
    amp, reason = resolve_amp(config.amp, device)
    message = f"amp auto is {amp} here: {reason}" if reason else ""
    return config.model_copy(update={"amp": amp}), message


def build_trainer(config: TrainConfig, data: RunData, device: torch.device, processes: Processes = ALONE) -> Trainer:
    """Build model, optimizer, schedule, loaders and trainer.

    Raises:
        ValueError: the batch is larger than the training set or can't be divided among the processes.
    """
    # Check what depends on the data and the machine.
    num_images = len(data.train_indices)
    if config.batch_size > num_images:
        raise ValueError(
            f"batch_size (={config.batch_size}) must be at most the number of training images (={num_images})"
        )
    if config.batch_size % (processes.num_ranks * config.accumulate):
        times = f" times accumulate (={config.accumulate})" if config.accumulate > 1 else ""
        raise ValueError(
            f"batch_size (={config.batch_size}) must be a multiple of the number of processes "
            f"(={processes.num_ranks}){times}: it is the size of the whole batch"
        )
    if config.compile and not can_compile(device):
        needs = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler"
        raise ValueError(f"compile (=true) needs {needs}, which is not here; install one, or leave --compile out")
    if config.capture and (device.type != "cuda" or processes.num_ranks > 1):
        where = f"on {device.type}" if device.type != "cuda" else f"with {processes.num_ranks} processes"
        raise ValueError(f"capture (=true) works only on one CUDA GPU, not {where}; leave --capture out")
    if config.epoch_steps is not None and config.epoch_steps > num_images // config.batch_size:
        raise ValueError(
            f"epoch_steps (={config.epoch_steps}) must be at most {num_images // config.batch_size}, a pass over the "
            f"training images"
        )

    # The network and its average, which is copied before the network is compiled.
    settings, num_classes = dict(config), len(data.train.classes)
    model = build_model(config, num_classes, device)
    averaged = ExponentialMovingAverage(model, config.ema_decay) if config.ema_decay else None
    optimizer = call_with(OPTIMIZERS[config.optimizer], settings, model=model)
    if config.capture is None:
        on_one_gpu = device.type == "cuda" and processes.num_ranks == 1
        settings["capture"] = on_one_gpu and has_known_kernels(config, model, optimizer)
    if config.compile:
        mode = compile_mode(device, config.accumulate, processes.num_ranks, settings["capture"])
        networks = [model] if averaged is None else [model, averaged.model]
        compile_networks(networks, mode, num_sizes=len(config.progressive_sizes or ()) + 1)

    # Everything else takes the settings that its signature names.
    train_loader, eval_loaders = build_loaders(config, data, device, processes)
    class_weights = None
    if config.class_weights == "balanced":
        class_weights = balanced_class_weights(data.train.labels[data.train_indices], num_classes).to(device)
    steps_per_epoch = len(train_loader)
    return call_with(
        Trainer,
        settings,
        model=model,
        optimizer=optimizer,
        schedule=call_with(SCHEDULES[config.schedule], settings, steps_per_epoch=steps_per_epoch),
        train_loader=train_loader,
        eval_loaders=eval_loaders,
        num_classes=num_classes,
        class_weights=class_weights,
        averaged=averaged,
        precision=choose_precision(config.amp, device),
        processes=processes,
    )


def has_known_kernels(config: TrainConfig, model: nn.Module, optimizer: Optimizer) -> bool:
    """Return whether neither the network nor the optimizer is a plugin's, so that a CUDA graph can replay a step."""
    return is_capturable(model, find_model(config.arch).constructor) and is_capturable(
        optimizer, OPTIMIZERS[config.optimizer]
    )


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> torch.Tensor:
    """Return N / (C · N_c) for each class, float32, where C counts the classes with images.

    The mean weight of an image is 1. A class without images has weight 0, so that label smoothing ignores it.
    """
    counts = np.bincount(labels, minlength=num_classes)  # [C]
    present = counts > 0
    weights = np.divide(len(labels), present.sum() * counts, out=np.zeros(num_classes), where=present)
    return torch.from_numpy(weights).float()


def build_model(config: TrainConfig, num_classes: int, device: torch.device) -> nn.Module:
    """Build the network on its device, with initial weights that depend only on the seed."""
    # Weights are drawn on the CPU, so they do not depend on the device.
    torch.manual_seed(config.seed)
    model = create_model(config.arch, num_classes, **arch_options(config))
    model = model.to(device).to(memory_format=memory_format(config.channels_last))

    # Configure batch norm.
    set_bn_momentum(model, config.bn_momentum)
    if config.sync_bn:
        if device.type != "cuda":
            raise ValueError(f"sync_bn (=true) works only on CUDA GPUs, not on {device.type}")
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    freeze(model, config.freeze or ())
    return model


def build_loaders(
    config: TrainConfig, data: RunData, device: torch.device, processes: Processes = ALONE
) -> tuple[BatchLoader, dict[str, BatchLoader]]:
    """Return the training loader and the evaluation loaders by split."""
    # Training draws its augmentations from the plan of each epoch.
    settings = dict(config)
    normalize = Normalize(data.train.mean, data.train.std, config.channels_last)
    transforms = build_transforms(settings)
    mix = call_with(Mix, settings) if config.mixup or config.cutmix else None
    num_images, steps = len(data.train_indices), config.epoch_steps
    length = num_images if steps in (None, num_images // config.batch_size) else steps * config.batch_size
    train_loader = BatchLoader(
        data.train.images,
        data.train.labels,
        indices=data.train_indices,
        batch_size=config.batch_size,
        normalize=normalize,
        transforms=transforms,
        plan=partial(draw_plan, config.seed, num_images=num_images, transforms=transforms, mix=mix, length=length),
        device=device,
        resident=fits_on(device, data.train.images.nbytes),
        drop_last=True,
        num_batches=steps,
        chunk_bytes=CUDA_CHUNK_BYTES if device.type == "cuda" else 0,
        rank=processes.rank,
        num_ranks=processes.num_ranks,
    )
    if config.progressive_sizes:
        total_steps = config.epochs * len(train_loader)
        train_loader.size_at = size_schedule(config.progressive_sizes, config.image_size, total_steps)

    # Evaluation uses the same statistics on all splits: those of the training images.
    of_split = partial(eval_loader, normalize=normalize, device=device, processes=processes)
    eval_loaders = {}
    if data.val is not None:
        eval_loaders["val"] = of_split(data.val.images, data.val.labels)
    elif len(data.val_indices):
        eval_loaders["val"] = of_split(data.train.images, data.train.labels, indices=data.val_indices)
    if data.test is not None:
        eval_loaders["test"] = of_split(data.test.images, data.test.labels)
    return train_loader, eval_loaders


def build_loggers(config: TrainConfig, folder: Path, check: Callable[[], None]) -> list[Logger]:
    """Return the loggers of a run in the order of their calls; `check` raises if the folder must not be written to."""
    settings = {**dict(config), "folder": folder}
    built = [call_with(LOGGERS[name], settings) for name in LOGGERS.names()]
    return [Guard(check), *(logger for logger in built if logger is not None)]
