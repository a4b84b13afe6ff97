"""Train a run from a config to its result."""

from __future__ import annotations

import logging
import shutil
from contextlib import ExitStack
from typing import Any

import torch

from resnet_train.build import RunData, build_trainer, check_config, describe_network, load_data
from resnet_train.config import TrainConfig, to_plain
from resnet_train.loggers.base import EVENT_BYTES, NUM_SHOWN_IMAGES, Logger
from resnet_train.loggers.console import Console
from resnet_train.loggers.csv import MetricsCsv
from resnet_train.loggers.guard import Guard
from resnet_train.loggers.log_file import LogFile
from resnet_train.records import EpochRecord, RunInfo, RunResult
from resnet_train.runs.checkpoint import Description, RunCheckpoint, Saver, count_bytes, read_model
from resnet_train.runs.folder import RunFolder
from resnet_train.runs.restore import restore_model
from resnet_train.runs.resume import Start, find_start
from resnet_train.runtime.device import device_name, prepare_machine
from resnet_train.runtime.distributed import join_processes
from resnet_train.runtime.environment import describe_environment
from resnet_train.training.trainer import Trainer

log = logging.getLogger(__name__)

NUM_STATES = 3  # last.pt, previous.pt, and the one being written
NUM_MODELS = 2  # the best one and the final one
CELL_BYTES, LINE_BYTES = 24, 256  # of a number in metrics.csv; of a row of timing.csv and a line of train.log
MAX_BUFFERS = 2  # copies of the weights that an optimizer keeps: one for momentum, two for Adam


def train(
    config: TrainConfig, given: dict[str, Any] | None = None, resume: str | None = None, name: str | None = None
) -> RunResult | None:
    """Train a run; under torchrun, in all of its processes.

    Args:
        config: all settings.
        given: those that the user chose; a run that is resumed by its path keeps its settings except these.
        resume: None for a new run, "auto" for the newest run with the same settings or a new one, or the path of a run,
            whose config then replaces `config`. A finished run is not trained again.
        name: of a new run if the config has none; if not given, it is made from the settings.

    Returns:
        The result; None on every rank but 0, which alone reads and writes the run's folder.

    Raises:
        ValueError: bad input; no run folder was created.
        NotFinite, Interrupted: see `Trainer.fit`.
    """
    with join_processes() as processes, ExitStack() as stack:
        # Rank 0 decides which run it is and holds the lock; config and state are all that the others need.
        start = find_start(config, given or {}, resume, _fingerprints, name) if processes.rank == 0 else None
        if start and start.folder:
            stack.callback(start.folder.unlock)
        if start and start.is_finished:
            processes.share(None)
            return _finished_result(start)
        shared = processes.share((start.config, start.state) if start else None)
        if shared is None:
            return None
        config, state = shared

        # Build the parts and restore the state: the same for new and resumed runs, on all ranks.
        check_config(config, resumed=state is not None)
        device = prepare_machine(config.device, config.threads, config.deterministic)
        data = load_data(config)
        trainer = build_trainer(config, data, device, processes)
        if state is not None:
            _check_images(state, data, config)
            try:
                _restore(trainer, state, config)
            except ValueError as error:
                # Every rank gets here, because all were given the same state; rank 0 has the one before.
                state = processes.share(start.fall_back(error) if start else None)
                _check_images(state, data, config)
                _restore(trainer, state, config)
        if start is None:
            trainer.fit()
            return None

        # Rank 0 also logs and saves.
        folder = start.open_folder()
        stack.callback(folder.unlock)
        return _fit(config, data, trainer, folder, state)


def _fingerprints(config: TrainConfig) -> tuple[str, str]:
    """Return the fingerprints of the training and of the test images."""
    data = load_data(config)
    return data.train.fingerprint, data.test.fingerprint if data.test else ""


def _check_images(state: RunCheckpoint, data: RunData, config: TrainConfig) -> None:
    """Check that the images are those of the run.

    Raises:
        ValueError: the training or the test images differ.
    """
    about, now = state.about, describe_network(config, data)
    for split, before, fingerprint in (
        ("training", about.fingerprint, now.fingerprint),
        ("test", about.test_fingerprint, now.test_fingerprint),
    ):
        if before not in (None, fingerprint):
            folder = config.output_dir / str(config.name)
            raise ValueError(f"{config.data_dir} does not hold the {split} images that {folder} was started with")


def _restore(trainer: Trainer, state: RunCheckpoint, config: TrainConfig) -> None:
    """Load the state into the trainer.

    Raises:
        ValueError: the state does not fit the run.
    """
    try:
        trainer.load_state(state)
    except (KeyError, TypeError, IndexError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        folder = RunFolder(config.output_dir / str(config.name))
        raise ValueError(f"{folder.last} does not hold a state of this run: {reason}") from None


def _fit(
    config: TrainConfig, data: RunData, trainer: Trainer, folder: RunFolder, state: RunCheckpoint | None
) -> RunResult:
    """Train in a locked folder, from wherever the trainer stands."""
    settings, environment = to_plain(config), describe_environment(trainer.device)
    folder.write_description(settings, environment)
    about, data_path = describe_network(config, data), str(config.data_dir.absolute())
    saver = Saver(folder, Description(about=about, config=settings, environment=environment, data_path=data_path))
    loggers = _build_loggers(config, folder)
    trainer.attach(loggers, saver, f"the state is saved; continue with: resnet-train --resume {folder.path}")
    with LogFile(folder.path / "train.log"), ExitStack() as closing:
        for logger in loggers:
            closing.callback(logger.close)
        _announce(config, data, trainer, folder, state)
        for logger in loggers:
            logger.start(_run_info(config, data, trainer, folder))
            if state is None:
                logger.log_images("augmented training images", _first_batch(trainer, data), step=0)
        final = trainer.fit()
        saver.save_final(trainer.eval_model.state_dict(), final)
    return _result(config, data.train.title, folder, final, trainer.progress.history[trainer.progress.best_epoch - 1])


def _build_loggers(config: TrainConfig, folder: RunFolder) -> list[Logger]:
    loggers: list[Logger] = [Guard(folder.check_held), Console(), MetricsCsv(folder.path)]
    if config.tensorboard:
        from resnet_train.loggers.tensorboard import TensorBoard  # takes 1 s to import

        loggers.append(TensorBoard(folder.path))
    return loggers


def _run_info(config: TrainConfig, data: RunData, trainer: Trainer, folder: RunFolder) -> RunInfo:
    return RunInfo(
        name=folder.name,
        title=data.train.title,
        config=to_plain(config),
        device=device_name(trainer.device),
        epochs=config.epochs,
        steps_per_epoch=len(trainer.train_loader),
        batch_size=config.batch_size,
        first_step=trainer.progress.step,
        history=tuple(trainer.progress.history),
        scalar_names=trainer.scalar_names,
    )


def _announce(
    config: TrainConfig, data: RunData, trainer: Trainer, folder: RunFolder, state: RunCheckpoint | None
) -> None:
    """Log what is trained, and warn about a machine that differs and a disk that is nearly full."""
    if state is not None:
        _warn_about_changes(state.environment, describe_environment(trainer.device))
        if (before := len(state.sums)) != (now := trainer.processes.num_ranks):  # one row of sums for each
            log.warning(
                "the number of processes was %d and is now %d: the result will differ, as batch norm sees other parts",
                before,
                now,
            )
    params = sum(parameter.numel() for parameter in trainer.parameters)
    images = f"{len(data.train_indices):,} training images"
    if len(data.val_indices):
        images += f", {len(data.val_indices):,} held out"
    if left_out := len(data.train_indices) % config.batch_size:
        images += f"; {left_out:,} left out of each epoch because they do not fill a batch"
    log.info(
        f"{'new run' if state is None else 'resuming'} {folder.path}: {config.arch} ({params:,} parameters) on "
        f"{data.train.title} ({images}), {config.epochs} epochs, {device_name(trainer.device)}"
    )
    _warn_if_nearly_full(config, trainer, folder)


def _warn_about_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Warn if the machine changed: bit-identical results need the same device, versions and number of threads."""
    keys = ("torch", "device", "device_name", "threads")
    changed = [f"{key} was {before.get(key)} and is now {now[key]}" for key in keys if before.get(key) != now[key]]
    if changed:
        log.warning("%s: the result may differ in its last bits", "; ".join(changed))


def _warn_if_nearly_full(config: TrainConfig, trainer: Trainer, folder: RunFolder) -> None:
    """Warn if the disk has no room for what the files of a run still take."""
    present = sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file())
    needed, free = count_run_bytes(config, trainer) - present, shutil.disk_usage(folder.path).free
    if free < needed:
        log.warning(
            "%s has %.1f MB free, and the files of a run take up to %.1f MB more: make room, or choose another "
            "--output-dir",
            folder.path,
            free / 1e6,
            needed / 1e6,
        )


def count_run_bytes(config: TrainConfig, trainer: Trainer) -> int:
    """Return about how many bytes all files of a run take at most, from the first checkpoint to the last row."""
    # Checkpoints: three states, and the best and the final model.
    model_bytes = count_bytes(trainer.eval_model.state_dict())
    averaged = trainer.averaged.model.state_dict() if trainer.averaged else {}
    state_bytes = count_bytes([trainer.model.state_dict(), averaged]) + MAX_BUFFERS * count_bytes(trainer.parameters)

    # Curves: the rows of both CSV files and a line of the log per epoch; the events of both kinds of points.
    num_scalars = len(trainer.scalar_names)
    num_logs = config.epochs * len(trainer.train_loader) // config.log_every
    text_bytes = config.epochs * (CELL_BYTES * num_scalars + LINE_BYTES)
    event_bytes = EVENT_BYTES * num_scalars * (config.epochs + num_logs) + NUM_SHOWN_IMAGES * 6 * config.image_size**2
    curves = text_bytes + (event_bytes if config.tensorboard else 0)
    return NUM_STATES * state_bytes + NUM_MODELS * model_bytes + curves


def _first_batch(trainer: Trainer, data: RunData) -> torch.Tensor:
    """Return the first images of the run as the network sees them, float [B, 3, H, W] on a 0–1 scale."""
    images = next(trainer.train_loader.epoch(0)).images
    mean, std = (images.new_tensor(values)[:, None, None] for values in (data.train.mean, data.train.std))
    return images * std + mean


def _finished_result(start: Start) -> RunResult:
    """Return the result of a finished run; write its final model if the run was killed just before that."""
    assert start.folder is not None
    folder, state, model = start.folder, start.state, start.model
    if model is None:
        log.info("%s is finished; nothing to do (a larger --epochs extends it)", folder.path)
        assert state is not None
        final = state.history[-1]
        best = next((record for record in state.history if record.epoch == state.best_epoch), final)
        if not folder.model.exists():
            restore_model(state, folder.last)  # raises unless the weights are those of the network
            Saver(folder, state).save_final(state.weights, final)
        return _result(start.config, state.about.title, folder, final, best)

    # Somebody deleted the states to save room; the models have their records.
    log.info("%s is finished; nothing to do", folder.path)
    assert model.metrics is not None
    best = model.metrics
    for path in (folder.best("test"), folder.best("val")):
        if path.is_file():
            best = read_model(path).metrics or best
    return _result(start.config, model.about.title, folder, model.metrics, best)


def _result(config: TrainConfig, title: str, folder: RunFolder, final: EpochRecord, best: EpochRecord) -> RunResult:
    """Return the result of a run; the record of the best epoch has its test accuracy."""
    split = "val" if "val" in final.scores else "test"
    return RunResult(
        name=folder.name,
        title=title,
        arch=config.arch,
        seed=config.seed,
        epochs=config.epochs,
        folder=str(folder.path),
        final=final,
        best_split=split,
        best_epoch=best.epoch,
        best_accuracy=best.scores[split]["accuracy"],
        best_test_accuracy=best.scores.get("test", {}).get("accuracy") if split == "val" else None,
    )
