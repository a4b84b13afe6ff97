"""A network as a list of simple instructions, traced from its forward pass, with norms folded into convolutions.

Programs without torch can run them: `export/interpreter.py` does so with NumPy, and so does the page of
`--format html`.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

Shapes = Sequence[torch.Size]  # shapes of the maps that an operation takes
SUPPORTED = "convolutions, batch norms, ReLU, pooling, additions and linear layers"
FOLDS = ("convolution", "linear")  # operations that can absorb a following affine into their weights


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One operation on maps, float32 [B, C, H, W].

    Attributes:
        op: what it does, a key of `interpreter.OPERATIONS`.
        sources, target: the slots that it reads, and the one that it writes. Slot 0 holds the pixels at the start.
        settings: integers, such as a stride.
        arrays: float32 weights by name.
    """

    op: str
    sources: tuple[int, ...]
    target: int
    settings: dict[str, int] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class _Step:
    """What a torch operation becomes; "" if it changes nothing."""

    op: str
    settings: dict[str, int] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class _Unsupported(ValueError):
    """An operation, or a way of using it, for which there is no instruction."""


def list_instructions(network: nn.Module, scale: Tensor, shift: Tensor, image_size: int) -> list[Instruction]:
    """Return the instructions from pixels, 0 to 255, to logits, [B, C, 1, 1].

    Args:
        network: in evaluation mode, maps normalized images float [B, 3, S, S] to logits [B, C].
        scale, shift: float [3], which normalize pixels.
        image_size: the side length S.

    Raises:
        ValueError: the network has an operation for which there is no instruction; the message names it.
    """
    # Trace the forward pass with the shape of every value.
    try:
        module = fx.symbolic_trace(network)
    except (fx.proxy.TraceError, TypeError) as error:
        raise ValueError(f"the forward pass can't be traced: {' '.join(str(error).split())[:200]}") from None
    with torch.inference_mode():
        ShapeProp(module).propagate(torch.zeros(1, 3, image_size, image_size))

    # Each node becomes an instruction that writes one slot.
    instructions = [Instruction(op="affine", sources=(0,), target=1, arrays=_affine(scale, shift).arrays)]
    slots: dict[fx.Node, int] = {}
    for node in module.graph.nodes:
        sources = tuple(slots[argument] for argument in node.args if isinstance(argument, fx.Node))
        if node.op == "placeholder":
            slots[node] = 1
        elif node.op != "output":
            step = _translate(node, module)
            slots[node] = len(instructions) + 1 if step.op else sources[0]
            if step.op:
                instructions.append(
                    Instruction(
                        op=step.op, sources=sources, target=slots[node], settings=step.settings, arrays=step.arrays
                    )
                )
    return _reuse_slots(_fold(instructions))


def _translate(node: fx.Node, module: fx.GraphModule) -> _Step:
    """Return the step of a node of the graph.

    Raises:
        ValueError: there is none.
    """
    layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    what = getattr(node.target, "__name__", str(node.target)) if layer is None else type(layer).__name__
    where = node.name if layer is None else node.target
    maps = [argument for argument in node.args if isinstance(argument, fx.Node)]
    rest = [argument for argument in node.args if not isinstance(argument, fx.Node)]
    try:
        if layer is not None:
            return MODULES[type(layer)](layer)
        shapes = [each.meta["tensor_meta"].shape for each in maps]
        return FUNCTIONS[node.target](shapes, *rest, **node.kwargs)
    except KeyError:
        raise ValueError(f"a page can't run {what} (in {where}): it knows {SUPPORTED}") from None
    except (_Unsupported, TypeError) as error:
        raise ValueError(f"a page can't run {what} (in {where}): {error}") from None


# --- Translation of each torch operation -----------------------------------------------------------------------------


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise _Unsupported(f"{what} is not supported")


def _single(value: Any, name: str) -> int:
    """Return the value of a setting that is equal for height and width."""
    values = set(value) if isinstance(value, tuple) else {value}
    first = values.pop()
    if values or not isinstance(first, int):
        raise _Unsupported(f"{name} {value} is not supported")
    return first


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _affine(scale: Tensor, shift: Tensor) -> _Step:
    return _Step("affine", arrays={"scale": _array(scale), "shift": _array(shift)})


def _constant_affine(num_channels: int, scale: float, shift: float) -> _Step:
    return _affine(torch.full([num_channels], scale), torch.full([num_channels], shift))


def _convolution(layer: nn.Conv2d) -> _Step:
    _require(layer.padding_mode == "zeros", f"padding mode {layer.padding_mode}")
    _require(_single(layer.dilation, "dilation") == 1, f"dilation {layer.dilation}")
    settings = {
        "stride": _single(layer.stride, "stride"),
        "padding": _single(layer.padding, "padding"),
        "groups": layer.groups,
    }
    bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias
    return _Step("convolution", settings, {"weight": _array(layer.weight), "bias": _array(bias)})


def _linear(layer: nn.Linear) -> _Step:
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
    return _Step("linear", arrays={"weight": _array(layer.weight), "bias": _array(bias)})


def _batch_norm(layer: nn.BatchNorm2d) -> _Step:
    if layer.running_mean is None or layer.running_var is None:
        raise _Unsupported("a norm without running statistics is not supported")
    mean, variance = layer.running_mean.double(), layer.running_var.double()
    weight, bias = (layer.weight, layer.bias) if layer.affine else (torch.ones_like(mean), torch.zeros_like(mean))
    scale = weight.double() / (variance + layer.eps).sqrt()
    return _affine(scale, bias.double() - mean * scale)


def _max_pool(layer: nn.MaxPool2d) -> _Step:
    _require(not layer.ceil_mode and _single(layer.dilation, "dilation") == 1, "max pooling with ceil_mode or dilation")
    names = {"kernel": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
    return _Step("max_pool", {name: _single(value, name) for name, value in names.items()})


def _average_pool(layer: nn.AdaptiveAvgPool2d) -> _Step:
    _require(_single(layer.output_size, "output size") == 1, f"output size {layer.output_size}")
    return _Step("mean")


def _reduce(op: str) -> Callable[..., _Step]:
    """Return the translation of a reduction over height and width."""

    def translate(shapes: Shapes, dim: Any, keepdim: bool = False) -> _Step:
        _require(isinstance(dim, tuple | list) and {d % 4 for d in dim} == {2, 3}, f"a reduction over {dim}")
        return _Step(op)

    return translate


def _add(shapes: Shapes, *constant: float) -> _Step:
    _require(len(set(shapes)) == 1, f"a sum of maps of the sizes {[tuple(shape) for shape in shapes]}")
    return _constant_affine(shapes[0][1], 1, constant[0]) if constant else _Step("add")


def _multiply(shapes: Shapes, *constant: float) -> _Step:
    _require(len(shapes) == 1, "a product of two maps")
    return _constant_affine(shapes[0][1], constant[0], 0)


def _subsample(shapes: Shapes, index: Any) -> _Step:
    """Translate `x[:, :, ::step, ::step]`."""
    steps = [part.step or 1 for part in index if isinstance(part, slice) and part.start is part.stop is None]
    _require(len(steps) == len(index) == 4 and steps[:3] == [1, 1, steps[3]], f"the index {index}")
    return _Step("subsample", {"step": steps[3], "before": 0, "after": 0})


def _pad(shapes: Shapes, pad: Any, mode: str = "constant", value: float | None = None) -> _Step:
    """Translate padding with channels of zeros."""
    _require(len(pad) == 6 and not any(pad[:4]) and mode == "constant" and not value, f"padding {tuple(pad)}")
    return _Step("subsample", {"step": 1, "before": pad[4], "after": pad[5]})


def _relu(*_: Any, inplace: bool = False) -> _Step:
    return _Step("relu")


def _nothing(*_: Any) -> _Step:
    return _Step("")


def _flatten(shapes: Shapes, start_dim: int = 0, end_dim: int = -1) -> _Step:
    _require((start_dim, end_dim) == (1, -1), f"flattening from {start_dim} to {end_dim}")
    return _Step("")  # a linear layer takes its values in this order


MODULES: Mapping[type[nn.Module], Callable[[Any], _Step]] = {
    nn.Conv2d: _convolution,
    nn.BatchNorm2d: _batch_norm,
    nn.SyncBatchNorm: _batch_norm,
    nn.Linear: _linear,
    nn.ReLU: _relu,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveAvgPool2d: _average_pool,
    nn.Identity: _nothing,
    nn.Dropout: _nothing,
    nn.Flatten: lambda layer: _flatten([], layer.start_dim, layer.end_dim),
}
FUNCTIONS: Mapping[Any, Callable[..., _Step]] = {
    F.relu: _relu,
    torch.relu: _relu,
    "relu": _relu,
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    operator.mul: _multiply,
    operator.getitem: _subsample,
    F.pad: _pad,
    "mean": _reduce("mean"),
    "amax": _reduce("max"),
    torch.flatten: _flatten,
    "flatten": _flatten,
}


# --- Fewer instructions, fewer slots ---------------------------------------------------------------------------------


def _fold(instructions: list[Instruction]) -> list[Instruction]:
    """Fold each affine into the convolution or linear layer before it, if nothing else reads that layer's result."""
    num_readers = Counter(source for instruction in instructions for source in instruction.sources)
    folded: list[Instruction] = []
    moved: dict[int, int] = {}  # from slots of folded affines to those that now hold their results
    position: dict[int, int] = {}  # in `folded`, of the instruction that writes a slot
    for instruction in instructions:
        sources = tuple(moved.get(source, source) for source in instruction.sources)
        before = folded[position[sources[0]]] if sources[0] in position else None
        is_only_reader = num_readers[instruction.sources[0]] == 1
        if instruction.op == "affine" and before and before.op in FOLDS and is_only_reader:
            scale, shift = instruction.arrays["scale"], instruction.arrays["shift"]
            weight, bias = before.arrays["weight"], before.arrays["bias"]
            rows = scale.reshape(-1, *[1] * (weight.ndim - 1))  # [O, 1, …]
            arrays = {"weight": weight * rows, "bias": bias * scale + shift}
            folded[position[sources[0]]] = replace(before, arrays=arrays)
            moved[instruction.target] = sources[0]
            continue
        position[instruction.target] = len(folded)
        folded.append(replace(instruction, sources=sources))
    return folded


def _reuse_slots(instructions: list[Instruction]) -> list[Instruction]:
    """Renumber the slots, so that a result replaces one that is no longer read."""
    last_reader = {source: i for i, instruction in enumerate(instructions) for source in instruction.sources}
    slots, free, num_slots = {0: 0}, list[int](), 1
    renumbered = []
    for i, instruction in enumerate(instructions):
        sources = tuple(slots[source] for source in instruction.sources)
        free += {slots[source] for source in instruction.sources if last_reader[source] == i}
        if not free:
            free.append(num_slots)
            num_slots += 1
        slots[instruction.target] = free.pop()
        renumbered.append(replace(instruction, sources=sources, target=slots[instruction.target]))
    return renumbered
