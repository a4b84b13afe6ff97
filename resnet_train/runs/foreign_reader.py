"""Read an unchecked torch file: a program for a process with limits on time, memory and files.

The file is stdin; stdout becomes a file in torch's current format that holds the tensors of its network and nothing
else, for `runs/archive.py` to check. If there is no such file, the last line of stderr gives the reason.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from resnet_train.models.foreign import find_weights

FAILED = 2
# What reading may take beyond the interpreter, and in addition for each byte of the file: its tensors, their copies in
# the answer, and the objects of its pickle.
SECONDS, SECONDS_PER_BYTE = 10, 1e-7
MEMORY_BYTES, MEMORY_PER_BYTE = 256 << 20, 6
ANSWER_BYTES, ANSWER_PER_BYTE = 1 << 20, 2
# Audit events that reading a file never causes once everything is imported.
FORBIDDEN = re.compile(r"(open|import|exec|compile|os\..*|subprocess\..*|socket\..*|shutil\..*|ctypes\..*|pty\..*)")


def main() -> None:
    """Read stdin and write stdout."""
    file, answer = os.fdopen(0, "rb", closefd=False), os.fdopen(1, "wb", closefd=False)
    file_bytes = os.fstat(0).st_size
    _import_everything()
    _limit(file_bytes)
    try:
        contents = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251 - within the limits
        weights, entry = find_weights(contents)
        copies = _copy(weights, ANSWER_BYTES + ANSWER_PER_BYTE * file_bytes)
        torch.save({"entry": entry, "weights": copies}, answer)
        answer.flush()
    except BaseException as error:
        print(_explain(error), file=sys.stderr, flush=True)
        os._exit(FAILED)
    os._exit(0)


def _import_everything() -> None:
    """Read a file of each format, so that nothing is imported later, and allow classes that only hold values."""
    values: list[Any] = [np.float64(0), np.float32(0), np.int64(0), np.int32(0), np.bool_(False)]
    scalar = values[0].__reduce__()[0]
    numbers: list[Any] = [(scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")]
    kinds = [type(value.dtype) for value in values]
    torch.serialization.add_safe_globals([*numbers, np.dtype, *kinds, argparse.Namespace])
    some = [torch.nn.Parameter(torch.zeros(2)), torch.zeros(2, dtype=torch.bfloat16), *values, argparse.Namespace(a=1)]
    for is_zip in (False, True):
        stream = io.BytesIO()
        torch.save(some, stream, _use_new_zipfile_serialization=is_zip)
        stream.seek(0)
        torch.load(stream, map_location="cpu", weights_only=True)  # noqa: TID251 - made here


def _limit(file_bytes: int) -> None:
    """Limit processor time, memory and written bytes, as far as the system can, and forbid everything else."""
    with suppress(ImportError):  # Windows
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime + SECONDS + SECONDS_PER_BYTE * file_bytes)
        limits = {
            "RLIMIT_CPU": seconds,
            "RLIMIT_FSIZE": ANSWER_BYTES + ANSWER_PER_BYTE * file_bytes,
            "RLIMIT_CORE": 0,
            "RLIMIT_NPROC": 0,
        }
        with suppress(OSError), open("/proc/self/statm") as pages:  # noqa: PTH123 - not a file on disk
            mapped = int(pages.read().split()[0]) * resource.getpagesize()
            limits["RLIMIT_AS"] = mapped + MEMORY_BYTES + MEMORY_PER_BYTE * file_bytes
        for name, limit in limits.items():
            with suppress(ValueError, OSError, AttributeError):  # not every system has each of them
                resource.setrlimit(getattr(resource, name), (limit, limit))

    def forbid(event: str, arguments: tuple[object, ...]) -> None:
        if FORBIDDEN.fullmatch(event):
            raise PermissionError(f"reading it would {event}, which is not allowed")

    sys.addaudithook(forbid)


def _copy(weights: dict[str, torch.Tensor], max_bytes: int) -> dict[str, torch.Tensor]:
    """Return tensors that have their own memory, with each value stored once.

    Raises:
        ValueError: together they are larger than the file can be.
    """
    total = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    if total > max_bytes:
        raise ValueError(f"its weights have {total:,} bytes, more than the file")
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}


def _explain(error: BaseException) -> str:
    """Return the reason in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "bad_alloc" in text:
        return "it claims to hold more than the memory allowed for its size"
    if "weights_only" in text or "Weights only" in text:
        found = re.search(r"(?:GLOBAL|global|class|type)[:\s]+(?:GLOBAL )?([A-Za-z_][\w.]*\.\w+)", text)
        what = f" ({found[1]})" if found else ""
        if "TorchScript" in text:
            return "it is a TorchScript program, which is not run; save model.state_dict() where it was made"
        return f"reading it would run code{what}, which is not allowed; save model.state_dict() where it was made"
    return text[:200] if isinstance(error, ValueError | PermissionError) else f"it is damaged: {text[:200]}"


if __name__ == "__main__":
    main()
