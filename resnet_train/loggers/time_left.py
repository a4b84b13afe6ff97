"""How long the rest of a run takes, from the steps and evaluations measured so far."""

from __future__ import annotations

from resnet_train.records import RunInfo

MEMORY = 0.99  # decay of a step's weight with each further step: the mean is over about the last hundred
# Measured with resnet20 on two CPU cores at 16, 24 and 32 pixels: 66, 132 and 213 ms.
FIXED_SHARE = 0.25  # share of a step on small images that does not depend on their size
EVAL_RATIO = 0.37  # time of evaluating an image relative to training on it, until it is measured


class TimeLeft:
    """Measure the steps of a run and predict its remaining seconds, including evaluations.

    Attributes:
        measured_seconds: the time that the measured steps took.
    """

    def __init__(self, info: RunInfo) -> None:
        self.info = info
        self.sums: dict[int, tuple[float, float]] = {}  # weight and weighted seconds of steps, by image size
        self.eval_seconds: float | None = None  # for one evaluation of all splits
        self.measured_seconds = 0.0
        self._before: float | None = None
        num_images = info.num_images
        self._eval_images = sum(num_images[split] for split in num_images if split != "train")

    def tick(self, step: int, now: float) -> None:
        """Note that a step ended now; the first step of an epoch is not measured, because it prepares what follows."""
        if self._before is not None:
            seconds = now - self._before
            weight, total = self.sums.get(side := self._side_at(step - 1), (0.0, 0.0))
            self.sums[side] = MEMORY * weight + 1, MEMORY * total + seconds
            self.measured_seconds += seconds
        self._before = now

    def end_epoch(self, eval_seconds: float) -> None:
        """Note that the steps of an epoch are done, and how long its evaluation took (0 if there was none)."""
        self._before = None
        self.eval_seconds = eval_seconds or self.eval_seconds

    def seconds(self, step: int, epoch: int) -> float | None:
        """Return the seconds left after `step` steps and `epoch` epochs; None if nothing was measured."""
        if not self.sums:
            return None
        train_seconds, start = 0.0, step
        for side, end in self.info.sizes:
            train_seconds += max(0, end - start) * self._step_seconds(side)
            start = max(start, end)
        every, last = int(self.info.config.get("eval_every", 1)), self.info.epochs
        num_evaluations = last // every - epoch // every + (last % every > 0 and epoch < last)
        return train_seconds + num_evaluations * self._evaluation_seconds()

    def _side_at(self, step: int) -> int:
        return next((side for side, end in self.info.sizes if step < end), self.info.sizes[-1][0])

    def _step_seconds(self, side: int) -> float:
        """Return the seconds of a step: measured, or from those of other sizes, by the number of pixels."""
        means = {known: total / weight for known, (weight, total) in sorted(self.sums.items())}
        if side in means:
            return means[side]
        (*_, (low, low_seconds)), (high, high_seconds) = [(0, 0.0), *means.items()][:-1], [*means.items()][-1]
        if low == 0:
            low_seconds = FIXED_SHARE * high_seconds
        slope = max(0.0, high_seconds - low_seconds) / (high**2 - low**2)
        return high_seconds + slope * (side**2 - high**2)

    def _evaluation_seconds(self) -> float:
        if self.eval_seconds is not None:
            return self.eval_seconds
        full_size = self.info.sizes[-1][0]
        return EVAL_RATIO * self._step_seconds(full_size) / self.info.batch_size * self._eval_images
