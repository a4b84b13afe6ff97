"""Checkpoints from other code: read without running anything in them, and turned into checkpoints of this package.

Files in torch's zip format that hold only tensors, numbers and text pass the check of `runs/archive.py` and are read
here. All others, such as those of torch before 1.6, are read by `runs/foreign_reader.py` in a process with limits,
whose answer has to pass that check.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from resnet_train.data.dataset import FACTS
from resnet_train.data.normalization import parse_normalization
from resnet_train.data.sources.cifar10_tests import CLASSES as CIFAR10_CLASSES
from resnet_train.models import sketch_model
from resnet_train.models.foreign import find_weights, recognize
from resnet_train.optim.state import check_state
from resnet_train.records import About, Origin
from resnet_train.runs.archive import read_tensor_file, read_tensors
from resnet_train.runs.checkpoint import FORMAT, AnyCheckpoint, ModelCheckpoint, read_model
from resnet_train.runs.safetensors_file import KEY, is_safetensors, read_safetensors

log = logging.getLogger(__name__)

PEEK_BYTES = 4096  # a checkpoint of this package says so at its start
ZIP_START, LEGACY_START = b"PK\3\4", b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number as a pickle
READER = "import sys; sys.path[:] = sys.argv[1:]; from resnet_train.runs.foreign_reader import main; main()"
READER_SECONDS = 300  # wall-clock, mostly for importing torch on a busy machine; the reader limits itself first
FOR_OTHERS = (".onnx", ".html")  # suffixes of exports that this package writes and does not read
IMAGE_SIZES = {"cifar": 32, "imagenet": 224}  # by stem


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a user says about a checkpoint from other code, because the file does not say it.

    Attributes:
        arch: its architecture; found by names and shapes if None.
        normalize: the mean and the standard deviation of its images, as `parse_normalization` takes them; if None,
            those of CIFAR-10, of CIFAR-100 for 100 classes, or of ImageNet for networks with ImageNet's stem.
    """

    arch: str | None = None
    normalize: str | None = None


NOTHING = Given()


def read_network(path: Path, given: Given = NOTHING) -> AnyCheckpoint:
    """Read a checkpoint of this package or from other code.

    Raises:
        ValueError: the file is missing, damaged, or holds no network that this package has; or a checkpoint of this
            package already says what is given.
    """
    if path.suffix in FOR_OTHERS and path.is_file():
        raise ValueError(f"{path} is for other programs; use the run that it is from, or a .pt or .safetensors export")
    if not is_foreign(path):
        checkpoint = read_model(path)
        if given.arch not in (None, checkpoint.about.arch):
            raise ValueError(f"arch (={given.arch}) is not that of {path}, which is a {checkpoint.about.arch}")
        if given.normalize is not None:
            raise ValueError(f"normalize (={given.normalize}) is for checkpoints from other code; {path} has its own")
        return checkpoint
    try:
        return _convert(*_read_weights(path), given)
    except ValueError as error:
        raise ValueError(f"cannot use {path}: {error}") from None


def is_foreign(path: Path) -> bool:
    """Return whether a file may be a checkpoint from other code; files that can't be read are not.

    Raises:
        ValueError: it is a damaged safetensors file.
    """
    if is_safetensors(path):
        return KEY not in read_safetensors(path)[1]
    start = _peek(path)
    return FORMAT.encode() not in start and start.startswith((ZIP_START, LEGACY_START))


def _peek(path: Path) -> bytes:
    """Return the first bytes of a regular file, or none."""
    try:
        with _open(path) as file:
            return file.read(PEEK_BYTES)
    except (OSError, ValueError):
        return b""


def _open(path: Path) -> IO[bytes]:
    """Open a file without waiting for the other end of a FIFO.

    Raises:
        ValueError: it is not a regular file.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is not a regular file")
    return file


# --- Reading ---------------------------------------------------------------------------------------------------------


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the weights in a file and the name of the entry that has them.

    Raises:
        ValueError: there are none that can be read.
    """
    if is_safetensors(path):
        return find_weights(read_safetensors(path)[0])
    try:
        contents = read_tensor_file(path)
    except ValueError:  # an older format, or parts that only the reader supports
        with _open(path) as file:
            contents = _read_in_process(file)
        return contents["weights"], contents["entry"]
    return find_weights(contents)


def _read_in_process(file: IO[bytes]) -> dict[str, Any]:
    """Return what `runs/foreign_reader.py` makes of a file.

    Raises:
        ValueError: the reader refuses the file or exceeds its limits.
    """
    command = [sys.executable, "-I", "-W", "ignore", "-c", READER, *map(os.path.abspath, sys.path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as answer:
        try:
            done = subprocess.run(
                command,
                stdin=file,
                stdout=answer,
                stderr=subprocess.PIPE,
                env=environment,
                timeout=READER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"reading it took more than {READER_SECONDS} s") from None
        if done.returncode:
            raise ValueError(_describe_end(done.returncode, done.stderr))
        answer.seek(0)
        try:
            contents: dict[str, Any] = read_tensors(answer)
        except Exception as error:  # zipfile, struct and pickletools raise almost anything on wrong bytes
            raise ValueError(f"reading it gave {' '.join(str(error).split())[:200]}") from None
    return contents


def _describe_end(code: int, stderr: bytes) -> str:
    """Return why the reader ended without an answer."""
    if code == -getattr(signal, "SIGXCPU", 0):
        return "reading it takes more time than is allowed for a file of its size"
    if code == -getattr(signal, "SIGXFSZ", 0):
        return "its tensors are larger than the file"
    if code < 0:
        return f"reading it ended with signal {-code}"
    lines = stderr.decode(errors="replace").splitlines()
    return lines[-1][:400] if lines else f"reading it ended with exit code {code}"


# --- Converting ------------------------------------------------------------------------------------------------------


def _convert(weights: dict[str, Tensor], entry: str, given: Given) -> ModelCheckpoint:
    """Return the checkpoint of a network with these weights.

    Raises:
        ValueError: they fit no network, or are not finite.
    """
    # Find the network, and check whether it can have these weights.
    found = recognize(weights, given.arch)
    expected = sketch_model(found.arch, found.num_classes, len(found.weights), **found.options).state_dict()
    check_state(found.weights, dict(expected), "weights")

    # Add what the file does not say.
    stem = found.options.get("stem", "cifar")
    dataset = {10: "cifar10", 100: "cifar100"}.get(found.num_classes, "folder")
    guess = "imagenet" if stem == "imagenet" else "cifar100" if found.num_classes == 100 else "cifar10"
    normalization = parse_normalization(given.normalize or guess)
    if given.normalize is None:
        log.warning("assuming the mean and std of %s, because the file has none; --normalize changes that", guess)
    classes = [f"class {number}" for number in range(found.num_classes)]
    about = About(
        arch=found.arch,
        arch_options=found.options,
        classes=list(CIFAR10_CLASSES) if found.num_classes == len(CIFAR10_CLASSES) else classes,
        image_size=IMAGE_SIZES[stem],
        mean=list(normalization.mean),
        std=list(normalization.std),
        dataset=dataset,
        title=FACTS[dataset].title if dataset in FACTS else "unknown images",
        fingerprint="",
    )
    config = {"arch": found.arch, **found.options, "dataset": dataset, "image_size": about.image_size, "amp": "off"}
    origin = Origin(layout=found.layout, entry=entry, normalize=given.normalize or guess)
    return ModelCheckpoint(about=about, config=config, environment={}, model=found.weights, origin=origin)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with _open(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
