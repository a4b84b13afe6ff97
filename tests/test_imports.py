"""Imports point down: the layers of the package, read from its import statements."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import resnet_train

ROOT = Path(resnet_train.__file__).parent
TOP = "resnet_train"

# Top to bottom; modules of one layer must not import each other's packages. docs/design.md draws the same picture.
LAYERS = [
    {"__main__"},
    {"api", "cli"},
    {"jobs"},
    {"export"},
    {"build", "runs", "report"},
    {"training"},
    {"evaluation"},
    {"data", "models", "optim", "loggers"},
    {"config", "recipes", "records", "runtime"},
    {"plugins"},
    {"registry", "text", "weights"},
]


def module_name(path: Path) -> str:
    parts = [TOP, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def project_imports(module: str) -> set[str]:
    """Return every module of the project that `module` imports, anywhere in its text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            # `from resnet_train.jobs import train` imports a module, `from resnet_train import __version__` a value.
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in full}
    return {name for name in found if name == TOP or name.startswith(f"{TOP}.")}


def part_of(module: str) -> str:
    """Return the top-level package or module that `module` belongs to."""
    return module.removeprefix(f"{TOP}.").partition(".")[0]


def layer_of(module: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part_of(module) in layer)


def test_imports_inside_functions_are_found() -> None:
    assert f"{TOP}.jobs.train" in project_imports(f"{TOP}.cli.train")
    assert TOP in project_imports(f"{TOP}.cli.app")
    assert len(MODULES) > 20


@pytest.mark.parametrize("module", [module for module in MODULES if module != TOP])
def test_module_imports_only_lower_layers(module: str) -> None:
    below = layer_of(module)
    strangers = [
        name
        for name in sorted(project_imports(module))
        if name != TOP and part_of(name) != part_of(module) and layer_of(name) <= below
    ]
    assert strangers == []


def test_imports_have_no_cycle() -> None:
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " imports ".join([*path[path.index(module) :], module])
        if module not in finished:
            for name in project_imports(module) & MODULES.keys() - {TOP}:
                visit(name, (*path, module))
            finished.add(module)

    for module in MODULES:
        visit(module, ())


def test_every_module_has_a_docstring() -> None:
    for module, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), module
