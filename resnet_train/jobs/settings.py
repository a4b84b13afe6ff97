"""All settings as a page for readers and as a JSON schema for editors of YAML files; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from resnet_train.config import ALIASES, PANELS, TrainConfig, option_metadata, option_names, to_plain, without_none

HEAD = """\
# All settings

Each is a flag of `resnet-train` and `resnet-bench` (`--batch-size 64`) and a key of YAML files (`batch_size: 64`). A
switch is turned off by `--no-…`, or by `false` in YAML. Settings marked *free* may change when a run is resumed.
`epochs` may be raised. All others are part of the experiment: a run with another value is a different run.

This page is printed by `resnet-info options`, and `resnet-info schema` prints the
[JSON schema](recipe.schema.json). With the YAML extension of VS Code, or another editor with yaml-language-server,
this first line of a recipe gives completion, help and checks while you type:

```yaml
# yaml-language-server: $schema=recipe.schema.json
```
"""
FOOT = """\
## Names from other programs

The command line also accepts these: {aliases}. Case does not matter, and `_` is the same as `-`.
"""


@dataclass(frozen=True)
class Setting:
    """A setting as a reader needs it.

    Attributes:
        values: what it accepts, such as `≥ 1` or `zeros, reflect`.
        free: whether a resumed run may change it.
    """

    name: str
    panel: str
    values: str
    default: Any
    free: bool
    about: str


def list_settings() -> list[Setting]:
    """Return all settings in the order of `--help`."""
    defaults = to_plain(TrainConfig())
    names = sorted(option_names(), key=lambda name: PANELS.index(option_metadata(name)["panel"]))
    return [
        Setting(
            name=name,
            panel=option_metadata(name)["panel"],
            values=_describe_values(name),
            default=defaults[name],
            free=option_metadata(name)["on_resume"] == "free",
            about=" ".join((TrainConfig.model_fields[name].description or "").split()),
        )
        for name in names
    ]


def settings_page() -> str:
    """Return the page of all settings as Markdown."""
    aliases = ", ".join(f"`--{alias.replace('_', '-')}`" for alias in sorted(ALIASES))
    return "\n".join([HEAD, *_panels(), FOOT.format(aliases=aliases)]).rstrip()


def _panels() -> Iterator[str]:
    """Yield the lines of a table for each panel."""
    settings = list_settings()
    for panel in PANELS:
        yield from (f"## {panel}", "", "| setting | values | default | what it does |", "|---|---|---|---|")
        for each in (setting for setting in settings if setting.panel == panel):
            default = "–" if each.default in (None, []) else str(each.default).lower()
            about = each.about.replace("|", "\\|") + " *free*" * each.free
            yield f"| `{each.name}` | {each.values} | {default} | {about} |"
        yield ""


def _describe_values(name: str) -> str:
    """Return what a setting accepts."""
    field = TrainConfig.model_fields[name]
    annotation = without_none(field.annotation)
    if get_origin(annotation) is Literal:
        return ", ".join(get_args(annotation))
    if name == "plugin":
        return "paths"
    if get_origin(annotation) is tuple:
        return {tuple[float, ...]: "numbers", tuple[str, ...]: "names"}.get(annotation, "size:share pairs")
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f"{sign} {int(value):,}" if value == int(value) else f"{sign} {value:g}"
        for limit, sign in signs.items()
        for part in field.metadata
        if (value := getattr(part, limit, None)) is not None and value < 2**31
    ]
    kind = {int: "whole number", float: "number", bool: "switch"}.get(annotation, "")
    return " ".join([kind, ", ".join(limits)]).strip() or ("path" if annotation is Path else "name")


def settings_schema(names: dict[str, list[str]]) -> dict[str, Any]:
    """Return a JSON schema for YAML files of settings.

    Args:
        names: the known values of settings that are names; others are allowed, because plugins may add some.
    """
    generated = TrainConfig.model_json_schema()["properties"]
    properties = {}
    for name in option_names():
        known = {
            key: value
            for key, value in generated[name].items()
            if key not in {"title", "format", *option_metadata(name)}
        }
        if name in names:
            known |= {"anyOf": [{"enum": names[name]}, {"type": "string"}]}
            del known["type"]
        properties[name] = known
    properties["milestones"]["anyOf"] += [{"type": "number"}, {"type": "string"}]
    for name in ("progressive_sizes", "freeze"):
        properties[name]["anyOf"] += [{"type": "string"}]
    paths = {key: properties["plugin"].pop(key) for key in ("type", "items")}
    properties["plugin"]["anyOf"] = [paths, {"type": "string"}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of resnet_train",
        "description": "A recipe, or any other YAML file for resnet-train --config.",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
