"""The composition root: from a config to data, model, optimizer, schedule and trainer, and through a whole run.

The one file that knows all parts; nothing but the command line imports it.
"""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnet_train.config import TrainConfig, merge_on_resume, to_plain
from resnet_train.data.augment import (
    AlternatingFlip,
    Cutout,
    Normalize,
    RandomCrop,
    RandomErasing,
    RandomFlip,
    Transform,
)
from resnet_train.data.datasets import DATASETS, ImageDataset, load_dataset, split_indices
from resnet_train.data.loader import BatchLoader, eval_loader, fits_on
from resnet_train.data.mix import Mix
from resnet_train.data.plan import draw_plan
from resnet_train.data.trivial_augment import TrivialAugment
from resnet_train.loggers.base import Logger, LoggerList
from resnet_train.loggers.metrics_csv import MetricsCsv
from resnet_train.loggers.progress import Progress
from resnet_train.models import create_model
from resnet_train.models.blocks import set_bn_momentum
from resnet_train.optim.ema import AveragedModel
from resnet_train.optim.optimizers import OPTIMIZERS, build_optimizer
from resnet_train.optim.schedules import SCHEDULES, build_schedule
from resnet_train.records import EpochRecord, RunInfo, RunResult
from resnet_train.runtime.device import (
    device_name,
    peak_memory_bytes,
    prepare_machine,
    synchronize,
)
from resnet_train.runtime.environment import describe_environment
from resnet_train.runtime.precision import choose_precision
from resnet_train.training.checkpoint import read_checkpoint, restore_model, write_checkpoint
from resnet_train.training.evaluation import evaluate
from resnet_train.training.run_folder import (
    CheckpointSaver,
    RunFolder,
    existing_run_message,
    find_runs,
)
from resnet_train.training.trainer import Trainer

log = logging.getLogger(__name__)

DRY_RUN_STEPS = 3


def train(config: TrainConfig, given: dict[str, Any] | None = None, resume: str | None = None) -> RunResult:
    """A whole run, from a config to its result.

    Args:
        config: all settings.
        given: those the user asked for; only these are held against a run that is resumed.
        resume: None for a new run, "auto" for the newest unfinished run of this name, or the path of a run.

    Raises:
        ValueError: bad input; no run folder was made.
        NotFinite, Interrupted: see `Trainer.fit`.
    """
    folder, state = _find_run(config, resume)
    if state is not None:
        config = merge_on_resume(state["config"], given or {})
        _check_epochs(config, state["epoch"])
    elif folder is None and config.name and (config.output_dir / config.name).exists():
        raise ValueError(existing_run_message(config.output_dir / config.name))
    check_names(config)
    device = prepare_machine(config.device, config.threads, config.deterministic)
    data = load_data(config)
    if state is not None and state["epoch"] == config.epochs:
        assert folder is not None
        log.info("%s is finished; nothing to do (--epochs with a larger number goes on)", folder.path)
        return _result(config, data, folder, [EpochRecord(**r) for r in state["history"]], state)
    trainer = build_trainer(config, data, device)
    is_new = folder is None
    if folder is None:
        folder = RunFolder.create(config.output_dir, config.name or default_name(config), given=config.name is not None)
    else:
        folder.lock()
    try:
        return _fit(config, data, trainer, folder, state, is_new)
    finally:
        folder.unlock()


def _fit(
    config: TrainConfig,
    data: RunData,
    trainer: Trainer,
    folder: RunFolder,
    state: dict[str, Any] | None,
    is_new: bool,
) -> RunResult:
    """Trains in a locked folder."""
    environment = describe_environment(trainer.device)
    if state is not None:
        trainer.load_state_dict(state)
        _warn_of_changes(state["environment"], environment)
    saver = CheckpointSaver(
        folder, {"about": data.about(config), "config": to_plain(config), "environment": environment}
    )
    trainer.saver = saver
    trainer.interrupted_message = f"the state is saved; go on with: resnet-train --resume {folder.path}"
    folder.write_description(to_plain(config), environment)
    info = RunInfo(
        name=folder.name,
        title=data.train.title,
        config=to_plain(config),
        epochs=config.epochs,
        steps_per_epoch=len(trainer.train_loader),
        images_per_epoch=len(trainer.train_loader) * config.batch_size,
        first_step=trainer.progress.step,
    )
    with LoggerList(_build_loggers(config, trainer, folder)) as logger, _LogFile(folder.path / "train.log"):
        trainer.logger = logger
        log.info("%s %s: %s", "new run" if is_new else "continuing", folder.path, _summary(config, data, trainer))
        logger.run_started(info)
        if not info.first_step:
            logger.batch_seen(_first_batch(trainer, data))
        final = trainer.fit()
        saver.save_final(trainer.judged_model.state_dict(), final)
        progress = {
            "best_epoch": trainer.progress.best_epoch,
            "best_accuracy": trainer.progress.best_accuracy,
        }
        result = _result(config, data, folder, trainer.progress.history, progress)
        logger.run_done(result)
        return result


def dry_run(config: TrainConfig) -> dict[str, Any]:
    """One of everything: training batches, an evaluation batch, a checkpoint saved and read back. Keeps nothing.

    Returns:
        `step_seconds`, `eval_images_per_second`, `total_seconds` of the whole run (estimated), `peak_memory_bytes`,
        `checkpoint_bytes`, `params`, `device`, `title`.
    """
    check_names(config)
    device = prepare_machine(config.device, config.threads, config.deterministic)
    data = load_data(config)
    trainer = build_trainer(config, data, device)
    trainer.model.train()
    batches = (batch for epoch in count() for batch in trainer.train_loader.epoch(epoch))
    trainer.train_step(next(batches))  # the first step warms up and is not timed
    synchronize(device)
    start = time.perf_counter()
    for batch in islice(batches, DRY_RUN_STEPS):
        trainer.train_step(batch)
    trainer.check_finite(trainer.sums.read())
    step_seconds = (time.perf_counter() - start) / DRY_RUN_STEPS
    loader = next(iter(trainer.eval_loaders.values()))
    start = time.perf_counter()
    evaluation = evaluate(trainer.model, [next(loader.epoch(0))], trainer.num_classes, device)
    eval_rate = evaluation.n / (time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.pt"
        common = {"about": data.about(config), "config": to_plain(config)}
        write_checkpoint(path, {**common, **trainer.state_dict()})
        checkpoint_bytes = path.stat().st_size
        restore_model(read_checkpoint(path), path)
    eval_images = sum(loader.num_images for loader in trainer.eval_loaders.values())
    num_evals = -(-config.epochs // config.eval_every)
    train_seconds = config.epochs * len(trainer.train_loader) * step_seconds
    return {
        "arch": config.arch,
        "title": data.train.title,
        "device": device_name(device),
        "params": sum(parameter.numel() for parameter in trainer.parameters),
        "step_seconds": step_seconds,
        "images_per_second": config.batch_size / step_seconds,
        "eval_images_per_second": eval_rate,
        "total_seconds": train_seconds + num_evals * eval_images / eval_rate,
        "peak_memory_bytes": peak_memory_bytes(device),
        "checkpoint_bytes": checkpoint_bytes,
    }


# --- Building the parts ------------------------------------------------------------------------------------------


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
        }


def check_names(config: TrainConfig) -> None:
    """Everything that can be wrong without looking at data.

    Raises:
        ValueError: an unknown architecture, data set, optimizer or schedule, or images too small for the network.
    """
    for registry, name in (
        (DATASETS, config.dataset),
        (OPTIMIZERS, config.optimizer),
        (SCHEDULES, config.schedule),
    ):
        registry[name]
    with torch.device("meta"):  # no memory, no arithmetic: builds the network to see whether it can be built
        model = create_model(config.arch, **arch_options(config))
        stride: Any = model.stride
    if config.image_size < stride:
        raise ValueError(f"image_size (={config.image_size}) must be at least {stride}, the stride of {config.arch}")


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
    train_indices, val_indices = split_indices(train_set.labels, config.val_size, config.train_size)
    if config.batch_size > len(train_indices):
        raise ValueError(
            f"batch_size (={config.batch_size}) must be at most the number of training images (={len(train_indices)})"
        )
    return RunData(train_set, test_set, train_indices, val_indices)


def arch_options(config: TrainConfig) -> dict[str, Any]:
    """The settings that are options of the network, those that differ from their defaults only."""
    names = ("stem", "norm_order", "zero_init_residual", "drop_path", "shortcut")
    defaults = TrainConfig()
    return {name: value for name in names if (value := getattr(config, name)) != getattr(defaults, name)}


def build_transforms(config: TrainConfig, normalize: Normalize) -> list[Transform]:
    """What happens to training images, in this order."""
    transforms: list[Transform] = []
    if config.trivial_augment:
        transforms.append(TrivialAugment())
    if config.crop_padding:
        transforms.append(RandomCrop(config.crop_padding, config.padding_mode))
    if config.flip != "none":
        transforms.append(RandomFlip() if config.flip == "random" else AlternatingFlip())
    transforms.append(normalize)
    if config.cutout:
        transforms.append(Cutout(config.cutout, config.image_size))
    if config.random_erasing:
        transforms.append(RandomErasing(config.random_erasing, config.image_size))
    return transforms


def build_trainer(config: TrainConfig, data: RunData, device: torch.device) -> Trainer:
    """Data, model, optimizer, schedule, trainer. The seed decides the initial weights."""
    num_classes = len(data.train.classes)
    torch.manual_seed(config.seed)
    model = create_model(config.arch, num_classes, **arch_options(config))
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(device).to(memory_format=layout)
    set_bn_momentum(model, config.bn_momentum)
    averaged = AveragedModel(model, config.ema_decay) if config.ema_decay else None
    if config.compile:
        model.compile()  # in place: torch.compile(model) would prefix the names of the weights
    train_loader, eval_loaders = build_loaders(config, data, device)
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
        log_every=config.log_every,
        accumulate=config.accumulate,
        averaged=averaged,
        precision=choose_precision(config.amp, device),
        seed=config.seed,
        logger=Logger(),
    )


def build_loaders(
    config: TrainConfig, data: RunData, device: torch.device
) -> tuple[BatchLoader, dict[str, BatchLoader]]:
    """The training loader, and the evaluation loaders by split."""
    normalize = Normalize(data.train.mean, data.train.std, config.channels_last)
    transforms = build_transforms(config, normalize)
    mix = Mix(config.mixup, config.cutmix, config.image_size) if config.mixup or config.cutmix else None
    train_loader = BatchLoader(
        data.train.images,
        data.train.labels,
        indices=data.train_indices,
        batch_size=config.batch_size,
        transforms=transforms,
        plan=partial(draw_plan, config.seed, num_images=len(data.train_indices), transforms=transforms, mix=mix),
        device=device,
        resident=fits_on(device, data.train.images.nbytes),
        drop_last=True,
    )
    eval_loaders = {}
    if len(data.val_indices):
        eval_loaders["val"] = eval_loader(data.train.images, data.train.labels, normalize, device, data.val_indices)
    if data.test is not None:
        eval_loaders["test"] = eval_loader(data.test.images, data.test.labels, normalize, device)
    return train_loader, eval_loaders


# --- The run's folder and its records ----------------------------------------------------------------------------


def default_name(config: TrainConfig) -> str:
    """The name of a run that was given none."""
    return f"{config.arch}-{config.dataset}-seed{config.seed}"


def _find_run(config: TrainConfig, resume: str | None) -> tuple[RunFolder | None, dict[str, Any] | None]:
    """The run to continue and its state; (None, None) for a new one, (folder, None) if it was never saved."""
    if resume is None:
        return None, None
    if resume == "auto":
        runs = find_runs(config.output_dir, config.name or default_name(config))
        if not runs:
            return None, None
        if not runs[0].has_checkpoint():
            return runs[0], None
        return runs[0], _read_state(runs[0])
    path = Path(resume)
    if path.is_dir():
        return RunFolder(path), _read_state(RunFolder(path))
    state = read_checkpoint(path)
    if "optimizer" not in state:
        raise ValueError(f"{path} holds a model but not the state of a run; resume from last.pt or the run's folder")
    if path.resolve().parent.name != "checkpoints":
        raise ValueError(f"{path} is not inside a run folder; resume from <run>/checkpoints/last.pt or the folder")
    return RunFolder(path.resolve().parent.parent), state


def _read_state(folder: RunFolder) -> dict[str, Any]:
    state, warnings = folder.read_last()
    for warning in warnings:
        log.warning("%s; falling back to %s", warning, folder.previous)
    return state


def _check_epochs(config: TrainConfig, finished: int) -> None:
    if config.epochs < finished:
        raise ValueError(f"epochs (={config.epochs}) must be at least the {finished} that the run has done")


def _warn_of_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Bit-identity is promised for the same device, versions and thread count only."""
    for key in ("torch", "device", "device_name", "threads"):
        if before.get(key) != now[key]:
            log.warning(
                "%s was %s and is %s now: the result may differ in its last bits",
                key,
                before.get(key),
                now[key],
            )
            return


def _build_loggers(config: TrainConfig, trainer: Trainer, folder: RunFolder) -> list[Logger]:
    loggers: list[Logger] = [
        Progress(config.batch_size, device_name(trainer.device)),
        MetricsCsv(folder.path, trainer.progress.history),
    ]
    if config.tensorboard:
        from resnet_train.loggers.tensorboard import TensorBoard  # 1 s to import

        loggers.append(TensorBoard(folder.path))
    return loggers


class _LogFile:
    """While entered, everything that is logged also goes to a file, with the time."""

    def __init__(self, path: Path) -> None:
        self.handler = logging.FileHandler(path, encoding="utf-8")
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def __enter__(self) -> None:
        logging.getLogger("resnet_train").addHandler(self.handler)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("resnet_train").removeHandler(self.handler)
        self.handler.close()


def _summary(config: TrainConfig, data: RunData, trainer: Trainer) -> str:
    params = sum(parameter.numel() for parameter in trainer.parameters)
    held_out = f", {len(data.val_indices):,} held out" if len(data.val_indices) else ""
    return (
        f"{config.arch} ({params:,} parameters) on {data.train.title} ({len(data.train_indices):,} training images"
        f"{held_out}), {config.epochs} epochs, {device_name(trainer.device)}"
    )


def _first_batch(trainer: Trainer, data: RunData) -> torch.Tensor:
    """The first images of the run as the network sees them, back on a 0–1 scale."""
    images = next(trainer.train_loader.epoch(0)).images
    mean, std = (images.new_tensor(values)[:, None, None] for values in (data.train.mean, data.train.std))
    return images * std + mean


def _result(
    config: TrainConfig,
    data: RunData,
    folder: RunFolder,
    history: list[EpochRecord],
    progress: dict[str, Any],
) -> RunResult:
    return RunResult(
        name=folder.name,
        title=data.train.title,
        arch=config.arch,
        seed=config.seed,
        epochs=config.epochs,
        folder=str(folder.path),
        final=history[-1],
        best_split="val" if len(data.val_indices) else "test",
        best_epoch=progress["best_epoch"],
        best_accuracy=progress["best_accuracy"],
    )
