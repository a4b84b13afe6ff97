"""Recipes: YAML files of settings, shipped with the package or written by the user."""

from __future__ import annotations

import codecs
import re
import reprlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from resnet_train.registry import nearest
from resnet_train.text import escape

# The longest first, because the mark of UTF-32 starts with that of UTF-16.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class _Loader(yaml.SafeLoader):
    """Load scalars as in YAML 1.2: 1e-3 is a number, 010 is ten, and on, off, yes, no and 1:30 are strings.

    A key that occurs twice in one mapping is an error. A key may override one that a merge (`<<`) brings in.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping as written, before merges.

        Raises:
            ComposerError: it has a key twice.
        """
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in lines:
                first = lines[key.tag, key.value] + 1
                problem = f"{reprlib.repr(key.value)} is set twice, first on line {first}"
                raise ComposerError(None, None, problem, key.start_mark)
            lines[key.tag, key.value] = key.start_mark.line
        return node


class _Dumper(yaml.SafeDumper):
    """Quote strings that `_Loader` would not load as strings, and escape those that are not printable."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Return a string as a node."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)

_SCALARS = (
    ("bool", r"true|false|True|False|TRUE|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)
# Replace PyYAML's resolvers, which follow YAML 1.1, except those for null and merge keys.
for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in _kind.yaml_implicit_resolvers.items()
    }
    for _name, _pattern, _first in _SCALARS:
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), list(_first))


def recipe_folder() -> Path:
    """Return the folder of the shipped recipes: inside an installed package, next to it in a checkout."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def recipe_text(name: str) -> str:
    """Return the YAML text of a shipped recipe, including the comment at its head."""
    return (recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def find_recipe(name_or_path: str) -> Path:
    """Return the path of a shipped recipe, or `name_or_path` itself if it is a file.

    Raises:
        ValueError: it is neither a recipe nor a file.
    """
    if name_or_path in recipe_names():
        return recipe_folder() / f"{name_or_path}.yaml"
    with suppress(OSError, ValueError):  # the name is too long or has a null character
        if Path(name_or_path).is_file():
            return Path(name_or_path)
    hint = nearest(name_or_path, recipe_names()) or f"; recipes: {', '.join(recipe_names())}"
    raise ValueError(f"config {name_or_path!r} is neither a recipe nor a readable file{hint}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file.

    Raises:
        ValueError: the file can't be read, is not valid YAML, or is not a mapping with string keys.
    """
    text = _read_text(path)
    try:
        values = yaml.load(text, Loader=_Loader)  # noqa: S506 - it is a SafeLoader
    # The constructors of explicit tags, such as `!!int ''`, raise all kinds of exceptions.
    except Exception as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{path}{where} is not valid YAML: {reason or type(error).__name__}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a mapping of settings (such as 'lr: 0.1'), not a {type(values).__name__}")
    if other := [key for key in values if not isinstance(key, str)]:
        raise ValueError(f"{path} has a key that is not a string: {other[0]!r}")
    return values


def _read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark, as PowerShell writes.

    Raises:
        ValueError: the file can't be read, or has another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line} is not {encoding.upper()} text (byte 0x{content[error.start]:02x}); save it as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(f"{path} has null bytes, as UTF-16 without a byte order mark has; save it as UTF-8")
    return text


def to_yaml(values: dict[str, Any], encoding: str = "utf-8") -> str:
    """Return settings as YAML text that `read_yaml` reads back to the same values.

    Characters that the encoding lacks, or that a terminal could not show, are escaped as YAML does.
    """
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    if all(escape(line, encoding) == line for line in text.splitlines()):
        return text
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=False)
