"""Default names of runs: what differs from the defaults, in a stable order, short, and valid on every system."""

from __future__ import annotations

from typing import Any

import pytest

from resnet_train.config import make_config
from resnet_train.runs.naming import default_name

TABLE = [
    ({}, "resnet18-cifar10-seed0"),
    ({"arch": "resnet20", "dataset": "cifar100", "seed": 3}, "resnet20-cifar100-seed3"),
    ({"cutout": 16}, "resnet18-cifar10-cutout16-seed0"),
    ({"epochs": 30, "cutout": 16, "lr": 0.05}, "resnet18-cifar10-cutout16-epochs30-lr0.05-seed0"),
    ({"nesterov": True, "channels_last": False}, "resnet18-cifar10-nesterov-no-channels-last-seed0"),
    ({"optimizer": "adamw", "weight_decay": 1e-5}, "resnet18-cifar10-optimizer-adamw-weight-decay1e-05-seed0"),
    ({"minutes": 3, "lr": 2}, "resnet18-cifar10-minutes3-lr2-seed0"),
    ({"milestones": "100,150.5"}, "resnet18-cifar10-milestones100+150.5-seed0"),
    ({"progressive_sizes": "16:0.3,24:0.6"}, "resnet18-cifar10-progressive-sizes16x0.3+24x0.6-seed0"),
    ({"device": "cpu", "threads": 4, "eval_every": 5, "save_every": 2, "data_dir": "x"}, "resnet18-cifar10-seed0"),
    ({"tensorboard": False, "compile": True, "output_dir": "x", "log_every": 9}, "resnet18-cifar10-seed0"),
    ({"dataset": "folder"}, "resnet18-folder-seed0"),
    ({"dataset": "folder", "data_dir": "/a/my pets"}, "resnet18-folder-my_pets-seed0"),
]
RECIPES = [
    ("resnet20-fast", {}, {}, "resnet20-fast-cifar10-seed0"),
    ("resnet20-fast", {"lr": 0.02}, {"lr": 0.2}, "resnet20-fast-cifar10-lr0.2-seed0"),
    ("resnet20-fast", {"lr": 0.02}, {"lr": 0.1}, "resnet20-fast-cifar10-lr0.1-seed0"),
    ("resnet18-cifar100", {"dataset": "cifar100"}, {"seed": 1}, "resnet18-cifar100-seed1"),
    ("mine", {}, {"arch": "resnet20"}, "mine-cifar10-arch-resnet20-seed0"),
    ("mine", {"train_size": 9}, {"train_size": None}, "mine-cifar10-no-train-size-seed0"),
    ('a<b>c:d"e|f?g*h', {}, {}, "a_b_c_d_e_f_g_h-cifar10-seed0"),
    ("..hidden", {}, {}, "hidden-cifar10-seed0"),
    ("nul.v2", {}, {}, "run-nul.v2-cifar10-seed0"),
    ("größer", {}, {}, "größer-cifar10-seed0"),
]


@pytest.mark.parametrize(("settings", "name"), TABLE, ids=[name for _, name in TABLE])
def test_name_says_what_differs_from_the_defaults(settings: dict[str, Any], name: str) -> None:
    assert default_name(make_config(settings)) == name
    assert default_name(make_config(dict(reversed(settings.items())))) == name


@pytest.mark.parametrize(("recipe", "base", "flags", "name"), RECIPES, ids=[name for *_, name in RECIPES])
def test_recipe_stands_for_its_settings(recipe: str, base: dict[str, Any], flags: dict[str, Any], name: str) -> None:
    assert default_name(make_config({**base, **flags}), (recipe, make_config(base))) == name


def test_long_names_end_with_a_hash_of_all_settings() -> None:
    many = {"cutout": 16, "lr": 0.05, "weight_decay": 1e-4, "label_smoothing": 0.1, "ema_decay": 0.999, "seed": 12}
    names = [default_name(make_config({**many, **more})) for more in ({}, {"ema_decay": 0.99}, {"sync_bn": True})]
    assert len(set(names)) == 3
    for name in names:
        assert len(name.encode()) <= 80
        assert name.startswith("resnet18-cifar10-cutout16-lr0.05-")
        assert name.endswith("-seed12")


@pytest.mark.parametrize("recipe", ["x" * 300, "ö" * 300, "字" * 300])
def test_long_recipe_names_are_cut(recipe: str) -> None:
    largest = make_config({"seed": 2**63 - 1})
    name, other = (default_name(largest, (stem, make_config({}))) for stem in (recipe, recipe + "y"))
    assert len(name.encode()) <= 80
    assert name != other
