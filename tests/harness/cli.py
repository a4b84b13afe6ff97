"""The console scripts, run in this process or in a new one."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import resnet_train
from resnet_train.cli.commands import COMMANDS

MODULES = {command.name: command.module for command in COMMANDS}
PACKAGE_PARENT = str(Path(resnet_train.__file__).parents[1])  # the package under test, not another installed one
# Whatever the CPU and the time: float32, and a save after each epoch.
FIXED = ["--device", "cpu", "--amp", "off", "--save-every", "1"]
ON_DIGITS = ["--dataset", "digits", "--arch", "resnet8", "--image-size", "8", *FIXED]
SMALL = [*ON_DIGITS, "--train-size", "64", "--batch-size", "32", "--epochs", "2"]


class Outcome(NamedTuple):
    """How a console script ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The only line on stderr, which must be the error message of bad input."""
        assert self.code == 2, self
        (line,) = self.stderr.splitlines()
        assert line.startswith("error: "), self
        return line


RunCli = Callable[..., Outcome]


def epochs_shown(lines: str) -> list[str]:
    """Return the epochs that have a row in the table of a run: `["1/2", "2/2"]`."""
    return re.findall(r"^ *(\d+/\d+) ", lines, re.MULTILINE)


@contextlib.contextmanager
def _restored_globals() -> Iterator[None]:
    """Restore what a console script changes in its process: arguments, the package's logger, torch's threads."""
    logger = logging.getLogger("resnet_train")
    before = logger.handlers, logger.propagate, logger.level, sys.argv
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    try:
        yield
    finally:
        logger.handlers, logger.propagate, level, sys.argv = before
        logger.setLevel(level)
        if threads is not None:
            sys.modules["torch"].set_num_threads(threads)


def run_in_process(command: str, *arguments: object, cwd: Path, encoding: str = "utf-8") -> Outcome:
    """Run a console script in this process, which saves the import of torch; its streams have this encoding."""
    main = importlib.import_module(MODULES[command]).main
    written = io.BytesIO(), io.BytesIO()
    stdout, stderr = (io.TextIOWrapper(file, encoding=encoding, newline="", write_through=True) for file in written)
    with (
        _restored_globals(),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        sys.argv = [command, *map(str, arguments)]
        with pytest.raises(SystemExit) as leaving:
            main()
    assert isinstance(leaving.value.code, int)
    return Outcome(leaving.value.code, *(file.getvalue().decode(encoding) for file in written))


def run_python(*arguments: object, cwd: Path, **environment: str) -> Outcome:
    """Run Python in a new process, with pipes for stdout and stderr and a wide terminal without colors."""
    plain = {k: v for k, v in os.environ.items() if k not in {"FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "NO_COLOR"}}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**plain, "PYTHONPATH": PACKAGE_PARENT, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8", **environment},
        capture_output=True,
        timeout=300,
        check=False,
    )
    encoding = environment.get("PYTHONIOENCODING") or "utf-8"
    return Outcome(done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding))
