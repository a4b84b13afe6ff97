"""A page that classifies pictures in any browser, offline: the network, its forward pass and everything else inside."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnet_train import __version__
from resnet_train.export.formats import FORMATS, HALF_TOLERANCE, Format, Opened, Source
from resnet_train.export.instructions import Instruction, list_instructions
from resnet_train.export.interpreter import run_instructions
from resnet_train.runtime.seal import is_intact, seal
from resnet_train.text import counted, escape

PARTS = files("resnet_train.export") / "page"
NUM_FOLD_IMAGES = 8  # random images, whose logits folding must not change
FOLD_TOLERANCE = 1e-4  # of the largest logit: float32 in torch vs. float64
BATCH_SIZE = 10  # for the check; the windows of a convolution take nine times the memory of its input
ALIGNMENT = 4  # bytes, for JavaScript's arrays of float32
# The page loads nothing, and runs only two scripts: the one with this hash, and its worker.
POLICY = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; worker-src blob:; "
    "img-src blob: data:; base-uri 'none'; form-action 'none'"
)


@FORMATS.register("html")
class Page(Format):
    """A page that classifies pictures in any browser, offline; weights are float16."""

    suffix = ".html"

    def encode(self, source: Source) -> bytes:
        """Return the page."""
        about = source.about
        scale = torch.tensor([1 / (255 * std) for std in about.std], dtype=torch.float64)
        shift = torch.tensor([-mean / std for mean, std in zip(about.mean, about.std)], dtype=torch.float64)
        instructions = list_instructions(source.network, scale, shift, about.image_size)
        _check_folding(source, instructions)
        entries, weights = _pack(instructions)
        definition = {**_describe(source), "instructions": entries}
        return seal(lambda digest: _render(source, definition, weights, digest).encode())

    def open(self, path: Path, source: Source) -> Opened:
        """Read the instructions of a page and run them with NumPy."""
        definition, weights = _read(path)
        for name, expected in _describe(source).items():
            if definition.get(name) != expected:
                raise ValueError(f"{path} describes another network: {name} differs")
        instructions = _unpack(definition["instructions"], weights)

        def forward(pixels: Tensor) -> Tensor:
            parts = pixels.split(BATCH_SIZE)
            return torch.cat([torch.from_numpy(run_instructions(instructions, part.numpy())) for part in parts])

        return Opened(forward, HALF_TOLERANCE)


def _check_folding(source: Source, instructions: Sequence[Instruction]) -> None:
    """Raise a RuntimeError unless the instructions compute what the network computes, before any rounding."""
    side = source.about.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_FOLD_IMAGES, 3, side, side), np.uint8)
    expected = source.compute_logits(torch.from_numpy(pixels)).numpy()
    difference = np.abs(run_instructions(instructions, pixels) - expected).max()
    if not difference <= FOLD_TOLERANCE * np.abs(expected).max():  # NaN also fails
        raise RuntimeError(f"the instructions compute different logits from the network, up to {difference:.3g} apart")


# --- The network as text ---------------------------------------------------------------------------------------------


def _describe(source: Source) -> dict[str, Any]:
    """Return what the page needs to know besides the instructions. Names are escaped as they are shown."""
    calibration = source.checkpoint.calibration
    return {
        "size": source.about.image_size,
        "classes": [escape(name) for name in source.about.classes],
        "calibration": None
        if calibration is None
        else {"temperature": calibration.temperature, "known_from": calibration.known_from},
    }


def _pack(instructions: Sequence[Instruction]) -> tuple[list[dict[str, Any]], bytes]:
    """Return plain values for JSON and the bytes of all arrays: weights as float16, all others as float32.

    Raises:
        ValueError: a weight is too large for float16.
    """
    entries, packed = [], bytearray()
    for instruction in instructions:
        entry = {"op": instruction.op, "from": instruction.sources, "to": instruction.target, **instruction.settings}
        for name, array in instruction.arrays.items():
            with np.errstate(over="ignore"):
                rounded = array.astype("<f2" if name == "weight" else "<f4")
            if not np.isfinite(rounded).all():
                raise ValueError(
                    f"a {instruction.op} has a {name} of {np.abs(array).max():.3g}, too large for {rounded.dtype}"
                )
            entry[name] = {"at": len(packed), "shape": array.shape, "half": name == "weight"}
            packed += rounded.tobytes()
            packed += bytes(-len(packed) % ALIGNMENT)
        entries.append(entry)
    return entries, bytes(packed)


def _unpack(entries: list[dict[str, Any]], packed: bytes) -> list[Instruction]:
    """Return the instructions of a page, with float32 arrays."""
    instructions = []
    for entry in entries:
        settings = dict(entry)
        op, sources, target = (settings.pop(name) for name in ("op", "from", "to"))
        places = {name: settings.pop(name) for name, value in entry.items() if isinstance(value, dict)}
        arrays = {
            name: np.frombuffer(packed, "<f2" if half else "<f4", int(np.prod(shape)), at).reshape(shape).astype("f4")
            for name, (at, shape, half) in ((name, place.values()) for name, place in places.items())
        }
        instructions.append(Instruction(op=op, sources=tuple(sources), target=target, settings=settings, arrays=arrays))
    return instructions


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the definition of the network in a page, and the bytes of its weights.

    Raises:
        ValueError: it is not such a page, or is damaged.
    """
    data = path.read_bytes()
    digest = re.search(rb'<meta name="sha256" content="([0-9a-f]{64})">', data)
    if digest is None or not is_intact(data, digest[1].decode()):
        raise ValueError(f"{path} is not a page of --format html, or is damaged")
    parts = dict(re.findall(rb'<script type="[a-z/]+" id="(network|weights)">([^<]*)</script>', data))
    return json.loads(parts[b"network"]), base64.b64decode(parts[b"weights"])


# --- The page --------------------------------------------------------------------------------------------------------


def _render(source: Source, definition: dict[str, Any], weights: bytes, digest: str) -> str:
    """Return the page with everything that it needs inside, including its digest."""
    about = source.about
    num_classes = counted(len(about.classes), "class")
    introduction = f"This {_name(about.arch)} was trained on {_name(about.title)} and tells {num_classes} apart"
    style, script = _read_part("style.css"), _read_part("page.js")
    values = {
        "sha256": digest,
        "policy": POLICY.format(script=_digest(script), style=_digest(style)),
        "title": f"{html.escape(about.arch)}: {num_classes}",
        "style": style,
        "introduction": f"{introduction}: {', '.join(map(_name, about.classes))}.",
        "size": str(about.image_size),
        "limits": _list_limits(source),
        "facts": _list_facts(source),
        "network": json.dumps(definition).replace("<", "\\u003c"),  # no name can end the element
        "weights": base64.b64encode(weights).decode(),
        "worker": "\n".join(map(_read_part, ("picture.js", "network.js", "worker.js"))),
        "script": script,
    }
    return re.sub(r"\{\{([a-z0-9]+)\}\}", lambda match: values[match[1]], _read_part("page.html"))


def _read_part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Return the hash of a script or a style sheet, as a policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _name(text: str) -> str:
    """Return a name from data as HTML, without characters that hide it or reorder the text next to it."""
    return f"<bdi>{html.escape(escape(text))}</bdi>"


def _list_limits(source: Source) -> str:
    """Return what the network can't know, as a list."""
    about, calibration = source.about, source.checkpoint.calibration
    limits = [
        f"It answers with one of its {counted(len(about.classes), 'class')}, whatever a picture shows.",
        f"It sees the central square of a picture as {about.image_size} × {about.image_size} pixels: small details and "
        f"what is at the border are lost.",
        "It learned from one data set. With pictures of another kind (drawings, screenshots, other cameras) it is "
        "wrong more often than its test accuracy says.",
    ]
    if calibration is None:
        limits += [
            "The percentages are not calibrated, because it was trained without validation images: most such networks "
            "are right less often than their percentages suggest.",
            "It cannot tell that a picture shows none of its classes.",
        ]
    else:
        limits += [
            "The percentages are calibrated on validation images: of the answers with 80 %, about 80 % were right. "
            "This holds only for pictures of the same kind.",
            f"For a picture with a score below {calibration.known_from:.2f} it adds “or none of its classes”. 95 % "
            f"of the validation images have a higher score: 1 in 20 good pictures is doubted, and many pictures of "
            f"something else are not.",
        ]
    return f"<ul>{''.join(f'<li>{limit}</li>' for limit in limits)}</ul>"


def _list_facts(source: Source) -> str:
    """Return facts about the network, as terms and descriptions."""
    about, checkpoint = source.about, source.checkpoint
    num_parameters = sum(parameter.numel() for parameter in source.network.parameters())
    size = f"{about.image_size} × {about.image_size} pixels"
    facts = {
        "Network": f"{_name(about.arch)}, {num_parameters:,} parameters",
        "Data": f"{_name(about.title)}, {counted(len(about.classes), 'class')}, {size}",
        "Weights": "rounded to 16 bits",
        "Probabilities": "as the network computes them, not calibrated",
        "Made with": f"resnet_train {__version__}",
    }
    accuracy = checkpoint.metrics and checkpoint.metrics.scores.get("test", {}).get("accuracy")
    if accuracy is not None:
        facts["Test accuracy"] = f"{accuracy:.2%} after epoch {checkpoint.epoch:,}, before the weights were rounded"
        if checkpoint.chosen_on == "test":
            facts["Test accuracy"] += "; this epoch was selected on the test images: do not report this accuracy"
    if (calibration := checkpoint.calibration) is not None:
        facts["Probabilities"] = (
            f"calibrated with temperature {calibration.temperature:.3f}, fitted on {calibration.num_images:,} "
            f"validation images"
        )
    return "".join(f"<dt>{term}</dt><dd>{fact}</dd>" for term, fact in facts.items())
