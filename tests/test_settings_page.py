"""docs/options.md and the JSON schema for editors, which `resnet-info` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resnet_train.cli import choices
from resnet_train.config import ALIASES, PANELS, TrainConfig, option_names, to_plain
from resnet_train.jobs.settings import list_settings, settings_page, settings_schema
from resnet_train.recipes import read_yaml, recipe_folder
from tests.harness.cli import RunCli

DOCS = Path(__file__).parents[1] / "docs"
TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "null": type(None)}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return settings_schema({name: list(find()) for name, find in choices.NAMED.items()})


def test_page_in_docs_is_up_to_date(run_cli: RunCli, tmp_path: Path) -> None:
    printed = run_cli("resnet-info", "options", cwd=tmp_path).stdout
    assert printed == (DOCS / "options.md").read_text(encoding="utf-8"), "resnet-info options > docs/options.md"


def test_schema_in_docs_is_up_to_date(run_cli: RunCli, tmp_path: Path) -> None:
    printed = run_cli("resnet-info", "schema", cwd=tmp_path).stdout
    assert printed == (DOCS / "recipe.schema.json").read_text(encoding="utf-8"), "resnet-info schema > docs/…"


def test_page_has_every_setting_and_alias() -> None:
    lines = settings_page().splitlines()
    rows = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert sorted(rows) == sorted(option_names())
    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")][:-1] == list(PANELS)
    assert all(f"`--{alias.replace('_', '-')}`" in lines[-1] or alias in settings_page() for alias in ALIASES)


def test_settings_are_listed_as_json(run_cli: RunCli, tmp_path: Path) -> None:
    rows = json.loads(run_cli("resnet-info", "options", "--json", cwd=tmp_path).stdout)
    assert {row["name"]: row["default"] for row in rows} == to_plain(TrainConfig())
    (epochs,) = [row for row in rows if row["name"] == "epochs"]
    assert epochs["values"] == "whole number ≥ 1, ≤ 1,000,000"
    assert not epochs["free"]


def test_free_settings_are_marked() -> None:
    free = {setting.name for setting in list_settings() if setting.free}
    assert "device" in free
    assert not free & {"lr", "epochs", "amp"}


def accepts(value: Any, schema: dict[str, Any]) -> bool:
    """Return whether a value has the type, the range and the choices of a schema."""
    if "anyOf" in schema:
        return any(accepts(value, part) for part in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if not isinstance(value, TYPES[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return False
    return (
        value >= schema.get("minimum", value)
        and value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        if isinstance(value, int | float)
        else True
    )


@pytest.mark.parametrize("recipe", sorted(recipe_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_fits_the_schema(recipe: Path, schema: dict[str, Any]) -> None:
    for name, value in read_yaml(recipe).items():
        assert accepts(value, schema["properties"][name]), (name, value)


def test_defaults_fit_the_schema(schema: dict[str, Any]) -> None:
    assert list(schema["properties"]) == option_names()
    for name, value in to_plain(TrainConfig()).items():
        assert schema["properties"][name]["default"] == value
        assert accepts(value, schema["properties"][name]), name


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0), ("lr", "fast"), ("flip", "up"), ("epochs", 2.5), ("epochs", 0), ("nesterov", 1), ("momentum", -0.1)],
)
def test_schema_refuses_what_the_config_refuses(name: str, value: object, schema: dict[str, Any]) -> None:
    assert not accepts(value, schema["properties"][name])
    assert schema["additionalProperties"] is False
