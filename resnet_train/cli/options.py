"""Turn the settings of `TrainConfig` into Typer options, and merge YAML files and flags."""

from __future__ import annotations

import inspect
import os
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from resnet_train.config import TrainConfig, make_config, option_metadata
from resnet_train.recipes import find_recipe, read_yaml

VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)


def with_config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate `command(settings, **own)` with one option for each setting of `TrainConfig`.

    `settings` holds only the flags that were given, so that a YAML file can set the others.
    """
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]

    def wrapper(**given: Any) -> None:
        own_values = {p.name: given.pop(p.name) for p in own}
        settings = {name: value for name, value in given.items() if value is not None}
        command(settings=settings, **own_values)

    # Typer reads the options from the wrapper's signature.
    generated = [_option_for(name) for name in TrainConfig.model_fields]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*own, *generated]]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    wrapper.__doc__ = command.__doc__
    return wrapper


def gather_settings(config: str | None, flags: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a YAML file, overridden by flags; defaults are not included.

    Raises:
        ValueError: the file has an invalid setting, even if a flag overrides it.
    """
    from_file: dict[str, Any] = {}
    if config is not None:
        path = find_recipe(expand_path(config, "config"))
        from_file = read_yaml(path)
        make_config(from_file, source=str(path))

    # The length of a run is given in epochs or in minutes; a flag replaces what the file says.
    if "minutes" in flags and (other := {"epochs", "epoch_steps"} & flags.keys()):
        raise ValueError(f"--minutes cannot be combined with --{min(other).replace('_', '-')}: it chooses the epochs")
    if "minutes" in flags:
        from_file.pop("epoch_steps", None)
    if "epochs" in flags and from_file.pop("minutes", None) is not None:
        from_file.pop("epoch_steps", None)
    return {**from_file, **flags}


def expand_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with those that are paths expanded.

    Raises:
        ValueError: see `expand_path`.
    """
    is_path = {name: field.annotation is Path for name, field in TrainConfig.model_fields.items()}
    return {
        name: expand_path(value, name) if is_path.get(name) and isinstance(value, str) else value
        for name, value in settings.items()
    }


def expand_path(text: str, name: str) -> str:
    """Return a path with `~`, `~user`, `$VARIABLE` and `${VARIABLE}` expanded, unless it exists as it is written.

    A shell does so only where nothing is quoted and a word starts with the path, not in `--flag=~/x`.

    Raises:
        ValueError: a variable is not set, or the home folder is not known; the message has the name of the setting.
    """

    def value_of(match: re.Match[str]) -> str:
        variable = match[1] or match[2]
        if variable not in os.environ:
            raise ValueError(f"{name} (={text!r}) needs the environment variable {variable}, which is not set")
        return os.environ[variable]

    if os.path.lexists(text):
        return text
    try:
        home = str(Path(text).expanduser()) if text.startswith("~") else text
    except (RuntimeError, ValueError):
        raise ValueError(f"{name} (={text!r}) needs a home folder that is not known here") from None
    return VARIABLE.sub(value_of, home)


def _option_for(name: str) -> inspect.Parameter:
    """Return the Typer parameter of one setting, which is None unless the flag is given."""
    # --name, or --name/--no-name for a switch.
    field = TrainConfig.model_fields[name]
    metadata = option_metadata(name)
    flag = "--" + name.replace("_", "-")
    kind = _flag_type(field.annotation)
    if kind is bool:
        flag += f"/--no-{flag[2:]}"
    option = typer.Option(
        *([flag, metadata["short"]] if metadata["short"] else [flag]),
        help=_help_text(field),
        show_default=False,  # Typer would show None; the help text has the config's default
        rich_help_panel=metadata["panel"],
        metavar=None if kind is bool else _metavar(field.annotation),
    )
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _without_none(annotation: Any) -> Any:
    """Return `X` for `X | None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = [part for part in get_args(annotation) if part is not type(None)]
    return annotation


def _flag_type(annotation: Any) -> type:
    """Return bool for a switch and str for everything else, which `TrainConfig` parses and validates."""
    return bool if _without_none(annotation) is bool else str


def _metavar(annotation: Any) -> str:
    """Return the placeholder of a flag's value in `--help`."""
    annotation = _without_none(annotation)
    if get_origin(annotation) is tuple:
        return "EPOCHS" if annotation == tuple[float, ...] else "SIZES"
    if get_origin(annotation) is Literal:
        return "NAME"
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(annotation, "TEXT")


def _help_text(field: FieldInfo) -> str:
    """Return the field's docstring without backticks, its choices and its default."""
    text = " ".join((field.description or "").replace("`", "").split())
    annotation = _without_none(field.annotation)
    if get_origin(annotation) is Literal:
        text += f" One of: {', '.join(get_args(annotation))}."
    if field.default is not None:
        shown = ("on" if field.default else "off") if isinstance(field.default, bool) else field.default
        text += f" Default: {shown}."
    return text
