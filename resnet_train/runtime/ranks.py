"""The environment variables that torchrun sets for each process, read without importing torch."""

from __future__ import annotations

import os


def rank() -> int:
    """Return the rank of this process among all processes, 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int | None:
    """Return the rank of this process on its machine, None without torchrun."""
    value = os.environ.get("LOCAL_RANK")
    return None if value is None else int(value)


def num_ranks() -> int:
    """Return the number of processes, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_one_machine() -> bool:
    """Return whether all processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == num_ranks()


def num_restarts() -> int:
    """Return how often torchrun has restarted the processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
