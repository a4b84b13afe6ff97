"""Check a `torch.save` file, then load it: tensors, text, numbers, and lists, tuples and dicts of them.

Such a file is a zip archive of uncompressed records: a pickle that describes the values, and the bytes of each tensor.
`torch.load(weights_only=True)` runs no foreign code, but verifies no checksum and lets a file of 1 kB allocate 300 MB.
So the pickle is decoded first, and only what a checkpoint needs is allowed. SECURITY.md has the cost, linear in bytes.
"""

from __future__ import annotations

import os
import pickletools
import struct
import sys
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import torch

MAX_DEPTH, MAX_DIMENSIONS, MAX_INTEGER_BITS, MAX_TEXT_LENGTH = 32, 8, 127, 1 << 16
# Limits on opcodes, and on values when everything shared is written out. A tensor takes 37 opcodes and an epoch of the
# history 25, of 4.6 bytes each. A text counts as one value and one more for every 16 characters.
MAX_VALUES, VALUES_PER_RECORD, BYTES_PER_VALUE, CHARACTERS_PER_VALUE = 200_000, 100, 4, 16

# The ends of an archive, without and with 64 bits (PKWARE's APPNOTE, 4.3.14 to 4.3.16).
END, LOCATOR, END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")

ELEMENT_BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1}
STORAGES = {f"torch {name}Storage": size for name, size in (ELEMENT_BYTES | {"Byte": 1, "Bool": 1}).items()}
GLOBALS = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict", *STORAGES}  # as genops writes them


def read_tensor_file(path: Path) -> Any:
    """Return the value in a `torch.save` file, with its tensors on the CPU.

    Raises:
        ValueError: the file is missing, is not a regular file, is damaged, or holds anything but the types above.
    """
    try:
        if path.exists() and not path.is_file():  # opening a FIFO would block
            raise ValueError("it is not a regular file")
        with path.open("rb") as file:
            return read_tensors(file)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # zipfile, struct and pickletools raise almost anything on wrong bytes
        raise ValueError(f"{path} is damaged or not a checkpoint: {' '.join(str(error).split())[:200]}") from None


def read_tensors(file: IO[bytes]) -> Any:
    """Return the value in an open `torch.save` file; for any other file, raise almost anything."""
    with zipfile.ZipFile(file) as archive:
        _check_layout(file, archive)
        _check_records(archive)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251 - after the checks


def _check_layout(file: IO[bytes], archive: zipfile.ZipFile) -> None:
    """Raise unless Python's archive reader and torch's must find the same records.

    They disagree about bytes before the archive (torch reads a pickle there), comments, second directories, and case.
    """
    # The records must have different and plain names, be in one folder, and not be compressed.
    records, start, file_bytes = archive.infolist(), archive.start_dir, os.fstat(file.fileno()).st_size
    names = {record.filename.lower() for record in records}
    if len(names) < len(records) or len({name.partition("/")[0] for name in names}) != 1:
        raise ValueError("its records do not have different names in one folder")
    for record in records:
        if record.filename != record.orig_filename or not record.filename.isascii() or "\\" in record.filename:
            raise ValueError("the name of a record is not plain ASCII")
        # An extra field holds 64-bit sizes. If there are two such fields, each reader takes a different one.
        has_two_extras = record.extra and struct.unpack("<2H", record.extra[:4]) != (1, len(record.extra) - 4)
        if has_two_extras or record.compress_type or record.compress_size != record.file_size:
            raise ValueError("a record is compressed or has two sizes")
    # A record must start the file. The directory, then the records that locate it, must end it.
    file.seek(-min(file_bytes, END64.size + LOCATOR.size + END.size), os.SEEK_END)
    tail, end, count, size = file.read(), b"", len(records), file_bytes - END.size - start
    if tail[END64.size :].startswith(b"PK\6\7"):
        size, versions = file_bytes - len(tail) - start, struct.unpack("<2H", tail[12:16])
        end = END64.pack(b"PK\6\6", END64.size - 12, *versions, 0, 0, count, count, size, start)
        end += LOCATOR.pack(b"PK\6\7", 0, start + size, 1)
        count, size, start = min(count, 0xFFFF), min(size, 0xFFFFFFFF), min(start, 0xFFFFFFFF)
    end += END.pack(b"PK\5\6", 0, 0, count, count, size, start, 0)
    if records[0].header_offset or sum(record.file_size for record in records) > file_bytes or not tail.endswith(end):
        raise ValueError("its records do not fill it from the first byte to the last, each byte once")


def _check_records(archive: zipfile.ZipFile) -> None:
    """Raise unless the pickle describes allowed values and every record has its CRC."""
    records = {record.filename.partition("/")[2]: record for record in archive.infolist()}
    if "byteorder" in records and archive.read(records["byteorder"]) != sys.byteorder.encode():
        raise ValueError(f"its byte order is not {sys.byteorder}, that of this machine")
    pickled = archive.read(records.get("data.pkl", "data.pkl"))  # by its name if it is missing, for the message
    _check_pickle(pickled, {name: record.file_size for name, record in records.items()})
    if damaged := archive.testzip():  # reads chunks of 1 MB
        raise ValueError(f"its record {damaged} has a wrong checksum")


@dataclass(frozen=True, slots=True)
class _StandIn:
    """Replace a global, a storage or a tensor, none of which is created."""

    kind: str
    detail: Any  # the name of a global, the type and number of a storage's elements, or the hooks of a tensor


def _check_pickle(pickled: bytes, record_bytes: dict[str, int]) -> None:
    """Raise unless a pickle's opcodes are allowed and leave one value of bounded extent.

    `genops` reads the argument of an opcode before the opcode can be refused: at most the rest of the pickle.
    """
    stack, outer_stacks, memo, storages = list[Any](), list[list[Any]](), dict[int, Any](), dict[str, _StandIn]()
    max_values = MAX_VALUES + VALUES_PER_RECORD * len(record_bytes) + len(pickled) // BYTES_PER_VALUE
    argument: Any
    for opcode, argument, _ in islice(pickletools.genops(pickled), max_values):
        # The operands are everything above the last mark, or a fixed number of values, perhaps after a container.
        operands, num_operands = [], len(opcode.stack_before)
        if num_operands > 1 and opcode.stack_before[-1] is pickletools.stackslice:
            operands, stack, num_operands = stack, outer_stacks.pop(), num_operands - 2
        if num_operands:
            operands = stack[-num_operands:] + operands  # fewer if the stack holds fewer, where torch raises an error
            del stack[-num_operands:]
        match opcode.name, operands:
            case "BINPUT" | "LONG_BINPUT", _:
                memo[argument] = stack[-1]
                continue
            case "BINGET" | "LONG_BINGET", _:
                value = memo[argument]
            case "NONE" | "BININT" | "BININT1" | "BININT2" | "BINFLOAT", _:
                value = argument
            case "BINUNICODE", _ if len(argument) <= MAX_TEXT_LENGTH:
                value = argument
            case "EMPTY_TUPLE" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3", _:
                value = tuple(operands)
            case "MARK", _:
                outer_stacks.append(stack)
                stack = []
                continue
            case "PROTO", _ if argument == 2:
                continue
            case "STOP", [value] if not stack and not outer_stacks:
                check_extent(value, max_values)
                return
            case "LONG1", _ if argument.bit_length() <= MAX_INTEGER_BITS:
                value = argument
            case "NEWTRUE" | "NEWFALSE", _:
                value = opcode.name == "NEWTRUE"
            case "EMPTY_LIST" | "EMPTY_DICT", _:
                value = [] if opcode.name == "EMPTY_LIST" else {}
            case "APPEND" | "APPENDS", [list() as value, *items]:
                value += items
            case "SETITEM" | "SETITEMS", [dict() as value, *items] if all(  # large integers can all have the same hash
                type(key) is str or (type(key) is int and 0 <= key < 1 << 31) for key in items[::2]
            ):
                value.update(zip(items[::2], items[1::2], strict=True))
            case "BUILD", [OrderedDict() as value, {"_metadata": OrderedDict(), **others}] if not others:
                pass  # the versions of modules
            case "GLOBAL", _ if argument in GLOBALS:
                value = _StandIn("global", argument)
            case "BINPERSID", [("storage", _StandIn("global", kind), str(key), str(), int(count))]:
                value = storages.setdefault(key, _StandIn("storage", (kind, count)))
                if value.detail != (kind, count) or record_bytes.get(f"data/{key}") != count * STORAGES[kind]:
                    raise ValueError(f"its record data/{key[:80]} is missing or does not hold what its pickle says")
            case "REDUCE", [_StandIn("global", "collections OrderedDict"), ()]:
                value = OrderedDict()
            case "REDUCE", [
                _StandIn("global", "torch._utils _rebuild_tensor_v2"),
                (_StandIn("storage", (_, count)), offset, tuple(size), tuple(stride), False, OrderedDict() as hooks),
            ] if _fits(count, offset, size, stride):
                value = _StandIn("tensor", hooks)
            case _:
                unknown = repr(argument[:80].replace(" ", ".")) if opcode.name == "GLOBAL" else opcode.name
                raise ValueError(f"its pickle uses {unknown}, unlike any checkpoint")
        stack.append(value)
    raise ValueError(f"its pickle has more than {max_values:,} opcodes")


def _fits(num_elements: int, offset: Any, size: tuple[Any, ...], stride: tuple[Any, ...]) -> bool:
    """Return whether each element of a tensor has its own place in the storage."""
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > MAX_DIMENSIONS or {*map(type, numbers)} != {int} or min(numbers) < 0:
        return False
    reach = 0  # extent of the elements so far, from the innermost dimension to the outermost
    for width, step in sorted(zip(size, stride), key=lambda dimension: dimension[1]):
        if width > 1 and step <= reach:
            return False
        reach += max(width - 1, 0) * step
    return max(numbers) < 1 << 62 and (0 in size or offset + reach < num_elements)


def check_extent(value: Any, left: int, depth: int = 0) -> int:
    """Return how many of `left` values remain after this one; a list can hold another many times, or itself.

    Raises:
        ValueError: there are more values, or they are nested too deeply.
    """
    left -= 1 + (len(value) // CHARACTERS_PER_VALUE if isinstance(value, str) else 0)
    if left < 0 or depth > MAX_DEPTH:
        raise ValueError(f"it unfolds to too many values or more than {MAX_DEPTH} levels")
    if isinstance(value, _StandIn) and (value.kind != "tensor" or value.detail):
        raise ValueError("it has a global or a storage where a value belongs, or a tensor with hooks")
    if isinstance(value, dict | list | tuple):
        for part in chain(value, value.values()) if isinstance(value, dict) else value:
            left = check_extent(part, left, depth + 1)
    return left
