"""Signals: SIGINT, SIGTERM, SIGHUP and SIGBREAK finish the running step, save and stop; SIGUSR1 saves and continues."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

# torchrun forwards a Ctrl-C to processes that have already received it from the terminal. A second SIGINT within this
# time counts as the same one.
ECHO_SECONDS = 0.5


class Interrupted(Exception):
    """A signal stopped the run; everything up to the last finished step is saved."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class SignalWatch:
    """While entered, a signal to stop sets `stop`, and SIGUSR1 sets `save`. A second Ctrl-C interrupts at once.

    Attributes:
        announces: whether the first signal to stop is answered with a line on stderr.
        stop: the number of the signal that requested a stop, 0 if none did.
        save: a save was requested and has not been made yet.
    """

    def __init__(self, *, announces: bool = True) -> None:
        self.announces = announces
        self.stop, self.save = 0, False
        self._stop_time = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # other threads can't set handlers
            self._handle("SIGINT", self._on_stop)
            self._handle("SIGTERM", self._on_stop)
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
                self._handle("SIGHUP", self._on_stop)
            self._handle("SIGBREAK", self._on_stop)  # Ctrl-Break, and the end of a service, on Windows
            self._handle("SIGUSR1", self._on_save)
        return self

    def _handle(self, name: str, handler: Callable[[int, FrameType | None], None]) -> None:
        if hasattr(signal, name):  # Windows has no SIGUSR1, and no other system has SIGBREAK
            number = getattr(signal, name)
            self._before[number] = signal.signal(number, handler)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        # The first signal stops after the step; a second Ctrl-C, unless it is an echo, stops at once.
        now = time.monotonic()
        if not self.stop:
            self.stop, self._stop_time = number, now
            if self.announces:
                self._announce(number)
        elif number == signal.SIGINT and now - self._stop_time > ECHO_SECONDS:
            raise KeyboardInterrupt

    def _announce(self, number: int) -> None:
        """Say what happens now. It bypasses the buffer of stderr, in which this may have interrupted a write."""
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        line = f"{signal.Signals(number).name}: stopping after this step{again}\n"
        with suppress(OSError, ValueError, AttributeError):  # stderr is closed, not a file, or None
            on_new_line = "\n" if sys.stderr.isatty() else ""  # below the bar
            os.write(sys.stderr.fileno(), (on_new_line + line).encode())

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
