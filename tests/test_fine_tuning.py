"""Fine-tuning: weights to start from, frozen parts, the rate of the last layer, and what a resume compares."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resnet_train.build import check_config
from resnet_train.config import changed_settings, make_config, pin, to_plain, unpin
from resnet_train.models import create_model
from resnet_train.optim.groups import freeze, frozen_names
from resnet_train.optim.optimizers import OPTIMIZERS
from resnet_train.runs.checkpoint import read_model
from resnet_train.runs.naming import default_name
from resnet_train.training.trainer import Trainer
from resnet_train.weights import SHIPPED
from tests.harness.cli import FIXED, ON_DIGITS, Outcome, RunCli
from tests.harness.processes import KILLED, Stop, assert_same_result, needs_fork, run_forked, run_ranks
from tests.harness.trainers import tiny_trainer

OF_A_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
TRUNK = "conv1,bn1,layer*"
SHORT = ["--dataset", "digits", "--image-size", "8", *FIXED, "--train-size", "64", "--batch-size", "32"]
Trained = tuple[Path, Outcome]


def copy_of(trainer: Trainer) -> dict[str, Tensor]:
    """Return copies of all weights, and of the averaged ones."""
    averaged = {} if trainer.averaged is None else trainer.averaged.model.state_dict(prefix="averaged.")
    return {name: value.clone() for name, value in {**trainer.model.state_dict(), **averaged}.items()}


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def changed_names(before: dict[str, Tensor], trainer: Trainer) -> set[str]:
    after = copy_of(trainer)
    return {name for name in before if bits(before[name]) != bits(after[name])}


# --- Frozen parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["layer1", TRUNK, "*conv*,linear"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_frozen_parts_keep_every_bit_and_the_others_change(optimizer: str, pattern: str) -> None:
    settings: dict[str, Any] = {"ema_decay": 0.9, "accumulate": 2, "no_decay_norm_bias": True}
    trainer = tiny_trainer(optimizer=optimizer, freeze=pattern, nesterov=optimizer == "sgd", epochs=1, **settings)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter[(0,) * parameter.ndim] = -0.0  # a zero whose sign an addition would lose
    before, frozen = copy_of(trainer), frozen_names(trainer.model)
    trainer.fit()
    changed = changed_names(before, trainer)
    assert changed == {name for name in before if name.removeprefix("averaged.") not in frozen}
    assert {name for name in frozen if name.startswith("layer1.0.bn1")} == (
        set()
        if pattern.startswith("*")
        else {
            f"layer1.0.bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        }
    )


def test_frozen_norms_normalize_with_their_running_statistics() -> None:
    trainer = tiny_trainer(freeze=TRUNK, epochs=1)
    trainer.fit()
    trainer.model.train()
    trainer.train_epoch(1)
    assert not trainer.model.bn1.training
    assert trainer.model.linear.training


@pytest.mark.parametrize(
    ("pattern", "frozen"),
    [
        ("layer1", 6),
        ("layer1.0", 6),
        ("layer[12]", 12),
        ("layer*", 18),
        ("*.bn2", 6),
        ("*.weight", 15),
        ("conv1.weight", 1),
        ("linear.bias", 1),
    ],
)
def test_a_pattern_names_modules_or_parameters(pattern: str, frozen: int) -> None:
    model = create_model("resnet8")
    freeze(model, [pattern])
    assert sum(not parameter.requires_grad for parameter in model.parameters()) == frozen


def test_a_pattern_that_matches_nothing_lists_names() -> None:
    names = "conv1, bn1, layer1, layer2, layer3, linear"
    message = rf"^freeze \(=layr1\) matches no parameter in {names}; did you mean 'layer1'\?$"
    with pytest.raises(ValueError, match=message):
        check_config(make_config({"arch": "resnet8", "freeze": "conv1,layr1"}))


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^freeze \(=\*\) leaves nothing to train$"):
        check_config(make_config({"arch": "resnet8", "freeze": "*"}))


def test_freeze_is_a_list_or_given_several_times(run_cli: RunCli, tmp_path: Path) -> None:
    assert make_config({"freeze": ["conv1", "bn1"]}) == make_config({"freeze": "conv1, bn1"})
    assert to_plain(make_config({"freeze": "conv1,bn1"}))["freeze"] == "conv1,bn1"
    assert make_config({"freeze": "none"}).freeze is None
    arguments = ("--arch", "resnet8", "--freeze", "conv1", "--freeze", "bn1,layer1", "--print-config")
    assert "\nfreeze: conv1,bn1,layer1\n" in run_cli("resnet-train", *arguments, cwd=tmp_path).stdout


# --- The rate of the last layer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_the_last_layer_learns_at_its_own_rate(optimizer: str) -> None:
    settings = {"optimizer": optimizer, "epochs": 1, "schedule": "constant", "weight_decay": 0.0, "nesterov": False}
    moved = {}
    for scale in (1.0, 10.0):
        trainer = tiny_trainer(head_lr_scale=scale, lr=1e-4, **settings)
        before = copy_of(trainer)
        trainer.model.train()
        trainer.train_step(next(trainer.train_loader.epoch(0)))
        moved[scale] = {name: after - before[name] for name, after in copy_of(trainer).items()}
    for name, step in moved[1.0].items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            expected = 10 * step if name.startswith("linear.") else step
            torch.testing.assert_close(moved[10.0][name], expected, rtol=2e-2, atol=1e-7)


def test_a_scale_without_a_trained_last_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^head_lr_scale \(=10\.0\) has no effect with freeze linear"):
        check_config(make_config({"arch": "resnet8", "freeze": "linear", "head_lr_scale": 10}))


# --- Weights to start from -------------------------------------------------------------------------------------------


def train(run_cli: RunCli, *arguments: object, cwd: Path) -> Outcome:
    outcome = run_cli("resnet-train", *SHORT, "--epochs", 1, *arguments, cwd=cwd)
    assert outcome.code == 0, outcome
    return outcome


def model_of(cwd: Path, name: str) -> dict[str, Tensor]:
    return read_model(cwd / "runs" / name / "checkpoints" / "model.pt").weights


def test_a_run_starts_from_the_network_of_another(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    outcome = train(run_cli, "--weights", trained[0], "--freeze", TRUNK, "--name", "tuned", cwd=tmp_path)
    assert f"starting from {trained[0]}: all tensors of its resnet8" in outcome.stderr
    assert "frozen: 74,640 of 75,290 parameters" in outcome.stderr
    source, tuned = read_model(trained[0] / "checkpoints" / "model.pt").weights, model_of(tmp_path, "tuned")
    assert {name for name in source if bits(source[name]) != bits(tuned[name])} == {"linear.weight", "linear.bias"}


def test_images_are_normalized_as_for_the_weights_unless_said(
    trained: Trained, run_cli: RunCli, tmp_path: Path
) -> None:
    about = read_model(trained[0] / "checkpoints" / "model.pt").about
    train(run_cli, "--weights", trained[0], "--train-size", 50, "--name", "same", cwd=tmp_path)
    train(run_cli, "--weights", trained[0], "--normalize", "0.5,0.25", "--name", "said", cwd=tmp_path)
    found = [read_model(tmp_path / "runs" / name / "checkpoints" / "model.pt").about for name in ("same", "said")]
    assert [one.mean for one in found] == [about.mean, [0.5, 0.5, 0.5]]
    assert [one.std for one in found] == [about.std, [0.25, 0.25, 0.25]]


def test_other_classes_get_a_new_last_layer(run_cli: RunCli, tmp_path: Path) -> None:
    torch.save(create_model("resnet8", 7).state_dict(), tmp_path / "seven.pth")
    outcome = train(run_cli, "--weights", "seven.pth", "--normalize", "imagenet", "--name", "ten", cwd=tmp_path)
    assert "warning" not in outcome.stderr
    assert "42 of 44 tensors" in outcome.stderr
    assert "new last layer (linear) for 10 classes; the file has 7" in outcome.stderr
    about = read_model(tmp_path / "runs" / "ten" / "checkpoints" / "model.pt").about
    assert (about.arch, len(about.classes), about.mean) == ("resnet8", 10, [0.485, 0.456, 0.406])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "none.pt"], r"weights: cannot read none\.pt"),
        (["--weights", "seven.pth", "--arch", "resnet20"], r"weights: cannot use seven\.pth: it is not a resnet20"),
        (["--weights", "seven.pth", "--freeze", "linear"], r"freeze \(=linear\) freezes the new linear"),
    ],
)
def test_unusable_weights_are_one_line(arguments: list[str], message: str, run_cli: RunCli, tmp_path: Path) -> None:
    torch.save(create_model("resnet8", 7).state_dict(), tmp_path / "seven.pth")
    outcome = run_cli("resnet-train", *SHORT, "--normalize", "cifar10", *arguments, cwd=tmp_path)
    assert outcome.code == 2
    assert re.search(message, outcome.stderr), outcome
    assert not (tmp_path / "runs").exists()


def test_the_network_of_the_package_is_known_by_its_name(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", "--weights", SHIPPED, "--print-config", cwd=tmp_path)
    assert "arch: resnet20\n" in outcome.stdout
    assert re.search(rf"^weights: {SHIPPED}@[0-9a-f]{{16}}$", outcome.stdout, re.MULTILINE)


def test_runs_are_compared_by_the_content_of_their_weights(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    shutil.copy(trained[0] / "checkpoints" / "model.pt", tmp_path / "one.pt")
    train(run_cli, "--weights", "one.pt", "--resume", "auto", cwd=tmp_path)
    (tmp_path / "one.pt").rename(tmp_path / "two.pt")
    again = train(run_cli, "--weights", "two.pt", "--resume", "auto", cwd=tmp_path)
    assert "is finished; nothing to do" in again.stderr
    torch.save(create_model("resnet8").state_dict(), tmp_path / "two.pt")
    train(run_cli, "--weights", "two.pt", "--normalize", "cifar10", "--resume", "auto", cwd=tmp_path)
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_description_names_weights_by_their_content(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    shutil.copy(trained[0] / "checkpoints" / "model.pt", tmp_path / "one.pt")
    train(run_cli, "--weights", "one.pt", "--name", "run", cwd=tmp_path)
    described = tmp_path / "runs" / "run" / "config.yaml"
    assert re.search(r"^weights: one\.pt@[0-9a-f]{16}$", described.read_text(), re.MULTILINE)
    torch.save(create_model("resnet8").state_dict(), tmp_path / "one.pt")
    outcome = run_cli("resnet-train", "--config", described, "--name", "other", cwd=tmp_path)
    assert "weights (=one.pt) has changed" in outcome.error


def test_a_digest_is_what_counts_of_a_path() -> None:
    one, two = pin(Path("a b.pt"), "0" * 64), pin(Path("/c/d.pt"), "0" * 64)
    assert unpin(one) == (Path("a b.pt"), "0" * 16)
    assert unpin(Path("me@home.pt")) == (Path("me@home.pt"), "")
    same, other = (make_config({"weights": str(path)}) for path in (two, pin(Path("a b.pt"), "1" * 64)))
    assert changed_settings(make_config({"weights": str(one)}), same) == {}
    assert list(changed_settings(make_config({"weights": str(one)}), other)) == ["weights"]


def test_the_name_of_a_run_says_what_it_started_from() -> None:
    settings = {"weights": "runs/big/checkpoints/model.pt", "normalize": "0.5,0.25", "freeze": "conv1,layer*"}
    assert default_name(make_config(settings)) == "resnet18-cifar10-weights-big-freeze-conv1+layer_-seed0"


@pytest.mark.slow
@needs_fork
def test_a_killed_fine_tuning_ends_in_the_same_bits(trained: Trained, tmp_path: Path) -> None:
    arguments = [*ON_DIGITS, "--train-size", "64", "--batch-size", "16", "--epochs", "3", "--threads", "1"]
    arguments += ["--no-tensorboard", "--weights", str(trained[0]), "--freeze", "conv1,bn1,layer1"]
    arguments += ["--head-lr-scale", "3", "--ema-decay", "0.9"]
    assert run_forked(*arguments, "--name", "whole", cwd=tmp_path).code == 0
    assert run_forked(*arguments, "--name", "killed", cwd=tmp_path, stop=Stop("step", 6)).code == KILLED
    assert run_forked(*arguments, "--name", "killed", "--resume", "auto", cwd=tmp_path).code == 0
    assert_same_result(tmp_path / "runs" / "whole", tmp_path / "runs" / "killed")


@pytest.mark.slow
@needs_fork
def test_two_processes_fine_tune_with_the_same_frozen_bits(trained: Trained, tmp_path: Path) -> None:
    arguments = [*SHORT, "--epochs", "1", "--weights", trained[0], "--freeze", TRUNK, "--name", "run"]
    for ended in run_ranks(*arguments, cwd=tmp_path):
        assert ended.code == 0, ended
    source, tuned = read_model(trained[0] / "checkpoints" / "model.pt").weights, model_of(tmp_path, "run")
    assert {name for name in source if bits(source[name]) != bits(tuned[name])} == {"linear.weight", "linear.bias"}


@pytest.mark.slow
def test_a_compiled_fine_tuning_keeps_frozen_bits() -> None:
    trainer = tiny_trainer(compile=True, freeze="conv1,bn1,layer1", epochs=1, ema_decay=0.9)
    before, frozen = copy_of(trainer), frozen_names(trainer.model)
    trainer.fit()
    assert changed_names(before, trainer) == {name for name in before if name.removeprefix("averaged.") not in frozen}
