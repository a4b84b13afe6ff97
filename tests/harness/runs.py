"""Folders of runs that were never trained: text files as a run of digits leaves them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_train.config import make_config, to_plain
from resnet_train.recipes import to_yaml


def write_run(
    folder: Path,
    accuracies: Sequence[float | None],
    *,
    seconds: float | None = 2.0,
    split: str = "test",
    loss: float = 0.5,
    environment: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Write the files of a run with these accuracies at the end of each epoch, None where it was not evaluated.

    Args:
        seconds: of training in each epoch; None leaves timing.csv out.
        settings: of digits with the default network; the number of epochs is that of the accuracies.
    """
    folder.mkdir(parents=True)
    config = to_plain(make_config({"dataset": "digits", "amp": "off", "epochs": len(accuracies), **settings}))
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(environment or {"device": "cpu", "torch": "2.14.1"}))
    rows = [f"{epoch},{a if a is not None else ''},{loss}" for epoch, a in enumerate(accuracies, start=1)]
    (folder / "metrics.csv").write_text("\n".join([f"epoch,{split}_accuracy,{split}_loss", *rows, ""]))
    if seconds is not None:
        rows = [f"{epoch},{seconds},0.1" for epoch in range(1, len(accuracies) + 1)]
        (folder / "timing.csv").write_text("\n".join(["epoch,train_seconds,eval_seconds", *rows, ""]))
    return folder
