"""From a config to the parts of a run: data, model, optimizer, schedule, trainer. The one file that knows them all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from resnet_train.config import NETWORK_OPTIONS, TrainConfig, option_metadata, option_names
from resnet_train.data.augment import Normalize, build_transforms
from resnet_train.data.dataset import DATASETS, ImageDataset, load_dataset, split_indices
from resnet_train.data.loader import BatchLoader, eval_loader, fits_on
from resnet_train.data.mix import Mix
from resnet_train.data.plan import draw_plan
from resnet_train.data.progressive import size_schedule
from resnet_train.models import create_model
from resnet_train.models.blocks import set_bn_momentum
from resnet_train.optim.ema import AveragedModel
from resnet_train.optim.optimizers import OPTIMIZERS, build_optimizer, optimizer_settings
from resnet_train.optim.schedules import SCHEDULES, build_schedule
from resnet_train.registry import call_with
from resnet_train.runtime.device import memory_format
from resnet_train.runtime.distributed import ALONE, Processes
from resnet_train.runtime.precision import choose_precision
from resnet_train.training.trainer import Trainer

# Batches made at once on a GPU, in float32 bytes: 21,845 images of 32 pixels, so that one launch serves many steps.
CUDA_CHUNK_BYTES = 1 << 28


@dataclass(frozen=True)
class RunData:
    """The images of a run: what it trains on, what it validates on (may be none), what it is tested on."""

    train: ImageDataset
    test: ImageDataset | None
    train_indices: np.ndarray
    val_indices: np.ndarray

    def about(self, config: TrainConfig) -> dict[str, Any]:
        """What a checkpoint says of its network: enough to use it without anything else."""
        return {
            "arch": config.arch,
            "arch_options": arch_options(config),
            "classes": list(self.train.classes),
            "image_size": config.image_size,
            "mean": list(self.train.mean),
            "std": list(self.train.std),
            "dataset": config.dataset,
            "title": self.train.title,
            "fingerprint": self.train.fingerprint,
        }


def check_names(config: TrainConfig) -> None:
    """Everything that can be wrong without looking at data.

    Raises:
        ValueError: an unknown architecture, data set, optimizer or schedule, or images too small for the network.
    """
    choices = ((DATASETS, config.dataset), (OPTIMIZERS, config.optimizer), (SCHEDULES, config.schedule))
    for registry, name in choices:
        registry[name]
    if config.nesterov and "nesterov" not in optimizer_settings(config.optimizer):
        raise ValueError(f"nesterov (=true) is not a setting of {config.optimizer}")
    with torch.device("meta"):  # no memory, no arithmetic: builds the network to see whether it can be built
        model = create_model(config.arch, **arch_options(config))
        stride: Any = model.stride
    smallest = config.progressive_sizes[0][0] if config.progressive_sizes else config.image_size
    if smallest < stride:
        name = "progressive_sizes (from " if config.progressive_sizes else "image_size (="
        raise ValueError(f"{name}{smallest}) must be at least {stride}, the stride of {config.arch}")
    if smallest == stride and config.batch_size == config.accumulate:
        raise ValueError(
            f"batch_size (={config.batch_size}) must be more than accumulate (={config.accumulate}) for images of "
            f"{stride} pixels: the last norms would see a single value"
        )


def load_data(config: TrainConfig) -> RunData:
    """All images of a run.

    Raises:
        ValueError: the splits are larger than the data, or nothing is left to judge the model by.
    """
    train_set = load_dataset(config.dataset, "train", config.data_dir, config.image_size)
    assert train_set is not None
    test_set = load_dataset(config.dataset, "test", config.data_dir, config.image_size)
    if test_set is not None and test_set.classes != train_set.classes:
        raise ValueError("train and test images have different classes")
    if test_set is None and not config.val_size:
        raise ValueError(f"{config.data_dir} has no test/ folder; hold out images to judge by, as --val-size 1000")
    if len(train_set.classes) < 2:
        raise ValueError(
            f"{config.data_dir} has one class only ({train_set.classes[0]!r}); there is nothing to tell apart"
        )
    train_indices, val_indices = split_indices(train_set.labels, config.val_size, config.train_size)
    return RunData(train_set, test_set, train_indices, val_indices)


def arch_options(config: TrainConfig) -> dict[str, Any]:
    """The options of the network that were given; the others are as the network has them."""
    names = [name for name in option_names() if option_metadata(name)["panel"] == NETWORK_OPTIONS]
    return {name: value for name in names if (value := getattr(config, name)) is not None}


def build_trainer(config: TrainConfig, data: RunData, device: torch.device, processes: Processes = ALONE) -> Trainer:
    """Data, model, optimizer, schedule, trainer. The seed decides the initial weights.

    Raises:
        ValueError: the batch is larger than the training set or can't be divided among the processes.
    """
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
    num_classes = len(data.train.classes)
    torch.manual_seed(config.seed)
    model = create_model(config.arch, num_classes, **arch_options(config))
    model = model.to(device).to(memory_format=memory_format(config.channels_last))
    set_bn_momentum(model, config.bn_momentum)
    if config.sync_bn:
        if device.type != "cuda":
            raise ValueError(f"sync_bn (=true) works on CUDA GPUs only, not on {device.type}")
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    averaged = AveragedModel(model, config.ema_decay) if config.ema_decay else None
    if config.compile:
        # In place: torch.compile(model) would prefix the names of the weights. On a GPU the kernels are captured in a
        # graph and launched at once.
        model.compile(mode="reduce-overhead" if device.type == "cuda" else "default")
    train_loader, eval_loaders = build_loaders(config, data, device, processes)
    return Trainer(
        model=model,
        optimizer=build_optimizer(
            config.optimizer,
            model,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            no_decay_norm_bias=config.no_decay_norm_bias,
        ),
        schedule=build_schedule(
            config.schedule,
            epochs=config.epochs,
            steps_per_epoch=len(train_loader),
            warmup_epochs=config.warmup_epochs,
            milestones=config.milestones,
            gamma=config.gamma,
        ),
        train_loader=train_loader,
        eval_loaders=eval_loaders,
        num_classes=num_classes,
        epochs=config.epochs,
        lr=config.lr,
        label_smoothing=config.label_smoothing,
        clip_grad=config.clip_grad,
        eval_every=config.eval_every,
        save_every=config.save_every,
        save_every_minutes=config.save_every_minutes,
        log_every=config.log_every,
        accumulate=config.accumulate,
        averaged=averaged,
        precision=choose_precision(config.amp, device),
        seed=config.seed,
        processes=processes,
    )


def build_loaders(
    config: TrainConfig, data: RunData, device: torch.device, processes: Processes = ALONE
) -> tuple[BatchLoader, dict[str, BatchLoader]]:
    """Return the training loader, and the evaluation loaders by split."""
    settings = dict(config)
    normalize = Normalize(data.train.mean, data.train.std, config.channels_last)
    transforms = build_transforms(settings)
    mix = call_with(Mix, settings) if config.mixup or config.cutmix else None
    train_loader = BatchLoader(
        data.train.images,
        data.train.labels,
        indices=data.train_indices,
        batch_size=config.batch_size,
        normalize=normalize,
        transforms=transforms,
        plan=partial(draw_plan, config.seed, num_images=len(data.train_indices), transforms=transforms, mix=mix),
        device=device,
        resident=fits_on(device, data.train.images.nbytes),
        drop_last=True,
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
    if len(data.val_indices):
        eval_loaders["val"] = of_split(data.train.images, data.train.labels, indices=data.val_indices)
    if data.test is not None:
        eval_loaders["test"] = of_split(data.test.images, data.test.labels)
    return train_loader, eval_loaders
