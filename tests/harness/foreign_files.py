"""Files that are meant to look like checkpoints of other code and do harm: as torch writes them, now and before 1.6."""

from __future__ import annotations

import json
import os
import pickle  # noqa: TID251 - to attack with
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from resnet_train.models import create_model
from tests.harness.hostile_files import NO_HOOKS, Call, number, pack

Make = Callable[[Path], object]
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
MARK = "touch trace"


def weights(**changes: Any) -> dict[str, Any]:
    """Return the weights of a resnet8 with some of them changed."""
    torch.manual_seed(0)
    return {**create_model("resnet8").state_dict(), **changes}


def modern(make: Callable[[], Any]) -> Make:
    return lambda path: torch.save(make(), path)


def legacy(make: Callable[[], Any]) -> Make:
    return lambda path: torch.save(make(), path, _use_new_zipfile_serialization=False)


def legacy_pickles(pickled: bytes, keys: bytes = pickle.dumps([], protocol=2), storages: bytes = b"") -> Make:
    """Return a function that writes an old file whose value is what this pickle makes."""
    head = b"".join(pickle.dumps(value, protocol=2) for value in (MAGIC, PROTOCOL, SYSTEM))
    return lambda path: path.write_bytes(head + pickled + keys + storages)


def legacy_call(function: Any, *arguments: Any) -> Make:
    """Return a function that writes an old file whose value is a call."""
    return legacy_pickles(pickle.dumps({"state_dict": Call(function, *arguments)}, protocol=2))


def modern_call(module: str, name: str, *arguments: Any) -> Make:
    body = pickle.dumps(arguments, protocol=2)[2:-1]
    return lambda path: pack(path, b"\x80\2" + f"c{module}\n{name}\n".encode() + body + b"R.")


def legacy_storage(num_elements: int) -> Make:
    """Return a function that writes an old file with a storage that claims this many float32 and has four."""
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpu" + number(num_elements) + b"NtQ"
    shape = b"(" + number(num_elements) + b"t(" + number(1) + b"t"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + shape + NO_HOOKS + b"tR"
    pickled = b"\x80\2}X\x0d\0\0\0linear.weight" + tensor + b"s."
    stored = struct.pack("<q", num_elements) + bytes(16)
    return legacy_pickles(pickled, pickle.dumps(["0"], protocol=2), stored)


def cut(make: Make, share: float) -> Make:
    """Return a function that writes the first part of another file."""

    def write(path: Path) -> None:
        make(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return write


def bomb(path: Path) -> None:
    """Write a zip file like torch's whose compressed record of 16 kB unfolds to 16 GB in the end."""
    torch.save(weights(), path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            if name.endswith("data/0"):
                with archive.open(name, "w", force_zip64=True) as record:
                    for _ in range(400):
                        record.write(bytes(1 << 20))
            else:
                archive.writestr(name, content)


def safetensors(header: Any, data: bytes = bytes(64), length: int | None = None) -> Make:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda path: path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def deep(levels: int) -> Any:
    contents: Any = weights()
    for _ in range(levels):
        contents = {"state_dict": contents}
    return contents


class Subclass(torch.Tensor):
    """A tensor of a class of its own."""


def nan(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[0] = float("nan")
    return changed


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_suffix(".fifo"))
    path.symlink_to(path.with_suffix(".fifo"))


def head() -> torch.Tensor:
    return create_model("resnet8").state_dict()["linear.weight"]


FILES: dict[str, Make] = {
    # Pickles with side effects
    "legacy os.system": legacy_call(os.system, MARK),
    "legacy exec": legacy_call(exec, "open('trace', 'w')"),
    "legacy eval": legacy_call(eval, "open('trace', 'w')"),
    "legacy open": legacy_call(open, "trace", "w"),
    "legacy call in the first pickle": lambda path: path.write_bytes(
        pickle.dumps(MAGIC, protocol=2) + pickle.dumps(Call(os.system, MARK), protocol=2)
    ),
    "legacy call in the keys": legacy_pickles(
        pickle.dumps({}, protocol=2), pickle.dumps(Call(os.system, MARK), protocol=2)
    ),
    "legacy bytearray of 100 GB": legacy_call(bytearray, 10**11),
    "legacy rebuild of a module": legacy_pickles(b"\x80\2ctorch.nn.modules.linear\nLinear\n)\x81}b."),
    "modern os.system": modern_call("os", "system", MARK),
    "modern exec": modern_call("builtins", "exec", "open('trace', 'w')"),
    "modern torch.load": modern_call("torch", "load", "trace"),
    "modern module": modern_call("torch.nn.modules.linear", "Linear", 10, 10),
    "modern dunder of an allowed class": modern_call("argparse", "Namespace.__init__.__globals__", 1),
    "plain pickle": lambda path: path.write_bytes(pickle.dumps(Call(os.system, MARK))),
    "plain pickle of protocol 2": lambda path: path.write_bytes(pickle.dumps(Call(os.system, MARK), protocol=2)),
    # Sizes
    "legacy storage of 10^15 elements": legacy_storage(10**15),
    "legacy storage of 10^9 elements": legacy_storage(10**9),
    "legacy storage of -1 elements": legacy_storage(-1),
    "expanded tensor": legacy(lambda: weights(**{"linear.weight": torch.zeros(1).expand(10**12)})),
    "legacy cut": cut(legacy(weights), 0.6),
    "modern cut": cut(modern(weights), 0.6),
    "legacy cut in its head": cut(legacy(weights), 0.01),
    "bomb": bomb,
    "nested dicts": legacy(lambda: deep(50)),
    "nested lists": legacy_pickles(b"\x80\2" + b"]" * 100_000 + b"a" * 99_999 + b"."),
    "a million keys": legacy_pickles(
        b"\x80\2}(" + b"".join(b"X\6\0\0\0%06dN" % key for key in range(1_000_000)) + b"u."
    ),
    "a hundred thousand tensors": legacy(lambda: dict.fromkeys(map(str, range(100_000)), head())),
    # Values
    "NaN": legacy(lambda: weights(**{"linear.weight": nan(head())})),
    "infinity": modern(lambda: weights(**{"bn1.running_var": torch.full((16,), float("inf"))})),
    "negative variance": modern(lambda: weights(**{"bn1.running_var": torch.full((16,), -1.0)})),
    "integers": modern(lambda: weights(**{"conv1.weight": torch.zeros(16, 3, 3, 3, dtype=torch.int8)})),
    "booleans": legacy(lambda: weights(**{"conv1.weight": torch.zeros(16, 3, 3, 3, dtype=torch.bool)})),
    "complex": legacy(lambda: weights(**{"conv1.weight": torch.zeros(16, 3, 3, 3, dtype=torch.complex64)})),
    "sparse": legacy(lambda: weights(**{"linear.weight": head().to_sparse()})),
    "sparse rows": legacy(lambda: weights(**{"linear.weight": head().to_sparse_csr()})),
    "quantized": legacy(lambda: weights(**{"linear.weight": torch.quantize_per_tensor(head(), 0.1, 0, torch.qint8)})),
    "meta": modern(lambda: weights(**{"linear.weight": torch.empty(10, 64, device="meta")})),
    "subclass": legacy(lambda: weights(**{"linear.weight": head().as_subclass(Subclass)})),
    "nested tensor as a value": modern(lambda: weights(**{"linear.weight": {"a": head()}})),
    "wrong shape": legacy(lambda: weights(**{"layer1.0.conv1.weight": torch.zeros(16, 16, 5, 5)})),
    "no head": legacy(lambda: {name: value for name, value in weights().items() if "linear" not in name}),
    "a head of one class": modern(lambda: weights(**{"linear.weight": head()[:1], "linear.bias": head()[0, :1]})),
    "a head of no features": modern(lambda: weights(**{"linear.weight": torch.zeros(10**6, 0)})),
    "keys with control characters": modern(lambda: {"\x1b]0;title\x07\r\nerror: " + "x" * 50: head(), **weights()}),
    "a key of a megabyte": legacy(lambda: {"x" * 1_000_000: head(), **weights()}),
    "keys that are numbers": legacy(lambda: {1: head(), 2: head()}),
    "two keys of one name": legacy(lambda: {**weights(), "module.linear.weight": head()}),
    "nothing in it": legacy(OrderedDict),
    "a number": legacy(lambda: 5),
    "a dict that holds itself": legacy_pickles(b"\x80\2}q\0X\n\0\0\0state_dicth\0s."),
    # Not regular files, or not torch's
    "a FIFO": fifo,
    "a link to a FIFO": link_to_fifo,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to(path.with_suffix(".none")),
    "a folder": lambda path: path.mkdir(),
    "an empty file": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>404 not found</html>"),
    "an HDF5 file": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)),
    # safetensors
    "safetensors: overlapping": safetensors({"a": entry(0, 32, [8]), "b": entry(16, 48, [8])}),
    "safetensors: beyond the end": safetensors({"a": entry(0, 4 << 40, [1 << 40])}),
    "safetensors: before the start": safetensors({"a": entry(-8, 24, [8])}),
    "safetensors: header of 10 GB": safetensors({}, length=10_000_000_000),
    "safetensors: header of 2^63 bytes": safetensors({}, length=1 << 63),
    "safetensors: no JSON": safetensors(b"{" + b"x" * 30),
    "safetensors: deep JSON": safetensors(b'{"a":' * 100_000),
    "safetensors: a list": safetensors(b"[1, 2]"),
    "safetensors: two of one name": safetensors(b'{"a":1,"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
    "safetensors: unknown type": safetensors({"a": entry(0, 32, [8], "Q7")}),
    "safetensors: huge shape": safetensors({"a": entry(0, 32, [1 << 62, 1 << 62])}),
    "safetensors: wrong size": safetensors({"a": entry(0, 32, [7])}),
    "safetensors: numbers as names": safetensors({"1": 2}),
}
assert sys.byteorder == "little" or not FILES


def attack(folder: Path) -> list[dict[str, Any]]:
    """Return what reading each file came to, with the processor time of both processes and the files it left."""
    import resource

    from resnet_train.runs.foreign import read_network

    def seconds() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    results = []
    before_all = Path.cwd()
    for name, make in FILES.items():
        place = folder / str(len(results))
        place.mkdir()
        path = place / "some.pt"
        make(path)
        os.chdir(place)
        files, start = sorted(place.iterdir()), seconds()
        try:
            read_network(path)
            outcome = "read"
        except ValueError as error:
            outcome = f"ValueError: {error}"
        except BaseException as error:
            outcome = repr(error)
        left = [file.name for file in sorted(place.iterdir()) if file not in files]
        results.append({"name": name, "outcome": outcome, "seconds": round(seconds() - start, 2), "left": left})
        os.chdir(before_all)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return [*results, {"name": "peak", "megabytes": peak // 1024}]


if __name__ == "__main__":
    for result in attack(Path(sys.argv[1]).absolute()):
        print(json.dumps(result), flush=True)
