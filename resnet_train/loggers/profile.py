"""trace.json: what the operations of a few steps cost."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from resnet_train.loggers.base import Logger

log = logging.getLogger(__name__)

NUM_SHOWN = 10
NAME_WIDTH = 44


class Profile(Logger):
    """Profile the steps after the first one, write a Chrome trace, and log the ten most expensive operations."""

    def __init__(self, folder: Path, num_steps: int, device_type: str) -> None:
        self.path, self.num_steps = folder / "trace.json", num_steps
        self.activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device_type == "cuda" else [])]
        self.profiler: profile | None = None
        self.num_ticks = 0

    def tick(self, step: int) -> None:
        """Start after the first step, which prepares what the others use, and stop after the last one."""
        self.num_ticks += 1
        if self.num_ticks == 1:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its own progress on stderr
            self.profiler = profile(activities=self.activities, acc_events=True)
            self.profiler.start()
        elif self.num_ticks == self.num_steps + 1:
            self.close()

    def close(self) -> None:
        """Write the trace, even if the run ends before the last step to profile."""
        profiler, self.profiler = self.profiler, None
        if profiler is None:
            return
        profiler.stop()
        if (steps := min(self.num_ticks - 1, self.num_steps)) == 0:
            log.warning("the run ended before there was a step to profile; --profile skips the first one")
            return
        profiler.export_chrome_trace(str(self.path))
        log.info("%s has %d steps (open it in ui.perfetto.dev); the most expensive operations:", self.path, steps)
        for line in describe_operations(profiler.key_averages(), steps):
            log.info(line)


def describe_operations(averages: Any, steps: int) -> list[str]:
    """Return a table of the operations with the most time to themselves, on the device or else on the CPU."""
    on_device = any(event.self_device_time_total for event in averages)
    field = "self_device_time_total" if on_device else "self_cpu_time_total"
    milliseconds = [(getattr(event, field) / 1000, event) for event in averages if not event.is_user_annotation]
    total = sum(own for own, _ in milliseconds) or 1.0
    lines = [f"{'operation':<{NAME_WIDTH}}{'calls a step':>14}{'ms a step':>12}{'share':>8}"]
    for own, event in sorted(milliseconds, key=lambda pair: -pair[0])[:NUM_SHOWN]:
        name = event.key if len(event.key) < NAME_WIDTH else f"{event.key[: NAME_WIDTH - 2]}…"
        lines.append(f"{name:<{NAME_WIDTH}}{event.count / steps:>14.1f}{own / steps:>12.2f}{own / total:>8.0%}")
    return lines
