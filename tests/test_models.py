"""Networks: golden sizes, names, shapes, gradients, and their arithmetic against functional forms."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnet_train.models import Complexity, create_model, find_model, list_models, measure_complexity, registry
from resnet_train.models.blocks import (
    BasicBlock,
    Bottleneck,
    PadShortcut,
    conv1x1,
    projection_shortcut,
)
from resnet_train.models.preact import PreActBasicBlock, PreActBottleneck
from tests.harness.trainers import cached_complexity

GOLDEN = json.loads(Path(registry.__file__).with_name("sizes.json").read_text())
NAMES = [row["name"] for row in GOLDEN]
DEEPEST = ("resnet1202", "preact_resnet1001")
SMALLEST = list({row["family"]: row["name"] for row in sorted(GOLDEN, key=lambda row: -row["macs"])}.values())
QUICK = [*SMALLEST, "resnet50", "preact_resnet50"]
BLOCKS_18 = {"layer1": 2, "layer2": 2, "layer3": 2, "layer4": 2}


def test_every_network_of_the_table_is_registered():
    registered = {(entry.name, entry.family) for entry in list_models()}
    assert {(row["name"], row["family"]) for row in GOLDEN} <= registered


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row["name"], marks=pytest.mark.slow if row["name"] in DEEPEST else ()) for row in GOLDEN],
)
def test_parameters_and_multiply_adds_equal_the_table(row):
    assert cached_complexity(row["name"]) == Complexity(params=row["params"], macs=row["macs"])


def test_complexity_follows_image_size_and_classes():
    small, large = measure_complexity("resnet20", image_size=32), measure_complexity("resnet20", image_size=64)
    assert large.params == small.params
    assert large.macs - 640 == 4 * (small.macs - 640)  # the linear layer always sees one pixel
    assert measure_complexity("resnet20", num_classes=100).params == small.params + 90 * 65


NUMBERED = [name for name in NAMES if name not in DEEPEST and re.search(r"res(?:net|next)\d", name)]


@pytest.mark.parametrize("name", [*NUMBERED, "resnet8", "resnet14"])
def test_the_number_in_the_name_counts_the_weighted_layers(name):
    with torch.device("meta"):
        modules = dict(create_model(name).named_modules())
    weighted = [key for key, m in modules.items() if isinstance(m, nn.Conv2d | nn.Linear)]
    if name.startswith("wide_resnet"):  # counts convolutions, including shortcuts, but not the linear layer
        weighted.remove("linear")
    else:
        weighted = [key for key in weighted if "shortcut" not in key]
    assert len(weighted) == int(re.search(r"res(?:net|next)(\d+)", name)[1])


@pytest.mark.parametrize("name", ["resnet8", "resnet14", "resnet38"])
def test_other_depths_of_6n_plus_2_exist_without_being_listed(name):
    assert find_model(name).family == "cifar_resnet"
    assert name not in [entry.name for entry in list_models()]
    assert create_model(name, num_classes=4)(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


def test_resnet19_is_refused_with_the_nearest_possible_depths():
    with pytest.raises(ValueError, match=r"'resnet19'.*6n\+2.*resnet14 and resnet20"):
        create_model("resnet19")


@pytest.mark.parametrize("name", ["resnet1", "resnet2", "resnet7"])
def test_depths_without_a_block_are_refused(name):
    with pytest.raises(ValueError, match=rf"'{name}'.*6n\+2.*resnet8"):
        find_model(name)


@pytest.mark.parametrize("name", ["resnet51", "resnet149", "resnet9999"])
def test_depths_named_in_a_refusal_are_cifar_resnets(name):
    with pytest.raises(ValueError, match=r"6n\+2") as refusal:
        find_model(name)
    suggested = re.findall(r"resnet\d+", str(refusal.value).split("nearest")[1])
    assert suggested
    assert {name: find_model(name).family for name in suggested} == dict.fromkeys(suggested, "cifar_resnet")


@pytest.mark.parametrize("name", ["resnet50", "resnet152"])
def test_imagenet_depths_of_6n_plus_2_are_no_cifar_resnets(name):
    assert int(name.removeprefix("resnet")) % 6 == 2
    assert find_model(name).family == "resnet"
    with torch.device("meta"):
        assert create_model(name).linear.in_features == 2048


@pytest.mark.parametrize(
    ("name", "meant"), [("resent18", "resnet18"), ("ResNet-18", "resnet18"), ("resnet-20", "resnet20")]
)
def test_unknown_name_gives_the_nearest(name, meant):
    with pytest.raises(ValueError, match=f"unknown architecture '{name}'; did you mean '{meant}'"):
        create_model(name)


def test_name_like_no_other_gives_all_names():
    with pytest.raises(ValueError, match="unknown architecture 'vgg'; known: resnet") as refusal:
        find_model("vgg")
    assert all(name in str(refusal.value) for name in NAMES)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", ("stem", "norm_order", "zero_init_residual", "drop_path")),
        ("resnet20", ("shortcut",)),
        ("resnet14", ("shortcut",)),
        ("resnet9", ()),
    ],
)
def test_unknown_option_is_refused_with_the_known_ones(name, options):
    assert find_model(name).options == options
    with pytest.raises(ValueError, match=f"{name} has no option 'widen'; its options: {', '.join(options) or 'none'}$"):
        create_model(name, widen=2)


@pytest.mark.parametrize("num_classes", [0, -3])
def test_fewer_than_one_class_is_refused(num_classes):
    with pytest.raises(ValueError, match=rf"num_classes \(={num_classes}\) must be at least 1"):
        create_model("resnet20", num_classes)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(pytest.param(name, {}, marks=() if name in QUICK else pytest.mark.slow, id=name) for name in NAMES),
        ("resnet18", {"stem": "imagenet", "norm_order": "conv-relu-bn"}),
        ("resnet20", {"shortcut": "projection"}),
    ],
    ids=str,
)
def test_gradients_reach_every_parameter(name, options):
    torch.manual_seed(0)
    model = create_model(name, **options)
    # With one pixel left, the last norms remove what a bias after a ReLU adds.
    side = 2 * model.stride if options else model.stride
    model(torch.randn(2, 3, side, side)).square().sum().backward()
    unreached = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert unreached == []


@pytest.mark.parametrize("num_classes", [1, 7, 100])
@pytest.mark.parametrize("name", ["resnet18", "resnet20", "resnet8", "resnet9"])
def test_logits_are_batch_by_classes(name, num_classes):
    logits = create_model(name, num_classes)(torch.zeros(2, 3, 16, 24))
    assert logits.shape == (2, num_classes)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in SMALLEST), ("resnet18", {"stem": "imagenet"})])
def test_the_stride_is_that_of_the_last_feature_map(name, options):
    sides, last_sides = [], []
    with torch.device("meta"):
        model = create_model(name, **options).eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda module, inputs, output: sides.append(tuple(output.shape[-2:])))
        for size in (model.stride, 2 * model.stride, 96):
            model(torch.empty(1, 3, size, size))
            last_sides.append(sides[-1])
    assert last_sides == [(1, 1), (2, 2), (96 // model.stride, 96 // model.stride)]


def test_resnet18_has_the_parameter_names_of_pytorch_cifar():
    names = ["conv1.weight", "bn1.weight", "bn1.bias"]
    for layer, blocks in BLOCKS_18.items():
        for block in range(blocks):
            for number in (1, 2):
                names += [
                    f"{layer}.{block}.{part}"
                    for part in (f"conv{number}.weight", f"bn{number}.weight", f"bn{number}.bias")
                ]
            if block == 0 and layer != "layer1":
                names += [f"{layer}.0.shortcut.{part}" for part in ("0.weight", "1.weight", "1.bias")]
    names += ["linear.weight", "linear.bias"]
    with torch.device("meta"):
        assert [name for name, _ in create_model("resnet18").named_parameters()] == names


def test_every_stage_of_resnet50_starts_with_a_projection():
    with torch.device("meta"):
        names = [name for name, _ in create_model("resnet50").named_parameters()]
    projections = [name for name in names if name.endswith("shortcut.0.weight")]
    assert projections == [f"layer{stage}.0.shortcut.0.weight" for stage in (1, 2, 3, 4)]


def test_cifar_resnets_have_no_parameters_in_their_shortcuts():
    with torch.device("meta"):
        assert [name for name, _ in create_model("resnet20").named_parameters() if "shortcut" in name] == []


@pytest.mark.parametrize(("channels", "out"), [(16, 32), (32, 64), (3, 8)])
def test_pad_shortcut_is_subsampling_between_zero_channels(channels, out):
    x = torch.randn(2, channels, 8, 6)
    result = PadShortcut(channels, out, stride=2)(x)
    before = (out - channels) // 2
    expected = torch.zeros(2, out, 4, 3)
    for channel in range(channels):
        for row in range(4):
            for column in range(3):
                expected[:, before + channel, row, column] = x[:, channel, 2 * row, 2 * column]
    assert torch.equal(result, expected)
    assert list(PadShortcut(channels, out, 2).parameters()) == []


def test_pad_shortcut_sits_where_the_cifar_stages_widen():
    model = create_model("resnet20")
    found = {name: module.padding for name, module in model.named_modules() if isinstance(module, PadShortcut)}
    assert found == {"layer2.0.shortcut": (0, 0, 0, 0, 8, 8), "layer3.0.shortcut": (0, 0, 0, 0, 16, 16)}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("option", ["identity", "pad", "projection"])
def test_basic_block_equals_its_functional_form(training, option):
    torch.manual_seed(1)
    stride, width = (1, 6) if option == "identity" else (2, 10)
    shortcuts = {"identity": nn.Sequential(), "pad": PadShortcut(6, 10, 2), "projection": projection_shortcut(6, 10, 2)}
    block = _randomize_norms(BasicBlock(6, width, stride, shortcuts[option])).train(training)
    weights = {name: value.clone() for name, value in block.state_dict().items()}
    x = torch.randn(3, 6, 8, 8)
    y = F.conv2d(x, weights["conv1.weight"], stride=stride, padding=1)
    y = _norm(y, weights, "bn1", training).clamp(min=0)
    y = F.conv2d(y, weights["conv2.weight"], padding=1)
    y = _norm(y, weights, "bn2", training)
    if option == "identity":
        skipped = x
    elif option == "pad":
        skipped = torch.cat([torch.zeros(3, 2, 4, 4), x[:, :, ::2, ::2], torch.zeros(3, 2, 4, 4)], dim=1)
    else:
        skipped = _norm(F.conv2d(x, weights["shortcut.0.weight"], stride=2), weights, "shortcut.1", training)
    torch.testing.assert_close(block(x), (y + skipped).clamp(min=0), rtol=1e-4, atol=1e-5)


def test_bottleneck_equals_its_functional_form():
    torch.manual_seed(2)
    block = _randomize_norms(Bottleneck(6, 4, 2, projection_shortcut(6, 16, 2)))
    weights = {name: value.clone() for name, value in block.state_dict().items()}
    x = torch.randn(3, 6, 8, 8)
    y = _norm(F.conv2d(x, weights["conv1.weight"]), weights, "bn1", training=True).clamp(min=0)
    y = _norm(F.conv2d(y, weights["conv2.weight"], stride=2, padding=1), weights, "bn2", training=True).clamp(min=0)
    y = _norm(F.conv2d(y, weights["conv3.weight"]), weights, "bn3", training=True)
    skipped = _norm(F.conv2d(x, weights["shortcut.0.weight"], stride=2), weights, "shortcut.1", training=True)
    torch.testing.assert_close(block(x), (y + skipped).clamp(min=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shortcut", [None, conv1x1(6, 8, 2), PadShortcut(6, 8, 2)], ids=["none", "projection", "pad"])
def test_preactivation_block_equals_its_functional_form(shortcut):
    torch.manual_seed(4)
    width, stride = (6, 1) if shortcut is None else (8, 2)
    block = _randomize_norms(PreActBasicBlock(6, width, stride, shortcut)).eval()
    weights, x = block.state_dict(), torch.randn(2, 6, 8, 8)
    active = _norm(x, weights, "bn1", training=False).clamp(min=0)
    y = F.conv2d(active, weights["conv1.weight"], stride=stride, padding=1)
    y = F.conv2d(_norm(y, weights, "bn2", training=False).clamp(min=0), weights["conv2.weight"], padding=1)
    skipped = x if shortcut is None else shortcut(active)
    torch.testing.assert_close(block(x), y + skipped, rtol=1e-4, atol=1e-5)


def test_preactivation_bottleneck_equals_its_functional_form():
    torch.manual_seed(5)
    block = _randomize_norms(PreActBottleneck(6, 4, 2, conv1x1(6, 16, 2))).eval()
    weights, x = block.state_dict(), torch.randn(2, 6, 8, 8)
    active = _norm(x, weights, "bn1", training=False).clamp(min=0)
    y = F.conv2d(active, weights["conv1.weight"])
    y = F.conv2d(_norm(y, weights, "bn2", False).clamp(min=0), weights["conv2.weight"], stride=2, padding=1)
    y = F.conv2d(_norm(y, weights, "bn3", False).clamp(min=0), weights["conv3.weight"])
    skipped = F.conv2d(active, weights["shortcut.weight"], stride=2)
    torch.testing.assert_close(block(x), y + skipped, rtol=1e-4, atol=1e-5)


def test_whole_network_is_stem_stages_mean_and_linear():
    torch.manual_seed(3)
    model = create_model("resnet8", num_classes=5).eval()
    images = torch.randn(2, 3, 12, 8)
    x = F.relu(model.bn1(F.conv2d(images, model.conv1.weight, padding=1)))
    x = model.layer3[0](model.layer2[0](model.layer1[0](x)))
    logits = x.flatten(2).mean(2) @ model.linear.weight.T + model.linear.bias
    torch.testing.assert_close(model(images), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [entry.name for entry in list_models()])
def test_a_constructor_makes_ten_classes_by_default(name):
    with torch.device("meta"):
        assert find_model(name).constructor().linear.out_features == 10


@pytest.mark.parametrize("name", SMALLEST)
def test_convolutions_start_at_he_scale_and_norms_at_identity(name):
    torch.manual_seed(4)
    for module in create_model(name).modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2  # torch does not divide by the groups
            allowed = 4 / (2 * module.weight.numel()) ** 0.5  # four standard errors
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=allowed)
            assert module.bias is None
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()


def _randomize_norms(block):
    """Move the norms away from the identity, so that a missing or exchanged one is noticed."""
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(values)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return block


def _norm(x, weights, name, training):
    """Compute batch normalization: eps 1e-5, the batch's biased variance or the running estimates."""
    mean = x.mean((0, 2, 3)) if training else weights[f"{name}.running_mean"]
    var = x.var((0, 2, 3), unbiased=False) if training else weights[f"{name}.running_var"]
    x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    return x * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]
