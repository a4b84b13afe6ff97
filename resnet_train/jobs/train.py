"""The life of a run: made or found again, trained, finished. The parts come from `build.py`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from resnet_train.build import RunData, build_trainer, check_names, load_data
from resnet_train.config import TrainConfig, make_config, merge_on_resume, to_plain
from resnet_train.loggers.base import Logger, LoggerList
from resnet_train.loggers.console import Console
from resnet_train.loggers.csv import MetricsCsv
from resnet_train.loggers.log_file import LogFile
from resnet_train.records import EpochRecord, RunInfo, RunResult
from resnet_train.runs.checkpoint import StateParts, check_parts, read_checkpoint
from resnet_train.runs.folder import CheckpointSaver, RunFolder, existing_run_message, find_runs
from resnet_train.runtime.device import device_name, prepare_machine
from resnet_train.runtime.distributed import Processes, join_processes
from resnet_train.runtime.environment import describe_environment
from resnet_train.training.trainer import Trainer

log = logging.getLogger(__name__)


def train(config: TrainConfig, given: dict[str, Any] | None = None, resume: str | None = None) -> RunResult | None:
    """A whole run, from a config to its result; started by torchrun, in as many processes.

    Args:
        config: all settings.
        given: those the user asked for; only these are held against a run that is resumed.
        resume: None for a new run, "auto" for the newest run of this name (if it is finished, nothing is done), or
            the path of a run, whose config then takes the place of `config`.

    Returns:
        The result; None in all processes but the first, which alone reads and writes the run's folder.

    Raises:
        ValueError: bad input; no run folder was made.
        NotFinite, Interrupted: see `Trainer.fit`.
    """
    with join_processes() as processes:
        if processes.rank > 0:
            _follow(processes)
            return None
        folder = _find_run(config, resume)
        if folder is None and config.name and (config.output_dir / config.name).exists():
            raise ValueError(existing_run_message(config.output_dir / config.name))
        if folder is None:
            return _start(config, processes, exactly=config.name is not None or resume == "auto")
        folder.lock()  # before the state is read: another process may be about to write a newer one
        try:
            if not folder.has_checkpoint():
                return _start(config, processes, folder)
            return _continue(folder, _read_state(folder), given or {}, processes)
        finally:
            folder.unlock()


def _start(
    config: TrainConfig, processes: Processes, folder: RunFolder | None = None, exactly: bool = True
) -> RunResult:
    """A run from its first step, in a folder that was never saved to or in a new one, `exactly` of its name or not."""
    check_names(config)
    processes.share((config, None))
    data, trainer = _prepare(config, processes)
    if folder is not None:
        log.info("%s was never saved to; starting over", folder.path)
        return _fit(config, data, trainer, folder)
    folder = RunFolder.create(config.output_dir, config.name or default_name(config), given=exactly)
    try:
        return _fit(config, data, trainer, folder)
    finally:
        folder.unlock()


def _continue(folder: RunFolder, state: dict[str, Any], given: dict[str, Any], processes: Processes) -> RunResult:
    """A run from where it was saved, in its locked folder."""
    config = merge_on_resume(state["config"], {**given, "output_dir": str(folder.path.parent), "name": folder.name})
    _check_epochs(config, state)
    if state["epoch"] == config.epochs:
        processes.share(None)
        common = {key: state[key] for key in ("about", "config", "environment")}
        return _already_finished(config, folder, CheckpointSaver(folder, common), state)
    check_names(config)
    processes.share((config, state))
    data, trainer = _prepare(config, processes, state)
    folder.model.unlink(missing_ok=True)  # of an end that is none any more
    _warn_of_changes(state["environment"], describe_environment(trainer.device))
    return _fit(config, data, trainer, folder)


def _follow(processes: Processes) -> None:
    """The part of every process but the first: trains along, reads no run folder, writes nothing, says nothing."""
    if (shared := processes.share()) is None:
        return
    config, state = shared
    _, trainer = _prepare(config, processes, state)
    trainer.fit()


def _prepare(config: TrainConfig, processes: Processes, state: dict[str, Any] | None = None) -> tuple[RunData, Trainer]:
    """Data and trainer, standing where the state was saved, if one is given.

    Raises:
        ValueError: the data are not those of the run, or the state does not fit it.
    """
    device = prepare_machine(config.device, config.threads, config.deterministic)
    data = load_data(config)
    if state is None:
        return data, build_trainer(config, data, device, processes)
    name = config.output_dir / str(config.name)
    if data.train.fingerprint != state["about"]["fingerprint"]:
        raise ValueError(f"the training images in {config.data_dir} are not those that {name} was started with")
    trainer = build_trainer(config, data, device, processes)
    try:
        trainer.load_state_dict(state)
    except (KeyError, TypeError, IndexError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{RunFolder(name).last} does not hold a state of this run: {reason}") from None
    return data, trainer


def _already_finished(
    config: TrainConfig, folder: RunFolder, saver: CheckpointSaver, state: dict[str, Any]
) -> RunResult:
    """The result of a finished run; writes the final model if the run was killed just before that."""
    history = [EpochRecord(**record) for record in state["history"]]
    if not folder.model.exists():
        saver.save_final((state["averaged"] or state)["model"], history[-1])
    log.info("%s is finished; nothing to do (--epochs with a larger number goes on)", folder.path)
    return _result(config, state["about"]["title"], folder, history, state["best_epoch"], state["best_accuracy"])


def _fit(config: TrainConfig, data: RunData, trainer: Trainer, folder: RunFolder) -> RunResult:
    """Trains in a locked folder, from wherever the trainer stands."""
    environment, settings = describe_environment(trainer.device), to_plain(config)
    folder.write_description(settings, environment)
    saver = CheckpointSaver(folder, {"about": data.about(config), "config": settings, "environment": environment})
    loggers = LoggerList(_build_loggers(config, trainer, folder))
    trainer.attach(loggers, saver, f"the state is saved; go on with: resnet-train --resume {folder.path}")
    step = trainer.progress.step
    info = RunInfo(
        name=folder.name,
        title=data.train.title,
        config=settings,
        epochs=config.epochs,
        steps_per_epoch=len(trainer.train_loader),
        first_step=step,
    )
    with LogFile(folder.path / "train.log"), loggers:
        log.info("%s %s: %s", "continuing" if step else "new run", folder.path, _summary(config, data, trainer))
        folder.warn_if_nearly_full(trainer.state_dict(), trainer.optimizer)
        loggers.run_started(info)
        if not step:
            loggers.batch_seen(_first_batch(trainer, data))
        final = trainer.fit()
        saver.save_final(trainer.eval_model.state_dict(), final)
        progress = trainer.progress
        result = _result(
            config, data.train.title, folder, progress.history, progress.best_epoch, progress.best_accuracy
        )
        loggers.run_done(result)
        return result


def default_name(config: TrainConfig) -> str:
    """The name of a run that was given none."""
    return f"{config.arch}-{config.dataset}-seed{config.seed}"


def _find_run(config: TrainConfig, resume: str | None) -> RunFolder | None:
    """The folder of the run to continue; None for a new run."""
    if resume is None:
        return None
    if resume == "auto":
        runs = find_runs(config.output_dir, config.name or default_name(config), given=config.name is not None)
        return runs[0] if runs else None
    path = Path(resume)
    if not path.is_dir():
        state = read_checkpoint(path)
        if "optimizer" not in state:
            raise ValueError(f"{path} holds a model but not the state of a run; resume from the run's folder")
        if path.resolve().parent.name != "checkpoints" or path.name not in {"last.pt", "previous.pt"}:
            raise ValueError(f"{path} is not inside a run folder; resume from <run>/checkpoints/last.pt or <run>")
        path = path.resolve().parent.parent
    folder = RunFolder(path if path.name not in {"", ".."} else path.resolve())
    if not folder.has_checkpoint():
        raise ValueError(f"{folder.path} has nothing to resume from; start it with its settings and --resume auto")
    return folder


def _read_state(folder: RunFolder) -> dict[str, Any]:
    """The newest readable state of a run, whole and of the right types."""
    state, warnings = folder.read_last()
    for warning in warnings:
        log.warning("%s; falling back to %s", warning, folder.previous)
        folder.set_damaged_aside()
    check_parts(state, folder.last, StateParts)
    return state


def _check_epochs(config: TrainConfig, state: dict[str, Any]) -> None:
    """More epochs stretch the schedule; fewer would unmake what was done under the old one."""
    before = make_config(state["config"]).epochs
    if config.epochs < before:
        raise ValueError(f"epochs (={config.epochs}) must be at least those the run was started with (={before})")
    if config.epochs > before:
        log.warning("epochs was %d and is %d now: the lr schedule is stretched over all of them", before, config.epochs)


def _warn_of_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Bit-identity is promised for the same device, versions and thread count only."""
    keys = ("torch", "device", "device_name", "threads")
    changed = [f"{key} was {before.get(key)} and is {now[key]} now" for key in keys if before.get(key) != now[key]]
    if changed:
        log.warning("%s: the result may differ in its last bits", "; ".join(changed))


def _build_loggers(config: TrainConfig, trainer: Trainer, folder: RunFolder) -> list[Logger]:
    loggers: list[Logger] = [
        Console(config.batch_size, device_name(trainer.device)),
        MetricsCsv(folder.path, trainer.progress.history),
    ]
    if config.tensorboard:
        from resnet_train.loggers.tensorboard import TensorBoard  # 1 s to import

        loggers.append(TensorBoard(folder.path))
    return loggers


def _summary(config: TrainConfig, data: RunData, trainer: Trainer) -> str:
    params = sum(parameter.numel() for parameter in trainer.parameters)
    images = f"{len(data.train_indices):,} training images"
    if len(data.val_indices):
        images += f", {len(data.val_indices):,} held out"
    if left_out := len(data.train_indices) % config.batch_size:
        images += f"; {left_out:,} left out of each epoch, as they fill no batch"
    return (
        f"{config.arch} ({params:,} parameters) on {data.train.title} ({images}), {config.epochs} epochs, "
        f"{device_name(trainer.device)}"
    )


def _first_batch(trainer: Trainer, data: RunData) -> torch.Tensor:
    """The first images of the run as the network sees them, back on a 0–1 scale."""
    images = next(trainer.train_loader.epoch(0)).images
    mean, std = (images.new_tensor(values)[:, None, None] for values in (data.train.mean, data.train.std))
    return images * std + mean


def _result(
    config: TrainConfig, title: str, folder: RunFolder, history: list[EpochRecord], best_epoch: int, best: float
) -> RunResult:
    return RunResult(
        name=folder.name,
        title=title,
        arch=config.arch,
        seed=config.seed,
        epochs=config.epochs,
        folder=str(folder.path),
        final=history[-1],
        best_split="val" if history[-1].val_accuracy is not None else "test",
        best_epoch=best_epoch,
        best_accuracy=best,
    )
