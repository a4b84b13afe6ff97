"""The values that options accept, found without importing torch: for shell completion and hints."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import resnet_train
from resnet_train.config import TrainConfig, without_none
from resnet_train.jobs.info import read_sizes
from resnet_train.recipes import recipe_names, recipe_text
from resnet_train.weights import SHIPPED

PACKAGE = Path(resnet_train.__file__).parent
MAX_RUNS = 200  # offered by completion

Choices = dict[str, str]  # value: one line about it


def architectures() -> Choices:
    """Return the named architectures with their sizes."""
    return {name: f"{size.family}, {size.params / 1e6:.3g} M parameters" for name, size in read_sizes().items()}


def recipes() -> Choices:
    """Return the shipped recipes with the first line of their heads."""
    return {name: recipe_text(name).partition("\n")[0].lstrip("# ") for name in recipe_names()}


def datasets() -> Choices:
    """Return the data sets."""
    return _registered("DATASETS", "data/sources/*.py")


def optimizers() -> Choices:
    """Return the optimizers."""
    return _registered("OPTIMIZERS", "optim/*.py")


def schedules() -> Choices:
    """Return the learning rate schedules."""
    return _registered("SCHEDULES", "optim/*.py")


def devices() -> Choices:
    """Return the usual devices."""
    return {"auto": "the GPU if there is one", "cpu": "", "cuda": "the first NVIDIA GPU", "mps": "Apple's GPU"}


def configs() -> Choices:
    """Return the recipes and the YAML files of the working directory."""
    return {**recipes(), **{path.name: "file" for path in sorted(Path().glob("*.y*ml"))}}


def runs(beginning: str = "") -> Choices:
    """Return the run folders and checkpoints next to the path being typed, or in runs/."""
    folder = beginning[: beginning.rfind("/") + 1] or "runs/"
    found = {}
    try:
        for path in sorted(Path(folder).expanduser().iterdir()):
            if path.suffix == ".pt" or (path / "checkpoints").is_dir():
                found[folder + path.name] = "checkpoint" if path.suffix == ".pt" else "run"
    except OSError:
        return {}
    return dict(list(found.items())[:MAX_RUNS])


def checkpoints(beginning: str = "") -> Choices:
    """Return runs, checkpoints, and the network that comes with the package."""
    return {**runs(beginning), SHIPPED: "comes with the package"}


# Settings of any string whose values have names.
NAMED: dict[str, Callable[[], Choices]] = {
    "arch": architectures,
    "dataset": datasets,
    "optimizer": optimizers,
    "schedule": schedules,
    "device": devices,
}


def values_of(setting: str) -> Choices | None:
    """Return the values of a setting, or None if it is a number, a path or free text."""
    if setting in NAMED:
        return NAMED[setting]()
    annotation = without_none(TrainConfig.model_fields[setting].annotation)
    return dict.fromkeys(get_args(annotation), "") if get_origin(annotation) is Literal else None


def _registered(registry: str, pattern: str) -> Choices:
    """Return the names that source files register in a registry, each with the first line of its docstring."""
    nodes = [node for path in sorted(PACKAGE.glob(pattern)) for node in ast.parse(path.read_text("utf-8")).body]
    abouts = {
        node.name: (ast.get_docstring(node) or "").partition("\n")[0]
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    return {name: abouts.get(function, "") for node in nodes for name, function in _names_in(node, registry)}


def _names_in(node: ast.stmt, registry: str) -> Iterator[tuple[str, str]]:
    """Yield the name that a statement registers, and the name of the function or class."""
    match node:
        # @REGISTRY.register("name") above a function
        case ast.FunctionDef(name=function, decorator_list=decorators):
            calls = [(decorator, function) for decorator in decorators]
        # REGISTRY.register("name")(function)
        case ast.Expr(value=ast.Call(func=call, args=[ast.Name(id=function)])):
            calls = [(call, function)]
        case _:
            calls = []
    for call, function in calls:
        match call:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="register"), args=[ast.Constant(value)]):
                if name == registry:
                    yield str(value), function
