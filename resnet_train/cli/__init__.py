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


# Here, because this runs before the scripts import typer. `run_app` hands SIGINT back to Python.
# Nothing is imported for it that Python has not imported itself.
name = os.path.basename("".join(sys.argv[:1]))  # noqa: PTH119
if name.startswith(("-m", "resnet-")) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, exit_at_once)
