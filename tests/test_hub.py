"""hubconf.py, through which torch.hub loads networks from a repository."""

from __future__ import annotations

import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from resnet_train.models import list_models
from tests.harness.cli import Outcome

REPOSITORY = str(Path(__file__).parents[1])


def load(*arguments: object, **options: object) -> torch.nn.Module:
    return torch.hub.load(REPOSITORY, *arguments, source="local", **options)


def test_entry_points_are_the_networks_and_checkpoint() -> None:
    public = {name: value for name, value in runpy.run_path(f"{REPOSITORY}/hubconf.py").items() if name[0] != "_"}
    entries = {name for name, value in public.items() if callable(value)}  # as torch.hub.list does
    assert entries == {"checkpoint", *(entry.name for entry in list_models())}
    assert "resnet20 (cifar_resnet)" in public["resnet20"].__doc__
    assert all(find_spec(package) for package in public["dependencies"])


def test_network_is_built_with_its_options() -> None:
    model = load("resnet20", num_classes=7, shortcut="projection")
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert any("shortcut" in name for name in model.state_dict())


def test_run_is_loaded_with_its_weights(trained: tuple[Path, Outcome]) -> None:
    model = load("checkpoint", str(trained[0]))
    stored = torch.load(trained[0] / "checkpoints" / "model.pt", weights_only=True)["model"]  # noqa: TID251
    assert not model.training
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


def test_shipped_network_is_loaded_without_a_path() -> None:
    model = load("checkpoint")
    assert not model.training
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_bad_option_is_an_error() -> None:
    with pytest.raises(ValueError, match="resnet9 has no option 'shortcut'"):
        load("resnet9", shortcut="pad")
