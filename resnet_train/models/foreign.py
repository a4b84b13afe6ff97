"""Weights from other repositories: find them in a file, recognize their network, and translate parameter names.

The names and functions were compared with the sources of kuangliu/pytorch-cifar, akamaster/pytorch_resnet_cifar10,
chenyaofo/pytorch-cifar-models, weiaicunzai/pytorch-cifar100, xternalz/WideResNet-pytorch and torchvision. Weights that
fit a different function only by their shapes, such as pre-activation blocks whose shortcut starts before the norm, are
refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor

from resnet_train.models.registry import ModelEntry, find_model, list_models, sketch_model

# Entries in which files keep the weights, most specific first; an entry may hold another one.
ENTRIES = (
    *("state_dict", "model_state_dict", "net_state_dict", "net", "model", "model_state", "network", "weights"),
    *("params", "module", "checkpoint", "ema", "state"),
)
MAX_ENTRY_DEPTH = 3
MAX_WEIGHTS, MAX_NAME_LENGTH = 20_000, 300  # resnet1202 has 7,214 tensors
MAX_SHOWN = 2  # names of a kind in an error message

WRAPPERS = {"module", "_orig_mod"}  # DataParallel and averaged models; torch.compile
COUNTERS = {"total_ops", "total_params", "n_averaged"}  # from thop and torch.optim.swa_utils
# The options of a network that change the names or shapes of its parameters.
SHAPE_OPTIONS = {"stem": ("cifar", "imagenet"), "shortcut": ("pad", "projection"), "final_norm": (True, False)}
HEAD = "linear.weight"
NEW_IN_TORCH_0_4 = "num_batches_tracked"


def find_weights(contents: Any) -> tuple[dict[str, Tensor], str]:
    """Return a network's tensors from the contents of a file, and the names of the entries that lead to them.

    Raises:
        ValueError: there are none; the message says what is there instead.
    """
    path: list[str] = []
    while len(path) <= MAX_ENTRY_DEPTH and isinstance(contents, Mapping):
        if any(isinstance(value, Tensor) for value in contents.values()) and not _nested(contents):
            return _check_tensors(contents), ".".join(path)
        name = next((name for name in ENTRIES if isinstance(contents.get(name), Mapping)), None)
        if name is None:
            break
        path.append(name)
        contents = contents[name]
    where = f" in its entry {'.'.join(path)}" if path else ""
    if isinstance(contents, Mapping):
        names = ", ".join(str(name)[:40] for name in list(contents)[:6]) or "nothing"
        raise ValueError(f"it holds no state_dict{where}, but {names}")
    raise ValueError(f"it holds no state_dict{where}, but a {type(contents).__name__}")


def _nested(contents: Mapping[Any, Any]) -> bool:
    """Return whether an entry of this name holds tensors itself, as in `{"state_dict": …, "best_prec1": tensor}`."""
    inner = [contents[name] for name in ENTRIES if isinstance(contents.get(name), Mapping)]
    return any(isinstance(value, Tensor | Mapping) for part in inner for value in part.values())


def _check_tensors(contents: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of a state_dict, which must hold plain ones and little else.

    Raises:
        ValueError: one is sparse, quantized, complex, empty or of a tensor subclass, or a name is not a string.
    """
    if len(contents) > MAX_WEIGHTS:
        raise ValueError(f"it has {len(contents):,} entries; no network here has more than {MAX_WEIGHTS:,}")
    found = {}
    for name, value in contents.items():
        if not isinstance(name, str) or len(name) > MAX_NAME_LENGTH:
            raise ValueError(f"its key {str(name)[:40]!r} is not the name of a parameter")
        if value is None or (isinstance(value, Mapping) and not value):  # extra states of modules
            continue
        if not isinstance(value, Tensor):
            raise ValueError(f"its {name} is a {type(value).__name__}, not a tensor")
        if problem := _unusual(value):
            raise ValueError(f"its {name} is {problem}, not a plain tensor of numbers")
        found[name] = value.detach()
    return found


def _unusual(tensor: Tensor) -> str:
    """Return what keeps a tensor from being a weight, an empty string if nothing does."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_complex() or tensor.dtype.itemsize < 1 or tensor.is_meta:
        return "complex" if tensor.is_complex() else "without values"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"a tensor {list(tensor.shape)} of fewer values"
    return ""


# --- Names -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """The parameter names of a repository.

    Attributes:
        title: whose names they are.
        is_used: returns whether a set of names has this layout.
        renames: patterns and their replacements, applied in order; they lead to the names of this package.
        families: the families whose functions are known to be those of the repository.
    """

    title: str
    is_used: Callable[[set[str]], bool]
    renames: tuple[tuple[str, str], ...]
    families: frozenset[str]


RESIDUAL_FUNCTION = tuple(
    (rf"\.residual_function\.{position}\.", f".{kind}{number}.")
    for position, kind, number in (
        (0, "conv", 1),
        (1, "bn", 1),
        (3, "conv", 2),
        (4, "bn", 2),
        (6, "conv", 3),
        (7, "bn", 3),
    )
)
LAYOUTS = (
    Layout(
        "weiaicunzai",
        lambda names: any(name.startswith("conv2_x.") for name in names),
        (
            (r"^conv1\.0\.", "conv1."),
            (r"^conv1\.1\.", "bn1."),
            *((rf"^conv{number + 1}_x\.", f"layer{number}.") for number in (1, 2, 3, 4)),
            *RESIDUAL_FUNCTION,
            (r"^fc\.", "linear."),
        ),
        frozenset({"resnet"}),
    ),
    Layout(
        "xternalz",
        lambda names: any(name.startswith("block1.layer.") for name in names),
        (
            (r"^block(\d)\.layer\.", r"layer\1."),
            (r"\.convShortcut\.", ".shortcut.0."),
            (r"^bn1\.", "bn."),
            (r"^fc\.", "linear."),
        ),
        frozenset({"wide_resnet"}),
    ),
    Layout(
        "torchvision",
        lambda names: "fc.weight" in names,
        ((r"\.downsample\.", ".shortcut."), (r"^fc\.", "linear.")),
        frozenset({"resnet", "cifar_resnet"}),
    ),
)
OWN_NAMES = Layout("kuangliu or akamaster", bool, (), frozenset())  # the names here are theirs


def _plain_names(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the name of each weight without wrapper prefixes, by the name in the file; counters are left out.

    Raises:
        ValueError: two weights then have the same name.
    """
    plain = {}
    for name in weights:
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        if parts and parts[-1] not in COUNTERS:
            plain[name] = ".".join(parts)

    # A module that holds the whole network, as in `net.conv1.weight`.
    while len({name.partition(".")[0] for name in plain.values()}) == 1 and all("." in name for name in plain.values()):
        plain = {name: short.partition(".")[2] for name, short in plain.items()}
    return _unique(plain)


def _rename(plain: Mapping[str, str], layout: Layout) -> dict[str, str]:
    """Return the name of each weight in this package, by the name in the file."""
    renamed = {}
    for name, short in plain.items():
        for pattern, replacement in layout.renames:
            short = re.sub(pattern, replacement, short)
        renamed[name] = short
    return _unique(renamed)


def _unique(names: dict[str, str]) -> dict[str, str]:
    seen: dict[str, str] = {}
    for name, short in names.items():
        if short in seen:
            raise ValueError(f"its weights {seen[short]} and {name} have the same name {short}")
        seen[short] = name
    return names


# --- Networks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recognized:
    """A network, and the weights of a file under its names.

    Attributes:
        arch, options: arguments for `create_model`.
        num_classes: the number of rows of its last layer.
        layout: whose parameter names the file has.
        weights: everything in the network's `state_dict`.
    """

    arch: str
    options: dict[str, Any]
    num_classes: int
    layout: str
    weights: dict[str, Tensor]


@dataclass
class Misfit:
    """Why weights do not fit a network; names and shapes are those of the file where it has any."""

    arch: str
    options: dict[str, Any]
    missing: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Return how many weights do not fit."""
        return len(self.missing) + len(self.left_over) + len(self.wrong)

    def __str__(self) -> str:
        kinds = (("missing", self.missing), ("left over", self.left_over), ("wrong shape", self.wrong))
        return "; ".join(f"{kind}: {_list_some(names)}" for kind, names in kinds if names)


def recognize(weights: Mapping[str, Tensor], arch: str | None = None) -> Recognized:
    """Return the network that weights belong to, found by their names and shapes.

    Args:
        weights: as `find_weights` returns them.
        arch: the architecture, if it is known; its options are still found.

    Raises:
        ValueError: they fit no network, or not this one; the message names what does not fit.
    """
    plain = _plain_names(weights)
    short = set(plain.values())
    layout = next((layout for layout in LAYOUTS if layout.is_used(short)), OWN_NAMES)
    origin = {renamed: name for name, renamed in _rename(plain, layout).items()}
    head = weights[origin[HEAD]] if HEAD in origin else None
    if head is None or head.ndim != 2 or len(head) < 2:
        found = "none" if head is None else f"one of shape {list(head.shape)}"
        raise ValueError(f"it has no last layer for two or more classes (linear.weight or fc.weight): {found}")

    # Compare with each possible network, and keep the one that fits best.
    best: Misfit | None = None
    for name, options in _candidates(short, set(origin), layout, arch):
        try:
            sketch = sketch_model(name, len(head), MAX_WEIGHTS if arch else len(origin), **options)
        except ValueError:  # it has more parameters than there are weights
            continue
        misfit = _compare(sketch.state_dict(), weights, origin, Misfit(name, options))
        if not misfit.count:
            return _recognized(name, options, len(head), layout, sketch.state_dict(), weights, origin)
        if best is None or misfit.count < best.count:
            best = misfit
    raise ValueError(_describe_misfit(best, arch, layout, short))


def _candidates(
    short: set[str], renamed: set[str], layout: Layout, arch: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the architectures and options that weights with these names may belong to."""
    entries: list[ModelEntry] = list_models()
    if arch is not None:
        entries = [find_model(arch)]
    elif "layer4.0.conv1.weight" not in renamed:
        num_blocks = sum(re.fullmatch(r"layer1\.\d+\.conv1\.weight", name) is not None for name in renamed)
        if 1 <= num_blocks <= 1666:  # of any CIFAR ResNet, named or not
            entries = [find_model(f"resnet{6 * num_blocks + 2}"), *entries]
    for entry in entries:
        if layout.families and entry.family not in layout.families:
            if arch is not None:
                raise ValueError(f"it has the parameter names of {layout.title}, which has no {arch}")
            continue
        choices = [(name, values) for name, values in SHAPE_OPTIONS.items() if name in entry.options]
        for values in product(*(values for _, values in choices)):
            # Defaults are omitted: the first value of each option is the default.
            yield entry.name, {name: value for (name, known), value in zip(choices, values) if value != known[0]}


def _compare(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], origin: Mapping[str, str], misfit: Misfit
) -> Misfit:
    """Return what distinguishes the weights from the expected ones."""
    for name, tensor in expected.items():
        if name not in origin:
            if not name.endswith(NEW_IN_TORCH_0_4):
                misfit.missing.append(name)
        elif weights[origin[name]].shape != tensor.shape:
            found = list(weights[origin[name]].shape)
            misfit.wrong.append(f"{origin[name]} {found} instead of {list(tensor.shape)}")
    misfit.left_over += [origin[name] for name in origin if name not in expected]
    return misfit


def _recognized(
    arch: str,
    options: dict[str, Any],
    num_classes: int,
    layout: Layout,
    expected: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    origin: Mapping[str, str],
) -> Recognized:
    """Return weights of the right shapes with the names and types that the network has.

    Raises:
        ValueError: there are integers where the network has floating-point numbers.
    """
    converted = {}
    for name, tensor in expected.items():
        found = weights[origin[name]] if name in origin else torch.zeros((), dtype=tensor.dtype)
        if found.is_floating_point() != tensor.is_floating_point():
            kind = str(found.dtype).removeprefix("torch.")
            raise ValueError(f"its {origin[name]} has {kind} values, but must have {_kind(tensor)} ones")
        converted[name] = found.to(tensor.dtype)
    return Recognized(arch=arch, options=options, num_classes=num_classes, layout=layout.title, weights=converted)


def _kind(tensor: Tensor) -> str:
    return "floating-point" if tensor.is_floating_point() else "integer"


def _describe_misfit(best: Misfit | None, arch: str | None, layout: Layout, short: set[str]) -> str:
    """Return the error message about weights that fit no network."""
    if best is None:
        return f"it has too few weights ({len(short)}) to be any network here with the names of {layout.title}"
    options = "".join(f" with {name} {value}" for name, value in best.options.items())
    if arch is not None:
        return f"it is not a {arch}{options}: {best}"
    return f"it fits no network here; of {best.arch}{options}, the nearest, {best} (--arch names another)"


def _list_some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + more
