"""Turn what people type into the flags that a command has, or into an error that says what to type."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_train.cli import choices
from resnet_train.cli.commands import COMMANDS
from resnet_train.config import ALIASES, TrainConfig

BARE = {"--amp": "auto", "--resume": "auto"}  # what the flag means without a value
TRUE, FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}
NO_WORKERS = "is not needed: threads prepare the batches, there are no worker processes; leave it out"
TORCHRUN = "is not a flag: run torchrun --nproc-per-node N -m resnet_train train …"
# Flags from other programs that have no counterpart here, and what to do instead.
EXPLAINED = {
    **dict.fromkeys(("-j", "--workers", "--num-workers", "--data-workers", "--dataloader-num-workers"), NO_WORKERS),
    **dict.fromkeys(("--gpu", "--gpus", "--cuda", "--use-cuda"), "is not a flag; use --device cuda or cuda:1"),
    **dict.fromkeys(("--no-cuda", "--cpu"), "is not a flag; use --device cpu"),
    **dict.fromkeys(("-e", "--evaluate", "--eval-only", "--test-only"), "is not a flag; run resnet-eval RUN"),
    **dict.fromkeys(("--ddp", "--distributed", "--world-size", "--nproc-per-node"), TORCHRUN),
}


@dataclass(frozen=True)
class Flags:
    """The flags of a command.

    Attributes:
        valued: flags that take a value.
        switches: flags that take none, and the flag that turns each off, if there is one.
        takes_words: whether the command has arguments that are not flags.
    """

    valued: frozenset[str]
    switches: Mapping[str, str | None]
    takes_words: bool

    def __contains__(self, flag: str) -> bool:
        return flag in self.valued or flag in self.switches

    def __iter__(self) -> Iterator[str]:
        return iter([*self.valued, *self.switches])


def flags_of(command: Any) -> Flags:
    """Return the flags of a command that Typer built."""
    valued: set[str] = set()
    switches: dict[str, str | None] = {"--help": None, "-h": None}
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    for option in options:
        if not option.is_flag:
            valued |= set(option.opts)
            continue
        switches |= dict.fromkeys(option.opts, next(iter(option.secondary_opts), None))
        switches |= dict.fromkeys(option.secondary_opts, option.opts[0])
    return Flags(frozenset(valued), switches, takes_words=len(options) < len(command.params))


def repair(arguments: Sequence[str], flags: Flags) -> list[str]:
    """Return the arguments with the flags spelled as the command knows them.

    It understands names from other programs (`--wd`), `--batch_size`, `-epochs`, dashes from a word processor, `-b=64`,
    `--nesterov=true`, and `--amp` and `--resume` without a value.

    Raises:
        ValueError: an unknown flag, a missing value, or a word where only flags are allowed; the message has a hint.
    """
    repaired: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*repaired, word, *rest]
        if not _is_flag(word, flags):
            if not flags.takes_words:
                raise ValueError(_explain_word(word, flags))
            repaired.append(word)
            continue

        # A switch may be followed by true or false; every other flag takes the next word.
        flag, value = _split(word, flags)
        if flag in flags.switches:
            if value is None and rest and rest[0].lower() in {"true", "false"}:
                value = rest.pop(0)
            repaired.append(_switch(flag, value, flags))
        elif value is not None:
            repaired += [flag, value]
        elif rest and not _is_known(rest[0], flags):
            repaired += [flag, rest.pop(0)]
        elif flag in BARE:
            repaired += [flag, BARE[flag]]
        else:
            raise ValueError(f"{flag} needs a value" + (f", but {rest[0]} follows" if rest else ""))
    return repaired


def _is_flag(word: str, flags: Flags) -> bool:
    """Return whether a word is meant as a flag: not `-`, not a negative number."""
    if word.startswith(("–", "—")):  # from a word processor
        return _known_name(word.partition("=")[0], flags) in flags
    return len(word) > 1 and word[0] == "-" and not re.fullmatch(r"-[\d.].*", word)


def _is_known(word: str, flags: Flags) -> bool:
    """Return whether a word is a flag of the command, so that it is not the value of the flag before it."""
    name = word.partition("=")[0]
    return name in flags or (name.startswith("--") and _known_name(name, flags) in flags)


def _split(word: str, flags: Flags) -> tuple[str, str | None]:
    """Return a flag as the command knows it, and its value if it is part of the word.

    Raises:
        ValueError: there is no such flag.
    """
    name, equals, value = word.partition("=")
    known = _known_name(name, flags)
    if known in flags:
        return known, value if equals else None
    if word[:2] in flags and word[0] == "-" and word[1] != "-":  # -b64, -h
        return word[:2], word[2:]
    number = re.fullmatch(r"(-\w)\d+", name)  # -j4
    explanation = EXPLAINED.get(number[1] if number else known)
    raise ValueError(f"{name} {explanation}" if explanation else f"unknown flag {name}{_hint(known, flags)}")


def _known_name(name: str, flags: Flags) -> str:
    """Return the flag that a name stands for, or its plain spelling if there is none."""
    if name in flags:
        return name
    stem = name.lstrip("-–—")
    if len(stem) == 1:
        return f"-{stem}"
    plain = stem.lower().replace("_", "-")
    if f"--{plain}" in flags:
        return f"--{plain}"
    return "--" + ALIASES.get(plain.replace("-", "_"), plain).replace("_", "-")


def _hint(name: str, flags: Flags) -> str:
    """Return what to write instead of an unknown flag."""
    plain = name.lstrip("-")
    setting = plain.removeprefix("no-").replace("-", "_")
    if setting in TrainConfig.model_fields and "--lr" not in flags:
        return "; it is a flag of resnet-train"
    if plain.startswith("no-") and f"--{plain[3:]}" in flags.valued:
        off = [value for value in choices.values_of(setting) or {} if value in ("off", "none")]
        return f"; did you mean {' '.join([f'--{plain[3:]}', *off])}?"

    # The most similar flag, or another program's name for one.
    known = {flag.lstrip("-"): flag for flag in flags if flag.startswith("--")}
    for alias, meant in ALIASES.items():
        flag = f"--{meant.replace('_', '-')}"
        if flag in flags:
            known.setdefault(alias.replace("_", "-"), flag)
    similar = difflib.get_close_matches(plain, known, n=1, cutoff=0.6)
    return f"; did you mean {known[similar[0]]}?" if similar else "; --help lists the flags"


def _switch(flag: str, value: str | None, flags: Flags) -> str:
    """Return a switch, or the flag that turns it off if its value is false.

    Raises:
        ValueError: it has another value, or cannot be turned off.
    """
    if value is None or value.lower() in TRUE:
        return flag
    off = flags.switches[flag]
    if value.lower() not in FALSE or off is None:
        raise ValueError(f"{flag} takes no value (={value!r}); " + (f"{off} turns it off" if off else "leave it out"))
    return off


def _explain_word(word: str, flags: Flags) -> str:
    """Return the message about a word where only flags are allowed."""
    name, equals, value = word.partition("=")
    if equals and _known_name(f"--{name}", flags) in flags:
        return f"unexpected argument {word!r}; did you mean {_known_name(f'--{name}', flags)} {value}?"
    if word.lower() in {"help", "/?", "-?"}:
        return f"unexpected argument {word!r}; --help lists the flags"
    if any(word in {command.name, command.short_name} for command in COMMANDS):
        return f"unexpected argument {word!r}; leave out the name of the command"

    if Path(word).exists() and "--config" in flags:
        flag = "--config" if Path(word).is_file() and Path(word).suffix != ".pt" else "--resume"
        if flag in flags:
            return f"unexpected argument {word!r}; did you mean {flag} {word}?"

    # The most similar name of a network, a recipe, a data set …
    known = {
        name: flag
        for flag, names in (
            ("--schedule", choices.schedules()),
            ("--optimizer", choices.optimizers()),
            ("--dataset", choices.datasets()),
            ("--config", choices.recipes()),
            ("--arch", choices.architectures()),
        )
        for name in names
        if flag in flags
    }
    if similar := difflib.get_close_matches(word.lower(), known, n=1):
        return f"unexpected argument {word!r}; did you mean {known[similar[0]]} {similar[0]}?"
    return f"unexpected argument {word!r}; settings are flags, such as --arch resnet18"
