"""TensorBoard's event files: written in order whatever the clock says, read back, and cut to a checkpoint.

TensorBoard reads the files of a folder in the order of their names, which begin with the second they were made in. A
`SessionLog` record marks each save with the SHA-256 of everything before it, in this file and in those before.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary

from resnet_train.loggers.base import Logger
from resnet_train.records import RunInfo
from resnet_train.runtime.files import explain_write_errors, open_regular

PREFIX = "events.out.tfevents."
RUN = ""  # the run's folder itself, which contains those of the splits
LENGTH = struct.Struct("<QI")  # of a record: its number of bytes, and the checksum of that number
Points = dict[tuple[str, str, int], float]  # of curves, by folder, tag, and step or epoch
CHECKSUM = struct.Struct("<I")  # checksum of the bytes, stored after them


def find_curve(name: str, *, within_epoch: bool) -> tuple[str, str] | None:
    """Return the folder and the tag of a scalar's curve, None if it has none.

    The curves within epochs are in the run's folder, and their axis is the step. Those over epochs are in the folder of
    their split.
    """
    split, slash, metric = name.partition("/")
    if within_epoch:
        return None if slash else (RUN, f"step/{name}")
    if split == "timing":
        return "train", name
    return (split, f"epoch/{metric}") if slash else None


def find_event_files(folder: Path) -> list[Path]:
    """Return the event files of a folder in the order in which TensorBoard reads them."""
    return sorted(folder.glob(f"{PREFIX}*"))


def read_events(path: Path, *, check: bool = False) -> Iterator[tuple[int, Event]]:
    """Yield the events of a file, each with the offset of its end.

    Args:
        check: verify the checksums of the events, which takes a second per megabyte.

    Raises:
        ValueError: the file has an incomplete or damaged event; those before it were yielded.
    """
    with open_regular(path, "rb") as file:
        end = 0
        while header := file.read(LENGTH.size):
            event = _read_event(file, header, check)
            if event is None:
                raise ValueError(f"{path} is damaged or incomplete after {end} bytes")
            end = file.tell()
            yield end, event


def _read_event(file: Any, header: bytes, check: bool) -> Event | None:
    """Return the event that follows its header, None if it is not whole."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c  # takes 1 s

    if len(header) < LENGTH.size:
        return None
    num_bytes, checksum = LENGTH.unpack(header)
    if checksum != masked_crc32c(header[:8]) or num_bytes > os.fstat(file.fileno()).st_size:
        return None
    data, footer = file.read(num_bytes), file.read(CHECKSUM.size)
    if len(footer) < CHECKSUM.size or (check and CHECKSUM.unpack(footer)[0] != masked_crc32c(data)):
        return None
    with suppress(Exception):  # DecodeError has another home in each version of protobuf
        return Event.FromString(data)
    return None


def is_checkpoint(event: Event) -> bool:
    """Return whether the event marks a save."""
    return event.HasField("session_log") and event.session_log.status == SessionLog.CHECKPOINT


def cut_events(folder: Path, last: int | None) -> None:
    """Truncate the event files of a folder to what a checkpoint contains.

    Args:
        folder: the folder of one split, or of the run.
        last: the last step, or epoch in the folder of a split, that the checkpoint contains; None removes everything.
    """

    def is_known(event: Event) -> bool:
        is_bound = event.HasField("summary") or is_checkpoint(event)
        return not is_bound or (last is not None and event.step <= last)

    for path in find_event_files(folder):
        end = 0
        with suppress(ValueError):  # what follows an incomplete event is cut with it
            for next_end, event in read_events(path):
                if not is_known(event):
                    break
                end = next_end
        if end < path.stat().st_size:
            with explain_write_errors(path, 0), open_regular(path, "r+b") as file:
                file.truncate(end)


class EventCut(Logger):
    """Cut the event files of a run that is resumed without TensorBoard; write nothing.

    A state that was saved during the evaluation of an epoch contains the epoch's last step, but not the epoch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, info: RunInfo) -> None:
        """Cut the files to what the checkpoint contains."""
        for split in (RUN, *info.splits):
            known = info.first_step if split == RUN else len(info.history)
            cut_events(self.folder / split, known if info.first_step else None)


class EventFile:
    """A new event file, which TensorBoard reads after those in its folder.

    It is opened only once, so writing continues if the folder is moved.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        # Continue the order and the time of the earlier files, in case the clock has been set back.
        self.wall_time, second, self.digest = 0.0, int(time.time()), hashlib.sha256()
        self.last_steps: dict[str, int] = {}  # by tag
        for path in find_event_files(folder):
            with suppress(ValueError):
                second = max(second, 1 + int(path.name.split(".")[3]))
            for _, event in read_events(path):
                self.wall_time = max(self.wall_time, event.wall_time)
                self.last_steps |= {value.tag: event.step for value in event.summary.value}
            self.digest.update(path.read_bytes())

        self.path = folder / f"{PREFIX}{second:010d}.{socket.gethostname()}.{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        self.file = open_regular(self.path, "xb")
        self.records = RecordWriter(self)
        self.add(Event(file_version="brain.Event:2"))

    def add(self, event: Event) -> None:
        """Append an event. Its time is now, or that of the previous event if the clock was set back."""
        self.wall_time = event.wall_time = max(self.wall_time, time.time())
        self.records.write(event.SerializeToString())

    def add_summary(self, summary: Any, step: int) -> None:
        """Append what the functions of `torch.utils.tensorboard.summary` return."""
        self.add(Event(summary=summary, step=step))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Append a point of a curve."""
        self.add_summary(Summary(value=[Summary.Value(tag=tag, simple_value=value)]), step)

    def add_start(self, step: int) -> None:
        """Make a TensorBoard that has already read the events from `step` on discard them."""
        self.add(Event(session_log=SessionLog(status=SessionLog.START), step=step))

    def add_checkpoint(self, step: int) -> None:
        """Mark a save."""
        session = SessionLog(status=SessionLog.CHECKPOINT, msg=self.digest.hexdigest())
        self.add(Event(session_log=session, step=step))

    def write(self, data: bytes) -> None:
        """Append the bytes of a record."""
        self.digest.update(data)
        with explain_write_errors(self.path, len(data)):
            self.file.write(data)

    def flush(self) -> None:
        """Hand everything to the system."""
        with explain_write_errors(self.path, 0):
            self.file.flush()

    def close(self) -> None:
        """Close the file."""
        with explain_write_errors(self.path, 0):
            self.file.close()
