"""Checkpoints that an attacker would make, and a program that reads them and records its own side effects.

`python -m tests.harness.hostile_files FOLDER` prints one JSON object a file: what reading it came to, how long it took,
how much memory, and which of the interpreter's audited events (programs started, files opened to write …) it caused.
"""

from __future__ import annotations

import io
import json
import os
import pickle  # noqa: TID251 - to attack with
import socket
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from resnet_train.runs.checkpoint import FORMAT, VERSION
from tests.harness.hostile_safetensors import SAFETENSORS

Make = Callable[[Path], object]
HEAD = b"\x80\x02}(X\x06\0\0\0format" + b"X" + struct.pack("<I", len(FORMAT)) + FORMAT.encode() + b"X\x07\0\0\0version"
HEAD += b"K" + bytes([VERSION]) + b"X\x01\0\0\0x"  # an open dict, whose key x waits for its value
TAIL = b"u."
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu%stQ"
EMPTY_DICT = b"ccollections\nOrderedDict\n)R"
NO_HOOKS = b"\x89" + EMPTY_DICT  # requires_grad is False


class Call:
    """Pickle as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> Any:
        return self.parts


def pack(path: Path | io.BytesIO, pickled: bytes, **records: bytes) -> None:
    """Write a zip file like torch's; `data_0` is the record data/0."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in {"version": b"3\n", "byteorder": sys.byteorder.encode(), **records}.items():
            archive.writestr("archive/" + name.replace("data_", "data/"), content)


def raw(value: bytes, **records: bytes) -> Make:
    """Return a function that writes a checkpoint whose value x is the result of these operations."""
    return lambda path: pack(path, HEAD + value + TAIL, **records)


def calling(module: str, name: str, *arguments: Any) -> Make:
    """Return a function that writes a checkpoint whose value x is the result of a call."""
    body = pickle.dumps(arguments, protocol=2)[2:-1]
    return raw(f"c{module}\n{name}\n".encode() + body + b"R")


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def rebuild(num_elements: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...], end: bytes) -> bytes:
    """Return the operations that make a tensor; `end` is for requires_grad and hooks."""
    shape = b"".join(b"(" + b"".join(map(number, part)) + b"t" for part in (size, stride))
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE % number(num_elements) + number(offset) + shape + end + b"tR"
    )


def tensor(
    num_elements: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...], end: bytes = NO_HOOKS
) -> Make:
    """Return a function that writes a checkpoint with a tensor on a record of 4 float32."""
    return raw(rebuild(num_elements, offset, size, stride, end), data_0=bytes(16))


def list_laughs() -> bytes:
    body = b"](]q\0"
    for level in range(12):
        body += b"](" + (b"h" + bytes([level])) * 10 + b"eq" + bytes([level + 1])
    return body + b"e"


def tuple_laughs() -> bytes:
    body = b"]()q\0"
    for level in range(12):
        body += b"(" + (b"h" + bytes([level])) * 10 + b"tq" + bytes([level + 1])
    return body + b"e"


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", HEAD + b"N" + TAIL)
        with archive.open("archive/data/0", "w", force_zip64=True) as record:
            for _ in range(100):
                record.write(bytes(1 << 20))


def nested(path: Path) -> None:
    inner = path.with_suffix(".inner")
    compressed(inner)
    pack(path, inner.read_bytes())
    inner.unlink()


def duplicated(path: Path) -> None:
    pack(path, HEAD + b"N" + TAIL, data_0=b"1", data_1=b"2")
    path.write_bytes(path.read_bytes().replace(b"archive/data/1", b"archive/data/0"))


def overlapping(path: Path) -> None:
    """Write a thousand directory entries for one record of a megabyte."""
    pack(path, HEAD + b"N" + TAIL, data_0=bytes(1 << 20))
    with zipfile.ZipFile(path, "a") as archive:
        record = archive.getinfo("archive/data/0")
        for copy in range(1000):
            again = zipfile.ZipInfo(f"archive/data/{copy + 1}")
            again.header_offset, again.CRC = record.header_offset, record.CRC
            again.file_size = again.compress_size = record.file_size
            archive.filelist.append(again)
        archive._didModify = True  # type: ignore[attr-defined]


def quoting(path: Path) -> None:
    """Write a hundred nested records: each contains all that follow it, headers included."""
    pack(path, HEAD + b"N" + TAIL)
    body, records = bytes(1 << 16), []
    for name in (f"archive/data/{number}" for number in range(100)):
        record = zipfile.ZipInfo(name)
        record.CRC, record.file_size, record.compress_size = zlib.crc32(body), len(body), len(body)
        body = record.FileHeader() + body
        records.append((record, len(body)))
    with zipfile.ZipFile(path, "a") as archive:
        assert archive.fp is not None
        archive.fp.seek(archive.start_dir)
        archive.fp.write(body)
        archive.start_dir += len(body)
        for record, from_end in reversed(records):
            record.header_offset = archive.start_dir - from_end
            archive.filelist.append(record)
        archive._didModify = True  # type: ignore[attr-defined]


def lying_about_sizes(path: Path) -> None:
    """Claim 2^62 bytes in the zip64 extra field of the directory."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", HEAD + b"N" + TAIL)
        archive.writestr("archive/data/0", bytes(16))
        archive.getinfo("archive/data/0").file_size = 1 << 62
        archive.getinfo("archive/data/0").compress_size = 1 << 62


def whole() -> bytes:
    """Return a harmless archive, around which the attacks below are built."""
    stream = io.BytesIO()
    pack(stream, HEAD + b"N" + TAIL)
    return stream.getvalue()


def pickle_before(path: Path) -> None:
    """Put a file of torch's old format, which allocates a bytearray of 100 GB, before the archive."""
    stream = io.BytesIO()
    number, protocol = 0x1950A86A20F9469CFC6C, 1001
    for value in (number, protocol, {"little_endian": True}, {"x": Call(bytearray, 10**11)}, []):
        pickle.dump(value, stream, protocol=2)
    path.write_bytes(stream.getvalue() + whole())


def pickle_counted(path: Path) -> None:
    """Do the same with offsets that count the bytes before the archive."""
    pickle_before(path)
    path.write_bytes(path.read_bytes()[: -len(whole())])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data.pkl", HEAD + b"N" + TAIL)


def changed(name: str, **changes: Any) -> Make:
    """Return a function that writes an archive with changed fields of a record in the directory."""

    def make(path: Path) -> None:
        pack(path, HEAD + b"N" + TAIL, data_0=bytes(16))
        with zipfile.ZipFile(path, "a") as archive:
            for key, value in changes.items():
                setattr(archive.getinfo(name), key, value)
            archive._didModify = True  # type: ignore[attr-defined]

    return make


def two_folders(path: Path) -> None:
    """Use two folders: torch takes the folder of the first record for that of all."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other/version", b"3\n")
        archive.writestr("archive/data.pkl", HEAD + b"N" + TAIL)


def names_in_two_cases(path: Path) -> None:
    """Add a shorter record whose name differs in case only: torch ignores case."""
    pack(
        path,
        HEAD + (STORAGE % b"K\4").replace(b"X\1\0\0\x000", b"X\1\0\0\0a") + TAIL,
        data_A=bytes(4),
        data_a=bytes(16),
    )


def two_pickles(path: Path) -> None:
    pack(path, HEAD + b"N" + TAIL)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/DATA.PKL", HEAD + b"cos\nsystem\n(tR" + TAIL)


def two_directories(path: Path) -> None:
    """Put another end of the archive into the comment."""
    content = whole()
    end = content[-22:]
    path.write_bytes(content[:-2] + struct.pack("<H", len(end) + 8) + end[:20] + struct.pack("<H", 8) + bytes(8))


def far_end(path: Path) -> None:
    """Put one zip64 end where Python looks for it and another where torch does."""
    content = whole()
    _, _, _, count, _, size, start, _ = struct.unpack("<4s4H2LH", content[-22:])
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 4, 1)
    path.write_bytes(content[:-22] + end64 + locator + content[-22:])


def short_count(path: Path) -> None:
    """Count fewer records in the end than the directory has."""
    content = bytearray(whole())
    content[-14:-10] = struct.pack("<2H", 1, 1)
    path.write_bytes(content)


def zero_in_a_name(path: Path) -> None:
    pack(path, HEAD + b"N" + TAIL, data_0X=bytes(16))
    path.write_bytes(path.read_bytes().replace(b"archive/data/0X", b"archive/data/0\0"))


def climbing(path: Path) -> None:
    """Use names that would lead out of a folder if unpacked; the pickle has none of torch's names."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../data.pkl2", "/tmp/absolute", "archive/../../../x", "archive\\..\\x"):
            archive.writestr(name, b"x")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, Inside(path.parent):
        listener.bind(path.name)  # relative, because the length of a socket's path is limited


class Inside:
    def __init__(self, folder: Path) -> None:
        self.folder, self.before = folder, Path.cwd()

    def __enter__(self) -> None:
        os.chdir(self.folder)

    def __exit__(self, *_: object) -> None:
        os.chdir(self.before)


def fifo_behind_a_link(path: Path) -> None:
    os.mkfifo(path.with_suffix(".fifo"))
    path.symlink_to(path.with_suffix(".fifo"))


MARK = "touch trace"
NEW_TENSOR = b"ctorch\n%s\n(" + number(10**11) + b"tR"
FILES: dict[str, Make] = {
    # Calls of functions that no checkpoint contains
    "os.system": calling("os", "system", MARK),
    "posix.system": calling("posix", "system", MARK),
    "nt.system": calling("nt", "system", MARK),
    "subprocess.Popen": calling("subprocess", "Popen", MARK, -1, None, None, None, None, None, True, True),
    "os.execvp": calling("os", "execvp", "touch", ("touch", "trace")),
    "os.fork": calling("os", "fork"),
    "exec": calling("builtins", "exec", "open('trace', 'w')"),
    "eval": calling("builtins", "eval", "open('trace', 'w')"),
    "eval of Python 2": calling("__builtin__", "eval", "open('trace', 'w')"),
    "open": calling("builtins", "open", "trace", "w"),
    "import": calling("builtins", "__import__", "antigravity"),
    "getattr chain": raw(
        b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(X\x02\0\0\0ostRX\x06\0\0\0systemtR(X\x01\0\0\0atR"
    ),
    "runpy": calling("runpy", "run_path", "trace.py"),
    "pty.spawn": calling("pty", "spawn", "touch"),
    "webbrowser": calling("webbrowser", "open", "http://localhost"),
    "socket": calling("socket", "create_connection", ("127.0.0.1", 9)),
    "shutil.rmtree": calling("shutil", "rmtree", "."),
    "pickle.loads": calling("pickle", "loads", b"cos\nsystem\n(S'touch trace'\ntR."),
    "torch.load": calling("torch", "load", "trace", "cpu"),
    "torch.hub": calling("torch.hub", "load", "a/b", "c"),
    "torch.serialization": calling("torch.serialization", "add_safe_globals", ("os",)),
    "torch.package": calling("torch.package", "PackageImporter", "x"),
    "torch extension": calling("torch.ops", "load_library", "x.so"),
    "ctypes": calling("ctypes", "CDLL", "x.so"),
    "numpy.load": calling("numpy", "load", "trace", None, True),
    "numpy.fromfile": calling("numpy", "fromfile", "/dev/zero"),
    "numpy reconstruct": calling("numpy.core.multiarray", "_reconstruct", "x"),
    "numpy runstring": calling("numpy.testing._private.utils", "runstring", "open('trace', 'w')", {}),
    "dotted name": raw(b"cos\npath.os.system\n(X\x0b\0\0\0touch tracetR"),
    "two-line name": raw(b"ctorch._utils\n_rebuild_tensor_v2\rx\n)R"),
    "class by INST": raw(b"(X\x0b\0\0\0touch traceios\nsystem\n"),
    "class by OBJ": raw(b"(cos\nsystem\nX\x0b\0\0\0touch traceo"),
    "class by NEWOBJ": raw(b"ccollections\nOrderedDict\n)\x81"),
    "name by STACK_GLOBAL": raw(b"X\x02\0\0\0osX\x06\0\0\0system\x93"),
    "extension code": raw(b"\x82\x01"),
    # Values that torch's restricted unpickler allows, at a cost
    "bytearray": calling("builtins", "bytearray", 10**11),
    "set": calling("builtins", "set", (1, 2, 3)),
    "Counter": calling("collections", "Counter", "a"),
    "codecs": calling("_codecs", "encode", "a" * 1000, "utf-32"),
    "torch.Tensor": raw(NEW_TENSOR % b"Tensor"),
    "torch.FloatTensor": raw(NEW_TENSOR % b"FloatTensor"),
    "meta tensor": calling("torch._utils", "_rebuild_meta_tensor_no_storage", 1, (10**9,), (1,), False),
    "wrapper subclass": calling("torch._utils", "_rebuild_wrapper_subclass", 1, 2, (10**9,), (1,), 0, 0, 0, False),
    "quantized tensor": calling("torch._utils", "_rebuild_qtensor", 1, 0, (10**9,), (1,), (1,), False, ()),
    "subclass with attributes": calling("torch._tensor", "_rebuild_from_type_v2", 1, 2, (), {}),
    "parameter": calling("torch._utils", "_rebuild_parameter", 1, False, ()),
    "quadratic OrderedDict": raw(
        b"](](" + b"K\1K\1\x86" * 5_000 + b"eq\0ccollections\nOrderedDict\nq\1)R" + b"h\1h\0\x85R" * 5_000 + b"e"
    ),
    "attributes of a dict": raw(b"}}X\1\0\0\0aK\1sb"),
    "attributes of an OrderedDict": raw(EMPTY_DICT + b"}X\5\0\0\0itemsK\1sb"),
    "a class as a value": raw(b"](ctorch\nFloatStorage\n\x85e"),
    # Tensors with false sizes
    "tensor of 10^18 elements": tensor(4, 0, (10**9, 10**9), (10**9, 1)),
    "record of 10^15 elements": tensor(10**15, 0, (10**15,), (1,)),
    "record of a negative size": tensor(-4, 0, (1,), (1,)),
    "all elements in one place": tensor(4, 0, (10**12,), (0,)),
    "overlapping rows": tensor(4, 0, (2, 3), (1, 1)),
    "beyond its record": tensor(4, 3, (2,), (1,)),
    "before its record": tensor(4, -1, (1,), (1,)),
    "negative stride": tensor(4, 3, (2,), (-1,)),
    "negative size": tensor(4, 0, (-1,), (1,)),
    "size that overflows": tensor(4, 0, (2**62, 4), (4, 1)),
    "stride that overflows": tensor(4, 0, (2,), (2**63 - 1,)),
    "more sizes than strides": tensor(4, 0, (1, 1), (1,)),
    "a thousand dimensions": tensor(4, 0, (1,) * 1000, (1,) * 1000),
    "no tensor bytes": raw(b"ctorch._utils\n_rebuild_tensor_v2\n(K\1K\0)(" + b"t" + NO_HOOKS + b"tR"),
    "missing record": raw(STORAGE % b"K\4"),
    "record outside": raw((STORAGE % b"K\4").replace(b"X\1\0\0\x000", b"X\x0d\0\0\0../../outside"), data_0=bytes(16)),
    "the pickle as a tensor": raw(
        (STORAGE % b"K\4").replace(b"X\1\0\0\x000", b"X\x0b\0\0\0../data.pkl"), data_0=bytes(16)
    ),
    "a tensor that requires gradients": tensor(4, 0, (4,), (1,), b"\x88" + EMPTY_DICT),
    "a tensor with hooks": tensor(4, 0, (4,), (1,), NO_HOOKS + b"K\1K\1s"),
    "a tensor with hooks of no dict": tensor(4, 0, (4,), (1,), b"\x89N"),
    "a tensor that gets hooks later": raw(
        b"](" + rebuild(4, 0, (4,), (1,), NO_HOOKS + b"q\1") + b"h\1K\1K\1se", data_0=bytes(16)
    ),
    "storage as a value": raw(STORAGE % b"K\4", data_0=bytes(16)),
    # Values that expand
    "billion laughs of lists": raw(list_laughs()),
    "billion laughs of tuples": raw(tuple_laughs()),
    "list that holds itself": raw(b"]q\0h\0a"),
    "dict that holds itself": raw(b"}q\0X\1\0\0\0ah\0s"),
    "100,000 lists in lists": raw(b"]" * 100_000 + b"a" * 99_999),
    "a million tuples in tuples": raw(b")" + b"\x85" * 1_000_000),
    "5 million values": raw(b"](" + b"N" * 5_000_000 + b"e"),
    "a text many times": raw(b"](X\x60\xea\0\0" + b"a" * 60_000 + b"q\0" + b"h\0" * 2_000 + b"e"),
    "a long text": raw(b"X\x40\x42\x0f\0" + b"a" * 1_000_000),
    "a text longer than the file": raw(b"X\xff\xff\xff\xff"),
    "a long integer": raw(b"\x8a\xff" + b"\x7f" * 255),
    "a longer integer": raw(b"\x8b\x00\x00\x00\x7f"),
    "integer in digits": raw(b"L" + b"9" * 200_000 + b"L\n"),
    "key that is a list": raw(b"}]Ns"),
    "key that is a huge integer": raw(b"}" + number(2**61 - 1) + b"Ns"),
    "frame of 2^63 bytes": raw(b"\x95" + b"\xff" * 7 + b"\x7f"),
    "bytes of 2^63 bytes": raw(b"\x8e" + b"\xff" * 7 + b"\x7f"),
    "memo that was never filled": raw(b"j\xff\xff\xff\xff"),
    "stack that is empty": lambda path: pack(path, b"\x80\x02" + b"R" * 10),
    "two values left": raw(b"N.N"),
    "no end": lambda path: pack(path, HEAD),
    "no pickle": lambda path: pack(path, b""),
    "text that is no text": raw(b"X\2\0\0\0\xff\xfe"),
    "protocol 5": lambda path: pack(path, pickle.dumps({"format": FORMAT, "version": VERSION}, protocol=5)),
    # Inconsistent archives
    "compressed bomb": compressed,
    "nested bomb": nested,
    "two records of one name": duplicated,
    "overlapping records": overlapping,
    "records in records": quoting,
    "lying about sizes": lying_about_sizes,
    "encrypted": changed("archive/data.pkl", flag_bits=1),
    "a record of two sizes": changed("archive/data/0", file_size=4, CRC=zlib.crc32(bytes(4))),
    "two extra fields": changed("archive/data/0", extra=struct.pack("<2HQ2H", 1, 8, 16, 99, 0)),
    "two folders": two_folders,
    "names that climb": climbing,
    "a pickle before the archive": pickle_before,
    "a pickle before the archive that knows of it": pickle_counted,
    "bytes before the archive": lambda path: path.write_bytes(bytes(64) + whole()),
    "an archive before the archive": lambda path: path.write_bytes(whole() * 2),
    "bytes behind the archive": lambda path: path.write_bytes(whole() + bytes(64)),
    "two directories": two_directories,
    "an end elsewhere": far_end,
    "a count that is too small": short_count,
    "record names in two cases": names_in_two_cases,
    "two pickles in two cases": two_pickles,
    "a zero in a name": zero_in_a_name,
    "a backslash in a name": raw(b"N", **{"data\\0": b"x"}),
    "a name that is not ASCII": raw(b"N", größe=b"x"),
    "the other byte order": raw(b"N", byteorder=b"big" if sys.byteorder == "little" else b"little"),
    "a plain pickle": lambda path: path.write_bytes(pickle.dumps(Call(os.system, MARK))),
    "an empty zip": lambda path: zipfile.ZipFile(path, "w").close(),
    "zeros": lambda path: path.write_bytes(bytes(1 << 20)),
    # Not regular files
    "a folder": lambda path: path.mkdir(),
    "a FIFO": lambda path: os.mkfifo(path),
    "a FIFO behind a link": fifo_behind_a_link,
    "a socket": unix_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    **SAFETENSORS,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "nothing": lambda path: None,
}


def base() -> dict[str, Any]:
    """Return a small complete checkpoint."""
    from resnet_train.config import TrainConfig, to_plain
    from resnet_train.models import create_model

    about = {
        "arch": "resnet8",
        "arch_options": {},
        "classes": ["a", "b", "c"],
        "image_size": 8,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "dataset": "digits",
        "title": "digits",
        "fingerprint": "0",
    }
    weights = create_model("resnet8", 3).state_dict()
    return {"about": about, "config": to_plain(TrainConfig()), "environment": {}, "model": weights}


def about(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda contents: contents["about"].update(changes)


def shared(levels: int = 4) -> list[Any]:
    """Return a value that a pickle of a few bytes expands to 10^levels leaves."""
    value: list[Any] = ["a"]
    for _ in range(levels):
        value = [value] * 10
    return value


# Files that are read without an error but describe networks that they do not contain
MODELS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a network of 10,000 layers": about(arch="resnet9998"),
    "a network of 1,202 layers": about(arch="resnet1202"),
    "a network of a billion layers": about(arch="resnet1000000000"),
    "a wide network": about(arch="wide_resnet28_10"),
    "a deep network": about(arch="preact_resnet1001"),
    "100,000 classes": about(classes=["a"] * 100_000),
    "400,000 classes": about(classes=["a"] * 400_000),
    "an option of 10^4 values": about(arch_options={"shortcut": shared()}),
    "an option that is no option": about(arch_options={"__class__": "x"}),
    "an option for itself": about(arch_options={"num_classes": 10**9}),
    "options of another type": about(arch_options={"shortcut": 10**30}),
    "a name that is a path": about(arch="../../etc/passwd"),
    "a name with escape sequences": about(arch="\x1b[2J" * 1000),
    "a long name": about(arch="r" * 60_000),
    "classes of 10^4 values": about(classes=shared()),
    "a mean of 10^4 values": about(mean=shared()),
    "weights that are text": lambda contents: contents.update(model=dict.fromkeys(contents["model"], "a" * 60_000)),
    "weights that are lists": lambda contents: contents.update(model=dict.fromkeys(contents["model"], shared(3))),
    "no weights": lambda contents: contents.update(model={}),
    "weights of other names": lambda contents: contents["model"].update(
        {"x" * 60_000: contents["model"]["conv1.weight"]}
    ),
    "averaged weights that are none": lambda contents: contents.update(averaged={"model": {"x": 1}}),
    "averaged weights that are a text": lambda contents: contents.update(averaged="x"),
}


def make_all(folder: Path) -> None:
    """Write all files."""
    from resnet_train.runs.checkpoint import write_checkpoint

    for name, make in FILES.items():
        make(folder / f"{name}.pt")
    for name, change in MODELS.items():
        contents = base()
        change(contents)
        write_checkpoint(folder / f"{name}.pt", contents)


def watch_all(folder: Path) -> Iterator[dict[str, Any]]:
    """Read one file after the other and print the outcome of each."""
    import torch

    from resnet_train.jobs.trained_model import load_model
    from resnet_train.runs.checkpoint import read_checkpoint, stamp, write_checkpoint
    from resnet_train.runs.safetensors_file import encode_safetensors

    # The first read imports modules and fills caches.
    write_checkpoint(folder / "whole.pt", base())
    load_model(folder / "whole.pt")
    contents = base()
    weights = contents.pop("model")
    (folder / "whole.pt").write_bytes(encode_safetensors(stamp(contents), weights))
    load_model(folder / "whole.pt")
    (folder / "whole.pt").unlink()
    events: list[str] = []
    sys.addaudithook(partial(hear, events))
    load = vars(torch)["load"]
    for name in [*FILES, *MODELS]:
        vars(torch)["load"] = load if name in MODELS else lambda *_, **__: events.append("torch.load")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before, start = peak_bytes(), time.process_time()
        events.clear()
        try:
            (load_model if name in MODELS else read_checkpoint)(folder / f"{name}.pt")
            outcome = "it was read"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        seconds, heard = time.process_time() - start, list(events)
        yield {
            "name": name,
            "outcome": outcome,
            "seconds": seconds,
            "bytes": peak_bytes() - before,
            "events": heard,
        }


def hear(events: list[str], event: str, arguments: tuple[Any, ...]) -> None:
    """Record audit events that start programs, write files, open connections, compile or import."""
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) == 0:
        return
    if event.startswith(("open", "os.", "subprocess.", "socket.", "ctypes.", "shutil.", "pickle.", "exec", "compile")):
        events.append(f"{event} {arguments}"[:200])
    elif event == "import":
        events.append(f"import {arguments[0]}")


def peak_bytes() -> int:
    """Return the peak memory of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    target = Path(sys.argv[1])
    make_all(target)
    before = sorted(target.iterdir())
    os.chdir(target)
    for result in watch_all(target):
        print(json.dumps(result), flush=True)
    made = sorted(path.name for path in set(target.iterdir()) - set(before))
    print(json.dumps({"name": "files made", "outcome": str(made)}))
