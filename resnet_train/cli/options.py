"""Turn the settings of `TrainConfig` into Typer options."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from resnet_train.cli import choices
from resnet_train.cli.completion import complete
from resnet_train.cli.typed_plugins import find_plugins, typed_settings
from resnet_train.config import PANELS, TrainConfig, add_setting, make_config, option_metadata, without_none
from resnet_train.plugins import load_plugins

CHOICES_WIDTH = 22  # columns of `[zeros|reflect]` in --help; more would leave too few for the text
MAX_SEEDS = 1000


def with_config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate `command(settings, **own)` with one option for each setting of `TrainConfig`.

    `settings` holds only the flags that were given, so that a YAML file can set the others.
    """
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]

    def wrapper(**given: Any) -> None:
        own_values = {p.name: given.pop(p.name) for p in own}
        settings = {
            name: ",".join(value) if isinstance(value, list) and name != "plugin" else value
            for name, value in given.items()
            if value not in (None, [])
        }
        command(settings=settings, **own_values)

    # Typer reads the options from the wrapper's signature, panel by panel.
    names = sorted(TrainConfig.model_fields, key=lambda name: PANELS.index(option_metadata(name)["panel"]))
    generated = [_option_for(name) for name in names]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*own, *generated]]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    wrapper.__doc__ = command.__doc__
    return wrapper


def add_plugin_options(app: Any, command: Callable[..., None], examples: str) -> None:
    """Load the plugins that the command line names, and make `command` the command of `app`, with their options.

    If a shell completes the line, add their options without loading them.

    Raises:
        ValueError: a plugin fails.
    """
    load_plugins(find_plugins(sys.argv[1:]))
    for name, kind, about in typed_settings():
        with suppress(ValueError):  # the name is taken
            add_setting(name, kind if kind is bool else kind | None, False if kind is bool else None, about)
    app.registered_commands.clear()
    app.command(examples=examples)(with_config_options(command))


def parse_seeds(text: str, settings: dict[str, Any]) -> list[int]:
    """Return the seeds that `5` (0 to 4), `0,1,7` or `7,` means.

    Args:
        text: the value of --seeds.
        settings: the flags that were given.

    Raises:
        ValueError: it is neither a count nor a list of different seeds, or --seed is also given.
    """
    if "seed" in settings:
        raise ValueError("--seed cannot be combined with --seeds, which lists them: --seeds 0,1,7")
    numbers = [part.strip() for part in text.split(",")]
    is_count = len(numbers) == 1
    if not is_count and not numbers[-1]:
        numbers.pop()
    if not all(number.isascii() and number.isdecimal() and len(number) < 20 for number in numbers):
        raise ValueError(f"seeds (={text!r}) must be a count such as 5, or a list such as 0,1,7")
    seeds = [int(number) for number in numbers]
    if is_count and not 1 <= seeds[0] <= MAX_SEEDS:
        raise ValueError(f"seeds (={text}) must be a count from 1 to {MAX_SEEDS:,}, or a list such as 0,1,7")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds (={text!r}) must be different from each other")
    for seed in seeds:
        make_config({"seed": seed})
    return list(range(seeds[0])) if is_count else seeds


def _option_for(name: str) -> inspect.Parameter:
    """Return the Typer parameter of one setting, which is None unless the flag is given."""
    field = TrainConfig.model_fields[name]
    metadata = option_metadata(name)
    kind = _flag_type(field.annotation)
    flags = [f"--{name.replace('_', '-')}"]
    if kind is bool:
        flags = ["/".join(switch_flags(name))]
    if metadata["short"]:
        flags.append(metadata["short"])
    option = typer.Option(
        *flags,
        help=_help_text(name),
        show_default=False,  # Typer would show None; the help text has the config's default
        rich_help_panel=metadata["panel"],
        metavar=None if kind is bool else _metavar(name),
        autocompletion=None if kind is bool else complete(lambda _: choices.values_of(name) or {}),
    )
    is_list = without_none(field.annotation) == tuple[str, ...]  # may be given several times
    annotation: Any = Annotated[list[str] | None, option] if is_list else Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def switch_flags(name: str) -> tuple[str, str]:
    """Return the flags that turn a setting on and off: --x and --no-x, reversed for a setting `no_x`."""
    flag = name.removeprefix("no_").replace("_", "-")
    pair = f"--{flag}", f"--no-{flag}"
    return pair[::-1] if name.startswith("no_") else pair


def _flag_type(annotation: Any) -> type:
    """Return bool for a switch and str for everything else, which `TrainConfig` parses and validates."""
    return bool if without_none(annotation) is bool else str


def _metavar(name: str) -> str:
    """Return the placeholder of a flag's value in `--help`."""
    annotation = without_none(TrainConfig.model_fields[name].annotation)
    if name == "plugin":
        return "FILE"
    if get_origin(annotation) is tuple:
        return {tuple[float, ...]: "EPOCHS", tuple[str, ...]: "NAMES"}.get(annotation, "SIZES")
    if get_origin(annotation) is Literal and len(listed := f"[{'|'.join(get_args(annotation))}]") <= CHOICES_WIDTH:
        return listed
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(annotation, "NAME")


def _help_text(name: str) -> str:
    """Return the field's docstring without backticks, its choices if the metavar lacks them, and its default."""
    field = TrainConfig.model_fields[name]
    text = " ".join((field.description or "").replace("`", "").split())
    annotation = without_none(field.annotation)
    if get_origin(annotation) is Literal and not _metavar(name).startswith("["):
        text += f" One of: {', '.join(get_args(annotation))}."
    if field.default in (None, ()):
        return text
    if not isinstance(field.default, bool):
        return f"{text} Default: {field.default}."
    return f"{text} Default: on; {switch_flags(name)[1]} turns it off." if field.default else f"{text} Default: off."
