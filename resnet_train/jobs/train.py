"""Train a run from a config to its result."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, nullcontext
from typing import Any

from resnet_train.build import (
    RunData,
    build_loggers,
    build_trainer,
    check_config,
    describe_network,
    describe_run,
    load_data,
    resolve_auto,
)
from resnet_train.config import TrainConfig, is_planned, make_config, to_plain
from resnet_train.jobs import measure
from resnet_train.jobs.plan import plan_length
from resnet_train.loggers.log_file import LogFile
from resnet_train.loggers.profile import Profile
from resnet_train.plugins import describe_plugins
from resnet_train.records import RunInfo, RunResult
from resnet_train.report.pictures import draw_batch, draw_confusion, draw_mistakes, find_mistakes
from resnet_train.runs.agreement import follow_checkpoint
from resnet_train.runs.checkpoint import Description, RunCheckpoint, Saver
from resnet_train.runs.folder import RunFolder
from resnet_train.runs.naming import default_name
from resnet_train.runs.needed_plugins import naming_missing_plugins
from resnet_train.runs.restore import UnusableState, restore_trainer, warn_about_changes
from resnet_train.runs.result import make_result, read_result
from resnet_train.runs.resume import Start, find_start
from resnet_train.runs.space import warn_if_nearly_full
from resnet_train.runs.weights import describe_frozen, load_weights, pin_given, read_weights, resolve_weights
from resnet_train.runtime.device import prepare_machine
from resnet_train.runtime.distributed import join_processes
from resnet_train.runtime.duration import format_estimate
from resnet_train.runtime.environment import describe_environment
from resnet_train.runtime.precision import warn_if_slow
from resnet_train.training.trainer import Trainer

log = logging.getLogger(__name__)

# When a run on a CPU is called long, before its first step.
LONG_SECONDS = 2 * 3600.0
LONG_FLOPS = 1e14  # less takes minutes on any CPU and is not checked
REACHED_SHARE = 0.6  # share of the matrix-product rate that training reaches: 0.47 with resnet20, 0.73 with resnet18
SHORT_RECIPE, SHORT_ARCH = "resnet20-10min", "resnet20"


def train(
    config: TrainConfig,
    given: dict[str, Any] | None = None,
    resume: str | None = None,
    name: str | None = None,
    profile_steps: int = 0,
    started: float | None = None,
) -> RunResult:
    """Train a run; under torchrun, in all of its processes, of which only rank 0 reads and writes the run's folder.

    Args:
        config: all settings.
        given: the settings that the user chose; a run resumed by its path keeps its settings except these.
        resume: None for a new run, "auto" for the newest run with the same settings or a new one, or the path of a run,
            whose config then replaces `config`. A finished run is not trained again.
        name: the name of a new run if the config has none; if not given, it is made from the settings.
        profile_steps: number of steps to profile, in trace.json in the run's folder; 0 profiles none.
        started: when the `minutes` of the config began, on the clock of `time.monotonic`; if not given, now.

    Returns:
        The result, on every rank.

    Raises:
        ValueError: bad input; no run folder was created.
        NotFinite, Interrupted: see `Trainer.fit`.
    """
    started = time.monotonic() if started is None else started
    with join_processes() as processes, ExitStack() as stack:
        # Rank 0 decides which run it is and locks its folder; the other ranks need only config and state.
        start, reason, pretrained = None, "", None
        if processes.rank == 0:
            start, reason = _choose_run(stack, config, given or {}, resume, name)
            if start.is_finished:
                processes.share(None)
                return processes.share(read_result(start))
            if start.state is None and start.config.weights is not None:
                pretrained = read_weights(start.config)
        shared = processes.share((start.config, start.state, pretrained) if start else None)
        if shared is None:  # the run is finished
            return processes.share()
        config, state, pretrained = shared

        # Build the parts, the same for new and resumed runs on all ranks.
        path = config.output_dir / str(config.name)
        with naming_missing_plugins(state.environment, path) if state is not None else nullcontext():
            check_config(config, resumed=state is not None)
        device = prepare_machine(config.device, config.threads, config.deterministic)
        data = load_data(config)
        if not is_planned(config):
            if processes.num_ranks > 1:
                raise ValueError(f"minutes (={config.minutes:g}) needs a single process; give --epochs instead")
            config = plan_length(config, data, device, started)
        trainer = build_trainer(config, data, device, processes)

        # Start from other weights.
        if pretrained is not None:
            load_weights(trainer, pretrained, config, data.train.classes)

        # Restore the state. A state that does not fit is refused by every rank, and rank 0 has the previous one.
        if state is not None:
            try:
                restore_trainer(trainer, state, config, data.fingerprints)
            except UnusableState as error:
                state = processes.share(start.fall_back(error) if start else None)
                restore_trainer(trainer, state, config, data.fingerprints)

        # Rank 0 also logs and saves.
        if start is not None:
            folder = start.open_folder()
            stack.callback(folder.unlock)
            follow_checkpoint(folder, state, start.file)
            saver = _attach_files(stack, folder, config, data, trainer, state, profile_steps)
            if reason:
                log.info(reason)
            if frozen := describe_frozen(trainer.model):
                log.info(frozen)

        # Train the remaining epochs.
        final = trainer.fit()
        if start is None:
            return processes.share()
        saver.save_final(trainer.eval_model.state_dict(), final, trainer.fit_calibration())
        if config.tensorboard:
            _log_mistakes(trainer, data)
        best = trainer.progress.history[trainer.progress.best_epoch - 1]
        evaluated = trainer.eval_loaders["test" if data.test else "val"]
        records = trainer.progress.history
        return processes.share(make_result(config, data.train.title, folder, records, best, evaluated.num_images))


def _choose_run(
    stack: ExitStack, config: TrainConfig, given: dict[str, Any], resume: str | None, name: str | None
) -> tuple[Start, str]:
    """Return the start of a run, and a line about what was chosen for this machine; `stack` unlocks its folder."""
    reason = ""
    if resume in (None, "auto"):
        config = resolve_weights(config, given)
        name = name or default_name(config)  # from the settings as they were given
        device = prepare_machine(config.device, config.threads, config.deterministic)
        config, reason = resolve_auto(config, device)
    start = find_start(config, pin_given(given), resume, lambda config: load_data(config).fingerprints, name)
    if start.folder is not None:
        stack.callback(start.folder.unlock)
    return start, reason


def _attach_files(
    stack: ExitStack,
    folder: RunFolder,
    config: TrainConfig,
    data: RunData,
    trainer: Trainer,
    state: RunCheckpoint | None,
    profile_steps: int,
) -> Saver:
    """Attach the loggers and the saver of a run's folder to the trainer; `stack` closes them."""
    # Describe the run, and write the description first.
    about, info = describe_network(config, data), describe_run(config, data, trainer, folder.path)
    loggers = build_loggers(config, folder.path, folder.check_held)
    if profile_steps:
        loggers.append(Profile(folder.path, profile_steps, trainer.device.type))
    settings, environment = to_plain(config), describe_environment(trainer.device)
    if plugins := describe_plugins(config.plugin):
        environment["plugins"] = plugins
    if state is None:  # else at the first save: until then the folder describes the checkpoint
        folder.write_description(settings, environment)

    # Records go to the loggers, states to the saver, which adds the description to each.
    data_path = str(config.data_dir.absolute())
    description = Description(about=about, config=settings, environment=environment, data_path=data_path)
    saver = Saver(folder, description, describes=state is not None)
    trainer.attach(loggers, saver, f"the state is saved; continue with: resnet-train --resume {folder.path}")

    # From here on, train.log gets all messages and the error that ends the run.
    log_file = stack.enter_context(LogFile(folder.path / "train.log"))
    if state is not None:
        warn_about_changes(state, environment, trainer.processes.num_ranks)
    else:  # the terminal has shown how many there are
        for line in data.skipped:
            log_file.write(logging.WARNING, line)
    if trainer.class_weights is not None and bool((trainer.class_weights == 1).all()):
        log.warning("class_weights (=balanced) changes nothing: every class has the same number of training images")
    warn_if_nearly_full(folder, config, trainer)
    warn_if_slow(config.amp, trainer.device)
    _warn_if_long(config, trainer, info)

    # Curves continue where the state ends; a new run first shows augmented images.
    for logger in loggers:
        stack.callback(logger.close)
        logger.start(info)
    if state is None and config.tensorboard:
        picture = draw_batch(next(trainer.train_loader.epoch(0)), about)
        for logger in loggers:
            logger.log_picture("augmented training images", picture, split="train", epoch=0)
    return saver


def _warn_if_long(config: TrainConfig, trainer: Trainer, info: RunInfo) -> None:
    """Warn before the first step that a run takes hours on this CPU, and suggest a remedy."""
    if trainer.device.type != "cpu":
        return
    # Compare the remaining arithmetic with the rate of this CPU.
    pixels, start = 0, info.first_step
    for side, end in info.sizes:
        pixels += max(0, end - start) * side**2 * config.batch_size
        start = max(start, end)
    flops = measure.training_flops(config, info.num_classes) * pixels / config.image_size**2
    if flops < LONG_FLOPS:
        return
    seconds = flops / (REACHED_SHARE * measure.matrix_rate(trainer.device, None))
    if seconds > LONG_SECONDS:
        small = measure.training_flops(make_config({"arch": SHORT_ARCH, "image_size": 32}), info.num_classes)
        is_small = measure.training_flops(config, info.num_classes) <= small
        way_out = "fewer --epochs" if is_small else f"--config {SHORT_RECIPE}"
        log.warning("%s on this CPU; try %s", format_estimate(seconds), way_out)


def _log_mistakes(trainer: Trainer, data: RunData) -> None:
    """Log pictures of what the final network gets wrong, on the test images or else on the validation images."""
    if not trainer.evaluations:  # the run was resumed after its last epoch
        return
    split = "test" if data.test else "val"
    dataset, evaluation = data.test or data.val or data.train, trainer.evaluations[split]
    positions = find_mistakes(evaluation)
    images = dataset.images[trainer.eval_loaders[split].gathered_indices()[positions]]
    pictures = {
        "most confident mistakes": draw_mistakes(evaluation, positions, images, dataset.classes),
        "confusion matrix": draw_confusion(evaluation.confusion, dataset.classes),
    }
    for logger in trainer.loggers:
        for name, picture in pictures.items():
            logger.log_picture(name, picture, split=split, epoch=trainer.epochs)
        logger.flush()
