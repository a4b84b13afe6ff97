"""The values that options accept, found without importing torch: for shell completion and hints."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import resnet_train
from resnet_train.cli.typed_plugins import read_statements, typed_plugins
from resnet_train.config import TrainConfig, without_none
from resnet_train.jobs.info import read_sizes
from resnet_train.recipes import recipe_names, recipe_text
from resnet_train.weights import SHIPPED

PACKAGE = Path(resnet_train.__file__).parent
MAX_RUNS = 200  # offered by completion

Choices = dict[str, str]  # value: one line about it


def architectures() -> Choices:
    """Return the named architectures with their sizes."""
    shipped = {name: f"{size.family}, {size.params / 1e6:.3g} M parameters" for name, size in read_sizes().items()}
    return {**shipped, **_registered("register_model", typed_plugins())}


def recipes() -> Choices:
    """Return the shipped recipes with the first line of their heads."""
    return {name: recipe_text(name).partition("\n")[0].lstrip("# ") for name in recipe_names()}


def datasets() -> Choices:
    """Return the data sets."""
    return _registered("DATASETS", _sources("data/sources"))


def optimizers() -> Choices:
    """Return the optimizers."""
    return _registered("OPTIMIZERS", _sources("optim"))


def schedules() -> Choices:
    """Return the learning rate schedules."""
    return _registered("SCHEDULES", _sources("optim"))


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


def _sources(folder: str) -> list[Path]:
    """Return the files of a package, and the plugins of the line that is being completed."""
    return [*sorted((PACKAGE / folder).glob("*.py")), *typed_plugins()]


def _registered(registry: str, paths: Iterable[Path]) -> Choices:
    """Return the names that source files register in a registry, each with the first line of its docstring."""
    nodes = read_statements(paths)
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
            case ast.Call(func=ast.Name(id="register_model")):
                if registry == "register_model":
                    yield function, function
