"""Bring the files next to a checkpoint into agreement with it, wherever the run was killed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from resnet_train.records import EpochRecord
from resnet_train.runs.checkpoint import RunCheckpoint, Saver, read_model
from resnet_train.runs.folder import SPLITS, RunFolder
from resnet_train.runtime.files import replace_file

log = logging.getLogger(__name__)


def follow_checkpoint(folder: RunFolder, state: RunCheckpoint | None, file: Path | None = None) -> None:
    """Make the model files and the description match the resumed state.

    The CSV and event files follow when their loggers start.

    Args:
        folder: the run's folder, locked.
        state: None for a run that starts from step 0.
        file: the file that the user chose to resume from, None if it is the newest.
    """
    # The files now follow previous.pt, so a last.pt that is ahead of them must no longer be resumed.
    if file is not None and file.resolve().name == folder.previous.name and folder.last.exists():
        folder.last.replace(folder.checkpoints / "replaced.pt")

    history = state.history if state else []
    if folder.model.exists() and not (history and is_model_of(folder.model, history[-1])):
        folder.model.unlink()
    for split in SPLITS:
        best = find_best_record(history) if split == best_split(history) else None
        _follow_best(folder, split, best, state)
    if state is not None:
        folder.write_description(state.config, state.environment)


def best_split(history: list[EpochRecord]) -> str:
    """Return the split that selects the best of these epochs."""
    return "val" if any("val" in record.scores for record in history) else "test"


def find_best_record(history: list[EpochRecord]) -> EpochRecord | None:
    """Return the first epoch with the highest accuracy on the split that selects, None if none was evaluated."""
    split = best_split(history)
    evaluated = [record for record in history if "accuracy" in record.scores.get(split, {})]
    return max(evaluated, key=lambda record: record.scores[split]["accuracy"], default=None)


def is_same_record(one: EpochRecord | None, other: EpochRecord | None) -> bool:
    """Return whether two records have the same numbers; a loss may be NaN, which is not equal to itself."""
    if one is None or other is None:
        return one is other
    return json.dumps(one.to_plain(), sort_keys=True) == json.dumps(other.to_plain(), sort_keys=True)


def is_model_of(path: Path, record: EpochRecord | None) -> bool:
    """Return whether a readable checkpoint at `path` has this record."""
    if record is None or not path.is_file():
        return False
    try:
        return is_same_record(read_model(path).metrics, record)
    except ValueError:
        return False


def _follow_best(folder: RunFolder, split: str, record: EpochRecord | None, state: RunCheckpoint | None) -> None:
    """Keep the best file if it is from this epoch; else use the waiting one, or the state's own weights."""
    best, waiting = folder.best(split), folder.next_best(split)
    if not is_model_of(best, record):
        if is_model_of(waiting, record):  # the run was killed right after its state was saved
            replace_file(waiting, best)
        elif (
            record is not None
            and state is not None
            and is_same_record(record, state.metrics)
            and not state.steps_after_epoch
        ):
            Saver(folder, state).save_best(state.weights, split, record, state.calibration)
            replace_file(waiting, best)
        else:
            best.unlink(missing_ok=True)
            if record is not None:
                log.warning(
                    "%s is not from epoch %d, the best one; the next better epoch will write it", best, record.epoch
                )
    waiting.unlink(missing_ok=True)
