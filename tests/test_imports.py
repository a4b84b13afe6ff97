"""Which module may import which: the layers of the package, read from its import statements."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import resnet_train

ROOT = Path(resnet_train.__file__).parent
TOP = "resnet_train"


def module_name(path: Path) -> str:
    parts = [TOP, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def project_imports(module: str) -> set[str]:
    """Every module of the project that `module` imports, anywhere in its text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            # `from resnet_train import run` imports a module, `from resnet_train import __version__` a value.
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in full}
    return {name for name in found if name == TOP or name.startswith(f"{TOP}.")}


def is_within(module: str, *layers: str) -> bool:
    return any(module == f"{TOP}.{layer}" or module.startswith(f"{TOP}.{layer}.") for layer in layers)


def modules_of(*layers: str) -> list[str]:
    found = [module for module in MODULES if is_within(module, *layers)]
    assert found, layers
    return found


def strangers(layer: str, *allowed: str) -> list[str]:
    """Imports of a layer that go elsewhere than into itself, into what is allowed, or to the top-level module."""
    return [
        f"{module} imports {name}"
        for module in modules_of(layer)
        for name in sorted(project_imports(module))
        if name != TOP and not is_within(name, layer, *allowed)
    ]


def test_the_reader_of_imports_sees_those_inside_functions_and_of_modules() -> None:
    assert "resnet_train.run" in project_imports("resnet_train.cli.train")
    assert "resnet_train.registry" in project_imports("resnet_train.config")
    assert TOP in project_imports("resnet_train.cli.entry")
    assert len(MODULES) > 20


@pytest.mark.parametrize(
    ("layer", "allowed"),
    [
        ("registry", ()),
        ("records", ()),
        ("config", ("registry",)),
        ("recipes", ("registry",)),
        ("runtime", ()),
        ("models", ("registry",)),
        ("optim", ("registry",)),
        ("data", ("registry", "runtime")),
        ("loggers", ("records", "report")),
        ("report", ("records", "loggers")),
    ],
)
def test_a_layer_imports_only_what_lies_below_it(layer: str, allowed: tuple[str, ...]) -> None:
    assert strangers(layer, *allowed) == []


@pytest.mark.parametrize("layer", ["models", "data", "optim", "runtime", "loggers", "report", "config", "recipes"])
def test_no_part_imports_what_puts_the_parts_together(layer: str) -> None:
    upper = (
        "training",
        "build",
        "run",
        "judge",
        "bench",
        "cli",
        *(() if layer in {"loggers", "report"} else ("loggers", "report")),
    )
    assert [
        f"{module} imports {name}"
        for module in modules_of(layer)
        for name in project_imports(module)
        if is_within(name, *upper)
    ] == []


def test_the_maker_of_the_parts_does_not_know_who_uses_them() -> None:
    assert [
        name
        for name in project_imports(f"{TOP}.build")
        if is_within(name, "run", "judge", "bench", "cli", "loggers", "report")
    ] == []


def test_only_what_uses_the_parts_imports_their_maker() -> None:
    allowed = {f"{TOP}.run", f"{TOP}.judge", f"{TOP}.bench"}
    users = {module for module in MODULES if f"{TOP}.build" in project_imports(module)}
    assert f"{TOP}.run" in users
    assert [module for module in users - allowed if not is_within(module, "cli")] == []


@pytest.mark.parametrize("top", ["run", "judge", "bench", "cli"])
def test_only_the_command_line_imports_what_puts_the_parts_together_and_itself(top: str) -> None:
    assert [
        f"{module} imports {name}"
        for module in MODULES
        if not is_within(module, "cli")
        for name in project_imports(module)
        if is_within(name, top)
    ] == []


def test_data_does_not_know_models_and_models_do_not_know_data() -> None:
    assert not [name for module in modules_of("data") for name in project_imports(module) if is_within(name, "models")]
    assert not [name for module in modules_of("models") for name in project_imports(module) if is_within(name, "data")]


def test_every_module_says_what_it_is_for() -> None:
    for module, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), module
