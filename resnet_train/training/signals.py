"""Signals: SIGINT and SIGTERM finish the running step, save and stop; SIGUSR1 saves and continues."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

# torchrun forwards a Ctrl-C to processes that have already received it from the terminal. A second SIGINT within this
# time is taken for the same one.
ECHO_SECONDS = 0.5


class Interrupted(Exception):
    """A signal stopped the run; everything up to the last finished step is saved."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class SignalWatch:
    """While entered, SIGINT and SIGTERM only set `stop`, and SIGUSR1 sets `save`. A second Ctrl-C interrupts at once.

    Attributes:
        stop: the number of the signal that requested a stop, 0 if none did.
        save: a save was requested and has not been made yet.
    """

    def __init__(self) -> None:
        self.stop, self.save = 0, False
        self._stop_time = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # other threads can't set handlers
            self._handle("SIGINT", self._on_stop)
            self._handle("SIGTERM", self._on_stop)
            self._handle("SIGUSR1", self._on_save)
        return self

    def _handle(self, name: str, handler: Callable[[int, FrameType | None], None]) -> None:
        if hasattr(signal, name):  # Windows has no SIGUSR1
            number = getattr(signal, name)
            self._before[number] = signal.signal(number, handler)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.stop:
            self.stop, self._stop_time = number, now
        elif number == signal.SIGINT and now - self._stop_time > ECHO_SECONDS:
            raise KeyboardInterrupt

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
