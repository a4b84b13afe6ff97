"""Reads what `torch.save` wrote, if it holds nothing but tensors, text, numbers, and lists, tuples and dicts of them.

Such a file is a zip archive of uncompressed records: a pickle that describes the values, and the tensors' bytes.
`torch.load(weights_only=True)` executes no foreign code, but lets a file of some bytes allocate any amount of memory
(one of 1 kB a bytearray of 300 MB, with torch 2.15) and looks at no checksum. So the file is checked before: its pickle
is decoded without making anything of it. This is the one place that calls `torch.load`.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

CHUNK_BYTES = 1 << 20
MAX_DEPTH = 32  # of lists in lists
MAX_DIMENSIONS = 8
MAX_INT_BYTES, MAX_TEXT_BYTES = 16, 1 << 16
# How much a file may unfold to, in proportion to its size. A tensor takes 37 operations and an epoch of the history
# 25, of 4.6 bytes each; the characters are mostly those of the history's keys, each written once.
MAX_VALUES, VALUES_PER_RECORD, BYTES_PER_VALUE = 200_000, 100, 4
MAX_CHARACTERS, CHARACTERS_PER_BYTE = 1 << 22, 2

# The ends of an archive (PKWARE's APPNOTE 4.3.14 to 4.3.16) and the start of a record.
LOCAL, END = b"PK\3\4", struct.Struct("<4s4H2LH")
LOCATOR, END64 = struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")

# What zipfile, struct and the operations of the decoder stumble over in a file with wrong bytes.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    RuntimeError,
    EOFError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    MemoryError,
)

REBUILD_TENSOR, ORDERED_DICT = "torch._utils._rebuild_tensor_v2", "collections.OrderedDict"
STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


def read_tensor_file(path: Path) -> Any:
    """The value in a file of `torch.save`; its tensors are on the CPU, and no two elements of one share memory.

    Raises:
        ValueError: the file is missing, is no regular file, is damaged (records have CRCs), or holds anything else.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for ever
            raise _NotAllowed("it is not a regular file")
        with path.open("rb") as file:
            with zipfile.ZipFile(file) as archive:
                file_bytes = os.fstat(file.fileno()).st_size
                _check_layout(file, archive, file_bytes)
                _check(archive, file_bytes)
            return _load(file)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except _NotAllowed as error:
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {error}") from None
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged or not a checkpoint: {' '.join(str(error).split())[:200]}") from None


class _NotAllowed(Exception):
    """The file asks for something that no checkpoint needs."""


def _load(file: IO[bytes]) -> Any:
    file.seek(0)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251 - the one place
    except Exception as error:  # whatever torch's reader stumbles over that the check let pass
        raise _NotAllowed(f"torch refuses it: {' '.join(str(error).split())[:150]}") from None


def _check_layout(file: IO[bytes], archive: zipfile.ZipFile, file_bytes: int) -> None:
    """Python's reader of archives and torch's must see the same records, as one checks what the other reads.

    They differ in what they make of bytes before the archive (torch reads a pickle that stands there), of a comment
    behind it, of two directories, of a directory that is not where it says, and of upper case in names.
    """
    names = [record.filename.lower() for record in archive.infolist()]
    if len(set(names)) < len(names):
        raise _NotAllowed("two of its records have the same name")
    if len({name.partition("/")[0] for name in names}) > 1:
        raise _NotAllowed("its records lie in several folders")
    for record in archive.infolist():
        if record.filename != record.orig_filename or not record.filename.isascii() or "\\" in record.filename:
            raise _NotAllowed("the name of a record is not plain")
        # An extra field holds sizes that take 64 bits; of two, each reader would take another one.
        if record.extra and struct.unpack("<2H", record.extra[:4]) != (1, len(record.extra) - 4):
            raise _NotAllowed("a record has more than one extra field")
        if record.compress_size != record.file_size and record.compress_type == zipfile.ZIP_STORED:
            raise _NotAllowed("a record has two sizes")
    file.seek(0)
    is_first = file.read(4) == LOCAL
    file.seek(-min(file_bytes, END.size + LOCATOR.size + END64.size), os.SEEK_END)
    tail = file.read()
    signature, _, _, here, total, size, start, comment_size = END.unpack(tail[-END.size :])
    found, expected_end = [(here, total, size, start)], file_bytes - END.size
    if tail[-END.size - LOCATOR.size :].startswith(b"PK\6\7"):
        _, _, position, _ = LOCATOR.unpack(tail[-END.size - LOCATOR.size : -END.size])
        signature64, _, _, _, _, _, *found64 = END64.unpack(tail[: END64.size])
        expected_end = file_bytes - len(tail)
        found.append(tuple(found64))
        is_first &= position == expected_end and signature64 == b"PK\6\6"
    expected = (len(names), len(names), expected_end - archive.start_dir, archive.start_dir)
    of_old = tuple(min(value, most) for value, most in zip(expected, (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)))
    if not is_first or signature != b"PK\5\6" or comment_size or found != [of_old, expected][: len(found)]:
        raise _NotAllowed("its archive is not laid out as torch does it: from the first byte to the last, and once")


def _check(archive: zipfile.ZipFile, file_bytes: int) -> None:
    """Checks the archive as a whole, what its pickle says, and every record's CRC."""
    records = {record.filename.partition("/")[2]: record for record in archive.infolist()}
    if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
        raise _NotAllowed("it has compressed records")
    if sum(record.file_size for record in records.values()) > file_bytes:
        raise _NotAllowed("its records are larger than the file")
    if "data.pkl" not in records:
        raise _NotAllowed("it has no record data.pkl")
    if "byteorder" in records and archive.read(records["byteorder"]) != sys.byteorder.encode():
        raise _NotAllowed(f"its byte order is not {sys.byteorder}, that of this machine")
    pickled = archive.read(records["data.pkl"])
    sizes = {name.removeprefix("data/"): r.file_size for name, r in records.items() if name.startswith("data/")}
    max_values = MAX_VALUES + VALUES_PER_RECORD * len(records) + len(pickled) // BYTES_PER_VALUE
    value = _Decoder(pickled, sizes, max_values).decode()
    _check_extent(value, max_values, MAX_CHARACTERS + CHARACTERS_PER_BYTE * len(pickled))
    for record in records.values():
        _check_crc(archive, record)


def _check_crc(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    """Reads a record to its end, where `zipfile` holds it against its CRC."""
    num_bytes = 0
    with archive.open(record) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            num_bytes += len(chunk)
    if num_bytes != record.file_size:
        raise EOFError(f"a record has {num_bytes} bytes instead of {record.file_size}")


def _check_extent(value: Any, max_values: int, max_characters: int) -> None:
    """Lists can hold one list many times, or themselves: a few bytes unfold to more than any machine could print."""
    values = characters = 0
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list | tuple):
                inner += item
            elif isinstance(item, str):
                characters += len(item)
            elif isinstance(item, _Name | _Storage):
                raise _NotAllowed("it holds a name or a record where a value belongs")
            if values + len(inner) > max_values or characters > max_characters:
                raise _NotAllowed(f"it unfolds to more than {max_values:,} values or {max_characters:,} characters")
        values += len(inner)
        if not inner:
            return
        level = inner
    raise _NotAllowed(f"it nests more than {MAX_DEPTH} levels deep")


@dataclass(frozen=True)
class _Name:
    """A name in the pickle; nothing is imported."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """A record of tensor elements."""

    type_name: str
    num_elements: int


class _Tensor:
    """Stands for a tensor that lies within its record."""


class _Decoder:
    """The 27 operations that `torch.save` writes (those of pickle protocol 2), each in constant or linear time.

    Args:
        pickled: the pickle.
        sizes: the bytes of each tensor record by its key.
        max_values: operations allowed.
    """

    def __init__(self, pickled: bytes, sizes: dict[str, int], max_values: int) -> None:
        self.pickled, self.sizes, self.max_values = pickled, sizes, max_values
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, _Storage] = {}

    def decode(self) -> Any:
        """The value that the pickle describes."""
        for _ in range(self.max_values):
            code = self.take(1)
            if code == b".":  # STOP
                (value,) = self.stack
                return value
            operation = OPERATIONS.get(code)
            if operation is None:
                raise _NotAllowed(f"its pickle has an operation {code!r} that no checkpoint needs")
            operation(self)
        raise _NotAllowed(f"its pickle has more than {self.max_values:,} operations")

    def take(self, size: int) -> bytes:
        """The next bytes of the pickle."""
        content = self.pickled[self.position : self.position + size]
        if len(content) < size:
            raise EOFError("its pickle ends too early")
        self.position += size
        return content

    def number(self, kind: str) -> Any:
        """The next number, of a format of `struct`."""
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def proto(self) -> None:
        if self.take(1) != b"\2":
            raise _NotAllowed("its pickle is not of protocol 2")

    def name(self) -> None:
        parts = []
        for _ in range(2):
            end = self.pickled.index(b"\n", self.position, self.position + 200)
            parts.append(self.pickled[self.position : end].decode("ascii"))
            self.position = end + 1
        name = ".".join(parts)
        if name not in {REBUILD_TENSOR, ORDERED_DICT, *STORAGES}:
            raise _NotAllowed(f"its pickle names {name!r}, and no checkpoint needs that")
        self.stack.append(_Name(name))

    def put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def integer(self) -> None:
        size = self.take(1)[0]
        if size > MAX_INT_BYTES:
            raise _NotAllowed(f"it has an integer of {size} bytes")
        self.stack.append(int.from_bytes(self.take(size), "little", signed=True))

    def text(self) -> None:
        size = self.number("<I")
        if size > MAX_TEXT_BYTES:
            raise _NotAllowed(f"it has a text of {size} bytes")
        self.stack.append(self.take(size).decode("utf-8", "surrogatepass"))

    def tuple_of(self, size: int) -> None:
        if len(self.stack) < size:
            raise IndexError("its pickle takes more values than there are")
        self.stack[-size:] = [tuple(self.stack[-size:])]

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise _NotAllowed(f"it appends to a {type(target).__name__}")
        target += items

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise _NotAllowed(f"it sets an item of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str and not (type(key) is int and 0 <= key < 1 << 31):
                raise _NotAllowed(f"it has a {type(key).__name__} as the key of a dict")
            target[key] = value

    def storage(self) -> None:
        """The elements of a record; what device they were on does not matter."""
        kind, type_name, key, _, num_elements = self.stack.pop()
        if kind != "storage" or not isinstance(type_name, _Name) or type(key) is not str:
            raise _NotAllowed("it refers to something that is no record of a tensor")
        if key not in self.sizes:
            raise _NotAllowed(f"its record data/{key[:80]} is missing")
        num_held, rest = divmod(self.sizes[key], STORAGES[type_name.name].itemsize)
        storage = _Storage(type_name.name, num_held)
        if rest or num_held != num_elements or self.storages.setdefault(key, storage) != storage:
            raise _NotAllowed(f"its record data/{key[:80]} does not hold what its pickle says")
        self.stack.append(storage)

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        name = function.name if isinstance(function, _Name) else None
        if name == ORDERED_DICT and len(arguments) == 0:
            self.stack.append(OrderedDict())
        elif name == REBUILD_TENSOR:
            storage, offset, size, stride, _, _ = arguments  # then requires_grad and hooks, which nobody needs
            _check_shape(storage, offset, size, stride)
            self.stack.append(_Tensor())
        else:
            raise _NotAllowed("it calls what is no function of a checkpoint")

    def build(self) -> None:
        """Passes over the module versions that a `state_dict` carries along: no module here has changed its own."""
        self.stack.pop()
        if not isinstance(self.stack[-1], OrderedDict):
            raise _NotAllowed(f"it sets attributes of a {type(self.stack[-1]).__name__}")


def _check_shape(storage: Any, offset: Any, size: Any, stride: Any) -> None:
    """Each element of a tensor must have a place of its own within its record."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise _NotAllowed("it has a tensor whose shape is none")
    if any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers):
        raise _NotAllowed("it has a tensor whose shape holds other things than sizes")
    reach = 0  # of the elements so far, from the innermost dimension to the outermost
    for width, step in sorted(zip(size, stride), key=lambda dimension: dimension[1]):
        if width > 1:
            if step <= reach:
                raise _NotAllowed("it has a tensor whose elements lie on top of each other")
            reach += (width - 1) * step
    if 0 not in size and offset + reach >= storage.num_elements:
        raise _NotAllowed(f"it has a tensor that reaches beyond the {storage.num_elements} elements of its record")


OPERATIONS: dict[bytes, Callable[[_Decoder], Any]] = {
    b"N": lambda d: d.stack.append(None),
    b"\x88": lambda d: d.stack.append(True),
    b"\x89": lambda d: d.stack.append(False),
    b")": lambda d: d.stack.append(()),
    b"\x80": _Decoder.proto,
    b"c": _Decoder.name,
    b"q": lambda d: d.put(d.take(1)[0]),  # BINPUT
    b"r": lambda d: d.put(d.number("<I")),  # LONG_BINPUT
    b"h": lambda d: d.stack.append(d.memo[d.take(1)[0]]),  # BINGET
    b"j": lambda d: d.stack.append(d.memo[d.number("<I")]),  # LONG_BINGET
    b"}": lambda d: d.stack.append({}),  # EMPTY_DICT
    b"]": lambda d: d.stack.append([]),  # EMPTY_LIST
    b"(": lambda d: d.marks.append(len(d.stack)),  # MARK
    b"s": lambda d: d.set_items([d.stack.pop(-2), d.stack.pop()]),  # SETITEM
    b"u": lambda d: d.set_items(d.pop_to_mark()),  # SETITEMS
    b"a": lambda d: d.append([d.stack.pop()]),
    b"e": lambda d: d.append(d.pop_to_mark()),  # APPENDS
    b"t": lambda d: d.stack.append(tuple(d.pop_to_mark())),
    b"\x85": lambda d: d.stack.append((d.stack.pop(),)),
    b"\x86": lambda d: d.tuple_of(2),
    b"\x87": lambda d: d.tuple_of(3),
    b"X": _Decoder.text,
    b"J": lambda d: d.stack.append(d.number("<i")),  # BININT
    b"K": lambda d: d.stack.append(d.take(1)[0]),  # BININT1
    b"M": lambda d: d.stack.append(d.number("<H")),  # BININT2
    b"\x8a": _Decoder.integer,
    b"G": lambda d: d.stack.append(d.number(">d")),  # BINFLOAT
    b"Q": _Decoder.storage,  # BINPERSID
    b"R": _Decoder.call,  # REDUCE
    b"b": _Decoder.build,
}
