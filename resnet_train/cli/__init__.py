"""The console scripts, one module each: options in, text or JSON out."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def exit_at_once(number: int, frame: FrameType | None) -> None:
    """Exit on a Ctrl-C while modules are imported: nothing has to be saved, and a traceback would tell nothing."""
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(128 + number)


# How often a waiting thread of libgomp looks for work before it sleeps (benchmarks/busy.py, docs/results.md). With
# libgomp's own 300,000 it keeps a core from the threads that it waits for when other processes run.
SPIN_COUNT = 10_000


def limit_spinning() -> None:
    """Set the spin count of OpenMP's threads, which is read when torch is imported, unless the user set up OpenMP."""
    if not any(name.startswith(("OMP_", "GOMP_", "KMP_")) for name in os.environ):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def prepare_process() -> None:
    """Set up OpenMP and Ctrl-C of a console script, before typer and torch are imported."""
    limit_spinning()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, exit_at_once)  # `run_app` hands SIGINT back to Python


# Here, because this runs before the scripts import typer and torch. Nothing is imported for it that Python has not
# imported itself.
name = os.path.basename("".join(sys.argv[:1]))  # noqa: PTH119
if name.startswith(("-m", "resnet-")):
    prepare_process()
