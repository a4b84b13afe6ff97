"""Plugins: what they may register, how they fail, and what a checkpoint says about them."""

from __future__ import annotations

import json
import re
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_train import load_model
from resnet_train.config import TrainConfig, add_setting, option_names
from resnet_train.data.augment import AUGMENTATIONS
from resnet_train.data.dataset import DATASETS
from resnet_train.evaluation.corruptions import CORRUPTIONS
from resnet_train.evaluation.metrics import METRICS
from resnet_train.loggers.base import LOGGERS, logger_files
from resnet_train.models import list_models
from resnet_train.optim.optimizers import OPTIMIZERS
from resnet_train.optim.schedules import SCHEDULES
from resnet_train.plugins import load_plugin, loaded_plugins, unload
from resnet_train.runs.checkpoint import read_checkpoint, write_checkpoint
from tests.harness.cli import SMALL, Outcome, RunCli, run_in_process, run_python

EXAMPLES = Path(__file__).parents[1] / "docs" / "plugins"
QUICK = [*SMALL, "--no-tensorboard", "--name", "x"]
REGISTRIES = (AUGMENTATIONS, CORRUPTIONS, DATASETS, LOGGERS, METRICS, OPTIMIZERS, SCHEDULES)
# A plugin of every kind, each of which changes the result of a run.
EVERYTHING = '''
import math
import torch
from torch import nn
from dataclasses import dataclass, replace
from typing import ClassVar
from resnet_train.config import OPTIMIZATION, add_setting
from resnet_train.data.augment import AUGMENTATIONS, Transform
from resnet_train.data.dataset import DATASETS
from resnet_train.data.sources.digits import digits
from resnet_train.evaluation.metrics import METRICS
from resnet_train.loggers.base import Logger, register_logger
from resnet_train.models import register_model
from resnet_train.optim.optimizers import OPTIMIZERS
from resnet_train.optim.schedules import SCHEDULES

add_setting("beta", float, 0.9, "nadam: decay of the mean.", panel=OPTIMIZATION, ge=0, lt=1)
add_setting("invert", bool, False, "Invert the images.", panel="Augmentation")

class Tiny(nn.Module):
    stride = 1
    def __init__(self, num_classes=10):
        super().__init__()
        self.linear = nn.Linear(3 * 16, num_classes)
    def forward(self, images):
        return self.linear(nn.functional.adaptive_avg_pool2d(images, 4).flatten(1))

@register_model("tiny")
def tiny(num_classes=10):
    return Tiny(num_classes)

@AUGMENTATIONS.register("invert")
@dataclass(frozen=True)
class Invert(Transform):
    def draw(self, rng, num_images, epoch):
        return rng.random(num_images) < 0.5
    def __call__(self, images, parameters):
        return torch.where(parameters[:, None, None, None], 255 - images, images)

@OPTIMIZERS.register("nadam")
def nadam(model, *, lr, beta):
    """Adam with Nesterov momentum."""
    return torch.optim.NAdam(model.parameters(), lr=lr, betas=(beta, 0.999))

@SCHEDULES.register("sine")
def sine(epochs, steps_per_epoch):
    """Half a sine."""
    return lambda step: math.sin(math.pi * (step + 1) / (epochs * steps_per_epoch + 1))

@DATASETS.register("dark_digits")
def dark_digits(split, image_size):
    """Digits of half the brightness."""
    images = digits(split, "", image_size)
    return None if images is None else replace(images, images=images.images // 2, title="dark digits")

@METRICS.register("worst_class")
def worst_class(evaluation):
    return (evaluation.confusion.diagonal() / evaluation.confusion.sum(axis=1).clip(1)).min()

@register_logger("lines", files=("lines.txt", "lines/*"))
class Lines(Logger):
    def __init__(self, folder):
        self.folder = folder
    def start(self, info):
        (self.folder / "lines").mkdir(exist_ok=True)
    def log(self, scalars, *, step, epoch=None):
        with (self.folder / "lines.txt").open("a") as file:
            print(step, sorted(scalars), file=file)
'''
ALL = [
    "--arch=tiny",
    "--dataset=dark_digits",
    "--optimizer=nadam",
    "--beta=0.8",
    "--schedule=sine",
    "--invert",
    "--lr=0.01",
]


def registered() -> list[Any]:
    """Return all names that plugins can add."""
    names = [registry.names() for registry in REGISTRIES]
    return [names, [entry.name for entry in list_models()], option_names(), logger_files(), loaded_plugins()]


@pytest.fixture(autouse=True)
def _unloaded() -> Iterator[None]:
    """Unload what a test has loaded, after which nothing of it is left."""
    before = registered()
    yield
    for name in loaded_plugins():
        unload(name)
    assert registered() == before


def write(tmp_path: Path, text: str, name: str = "own.py") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def unload_all() -> None:
    for name in loaded_plugins():
        unload(name)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Return a directory with a run that was trained with a plugin of every kind, and its output. Read only."""
    cwd = tmp_path_factory.mktemp("plugin")
    write(cwd, EVERYTHING)
    outcome = run_in_process("resnet-train", *QUICK, "--plugin", "own.py", *ALL, "--json", cwd=cwd)
    unload_all()
    assert outcome.code == 0, outcome
    return cwd, outcome


# --- What a plugin adds ----------------------------------------------------------------------------------------------


def test_a_plugin_of_every_kind_trains_and_is_evaluated(run: tuple[Path, Outcome], run_cli: RunCli) -> None:
    cwd, outcome = run
    final = json.loads(outcome.stdout)["final"]
    assert "worst_class" in final["scores"]["test"]
    assert "test_worst_class" in (cwd / "runs/x/metrics.csv").read_text().splitlines()[0].split(",")
    assert len((cwd / "runs/x/lines.txt").read_text().splitlines()) == 2
    numbers = json.loads(run_cli("resnet-eval", "runs/x", "--plugin", "own.py", "--json", cwd=cwd).stdout)
    assert numbers["top1"] == final["scores"]["test"]["accuracy"]
    assert numbers["scores"]["worst_class"] == final["scores"]["test"]["worst_class"]


def test_a_run_with_plugins_resumes_exactly(run: tuple[Path, Outcome], run_cli: RunCli, tmp_path: Path) -> None:
    write(tmp_path, EVERYTHING)
    for epochs, resume in ((1, []), (2, ["--resume", "runs/x"])):
        flags = [*resume, *([] if resume else [*QUICK, *ALL]), "--plugin", "own.py", "--epochs", epochs]
        assert run_cli("resnet-train", *flags, cwd=tmp_path).code == 0
    # The schedule of the first epoch was another one; the same run again, but resumed between two epochs, is equal.
    whole = run_cli("resnet-train", *QUICK[:-1], "y", *ALL, "--plugin", "own.py", "--json", cwd=tmp_path)
    assert json.loads(whole.stdout)["final"] == json.loads(run[1].stdout)["final"]


def test_options_of_a_plugin_are_in_the_help(run_cli: RunCli, tmp_path: Path) -> None:
    write(tmp_path, EVERYTHING)
    text = run_cli("resnet-train", "--plugin=own.py", "--help", cwd=tmp_path).stdout
    assert "--beta" in text
    assert "--invert" in text
    unload_all()
    assert "--beta" not in run_cli("resnet-train", "--help", cwd=tmp_path).stdout


def test_values_of_a_plugin_are_checked(run_cli: RunCli, tmp_path: Path) -> None:
    write(tmp_path, EVERYTHING)
    flags = ["--plugin", "own.py", "--optimizer", "nadam", "--beta"]
    assert "beta (='1.5') must be less than 1" in run_cli("resnet-train", *flags, "1.5", cwd=tmp_path).error
    outcome = run_cli("resnet-train", "--plugin", "own.py", "--beta", "0.5", cwd=tmp_path)
    assert outcome.error == "error: beta (=0.5) has no effect with optimizer sgd; it is used by nadam"


def test_a_plugin_in_a_yaml_file_is_loaded(run_cli: RunCli, tmp_path: Path) -> None:
    write(tmp_path, EVERYTHING)
    write(tmp_path, "add_more = 1", "more.py")
    write(tmp_path, "plugin: own.py\noptimizer: nadam\nbeta: 0.7\n", "own.yaml")
    for flag in (["-c", "own.yaml"], ["--config=own.yaml"], ["-cown.yaml"]):
        outcome = run_cli("resnet-train", *flag, "--plugin=more.py", "--beta=0.6", "--print-config", cwd=tmp_path)
        assert "plugin:\n- own.py\n- more.py\n" in outcome.stdout
        assert outcome.stdout.endswith("beta: 0.6\ninvert: false\n")
        unload_all()


def test_topics_list_what_a_plugin_adds(run_cli: RunCli, tmp_path: Path) -> None:
    write(tmp_path, EVERYTHING)
    for topic, line in (("optimizers", "nadam  Adam with Nesterov"), ("models", "tiny"), ("datasets", "dark_digits")):
        assert line in run_cli("resnet-info", topic, "--plugin", "own.py", cwd=tmp_path).stdout


@pytest.mark.slow
def test_an_installed_package_is_a_plugin(tmp_path: Path) -> None:
    info = tmp_path / "acme-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[resnet_train.plugins]\nacme-nets = acme_nets\n")
    write(tmp_path, EVERYTHING, "acme_nets.py")
    path = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"}
    train = ["-m", "resnet_train.cli.train", *QUICK, *ALL]
    assert run_python(*train, cwd=tmp_path, **path).code == 0
    evaluate = ["-m", "resnet_train.cli.evaluate", "x"]  # where Python finds no acme_nets.py
    assert run_python(*evaluate, cwd=tmp_path / "runs", **path).code == 0
    error = run_python(*evaluate, cwd=tmp_path / "runs").error
    assert "was trained with the plugin acme-nets, which is not loaded; it needs an installation of acme 1.2" in error


# --- How a plugin fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nx = (", r"own.py, line 2: '\(' was never closed"),
        ("x = 1\n\nx.y", r"own.py, line 3: AttributeError: 'int' object has no attribute 'y'"),
        ("import no_such_module", r"own.py, line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys\nsys.exit(3)", r"own.py, line 2: SystemExit: 3"),
        ("raise Exception", r"own.py, line 1: Exception: no message"),
        ("def f():\n    raise KeyError('a')\nf()", r"own.py, line 2: KeyError: 'a'"),
        (
            "from resnet_train.optim.optimizers import OPTIMIZERS\n@OPTIMIZERS.register('sgd')\ndef sgd(): ...",
            r"own.py, line 2: optimizer 'sgd' already exists; choose another name",
        ),
        (
            "from resnet_train.models import register_model\n@register_model('x')\ndef resnet18(): ...",
            r"own.py, line 2: architecture 'resnet18' already exists",
        ),
        (
            "from resnet_train.config import add_setting\nadd_setting('lr', float, 1.0, 'x')",
            r"own.py, line 2: setting 'lr' already exists",
        ),
        (
            "from resnet_train.config import add_setting\nadd_setting('model_dump', int, 1, 'x')",
            r"own.py, line 2: setting 'model_dump' must be a name such as se_reduction",
        ),
        (
            "from resnet_train.config import add_setting\nadd_setting('size', int, 'x', 'x')",
            r"own.py, line 2: setting 'size': its default 'x' is not valid",
        ),
        ("x = '\udc80'".encode("utf-8", "surrogateescape").decode("latin-1"), r"own.py"),
    ],
)
def test_an_error_in_a_plugin_has_its_line(text: str, message: str, run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_bytes(text.encode("latin-1"))
    outcome = run_cli("resnet-train", "--plugin", "own.py", "--help", cwd=tmp_path)
    assert outcome.error.startswith("error: plugin own.py")
    assert re.search(message, outcome.error)


def test_a_plugin_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    before = registered()
    path = write(tmp_path, EVERYTHING + "\n1 / 0\n")
    with pytest.raises(ValueError, match=r"own.py, line \d+: ZeroDivisionError"):
        load_plugin(path)
    assert registered() == before
    load_plugin(write(tmp_path, EVERYTHING))
    assert "beta" in TrainConfig.model_fields


@pytest.mark.parametrize("name", ["none.py", ".", "a\0b.py", "x" * 300])
def test_a_plugin_that_cannot_be_read_is_named(name: str, run_cli: RunCli, tmp_path: Path) -> None:
    for command, *arguments in (["resnet-train"], ["resnet-eval", "x.pt"], ["resnet-info"]):
        error = run_cli(command, *arguments, "--plugin", name, cwd=tmp_path).error
        assert error.startswith("error: cannot read plugin ")


def test_plugins_of_one_name_are_refused(run_cli: RunCli, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, "")
    outcome = run_cli("resnet-train", "--plugin", "a/own.py", "--plugin", "b/own.py", cwd=tmp_path)
    assert outcome.error == "error: plugins a/own.py and b/own.py have the same name; rename one of them"


def test_an_augmentation_needs_its_setting(run_cli: RunCli, tmp_path: Path) -> None:
    write(tmp_path, "from resnet_train.data.augment import AUGMENTATIONS\nAUGMENTATIONS.register('blur')(lambda: None)")
    outcome = run_cli("resnet-train", "--plugin", "own.py", cwd=tmp_path)
    assert outcome.error == "error: augmentation 'blur' needs a setting with its name, which switches it on"


def test_a_plugin_that_was_edited_is_loaded_again(tmp_path: Path) -> None:
    load_plugin(write(tmp_path, EVERYTHING))
    load_plugin(write(tmp_path, EVERYTHING))  # unchanged
    load_plugin(write(tmp_path, EVERYTHING.replace('"beta"', '"gamma_2"')))
    assert "beta" not in option_names()
    assert TrainConfig().gamma_2 == 0.9  # type: ignore[attr-defined]


# --- Checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def other(run: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """Return a copy of the directory of the run."""
    shutil.copytree(run[0], tmp_path / "copy")
    return tmp_path / "copy"


MISSING = "runs/x was trained with the plugin own.py, which is not loaded; it needs --plugin own.py"


@pytest.mark.parametrize(
    "command",
    [
        ["resnet-eval", "runs/x"],
        ["resnet-predict", "runs/x", "own.py"],
        ["resnet-train", "--resume", "runs/x"],
        ["resnet-train", *QUICK, "--resume", "auto"],
        ["resnet-info", "runs/x", "--verify"],
    ],
)
def test_a_missing_plugin_is_named_with_its_remedy(
    command: list[str], run: tuple[Path, Outcome], run_cli: RunCli
) -> None:
    error = run_cli(*command, cwd=run[0]).error
    assert error.replace("/checkpoints/model.pt", "").startswith(f"error: {MISSING}")


def test_a_checkpoint_is_described_without_its_plugin(run: tuple[Path, Outcome], run_cli: RunCli) -> None:
    outcome = run_cli("resnet-info", "runs/x", cwd=run[0])
    assert outcome.code == 0
    assert "own.py" in outcome.stdout
    assert MISSING in outcome.stderr.replace("/checkpoints/model.pt", "")


def test_a_plugin_is_never_run_because_a_checkpoint_names_it(other: Path, run_cli: RunCli) -> None:
    write(other, EVERYTHING + "\nopen('was_run', 'w')\n")
    for command in (["resnet-eval"], ["resnet-predict", "own.py"], ["resnet-info"], ["resnet-train", "--resume"]):
        run_cli(command[0], *command[1:], "runs/x", cwd=other)
    with pytest.raises(ValueError, match=r"was trained with the plugin own\.py"):
        load_model(other / "runs/x")
    assert not (other / "was_run").exists()


def test_what_a_plugin_only_logged_is_evaluated_without_it(run_cli: RunCli, tmp_path: Path) -> None:
    write(tmp_path, "from resnet_train.config import add_setting\nadd_setting('project', str, 'x', 'x')")
    assert run_cli("resnet-train", *QUICK, "--plugin=own.py", "--project=y", cwd=tmp_path).code == 0
    assert read_checkpoint(tmp_path / "runs/x/checkpoints/model.pt")["config"]["project"] == "y"
    unload_all()
    assert run_cli("resnet-eval", "runs/x", cwd=tmp_path).code == 0


def test_the_card_of_an_export_has_the_settings_of_a_plugin(run_cli: RunCli, tmp_path: Path) -> None:
    plugin = write(tmp_path, "from resnet_train.config import add_setting\nadd_setting('project', str, 'x', 'x')")
    assert run_cli("resnet-train", *QUICK, "--plugin", plugin, "--project=y", cwd=tmp_path).code == 0
    for flags in (["--plugin", plugin], []):
        unload_all()
        arguments = ["runs/x", "-f", "hub", "-o", "net", "--force", "--images", 40, *flags]
        assert run_cli("resnet-export", *arguments, cwd=tmp_path).code == 0
        card = (tmp_path / "net/README.md").read_text()
        assert "\nproject: y\n" in card
        assert "Plugins were loaded: own.py." in card.replace("\\", "")
        assert str(tmp_path) not in card + (tmp_path / "net/config.json").read_text()


def test_a_run_of_a_plugin_is_compared_with_it(run: tuple[Path, Outcome], run_cli: RunCli) -> None:
    assert f"{MISSING} (unknown setting 'beta'" in run_cli("resnet-compare", "runs/x", cwd=run[0]).error
    assert run_cli("resnet-compare", "runs/x", "--plugin", "own.py", cwd=run[0]).code == 0


def test_a_missing_data_set_of_a_plugin_is_named(run_cli: RunCli, tmp_path: Path) -> None:
    write(tmp_path, EVERYTHING)
    flags = ["--dataset=dark_digits", "--plugin=own.py"]
    assert run_cli("resnet-train", *QUICK, *flags, cwd=tmp_path).code == 0
    unload_all()
    error = run_cli("resnet-eval", "runs/x", cwd=tmp_path).error
    assert error.replace("/checkpoints/model.pt", "").startswith(f"error: {MISSING} (unknown data set 'dark_digits'")


@pytest.mark.parametrize("command", [["resnet-train", "--resume"], ["resnet-info", "--verify"]])
def test_a_missing_installed_plugin_is_named(command: list[str], other: Path, run_cli: RunCli) -> None:
    plugins = {"acme": {"version": "acme 1.2", "path": None}}
    for path in (other / "runs/x/checkpoints").glob("*.pt"):
        contents = read_checkpoint(path)
        contents["environment"]["plugins"] = plugins
        write_checkpoint(path, contents)
    outcome = run_cli(*command, "runs/x", cwd=other)
    assert outcome.code == 2
    assert "with the plugin acme, which is not loaded; it needs an installation of acme 1.2" in outcome.stderr
    assert "has changed" not in outcome.stderr


def test_resume_auto_names_the_plugin_of_a_run_without_states(other: Path, run_cli: RunCli) -> None:
    for name in ("last", "previous"):
        (other / f"runs/x/checkpoints/{name}.pt").unlink()
    error = run_cli("resnet-train", *QUICK, "--resume", "auto", cwd=other).error
    assert error.startswith(f"error: {MISSING} (unknown setting 'beta'")


def test_a_changed_plugin_is_called_so_when_a_run_is_resumed(other: Path, run_cli: RunCli) -> None:
    write(other, EVERYTHING + "# changed\n")
    outcome = run_cli("resnet-train", "--resume", "runs/x", "--plugin=own.py", "--epochs=3", cwd=other)
    assert outcome.code == 0
    message = "warning: plugin own.py has changed since runs/x was started: the result may differ"
    assert message in outcome.stderr.splitlines()
    again = run_cli("resnet-train", "--resume", "runs/x", "--plugin=own.py", cwd=other)
    assert message not in again.stderr


def test_resume_auto_takes_a_changed_plugin_for_another_run(other: Path, run_cli: RunCli) -> None:
    flags = [*QUICK[:-2], *ALL, "--resume", "auto", "--plugin=own.py"]
    assert "runs/x is finished" in run_cli("resnet-train", *flags, cwd=other).stderr
    write(other, EVERYTHING + "# changed\n")
    assert "is finished" not in run_cli("resnet-train", *flags, cwd=other).stderr
    outcome = run_cli("resnet-train", *flags, "--name", "x", cwd=other)
    assert "plugin own.py has changed since runs/x was started; choose another --name" in outcome.error


def test_a_renamed_plugin_is_recognized_by_its_content(other: Path, run_cli: RunCli) -> None:
    (other / "own.py").rename(other / "new.py")
    assert run_cli("resnet-eval", "runs/x", "--plugin", "new.py", cwd=other).code == 0


@pytest.mark.parametrize("plugins", [None, 3, ["own.py"], {"own.py": 1}, {1: {}}])
def test_an_odd_list_of_plugins_is_ignored(plugins: Any, other: Path, run_cli: RunCli) -> None:
    path = other / "runs/x/checkpoints/model.pt"
    contents = read_checkpoint(path)
    contents["environment"]["plugins"] = plugins
    write_checkpoint(path, contents)
    assert run_cli("resnet-eval", "runs/x", "--plugin", "own.py", cwd=other).code == 0
    unload_all()
    assert "unknown architecture 'tiny'" in run_cli("resnet-eval", "runs/x", cwd=other).error


def test_a_killed_start_may_have_the_files_of_a_logger(run_cli: RunCli, tmp_path: Path) -> None:
    write(tmp_path, EVERYTHING)
    (tmp_path / "runs/x/lines").mkdir(parents=True)
    for name in ("lines.txt", "lines/1.txt", ".unsaved"):
        (tmp_path / "runs/x" / name).touch()
    assert "run runs/x already exists" in run_cli("resnet-train", *QUICK, "--resume", "auto", cwd=tmp_path).error
    flags = [*QUICK, "--resume", "auto", "--plugin", "own.py"]
    assert run_cli("resnet-train", *flags, cwd=tmp_path).code == 0


# --- The examples ----------------------------------------------------------------------------------------------------


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """Return a clean directory with the examples."""
    for path in EXAMPLES.glob("*.py"):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_the_squeeze_and_excitation_network_works(examples: Path, run_cli: RunCli) -> None:
    flags = [*QUICK, "--plugin", "se_resnet.py", "--epochs", 1, "--arch", "se_resnet20", "--se-reduction", 4]
    assert run_cli("resnet-train", *flags, cwd=examples).code == 0
    assert run_cli("resnet-eval", "runs/x", "--plugin", "se_resnet.py", cwd=examples).code == 0
    # Per block of C channels: C·C/16 + C/16 and C/16·C + C more than resnet20's 269,722.
    added = sum(3 * (2 * c * (c // 16) + c // 16 + c) for c in (16, 32, 64))
    listed = run_cli("resnet-info", "se_resnet20", "--plugin", "se_resnet.py", "--json", cwd=examples)
    assert json.loads(listed.stdout)["params"] == 269_722 + added
    assert json.loads(listed.stdout)["options"] == ["--shortcut", "--se-reduction"]


def test_the_metric_is_in_every_output(examples: Path, run_cli: RunCli) -> None:
    outcome = run_cli("resnet-train", *QUICK, "--plugin", "brier_score.py", "--json", cwd=examples)
    assert 0 < json.loads(outcome.stdout)["final"]["scores"]["test"]["brier"] < 2
    assert "test_brier" in (examples / "runs/x/metrics.csv").read_text().splitlines()[0]


def test_the_noise_is_drawn_per_image_and_epoch(examples: Path) -> None:
    load_plugin(examples / "gaussian_noise.py")
    import torch

    noise = AUGMENTATIONS["gaussian_noise"](gaussian_noise=0.5, image_size=8)
    draws = [noise.draw(np.random.default_rng(0), 1000, epoch) for epoch in (0, 0)]
    assert (draws[0] == draws[1]).all()
    added = noise(torch.zeros(1000, 3, 8, 8), torch.from_numpy(draws[0]))
    strengths = added.std(dim=(1, 2, 3))
    assert torch.allclose(strengths, torch.from_numpy(draws[0][:, 2]), atol=0.1)
    assert strengths.min() < 0.05 < 0.45 < strengths.max() < 0.6


def test_the_logger_sends_scalars_and_pictures(
    examples: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    opened: list[dict[str, Any]] = []

    class Run:
        def log(self, values: dict[str, Any]) -> None:
            sent.append(values)

        def finish(self) -> None:
            sent.append({})

    wandb = types.SimpleNamespace(Image=np.shape, init=lambda **values: (opened.append(values), Run())[1])
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    flags = [*SMALL, "--name", "x", "--plugin", "wandb_logger.py", "--wandb-project", "digits", "--log-every", 1]
    assert run_cli("resnet-train", *flags, cwd=examples).code == 0
    assert [(one["project"], one["name"], one["id"]) for one in opened] == [("digits", "x", "x")]
    assert {"epoch/test/accuracy", "loss", "test/confusion matrix"} <= {name for values in sent for name in values}
    assert sent[-1] == {}


def test_the_logger_names_its_package(examples: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    flags = [*QUICK, "--plugin", "wandb_logger.py", "--wandb-project", "digits"]
    error = run_cli("resnet-train", *flags, cwd=examples).stderr.splitlines()[-1]
    assert error == "error: wandb_project (=digits) needs the package wandb: pip install wandb"


def test_a_setting_of_the_package_is_not_taken_back() -> None:
    with pytest.raises(ValueError, match="already exists"):
        add_setting("epochs", int, 3, "x")
    assert TrainConfig().epochs == 200
