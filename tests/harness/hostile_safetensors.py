"""Safetensors files that an attacker would make; `hostile_files` reads them with the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_train.runs.checkpoint import FORMAT, VERSION
from resnet_train.runs.safetensors_file import KEY
from resnet_train.runtime.seal import seal

Make = Callable[[Path], object]
F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def raw(header: bytes, data: bytes = b"", length: int | None = None) -> Make:
    """Return a function that writes a file with this header, and perhaps another length in front of it."""
    size = (len(header) if length is None else length).to_bytes(8, "little")
    return lambda path: path.write_bytes(size + header + data)


def tensors(data: bytes = bytes(16), **entries: Any) -> Make:
    """Return a function that writes a file whose header has these entries."""
    return raw(json.dumps(entries).encode(), data)


def tensor(num_bytes: int = 16, **changes: Any) -> Make:
    """Return a function that writes a file with a changed tensor of 4 float32."""
    return tensors(bytes(num_bytes), x=F32 | changes)


def description(text: str) -> Make:
    """Return a function that writes a file whose description is this text."""
    return tensors(__metadata__={KEY: text}, x=F32)


def sealed(**entries: Any) -> Make:
    """Return a function that writes a file with the right digest and this description."""

    def encode(digest: str) -> bytes:
        values = {"sha256": digest, "format": FORMAT, "version": VERSION, **entries}
        header = json.dumps({"__metadata__": {KEY: json.dumps(values)}, "x": F32}).encode()
        return len(header).to_bytes(8, "little") + header + bytes(16)

    return lambda path: path.write_bytes(seal(encode))


def many(count: int) -> bytes:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return json.dumps({f"t{number}": empty for number in range(count)}).encode()


SAFETENSORS: dict[str, Make] = {
    # Headers
    "a header longer than the file": raw(b'{"x":1}', length=1 << 40),
    "a header of 2^63 bytes": raw(b'{"x":1}', length=1 << 63),
    "a header of 0 bytes": raw(b'{"x":1}', length=0),
    "a header of 1 byte": raw(b"{}", length=1),
    "a header of 3 MB": raw(b"{" + b" " * 3_000_000 + b"}"),
    "a header that is no JSON": raw(b'{"x": os.system}'),
    "a header that is no UTF-8": raw(b'{"\xff": 1}'),
    "a header in a header": raw(b'{"x":' * 100_000 + b"1" + b"}" * 100_000),
    "a header of lists in lists": raw(b'{"x":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"),
    "a header with a huge number": raw(b'{"x":' + b"9" * 1_000_000 + b"}"),
    "one tensor twice": raw(b'{"x":%s,"x":%s}' % ((json.dumps(F32).encode(),) * 2), bytes(16)),
    "30,000 empty tensors": raw(many(30_000)),
    # Tensors with false sizes
    "a safetensor beyond the file": tensor(data_offsets=[0, 1 << 40], shape=[1 << 38]),
    "a safetensor of 2^62 values": tensor(shape=[1 << 31, 1 << 31]),
    "a shape that overflows": tensor(shape=[1 << 62, 4]),
    "an empty safetensor of 2^62 rows": tensors(b"", x=F32 | {"shape": [1 << 62, 0, 4], "data_offsets": [0, 0]}),
    "a shape that does not fit": tensor(shape=[5]),
    "a negative shape": tensor(shape=[-4]),
    "a shape of fractions": tensor(shape=[4.0]),
    "a thousand dimensions of 1": tensor(shape=[4, *[1] * 1000]),
    "offsets in the wrong order": tensor(data_offsets=[16, 0]),
    "bytes of no tensor": tensor(num_bytes=32),
    "bytes of two tensors": tensors(x=F32, y=F32),
    "an unknown type of numbers": tensor(dtype="F33"),
    "a tensor of half bytes": tensor(dtype="F4", shape=[32]),
    # Descriptions
    "no description": tensors(x=F32),
    "metadata that are no texts": tensors(__metadata__={KEY: {"format": FORMAT}}, x=F32),
    "metadata that are a list": tensors(__metadata__=[KEY], x=F32),
    "a description that is no JSON": description("__import__('os').system('touch trace')"),
    "a description that is a list": description("[]"),
    "a description of lists in lists": description("[" * 100_000 + "]" * 100_000),
    "a description with a huge number": description("9" * 1_000_000),
    "a description of a million values": description(json.dumps([0] * 1_000_000)),
    "a description without a digest": description(json.dumps({"format": FORMAT, "version": VERSION})),
    "a digest of another file": description(json.dumps({"format": FORMAT, "version": VERSION, "sha256": "0" * 64})),
    "a description of another program": sealed(format="other"),
    "a description of a newer version": sealed(version=99),
    "a description of a run": sealed(optimizer={}, scaler={}, history=[]),
}
