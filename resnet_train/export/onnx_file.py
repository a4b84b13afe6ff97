"""An ONNX file that takes pictures: preprocessing, network and probabilities in one graph.

Input `images`: uint8 [N, 3, S, S], RGB, any N. Outputs: `logits` float32 [N, C], and `probabilities` float32 [N, C],
with the temperature that was fitted on validation images, if any (metadata: `temperature`).
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnet_train.data.augment import scale_and_shift
from resnet_train.export.formats import FORMATS, Format, Opened, Source
from resnet_train.runtime.extras import import_extra
from resnet_train.runtime.seal import is_intact, seal
from resnet_train.text import escape, one_line

OPSET = 18  # which torch's exporter writes without conversion
TOLERANCE = 1e-4  # of the largest logit; other kernels sum in a different order
DIGEST = "sha256"


@FORMATS.register("onnx")
class OnnxFile(Format):
    """ONNX from pictures to logits and probabilities, with class names as metadata; for onnxruntime and many others."""

    suffix = ".onnx"
    modules = ("onnx", "onnxscript", "onnxruntime")

    def encode(self, source: Source) -> bytes:
        """Return the file."""
        proto = _convert(source)
        for name, value in {DIGEST: "", **describe(source)}.items():
            proto.metadata_props.add(key=name, value=value)

        def encode(digest: str) -> bytes:
            proto.metadata_props[0].value = digest
            return proto.SerializeToString(deterministic=True)

        return seal(encode)

    def open(self, path: Path, source: Source) -> Opened:
        """Open the file with onnxruntime after comparing its digest and its metadata."""
        onnx, runtime = (import_extra(module, "a check of ONNX") for module in ("onnx", "onnxruntime"))
        data = path.read_bytes()
        try:
            proto = onnx.load_model_from_string(data)
        except Exception as error:  # from protobuf, whose class depends on its version
            raise ValueError(f"{path} is damaged or not an ONNX file: {one_line(error)}") from None

        # Check that the file is unchanged since it was written, and describes the same network as the checkpoint.
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        if not is_intact(data, metadata.pop(DIGEST, None)):
            raise ValueError(f"{path} is damaged: it does not have the SHA-256 that its metadata gives")
        for name, value in describe(source).items():
            if metadata.get(name) != value:
                raise ValueError(f"{path} describes another network: its {name} differs")

        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for each of its codes
            raise ValueError(f"onnxruntime cannot load {path}: {one_line(error)}") from None

        def forward(pixels: Tensor) -> Tensor:
            return torch.from_numpy(session.run(["logits"], {"images": pixels.numpy()})[0])

        return Opened(forward, TOLERANCE)


def describe(source: Source) -> dict[str, str]:
    """Return the metadata: strings by name; lists and numbers are JSON."""
    about, calibration, metrics = source.about, source.checkpoint.calibration, source.checkpoint.metrics
    values: dict[str, Any] = {
        "classes": about.classes,
        "image_size": about.image_size,
        "mean": about.mean,
        "std": about.std,
        "arch_options": about.arch_options,
        "calibrated": calibration is not None,
    }
    if calibration is not None:
        values |= {"temperature": calibration.temperature, "known_from": calibration.known_from}
    if metrics is not None:
        accuracies = {split: scores["accuracy"] for split, scores in metrics.scores.items() if "accuracy" in scores}
        values |= {"epoch": metrics.epoch, "accuracy": accuracies}
        if source.checkpoint.chosen_on:
            values["chosen_on"] = source.checkpoint.chosen_on
    names = {"arch": about.arch, "title": escape(about.title)}  # which may hold what is not UTF-8
    return names | {name: json.dumps(value) for name, value in values.items()}


class _PictureClassifier(nn.Module):
    """Map pixels uint8 [N, 3, S, S] to logits and probabilities float32 [N, C]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, source: Source) -> None:
        super().__init__()
        scale, shift = scale_and_shift(tuple(source.about.mean), tuple(source.about.std), torch.device("cpu"))
        calibration = source.checkpoint.calibration
        self.network, self.temperature = source.network, calibration.temperature if calibration else 1.0
        self.register_buffer("scale", scale.clone())
        self.register_buffer("shift", shift.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(images.float() * self.scale + self.shift)
        return logits, (logits / self.temperature).softmax(dim=1)


def _convert(source: Source) -> Any:
    """Return the graph as an ONNX message, without names and source lines of this machine.

    Raises:
        ValueError: torch cannot express the network in ONNX, or onnxscript is too old for it.
    """
    onnx = import_extra("onnx", "--format onnx")
    side = source.about.image_size
    example = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                _PictureClassifier(source).eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["logits", "probabilities"],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                verbose=False,
            )
            assert program is not None  # as with dynamo
            proto = program.model_proto
            onnx.checker.check_model(proto, full_check=True)
    except ImportError as error:  # torch imports the onnxscript module that was made for it
        found = import_extra("onnxscript", "--format onnx").__version__
        raise ValueError(
            f"onnxscript {found} does not work with torch {torch.__version__} ({one_line(error)}): "
            f"pip install --upgrade onnxscript"
        ) from None
    except Exception as error:  # from torch's exporter, onnxscript or the checker
        raise ValueError(f"{source.about.arch} cannot be exported to ONNX: {one_line(error)}") from None

    # The exporter describes each node with its place in the source code.
    graph = proto.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del graph.value_info[:]
    proto.doc_string = "images: uint8 [N, 3, H, W], RGB; logits and probabilities: float32 [N, C]"
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings of torch's exporter, which are about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
