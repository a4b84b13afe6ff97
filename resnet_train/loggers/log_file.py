"""train.log: everything the package logs while a run is trained, with the time."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import cast

from resnet_train.runtime.files import open_regular
from resnet_train.text import LineFormatter

log = logging.getLogger(__name__)


class _Handler(logging.FileHandler):
    """Write to a regular file; warn once if that fails, because the run can do without it."""

    has_failed = False

    def _open(self) -> TextIOWrapper:
        return cast(TextIOWrapper, open_regular(Path(self.baseFilename), "a", encoding="utf-8", errors=self.errors))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Warn, instead of printing a traceback for each line."""
        if not self.has_failed:
            self.has_failed = True
            log.warning("cannot write %s: %s", self.baseFilename, sys.exc_info()[1])


class LogFile:
    """While entered, copy all log messages to a file, and the error that ends it."""

    def __init__(self, path: Path) -> None:
        self.handler = _Handler(path, encoding="utf-8", errors="backslashreplace")
        self.handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(message)s"))

    def __enter__(self) -> LogFile:
        logging.getLogger("resnet_train").addHandler(self.handler)
        return self

    def write(self, level: int, message: str) -> None:
        """Write a line only to the file."""
        record = {"levelno": level, "levelname": logging.getLevelName(level), "msg": message}
        self.handler.handle(logging.makeLogRecord(record))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # only to the file, because the command shows it to the user
            self.write(logging.ERROR, f"{type(error).__name__}: {error}")
        logging.getLogger("resnet_train").removeHandler(self.handler)
        with suppress(OSError):  # the disk is full
            self.handler.close()
