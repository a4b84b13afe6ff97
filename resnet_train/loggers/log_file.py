"""train.log: everything the package logs while a run is trained, with the time."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType


class LogFile:
    """While entered, copy all log messages to a file, and the error that ends it."""

    def __init__(self, path: Path) -> None:
        self.handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def __enter__(self) -> None:
        logging.getLogger("resnet_train").addHandler(self.handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # to the file only, because the command shows it to the user
            record = {"levelno": logging.ERROR, "levelname": "ERROR", "msg": f"{type(error).__name__}: {error}"}
            self.handler.handle(logging.makeLogRecord(record))
        logging.getLogger("resnet_train").removeHandler(self.handler)
        self.handler.close()
