"""The result of a run, from its records or from the files of a finished one."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from resnet_train.config import TrainConfig
from resnet_train.loggers.csv import read_seconds
from resnet_train.records import EpochRecord, RunResult
from resnet_train.runs.agreement import follow_checkpoint
from resnet_train.runs.checkpoint import Saver, read_model
from resnet_train.runs.folder import RunFolder
from resnet_train.runs.restore import restore_model
from resnet_train.runs.resume import Start

log = logging.getLogger(__name__)


def make_result(
    config: TrainConfig,
    title: str,
    folder: RunFolder,
    records: Sequence[EpochRecord],
    best: EpochRecord,
    num_images: int | None = None,
) -> RunResult:
    """Return the result of a run from the records of its epochs and of the best one."""
    final = records[-1]
    split = "val" if "val" in final.scores else "test"
    return RunResult(
        name=folder.name,
        title=title,
        arch=config.arch,
        seed=config.seed,
        epochs=config.epochs,
        folder=str(folder.path),
        final=final,
        records=tuple(records),
        num_images=num_images,
        seconds=read_seconds(folder.path),
        best_split=split,
        best_epoch=best.epoch,
        best_accuracy=best.scores[split]["accuracy"],
        best_test_accuracy=best.scores.get("test", {}).get("accuracy") if split == "val" else None,
    )


def read_result(start: Start) -> RunResult:
    """Return the result of a finished run; write its final model if the run was killed just before that."""
    assert start.folder is not None
    folder, state, model = start.folder, start.state, start.model
    if state is not None:
        log.info("%s is finished; nothing to do (a larger --epochs extends it)", folder.path)
        about, records = state.about, state.history
        best = next((record for record in records if record.epoch == state.best_epoch), records[-1])
        if not folder.model.exists():
            restore_model(state, folder.last)  # raises unless the weights are those of the network
            follow_checkpoint(folder, state)
            Saver(folder, state).save_final(state.weights, records[-1], state.calibration)
    else:
        # The states were deleted to save space; the models have their records.
        log.info("%s is finished; nothing to do", folder.path)
        assert model is not None
        assert model.metrics is not None
        about, records = model.about, [model.metrics]
        best = model.metrics
        for path in (folder.best("test"), folder.best("val")):
            if path.is_file():
                best = read_model(path).metrics or best
    return make_result(start.config, about.title, folder, records, best)
