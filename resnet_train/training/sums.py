"""Running sums of an epoch, kept on the device so that the host rarely waits for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resnet_train.data.batch import Batch
from resnet_train.runtime.device import sum_dtype
from resnet_train.runtime.distributed import Processes

TRAIN_METRICS = ("loss", "accuracy")
ROUNDING = 1e-6  # relative error of sums in float32


class RunningSums:
    """The sums of an epoch, updated on the device at every step and read by the host every few steps.

    Attributes:
        values: float64 [8] (float32 on devices without float64), one value for each of `NAMES`.
    """

    NAMES = ("loss", "correct", "images", "grad_norm", "steps", "last_loss", "last_grad_norm", "bad_step")
    NUM_PARTIAL = 3  # the first three are sums over this process's part of the batches; the rest are equal everywhere

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(len(self.NAMES), dtype=sum_dtype(device), device=device)
        self.reset()

    def reset(self) -> None:
        """Start an epoch; the values keep their place on the device."""
        self.values.zero_()
        self.values[-1] = -1

    def add(self, loss: Tensor, correct: Tensor, num_images: int, grad_norm: Tensor, bad_step: Tensor) -> None:
        """Add one step: its mean loss, correct predictions, number of images, gradient norm and first bad step."""
        # A gradient that overflowed in float16 was skipped, so it does not count toward the mean norm.
        images = torch.full_like(loss, num_images)
        counts = torch.isfinite(grad_norm)
        norm = torch.where(counts, grad_norm, 0.0)

        # Five sums, then the values of the last step.
        self.values[:5].add_(torch.stack([loss * images, correct, images, norm, counts]))
        torch.stack([loss, grad_norm, bad_step], out=self.values[5:])

    @property
    def bad_step(self) -> Tensor:
        """Return the first step whose loss or gradient was not finite, -1 if there is none; a 0-d device tensor."""
        return self.values[-1]

    def read(self, processes: Processes) -> dict[str, float]:
        """Return the totals over all processes by name; waits for the device."""
        totals = processes.sum(self.values).tolist()
        totals[self.NUM_PARTIAL :] = [total / processes.num_ranks for total in totals[self.NUM_PARTIAL :]]
        return dict(zip(self.NAMES, totals))

    @classmethod
    def check(cls, rows: list[list[float]], num_steps: int, num_images: int, skips: bool) -> None:
        """Raise unless the rows of all ranks can be the sums of an epoch after some steps.

        Args:
            rows: one per rank.
            num_steps, num_images: how many of each the epoch has seen.
            skips: whether a loss scaler skips steps whose gradients overflow.

        Raises:
            ValueError: a value is out of range.
        """
        # Each value must be in its range; before the first step all are those of new sums.
        for rank, row in enumerate(rows):
            named = dict(zip(cls.NAMES, row, strict=True))
            if named.pop("bad_step") != -1:
                raise ValueError(f"sums.{rank}.bad_step (={row[-1]}) must be -1: a run with a bad step is not saved")
            for name, value in named.items():
                # The norm of gradients that overflowed in half precision is infinite or NaN.
                may_overflow = skips and name == "last_grad_norm" and num_steps > 0
                if not (0 <= value < math.inf or may_overflow) or (value and not num_steps):
                    raise ValueError(f"sums.{rank}.{name} (={value}) is not a sum of {num_steps} finite steps")
            steps = named["steps"]
            if not steps.is_integer() or not (0 if skips else num_steps) <= steps <= num_steps:
                raise ValueError(f"sums.{rank}.steps (={steps}) must be {num_steps}")

        # Over all ranks, the images must be those of the steps.
        correct, images = (sum(row[column] for row in rows) for column in (1, 2))
        if not math.isclose(images, num_images, rel_tol=ROUNDING):
            raise ValueError(f"sums.images (={images}) must be {num_images}, those of {num_steps} steps")
        if correct > images * (1 + ROUNDING):
            raise ValueError(f"sums.correct (={correct}) must be at most {images}")

    def load(self, rows: list[list[float]], processes: Processes) -> None:
        """Restore each rank's sums. If the world size changed, rank 0 takes the total."""
        if len(rows) == processes.num_ranks:
            mine = rows[processes.rank]
        else:
            totals = [sum(column) for column in zip(*rows)][: self.NUM_PARTIAL]
            mine = ([0.0] * self.NUM_PARTIAL if processes.rank else totals) + rows[0][self.NUM_PARTIAL :]
        self.values.copy_(torch.tensor(mine, dtype=self.values.dtype))


def mean_scores(sums: dict[str, float]) -> dict[str, float]:
    """Return the mean loss and the accuracy of the training images seen so far in an epoch."""
    return dict(zip(TRAIN_METRICS, (sums["loss"] / sums["images"], sums["correct"] / sums["images"])))


def count_correct(logits: Tensor, batch: Batch) -> Tensor:
    """Return how many images were classified correctly; a mixed image counts as the share of the predicted label."""
    predicted = logits.argmax(1)
    own = predicted == batch.labels
    if batch.partner_labels is None or batch.weights is None:
        return own.sum()
    own = own.float()
    return torch.lerp((predicted == batch.partner_labels).float(), own, batch.weights).sum()
