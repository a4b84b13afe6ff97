"""A folder for the Hugging Face Hub: model card, description and weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml

from resnet_train import __version__, text
from resnet_train.config import TrainConfig, to_plain
from resnet_train.export.formats import FORMATS, Files, Format, Opened, Source, open_checkpoint
from resnet_train.export.safetensors_file import SafetensorsFile
from resnet_train.recipes import to_yaml
from resnet_train.runs.folder import EXPORTED
from resnet_train.runs.needed_plugins import needed_plugins
from resnet_train.runtime.duration import format_training_length
from resnet_train.runtime.extras import import_extra

CARD, DESCRIPTION, WEIGHTS = "README.md", "config.json", EXPORTED
HUB_NAMES = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}  # names of data sets
FOLDER_TYPE = "imagefolder"  # for any other data
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")  # such as mit or apache-2.0; the Hub lists them
MARKUP = re.compile(
    r"([\\`*_{}\[\]<>#+\-!|~&:@$=]|(?<=www)\.)", re.IGNORECASE
)  # what Markdown may interpret within a line


@FORMATS.register("hub")
class HubFolder(Format):
    """A folder for the Hugging Face Hub: model card with measured numbers, config.json and model.safetensors."""

    suffix = "-hub"
    files = (CARD, DESCRIPTION, WEIGHTS)
    modules = ("safetensors",)
    needs_evaluation = True

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Check the license, and whether a push can start."""
        if (license := options.get("license")) is not None and not LICENSE.fullmatch(license):  # noqa: A001
            raise ValueError(f"license (={license!r}) must be an identifier of the Hub, such as mit or apache-2.0")
        if (repo := options.get("push")) is not None:
            _check_push(repo)

    def encode(self, source: Source, license: str = "unknown", push: str | None = None) -> Files:  # noqa: A002
        """Return the files; `push` is the repository that the card names."""
        return {
            CARD: write_card(source, license, push).encode(),
            DESCRIPTION: json.dumps(describe(source), indent=2).encode(),
            WEIGHTS: SafetensorsFile().encode(source),
        }

    def open(self, path: Path, source: Source) -> Opened:
        """Read the weights as every command does; the card may have been edited."""
        try:
            description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path / DESCRIPTION} is damaged: {error}") from None
        if json.dumps(description) != json.dumps(describe(source)):  # in which NaN equals itself
            raise ValueError(f"{path / DESCRIPTION} describes another network")
        return open_checkpoint(path / WEIGHTS, source)


def describe(source: Source) -> dict[str, Any]:
    """Return what config.json says about the network."""
    about, calibration = source.about, source.checkpoint.calibration
    return {
        "library_name": "resnet-train",
        "arch": about.arch,
        "arch_options": about.arch_options,
        "id2label": {str(number): name for number, name in enumerate(about.classes)},
        "image_size": about.image_size,
        "mean": about.mean,
        "std": about.std,
        "calibration": calibration.model_dump() if calibration else None,
        "training": source.checkpoint.config,
    }


# --- The card --------------------------------------------------------------------------------------------------------


def write_card(source: Source, license: str, repo: str | None) -> str:  # noqa: A002
    """Return the model card: YAML for the Hub, then Markdown."""
    matter = text.escape_all(_front_matter(source, license))  # a line of a name could end the YAML
    front = yaml.safe_dump(matter, sort_keys=False, allow_unicode=False, width=1000)
    about = source.about
    parts = [
        f"---\n{front}---",
        f"# {escape(about.arch)} on {escape(about.title)}",
        f"An image classifier for pictures of {about.image_size}×{about.image_size} pixels, made by resnet_train.",
        "## How to use it",
        f'```\npip install "resnet-train[{"hub" if repo else "export"}]"\n```',
        f"```python\n{_snippet(repo)}\n```",
        "In a folder with these files, `resnet-predict . picture.jpg` classifies a picture.",
        "## What it knows",
        f"{text.counted(len(about.classes), 'class')}: {', '.join(map(escape, about.classes))}. "
        "A picture of anything else also gets one of them.",
        "## Results",
        _results(source),
        "## Training",
        _training(source),
    ]
    return "\n\n".join(parts) + "\n"


def escape(name: object) -> str:
    """Return text as Markdown that shows it literally, within a line."""
    return MARKUP.sub(r"\\\1", text.escape(str(name)))


def _front_matter(source: Source, license: str) -> dict[str, Any]:  # noqa: A002
    """Return what the Hub reads: https://huggingface.co/docs/hub/model-cards."""
    about, evaluation = source.about, source.evaluation
    dataset = HUB_NAMES.get(about.dataset)
    matter: dict[str, Any] = {
        "license": license,
        "library_name": "resnet-train",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "resnet", "pytorch", about.arch],
        **({"datasets": [dataset]} if dataset else {}),
        "metrics": ["accuracy"],
    }
    if evaluation is not None and evaluation["chosen_on"] != evaluation["split"]:
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"type": dataset or FOLDER_TYPE, "name": evaluation["title"], "split": evaluation["split"]},
            "metrics": [{"type": "accuracy", "name": "top-1 accuracy", "value": evaluation["top1"]}],
        }
        matter["model-index"] = [{"name": f"{about.arch} on {about.title}", "results": [result]}]
    return matter


def _snippet(repo: str | None) -> str:
    """Return the lines that load the network; a test executes them."""
    if repo is None:
        return f'from resnet_train import load_model\n\nmodel = load_model("{WEIGHTS}")'
    return (
        "from huggingface_hub import hf_hub_download\n"
        "from resnet_train import load_model\n\n"
        f'model = load_model(hf_hub_download("{repo}", "{WEIGHTS}"))'
    )


def _results(source: Source) -> str:
    """Return the measured numbers as a table, with the command that measures them."""
    evaluation = source.evaluation
    if evaluation is None:
        return "Not measured: the test images were not available when this card was written."
    low, high = evaluation["ci95"]
    calibration = evaluation["calibration"]
    versions = f"resnet_train {__version__}", f"torch {torch.__version__}", evaluation["device"], f"{date.today()}"
    rows = {
        "top-1 accuracy": f"{evaluation['top1']:.2%} (95 % interval {low:.2%} to {high:.2%})",
        "top-5 accuracy": None if evaluation["top5"] is None else f"{evaluation['top5']:.2%}",
        "balanced accuracy": f"{evaluation['scores']['balanced_accuracy']:.2%}",
        "macro-F1": f"{evaluation['scores']['macro_f1']:.4f}",
        "mean cross-entropy": f"{evaluation['loss']:.4f}",
        "expected calibration error": f"{calibration['ece']:.2%}",
    }
    lines = [
        f"On {evaluation['n']:,} {evaluation['split']} images of {escape(evaluation['title'])}:",
        "",
        "| | |\n|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items() if value is not None),
        "",
        f"Measured with `resnet-eval {WEIGHTS}` on these images: {', '.join(versions)}.",
    ]
    if evaluation["chosen_on"] == evaluation["split"]:
        split = evaluation["split"]
        lines.append(f"This epoch was selected on the {split} images: do not report this accuracy.")
    if (stored := source.checkpoint.calibration) is not None:
        lines += [
            "",
            f"Logits divided by {stored.temperature:.3f} give calibrated probabilities. A picture whose logits have a "
            f"log-sum-exp below {stored.known_from:.3f} is unlike 95 % of the validation images.",
        ]
    return "\n".join(lines)


def _training(source: Source) -> str:
    """Return the settings, and versions and hardware."""
    checkpoint = source.checkpoint
    if (origin := checkpoint.origin) is not None:
        return f"The weights were trained by other code, with the parameter names of {escape(origin.layout)}."
    if checkpoint.metrics is None:
        return "How it was trained is not recorded."
    settings, defaults = checkpoint.config, to_plain(TrainConfig())
    # The settings of a plugin that is not loaded have no known defaults.
    changed = {name: settings[name] for name in settings if name not in defaults or settings[name] != defaults[name]}
    parts = [
        f"It was trained for {format_training_length(checkpoint.epoch, checkpoint.steps_after_epoch)}. "
        "These settings of `resnet-train` are not the defaults:",
        _fence(to_yaml(changed, "ascii"), "yaml"),
    ]
    environment = checkpoint.environment
    if plugins := [escape(plugin.name) for plugin in needed_plugins(environment)]:
        parts.append(
            f"Plugins were loaded: {', '.join(plugins)}. One that defines the network is needed to load it, with "
            f"`--plugin FILE` or `resnet_train.plugins.load_plugin(FILE)`."
        )
    if versions := [f"{name} {environment[name]}" for name in ("resnet_train", "torch") if environment.get(name)]:
        parts.append(escape(", ".join([*versions, str(environment.get("device_name", ""))]).rstrip(", ")) + ".")
    return "\n\n".join(parts)


def _fence(content: str, language: str) -> str:
    """Return a block of code whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content.rstrip()}\n{fence}"


# --- To the Hub ------------------------------------------------------------------------------------------------------


def _check_push(repo: str) -> None:
    """Check that a push can start.

    Raises:
        ValueError: huggingface-hub is not installed, there is no token, or the repository has no valid name.
    """
    hub = import_extra("huggingface_hub", "--push")
    try:
        import_extra("huggingface_hub.utils", "--push").validate_repo_id(repo)
    except ValueError as error:
        raise ValueError(f"--push (={repo!r}) must be USER/NAME: {' '.join(str(error).split())[:200]}") from None
    if hub.get_token() is None:
        raise ValueError("--push needs a token of huggingface.co: run `hf auth login`, or set HF_TOKEN")


def push_folder(folder: Path, repo: str) -> str:
    """Upload the files of a folder to a repository, which is created if it does not exist, and return its address.

    Raises:
        OSError: the Hub refused, or cannot be reached.
    """
    hub = import_extra("huggingface_hub", "--push")
    api = hub.HfApi()
    try:
        address = str(api.create_repo(repo, exist_ok=True))
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload with resnet-export")
    except Exception as error:  # from the Hub, HTTP or the network
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise OSError(f"cannot push {folder} to {repo}: {reason}") from error
    return address
