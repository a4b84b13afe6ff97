"""Checkpoints of other code: names, entries and prefixes, what does not fit, and the commands that take them."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resnet_train.data.normalization import parse_normalization
from resnet_train.models import create_model
from resnet_train.models.foreign import find_weights, recognize
from resnet_train.records import Origin
from resnet_train.runs.foreign import Given, read_network
from tests.harness.cli import RunCli, run_python
from tests.harness.foreign_files import FILES
from tests.harness.trainers import assert_same_tensors

Weights = dict[str, Tensor]


def renamed(weights: Mapping[str, Tensor], *pairs: tuple[str, str]) -> Weights:
    """Return weights under other names."""
    changed = {}
    for name, value in weights.items():
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        changed[name] = value
    return changed


AS_TORCHVISION = ((r"\.shortcut\.", ".downsample."), ("^linear", "fc"))
AS_WEIAICUNZAI = (
    (r"\.conv1\.", ".residual_function.0."),
    (r"\.bn1\.", ".residual_function.1."),
    (r"\.conv2\.", ".residual_function.3."),
    (r"\.bn2\.", ".residual_function.4."),
    (r"\.conv3\.", ".residual_function.6."),
    (r"\.bn3\.", ".residual_function.7."),
    (r"^conv1\.", "conv1.0."),
    (r"^bn1\.", "conv1.1."),
    *((rf"^layer{number}\.", f"conv{number + 1}_x.") for number in (1, 2, 3, 4)),
    ("^linear", "fc"),
)
AS_XTERNALZ = (
    (r"^bn\.", "bn1."),
    (r"^layer(\d)\.", r"block\1.layer."),
    (r"\.shortcut\.0\.", ".convShortcut."),
    ("^linear", "fc"),
)
LAYOUTS: dict[str, tuple[str, dict[str, Any], int, tuple[tuple[str, str], ...]]] = {
    "kuangliu resnet18": ("resnet18", {}, 10, ()),
    "kuangliu resnet50": ("resnet50", {}, 10, ()),
    "kuangliu preact": ("preact_resnet18", {"final_norm": False}, 10, ()),
    "kuangliu resnext": ("resnext29_2x64d", {}, 10, ()),
    "akamaster": ("resnet20", {}, 10, ()),
    "akamaster, option B": ("resnet56", {"shortcut": "projection"}, 10, ()),
    "any depth": ("resnet26", {}, 7, ()),
    "chenyaofo": ("resnet20", {"shortcut": "projection"}, 100, AS_TORCHVISION),
    "weiaicunzai": ("resnet18", {}, 100, AS_WEIAICUNZAI),
    "weiaicunzai, bottlenecks": ("resnet50", {}, 100, AS_WEIAICUNZAI),
    "torchvision": ("resnet18", {"stem": "imagenet"}, 1000, AS_TORCHVISION),
    "torchvision, bottlenecks": ("resnet50", {"stem": "imagenet"}, 1000, AS_TORCHVISION),
    "torchvision, CIFAR stem": ("resnet34", {}, 10, AS_TORCHVISION),
    "xternalz": ("wide_resnet16_8", {}, 10, AS_XTERNALZ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_recognized_and_each_weight_gets_its_name(name: str) -> None:
    arch, options, num_classes, pairs = LAYOUTS[name]
    with torch.device("meta"):
        ours = create_model(arch, num_classes, **options).state_dict()
    found = recognize(renamed(ours, *pairs))
    assert (found.arch, found.options, found.num_classes) == (arch, options, num_classes)
    assert list(found.weights) == list(ours)
    assert all(found.weights[key] is ours[key] for key in ours)
    assert recognize(renamed(ours, *pairs), arch).arch == arch


def test_torchvisions_own_network_computes_the_same_here() -> None:
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=3).eval()
    found = recognize(theirs.state_dict())
    ours = create_model(found.arch, found.num_classes, **found.options).eval()
    ours.load_state_dict(found.weights)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def tiny(**changes: Tensor) -> Weights:
    torch.manual_seed(0)
    return {**create_model("resnet8").state_dict(), **changes}


def prefixed(prefix: str) -> Weights:
    return {f"{prefix}{name}": value for name, value in tiny().items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "net.", "a.b."])
def test_prefixes_of_wrappers_are_removed(prefix: str) -> None:
    assert_same_tensors(recognize(prefixed(prefix)).weights, tiny())


def test_a_wrapper_around_a_part_is_removed() -> None:
    weights = renamed(tiny(), (r"^layer1\.0\.", "layer1._orig_mod.0."))
    assert_same_tensors(recognize(weights).weights, tiny())


@pytest.mark.parametrize(
    "entry", ["", "net", "state_dict", "model", "model_state_dict", "checkpoint.model", "ema.module"]
)
def test_weights_are_found_in_entries(entry: str) -> None:
    contents: Any = tiny()
    for name in reversed(entry.split(".") if entry else []):
        contents = {"epoch": 3, "acc": torch.tensor(0.9), name: contents, "optimizer": {"state": {}}}
    found, where = find_weights(contents)
    assert where == entry
    assert_same_tensors(found, tiny())


@pytest.mark.parametrize("extra", ["total_ops", "layer1.total_params", "n_averaged"])
def test_counters_of_other_tools_are_left_out(extra: str) -> None:
    assert_same_tensors(recognize(tiny(**{extra: torch.zeros(1)})).weights, tiny())


def test_files_from_before_torch_0_4_have_no_counters() -> None:
    old = {name: value for name, value in tiny().items() if "num_batches" not in name}
    assert_same_tensors(recognize(old).weights, tiny())


def test_half_precision_becomes_float32() -> None:
    halves = {name: value.half() if value.is_floating_point() else value for name, value in tiny().items()}
    assert all(value.dtype in (torch.float32, torch.int64) for value in recognize(halves).weights.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layer2.0.bn1.weight"), r"it fits no network.*resnet8.*missing: layer2\.0\.bn1\.weight \("),
        (lambda w: w.update({"other.weight": torch.zeros(1)}), r"left over: other\.weight \("),
        (lambda w: w.update({"conv1.weight": torch.zeros(16, 3, 5, 5)}), r"conv1\.weight \[16, 3, 5, 5\] instead of"),
        (lambda w: w.pop("linear.weight"), r"no last layer for two or more classes.*none"),
        (lambda w: w.update({"linear.weight": torch.zeros(64)}), r"no last layer.*shape \[64\]"),
    ],
    ids=["missing", "left over", "shape", "no head", "flat head"],
)
def test_what_does_not_fit_is_named(change: Callable[[Weights], Any], message: str) -> None:
    weights = tiny()
    change(weights)
    with pytest.raises(ValueError, match=message):
        recognize(weights)


def test_another_architecture_than_the_given_one_is_named() -> None:
    with pytest.raises(ValueError, match=r"it is not a resnet20.*missing: layer1\.1\.conv1\.weight, .* and \d+ more$"):
        recognize(tiny(), "resnet20")


def test_shortcuts_that_start_before_the_norm_are_refused() -> None:
    """The names and shapes are those of a network here, but not its function (bearpaw's preresnet)."""
    with torch.device("meta"):
        ours = create_model("preact_resnet18").state_dict()
    assert recognize(ours).arch == "preact_resnet18"
    with pytest.raises(ValueError, match="fits no network"):
        recognize(renamed(ours, *AS_TORCHVISION))


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("0.5,0.25", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ("0.1,0.2,0.3,0.4,0.5,0.6", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    ],
)
def test_normalization_is_a_name_or_numbers(text: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    found = parse_normalization(text)
    assert (found.mean, found.std) == (mean, std)


@pytest.mark.parametrize("text", ["", "cifar", "0.5", "0.5,0", "0.5,-1", "nan,1", "0.5,inf", "1,2,3", "digits"])
def test_anything_else_is_no_normalization(text: str) -> None:
    with pytest.raises(ValueError, match=r"^normalize \(=.*must be cifar10, cifar100, imagenet, or"):
        parse_normalization(text)


# --- Files -----------------------------------------------------------------------------------------------------------


def save_legacy(contents: Any, path: Path) -> Path:
    torch.save(contents, path, _use_new_zipfile_serialization=False)
    return path


def test_an_old_file_with_numbers_of_numpy_is_read_in_a_process(tmp_path: Path) -> None:
    """These parts are what files of other code have beside weights: a score of NumPy, options, gradients."""
    contents = {
        "state_dict": {name: nn.Parameter(value, requires_grad=False) for name, value in prefixed("module.").items()},
        "best_prec1": np.float64(91.7),
        "args": argparse.Namespace(lr=0.1),
    }
    found = read_network(save_legacy(contents, tmp_path / "some.th"), Given(normalize="0.5,0.25"))
    assert found.about.arch == "resnet8"
    assert (found.about.mean, found.about.std) == ([0.5] * 3, [0.25] * 3)
    assert found.epoch is None
    assert_same_tensors(found.weights, tiny())


def test_resnet_eval_takes_a_file_of_other_code(run_cli: RunCli, tmp_path: Path) -> None:
    torch.save({"net": prefixed("module."), "acc": 90.0, "epoch": 3}, tmp_path / "ckpt.pth")
    arguments = ("ckpt.pth", "--dataset", "digits", "--device", "cpu")
    outcome = run_cli("resnet-eval", *arguments, "--normalize", "imagenet", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert outcome.stderr == ""
    assert "network     resnet8, epochs unknown\n" in outcome.stdout
    assert "normalized  imagenet: mean 0.485 0.456 0.406, std 0.229 0.224 0.225\n" in outcome.stdout
    result = json.loads(run_cli("resnet-eval", *arguments, "--json", cwd=tmp_path).stdout)
    assert (result["epoch"], result["origin"]["normalize"]) == (None, "cifar10")
    assert [row["name"] for row in result["per_class"]] == [str(digit) for digit in range(10)]


def test_an_assumed_normalization_is_said(run_cli: RunCli, tmp_path: Path) -> None:
    torch.save(tiny(), tmp_path / "some.pth")
    outcome = run_cli("resnet-eval", "some.pth", "--dataset", "digits", cwd=tmp_path)
    assert outcome.stderr.startswith("warning: assuming the mean and std of cifar10, because the file has none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "resnet20"], r"cannot use some\.pth: it is not a resnet20: missing"),
        (["--arch", "resnet21"], r"unknown architecture 'resnet21'"),
        (["--normalize", "cifar"], r"normalize \(='cifar'\) must be"),
    ],
)
def test_wrong_words_about_a_file_are_one_line(
    arguments: list[str], message: str, run_cli: RunCli, tmp_path: Path
) -> None:
    torch.save(tiny(), tmp_path / "some.pth")
    assert re.search(message, run_cli("resnet-eval", "some.pth", *arguments, cwd=tmp_path).error)


def test_a_checkpoint_of_this_program_knows_its_normalization(trained: Any, run_cli: RunCli, tmp_path: Path) -> None:
    for arguments in (["--normalize", "cifar10"], ["--arch", "resnet20"]):
        outcome = run_cli("resnet-eval", trained[0], *arguments, cwd=tmp_path)
        assert f"{arguments[0][2:]} (={arguments[1]})" in outcome.error


def test_resnet_info_and_predict_take_a_file_of_other_code(run_cli: RunCli, tmp_path: Path) -> None:
    from PIL import Image

    torch.save(tiny(), tmp_path / "some.pth")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "some.png")
    outcome = run_cli("resnet-predict", "some.pth", "some.png", "--normalize", "cifar10", "--json", cwd=tmp_path)
    assert outcome.code == 0, outcome
    (prediction,) = json.loads(outcome.stdout)["predictions"]
    assert prediction["top"][0]["name"] in {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse"} | {
        "ship",
        "truck",
    }
    assert "layout" in run_cli("resnet-info", "some.pth", cwd=tmp_path).stdout


def test_a_foreign_file_becomes_a_checkpoint_of_this_program(run_cli: RunCli, tmp_path: Path) -> None:
    torch.save(prefixed("module."), tmp_path / "some.pth")
    arguments = ("resnet-export", "some.pth", "--format", "pt", "--normalize", "imagenet", "--images", "20")
    assert run_cli(*arguments, cwd=tmp_path).code == 0
    saved = read_network(tmp_path / "some.pt")
    assert (saved.about.arch, saved.about.mean, saved.epoch) == ("resnet8", [0.485, 0.456, 0.406], None)
    assert saved.origin == Origin(layout="kuangliu or akamaster", entry="", normalize="imagenet")
    assert_same_tensors(saved.weights, tiny())


def test_safetensors_of_other_code_are_read(tmp_path: Path) -> None:
    pytest.importorskip("safetensors.torch").save_file(prefixed("model."), tmp_path / "some.safetensors")
    found = read_network(tmp_path / "some.safetensors", Given(normalize="cifar10"))
    assert_same_tensors(found.weights, tiny())


# --- Files that mean harm --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["legacy os.system", "infinity", "keys with control characters", "a FIFO"])
def test_commands_refuse_hostile_files_in_one_line(name: str, run_cli: RunCli, tmp_path: Path) -> None:
    FILES[name](tmp_path / "some.pt")
    before = sorted(tmp_path.iterdir())
    error = run_cli("resnet-eval", "some.pt", cwd=tmp_path).error
    assert "some.pt" in error
    assert error.isprintable()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are those of Linux")
def test_every_hostile_file_is_refused_without_effect_or_cost(tmp_path: Path) -> None:
    outcome = run_python("-W", "ignore", "-m", "tests.harness.foreign_files", tmp_path, cwd=Path(__file__).parents[1])
    assert outcome.code == 0, outcome
    *results, peak = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert len(results) == len(FILES)
    for result in results:
        assert result["outcome"].startswith("ValueError: "), result
        assert "some.pt" in result["outcome"]
        assert len(result["outcome"]) < 1000
        assert result["left"] == []
        assert result["seconds"] < 15, result
    assert peak["megabytes"] < 1500


@pytest.mark.slow
def test_any_changed_byte_of_an_old_file_is_read_or_refused(tmp_path: Path) -> None:
    save_legacy({"state_dict": tiny()}, tmp_path / "whole.th")
    content, rng, refused = (tmp_path / "whole.th").read_bytes(), np.random.default_rng(0), 0
    for _ in range(40):
        changed = bytearray(content)
        for place in rng.integers(0, 4000, size=rng.integers(1, 5)):
            changed[place] = rng.integers(256)
        (tmp_path / "some.th").write_bytes(changed)
        try:
            read_network(tmp_path / "some.th", Given(normalize="cifar10"))
        except ValueError:
            refused += 1
    assert refused > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.th", "whole.th"]
