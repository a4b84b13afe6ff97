"""Measure the cost of checking and reading a checkpoint file, by its size and content.

`python -m tests.harness.archive_cost FOLDER` prints one JSON object for each file of 1, 10 and 100 MB: the seconds of
processor time and the peak of memory over what the process had before, both in proportion to the file.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from resnet_train.runs.archive import read_tensor_file
from tests.harness.hostile_files import pack, peak_bytes

MEGABYTE = 1_000_000


def tensors(path: Path, num_bytes: int) -> None:
    torch.save([torch.zeros(50_000) for _ in range(num_bytes // 200_000)], path)


def numbers(path: Path, num_bytes: int) -> None:
    pack(path, b"\x80\2](" + b"J\1\1\1\1" * (num_bytes // 5) + b"e.")


def lists(path: Path, num_bytes: int) -> None:
    pack(path, b"\x80\2](" + b"]" * num_bytes + b"e.")


def records(path: Path, num_bytes: int) -> None:
    pack(path, b"\x80\2N.", **{f"data_{key}": b"" for key in range(num_bytes // 120)})


def read(path: Path) -> dict[str, object]:
    """Read a file and return the outcome and its cost."""
    pack(small := path.with_suffix(".small"), b"\x80\2N.")
    read_tensor_file(small)  # warm-up: the first read imports modules
    small.unlink()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start, num_bytes = peak_bytes(), time.process_time(), path.stat().st_size
    try:
        read_tensor_file(path)
        outcome = "read"
    except ValueError as error:
        outcome = str(error).removeprefix(f"{path} is damaged or not a checkpoint: ")
    seconds = time.process_time() - start
    return {
        "file": path.stem,
        "megabytes": round(num_bytes / MEGABYTE, 1),
        "seconds_per_megabyte": round(seconds / num_bytes * MEGABYTE, 4),
        "memory_per_byte": round((peak_bytes() - before) / num_bytes, 2),
        "outcome": outcome,
    }


if __name__ == "__main__":
    kinds: list[Callable[[Path, int], None]] = [tensors, numbers, lists, records]
    for make in kinds:
        for megabytes in (1, 10, 100):
            target = Path(sys.argv[1]) / f"{make.__name__}-{megabytes}.pt"
            make(target, megabytes * MEGABYTE)
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # a new process, whose peak is that of one file
                print(json.dumps(pool.apply(read, (target,))), flush=True)
            target.unlink()
