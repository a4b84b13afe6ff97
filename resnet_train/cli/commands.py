"""The table of commands, which `python -m resnet_train`, the tests and shell completion read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A console script: its name, the module that has its `main`, and one line for lists."""

    name: str
    module: str
    help: str

    @property
    def short_name(self) -> str:
        """The name after `python -m resnet_train`."""
        return self.name.removeprefix("resnet-")


# In the order of a user's work. pyproject.toml lists the same scripts.
COMMANDS = (
    Command("resnet-train", "resnet_train.cli.train", "Train a network, or resume a run."),
    Command("resnet-eval", "resnet_train.cli.evaluate", "Evaluate a checkpoint, a run or an ensemble."),
    Command("resnet-predict", "resnet_train.cli.predict", "Classify your pictures."),
    Command("resnet-compare", "resnet_train.cli.compare", "Compare runs: spread over seeds, differences, power."),
    Command("resnet-export", "resnet_train.cli.export", "Export a network: ONNX, safetensors, a page, a model card."),
    Command("resnet-audit", "resnet_train.cli.audit", "Find duplicates, leaks and likely label errors in a data set."),
    Command("resnet-info", "resnet_train.cli.info", "List networks, recipes and data sets; describe or verify a run."),
    Command("resnet-bench", "resnet_train.cli.bench", "Measure how fast this machine trains."),
)


def find_command(name: str) -> Command | None:
    """Return the command with this full or short name, ignoring case, or None."""
    by_name = {each: command for command in COMMANDS for each in (command.name, command.short_name)}
    return by_name.get(name.lower())
