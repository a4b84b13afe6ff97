"""The console scripts, one module each: options in, text or JSON out."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType


def exit_at_once(number: int, frame: FrameType | None) -> None:
    """Exit on a Ctrl-C while modules are imported: nothing has to be saved, and a traceback would tell nothing."""
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(128 + number)


# Here, because this runs before the scripts import typer. `run_app` hands SIGINT back to Python.
is_script = sys.argv[:1] == ["-m"] or Path(*sys.argv[:1]).name.startswith("resnet-")
if is_script and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, exit_at_once)
