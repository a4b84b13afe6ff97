"""Training runs in other processes that stop at an exact place: after a step, in an evaluation, inside a save.

Run as a script, this file is such a process or the parent of many: it imports torch once and forks a child for each
run, which takes tenths of a second instead of seconds. The parent computes nothing itself before it forks.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

SCRIPT = str(Path(__file__).resolve())
needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="the test forks and kills processes")
KILLED = -9
PR_SET_PDEATHSIG = 1
_numbers = itertools.count()


@dataclass(frozen=True)
class Stop:
    """Where a run stops itself, and by which signal.

    Attributes:
        at: "step" after an optimizer step, "evaluation" in that of an epoch, "record" after an epoch was told to the
            loggers, "saved" after its state was saved, "final" before model.pt is written; "write" in a write to a
            checkpoint, half of it done; "system" between two system calls of a save.
        number: which step (since the run's start), epoch, write or pause between system calls (since the process's).
        by: the signal's name.
    """

    at: str
    number: int
    by: str = "SIGKILL"


Stops = Stop | list[Stop] | None


@dataclass(frozen=True)
class Ended:
    """How a process ended; the code is negative if a signal killed it."""

    code: int
    output: str  # stdout and stderr together


@dataclass(frozen=True)
class Child:
    """A forked process that may still run."""

    pid: int
    log: Path

    def wait(self) -> Ended:
        """Wait until it ends."""
        code = _ask({"wait": self.pid})
        return Ended(code, self.log.read_text())

    def is_alive(self) -> bool:
        """Return whether it is running: it has not ended and is no zombie."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"

    def kill(self) -> None:
        """Kill it; if it has ended, nothing happens (it keeps its process id until `wait`)."""
        with suppress(ProcessLookupError):  # `wait` was called
            os.kill(self.pid, signal.SIGKILL)


def start(
    *arguments: object,
    cwd: Path,
    stop: Stops = None,
    start_at: float = 0.0,
    clock: float | None = None,
    function: str = "resnet_train.cli.train:main",
    environment: dict[str, str] | None = None,
) -> Child:
    """Start `resnet-train` with these arguments in a forked process.

    Args:
        stop: where it stops itself, or where it gets several signals.
        start_at: the value of `time.monotonic` at which it begins.
        clock: what `time.time` always returns there.
        function: what to call instead, as "module:function"; it finds its arguments in `sys.argv`.
        environment: additional environment variables.
    """
    log = cwd / f"output-{next(_numbers)}.txt"
    order = _order(arguments, cwd, stop, clock) | {"log": str(log), "start_at": start_at}
    return Child(_ask(order | {"function": function, "environment": environment or {}}), log)


def run_forked(*arguments: object, cwd: Path, stop: Stops = None, clock: float | None = None) -> Ended:
    """Run `resnet-train` in a forked process to its end."""
    return start(*arguments, cwd=cwd, stop=stop, clock=clock).wait()


def run_ranks(
    *arguments: object, cwd: Path, num_ranks: int = 2, function: str = "resnet_train.cli.train:main"
) -> list[Ended]:
    """Run the ranks of one training to their ends, each with the environment that torchrun gives it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    of_all = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    of_all |= {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": "0"}
    of_all |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(num_ranks))
    ranks = [of_all | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)]
    children = [start(*arguments, cwd=cwd, function=function, environment=environment) for environment in ranks]
    return [child.wait() for child in children]


def run_fresh(
    *arguments: object,
    cwd: Path,
    stop: Stops = None,
    clock: float | None = None,
    watch: Path | None = None,
    **environment: str,
) -> Ended:
    """Run `resnet-train` in a new Python process to its end.

    Args:
        watch: the file to which each epoch adds a line with the process's memory, open files and the files' sizes.
    """
    order = _order(arguments, cwd, stop, clock) | {"watch": str(watch) if watch else None}
    done = subprocess.run(
        [sys.executable, SCRIPT, json.dumps(order)],
        env=_environment() | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=1800,
        check=False,
    )
    return Ended(done.returncode, done.stdout.decode())


def _order(arguments: tuple[object, ...], cwd: Path, stop: Stops, clock: float | None) -> dict[str, Any]:
    stops = [stop] if isinstance(stop, Stop) else stop or []
    return {
        "arguments": [*map(str, arguments)],
        "cwd": str(cwd),
        "stops": [asdict(one) for one in stops],
        "clock": clock,
    }


def _environment() -> dict[str, str]:
    import resnet_train

    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **one_thread, "PYTHONPATH": str(Path(resnet_train.__file__).parents[1])}


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, SCRIPT, "serve"],
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def end() -> None:
        with server:  # closes its stdin, after which it leaves
            pass

    atexit.register(end)
    return server


def _ask(order: dict[str, Any]) -> int:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(order) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


# --- The result of a finished run, bit for bit -----------------------------------------------------------------------


def bits_of(value: Any, where: str = "") -> dict[str, Any]:
    """Return nested tensors and primitives as one flat mapping to their exact bits."""
    import torch

    if isinstance(value, torch.Tensor):
        flat = value.detach().contiguous().reshape(-1)
        return {where: (str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes())}
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        nested = [bits_of(part, f"{where}/{key}") for key, part in items]
        return {key: bits for part in nested for key, bits in part.items()} | {where: len(value)}
    return {where: repr(value)}


def result_of(folder: Path) -> dict[str, Any]:
    """Return what must not depend on interruptions: the state without its clock, both models and metrics.csv."""
    from resnet_train.runs.checkpoint import read_checkpoint

    clock_and_place = ("epoch_seconds", "config", "environment")
    found = {}
    for path in sorted((folder / "checkpoints").glob("*.pt")):
        if path.name != "previous.pt":  # a stopped run may have saved it at another step
            contents = read_checkpoint(path)
            kept = {key: part for key, part in contents.items() if key not in clock_and_place}
            found |= bits_of(kept, path.name)
    assert any(key.startswith("last.pt/optimizer/") for key in found)
    return found | {"metrics.csv": (folder / "metrics.csv").read_bytes()}


def assert_same_result(folder: Path, other: Path) -> None:
    """Assert that two finished runs agree in every bit."""
    ours, theirs = result_of(folder), result_of(other)
    assert ours.keys() == theirs.keys()
    differing = [key for key in ours if ours[key] != theirs[key]]
    assert not differing, f"{len(differing)} of {len(ours)} parts differ: {differing[:5]}"


# --- The other side: a process that runs, and stops itself -----------------------------------------------------------


def _serve() -> None:
    """Fork a child for each order on stdin, or wait for a child if that is the order."""
    for module in ("cli.train", "jobs.train", "loggers.tensorboard"):
        importlib.import_module(f"resnet_train.{module}")
    importlib.import_module("sklearn.datasets")
    importlib.import_module("torch.nn.parallel.distributed")
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            _become_child(order)


def _become_child(order: dict[str, Any]) -> None:
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a failing test leaves no process behind
        output = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
            os.dup2(descriptor, number)
        time.sleep(max(0.0, order["start_at"] - time.monotonic()))
        os.environ.update(order["environment"])
        _run(order)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            atexit._run_exitfuncs()  # a fork skips it otherwise
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(order: dict[str, Any]) -> None:
    """Call the console script as its entry point does, or another function."""
    module, _, name = order.get("function", "resnet_train.cli.train:main").partition(":")
    function = getattr(importlib.import_module(module), name)
    os.chdir(order["cwd"])
    sys.argv = ["resnet-train", *order["arguments"]]
    if order["clock"] is not None:
        time.time = lambda: order["clock"]
    for stop in order["stops"]:
        _prepare(Stop(**stop))
    if order.get("watch"):
        _watch(Path(order["watch"]))
    function()


def _wrap(owner: Any, name: str, *, before: Callable[..., None] | None = None, after: Any = None) -> None:
    """Replace a function by one that also calls `before` and `after` with the same arguments."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if before is not None:
            before(*arguments, **named)
        result = original(*arguments, **named)
        if after is not None:
            after(*arguments, **named)
        return result

    setattr(owner, name, wrapped)


def _prepare(stop: Stop) -> None:
    """Make this process stop where it should."""
    from resnet_train.loggers.console import Console
    from resnet_train.runs.checkpoint import Saver
    from resnet_train.training.trainer import Trainer

    number = getattr(signal, stop.by)

    def stop_if(reached: bool) -> None:
        if reached:
            signal.raise_signal(number)

    if stop.at == "step":
        _wrap(Console, "tick", after=lambda console, step: stop_if(step == stop.number))
    elif stop.at == "evaluation":
        _wrap(Trainer, "evaluate", before=lambda trainer, epoch: stop_if(epoch + 1 == stop.number))
    elif stop.at == "record":
        _wrap(Console, "log", after=lambda console, scalars, step, epoch=None: stop_if(epoch == stop.number))
    elif stop.at == "saved":
        _wrap(Saver, "save_state", after=lambda saver, state: stop_if(state.epoch == stop.number))
    elif stop.at == "final":
        _wrap(Saver, "save_final", before=lambda saver, weights, record, calibration: stop_if(True))
    else:
        assert stop.at in {"write", "system"}, stop
        _kill_inside_a_save(stop)


def _kill_inside_a_save(stop: Stop) -> None:
    """Count the writes to checkpoints, or the moments before and after each system call of a save, and die in one."""
    import torch

    from resnet_train.runs import checkpoint

    inside, left = False, stop.number

    def is_due() -> bool:
        nonlocal left
        left -= inside
        return inside and left == 0

    def pause(*arguments: Any, **named: Any) -> None:
        if is_due():
            signal.raise_signal(signal.SIGKILL)

    class Torn:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: Any) -> int:
            if is_due():
                self.file.write(bytes(data)[: len(data) // 2])
                self.file.flush()
                signal.raise_signal(signal.SIGKILL)
            return self.file.write(data)

        def flush(self) -> None:
            self.file.flush()

    def enter(*arguments: Any, **named: Any) -> None:
        nonlocal inside
        inside = True

    def leave(*arguments: Any, **named: Any) -> None:
        nonlocal inside
        inside = False

    _wrap(checkpoint, "write_checkpoint", before=enter, after=leave)
    if stop.at == "write":
        save = torch.save
        torch.save = lambda contents, file: save(contents, Torn(file))
    else:
        for name in ("fsync", "link", "replace", "rename", "unlink"):
            _wrap(os, name, before=pause, after=pause)


def _watch(path: Path) -> None:
    """Record memory in bytes, the number of open files and the sizes of the run's files after each epoch."""
    from resnet_train.loggers.console import Console

    page = os.sysconf("SC_PAGE_SIZE")
    (path.parent / "runs").mkdir(exist_ok=True)

    def look(console: Console, scalars: Any, *, step: int, epoch: int | None = None) -> None:
        if epoch is None:
            return
        (folder,) = Path("runs").iterdir()
        sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
        seen = {
            "epoch": epoch,
            "rss": int(Path("/proc/self/statm").read_text().split()[1]) * page,
            "files": len(list(Path("/proc/self/fd").iterdir())),
            "log": sizes["train.log"],
            "events": sum(size for name, size in sizes.items() if "tfevents" in name),
        }
        with path.open("a") as file:
            file.write(json.dumps(seen) + "\n")

    _wrap(Console, "log", after=look)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve()
    else:
        _run(json.loads(sys.argv[1]))
