"""The console scripts, one module each: options in, text or JSON out."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def exit_at_once(number: int, frame: FrameType | None) -> None:
    """Exit on Ctrl-C while modules are imported: there is nothing to save, and a traceback would not help."""
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(128 + number)


# How often a waiting thread of libgomp looks for work before it sleeps (benchmarks/busy.py, docs/results.md). With
# libgomp's default of 300,000, it occupies a core that the threads it waits for need when other processes run.
SPIN_COUNT = 10_000


def limit_spinning() -> None:
    """Set the spin count of OpenMP's threads, which is read when torch is imported, unless the user set up OpenMP."""
    if not any(name.startswith(("OMP_", "GOMP_", "KMP_")) for name in os.environ):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def name_cache_of_torch() -> None:
    """Set the folder for compiled code if the user ID has no name, as in `docker run --user 4711`.

    On import, torch puts the user's name into the name of this folder, and fails if there is none.
    """
    variables = ("TORCHINDUCTOR_CACHE_DIR", "LOGNAME", "USER", "LNAME", "USERNAME")
    if not hasattr(os, "getuid") or any(os.environ.get(name) for name in variables):
        return
    import pwd  # not on Windows

    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        folder = f"torchinductor_{os.getuid()}"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(os.environ.get("TMPDIR", "/tmp"), folder)  # noqa: PTH118


def prepare_process() -> None:
    """Set up OpenMP, torch's cache and Ctrl-C of a console script, before typer and torch are imported."""
    limit_spinning()
    name_cache_of_torch()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, exit_at_once)  # `run_app` hands SIGINT back to Python


# Called here, because this runs before the scripts import typer and torch. It imports nothing that Python has not
# already imported.
name = os.path.basename("".join(sys.argv[:1]))  # noqa: PTH119
if name.startswith(("-m", "resnet-")):
    prepare_process()
