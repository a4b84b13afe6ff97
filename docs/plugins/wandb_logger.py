"""Send the curves of a run to Weights & Biases: `pip install wandb`, then `--wandb-project NAME`.

Without an internet connection, WANDB_MODE=offline keeps them in ./wandb, and `wandb sync` sends them later.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from resnet_train.config import add_setting
from resnet_train.loggers.base import Logger, register_logger
from resnet_train.records import RunInfo, Scalars

add_setting("wandb_project", str | None, None, "Send the curves to this Weights & Biases project.", on_resume="free")


class WeightsAndBiases(Logger):
    """One run of Weights & Biases, which is continued when the run is resumed."""

    def __init__(self, project: str) -> None:
        try:
            import wandb  # here, so that only runs that use it need it
        except ImportError:
            raise ValueError(f"wandb_project (={project}) needs the package wandb: pip install wandb") from None
        self.wandb, self.project = wandb, project
        self.run: Any = None

    def start(self, info: RunInfo) -> None:
        """Open the run; its name identifies it, so a resumed run continues its curves."""
        self.run = self.wandb.init(
            project=self.project, name=info.name, id=info.name, resume="allow", config=info.config
        )

    def log(self, scalars: Scalars, *, step: int, epoch: int | None = None) -> None:
        """Send the scalars of a step, or of an epoch under names that say so."""
        prefix = "" if epoch is None else "epoch/"
        self.run.log({f"{prefix}{name}": value for name, value in scalars.items()} | {"step": step})

    def log_picture(self, name: str, picture: np.ndarray, *, split: str, epoch: int) -> None:
        """Send a picture."""
        self.run.log({f"{split}/{name}": self.wandb.Image(picture)})

    def close(self) -> None:
        """Wait until everything is sent."""
        if self.run is not None:
            self.run.finish()
            self.run = None


@register_logger("wandb")  # a logger that writes to the run's folder lists its files: files=("log.jsonl",)
def wandb_logger(wandb_project: str | None) -> Logger | None:
    """Return the logger if a project is given."""
    return WeightsAndBiases(wandb_project) if wandb_project else None
