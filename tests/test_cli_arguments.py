"""What people type: other programs' flags, other spellings, missing values, and words where flags may stand."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import typer

from resnet_train.cli.arguments import ALIASES, Flags, flags_of, repair
from resnet_train.config import TrainConfig
from tests.harness.cli import MODULES, RunCli


def flags_for(command: str) -> Flags:
    """Return the flags of a command."""
    return flags_of(typer.main.get_command(importlib.import_module(MODULES[command]).app))


@pytest.fixture(scope="module")
def train() -> Flags:
    return flags_for("resnet-train")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--wd 5e-4", "--weight-decay 5e-4"),
        ("--wd=5e-4", "--weight-decay 5e-4"),
        ("--opt sgd", "--optimizer sgd"),
        ("--model resnet20", "--arch resnet20"),
        ("--lr-scheduler step", "--schedule step"),
        ("--lr_scheduler step", "--schedule step"),
        ("--bs 64", "--batch-size 64"),
        ("--learning-rate 0.1", "--lr 0.1"),
        ("--batch_size 64", "--batch-size 64"),
        ("--Batch-Size 64", "--batch-size 64"),
        ("--no_tensorboard", "--no-tensorboard"),
        ("-epochs 3", "--epochs 3"),
        ("-lr 0.1", "--lr 0.1"),
        ("–epochs 3", "--epochs 3"),
        ("—epochs=3", "--epochs 3"),
        ("-b64", "-b 64"),
        ("-b=64", "-b 64"),
        ("-help", "--help"),
        ("--lr -0.1", "--lr -0.1"),
        ("--name=a=b", "--name a=b"),
        ("--amp --nesterov", "--amp auto --nesterov"),
        ("--amp", "--amp auto"),
        ("--amp bf16", "--amp bf16"),
        ("--resume -c quickstart", "--resume auto -c quickstart"),
        ("--resume", "--resume auto"),
        ("--resume runs/x", "--resume runs/x"),
        ("--nesterov true", "--nesterov"),
        ("--nesterov=1", "--nesterov"),
        ("--nesterov False", "--no-nesterov"),
        ("--no-nesterov=false", "--nesterov"),
        ("--decay-norm-bias", "--decay-norm-bias"),
        ("--data_path --x", "--data-dir --x"),
    ],
)
def test_spelling_is_understood(typed: str, meant: str, train: Flags) -> None:
    assert repair(typed.split(), train) == meant.split()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--learning-rte 0.1", "unknown flag --learning-rte; did you mean --lr?"),
        ("--epoch 3", "unknown flag --epoch; did you mean --epochs?"),
        ("--hlep", "unknown flag --hlep; did you mean --help?"),
        ("--qqq", "unknown flag --qqq; --help lists the flags"),
        ("--no-amp", "unknown flag --no-amp; did you mean --amp off?"),
        ("--no_flip", "unknown flag --no_flip; did you mean --flip none?"),
        ("--no-lr", "unknown flag --no-lr; did you mean --lr?"),
        ("-x", "unknown flag -x; --help lists the flags"),
        ("-j 4", "-j is not needed: threads prepare the batches, there are no worker processes; leave it out"),
        ("-j4", "-j4 is not needed: threads"),
        ("--workers=4", "--workers is not needed: threads"),
        ("--num_workers 4", "--num_workers is not needed: threads"),
        ("--gpu 0", "--gpu is not a flag; use --device cuda"),
        ("--evaluate", "--evaluate is not a flag; run resnet-eval"),
        ("--lr --nesterov", "--lr needs a value, but --nesterov follows"),
        ("--lr --wd 1", "--lr needs a value, but --wd follows"),
        ("--lr", "--lr needs a value"),
        ("--nesterov=maybe", "--nesterov takes no value (='maybe'); --no-nesterov turns it off"),
        ("--json=no", "--json takes no value (='no'); leave it out"),
        ("resnet18", "unexpected argument 'resnet18'; did you mean --arch resnet18?"),
        ("ResNet18", "unexpected argument 'ResNet18'; did you mean --arch resnet18?"),
        ("resnet20-fast", "unexpected argument 'resnet20-fast'; did you mean --config resnet20-fast?"),
        ("digits", "unexpected argument 'digits'; did you mean --dataset digits?"),
        ("adamw", "unexpected argument 'adamw'; did you mean --optimizer adamw?"),
        ("lr=0.1", "unexpected argument 'lr=0.1'; did you mean --lr 0.1?"),
        ("learning_rate=0.1", "unexpected argument 'learning_rate=0.1'; did you mean --lr 0.1?"),
        ("train --lr 1", "unexpected argument 'train'; leave out the name of the command"),
        ("help", "unexpected argument 'help'; --help lists the flags"),
        ("own.yaml", "unexpected argument 'own.yaml'; did you mean --config own.yaml?"),
        ("runs/x", "unexpected argument 'runs/x'; did you mean --resume runs/x?"),
        ("?", "unexpected argument '?'; settings are flags, such as --arch resnet18"),
    ],
)
def test_mistake_is_explained(
    typed: str, message: str, train: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").touch()
    (tmp_path / "runs" / "x").mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}"):
        repair(typed.split(), train)


def test_aliases_name_settings_and_are_none() -> None:
    assert set(ALIASES.values()) <= set(TrainConfig.model_fields)
    assert not set(ALIASES) & set(TrainConfig.model_fields)


@pytest.mark.parametrize("command", ["resnet-eval", "resnet-predict"])
def test_words_of_other_commands_are_kept(command: str) -> None:
    words = ["runs/a", "-", "–odd.png", "--batch_size=3", "--", "--odd.png"]
    assert repair(words, flags_for(command)) == ["runs/a", "-", "–odd.png", "--batch-size", "3", "--", "--odd.png"]


def test_alias_needs_the_setting_in_the_command() -> None:
    with pytest.raises(ValueError, match=r"^unknown flag --wd; it is a flag of resnet-train$"):
        repair(["runs/a", "--wd", "1"], flags_for("resnet-eval"))


@pytest.mark.parametrize("typed", ["--lr 0.1", "--no-nesterov", "--weight_decay 1"])
def test_setting_of_the_training_is_named_as_such(typed: str) -> None:
    with pytest.raises(ValueError, match=r"; it is a flag of resnet-train$"):
        repair(["runs/a", *typed.split()], flags_for("resnet-eval"))


@pytest.mark.parametrize(("command", "flag"), [("resnet-bench", "--steps"), ("resnet-predict", "--top")])
def test_number_of_a_command_is_checked_in_plain_words(
    command: str, flag: str, run_cli: RunCli, tmp_path: Path
) -> None:
    words = ["a", "b"] if command == "resnet-predict" else []
    error = run_cli(command, *words, flag, "2.5", cwd=tmp_path).error
    assert re.match(rf"error: Invalid value for '{flag}': .*(must be a whole number$|is not a valid integer)", error)


def test_repaired_arguments_reach_the_command(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", "--model=resnet20", "-bs", "64", "--amp", "--print-config", cwd=tmp_path)
    assert outcome.code == 0, outcome
    lines = outcome.stdout.splitlines()
    assert {"arch: resnet20", "batch_size: 64", "amp: auto"} <= set(lines)


def test_help_is_shown_whatever_else_is_typed(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-train", "resnet18", "--whatever", "-h", cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "Usage: resnet-train" in outcome.stdout
