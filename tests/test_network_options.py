"""Options of networks: the effect of each, and all of them together."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnet_train.build import arch_options, check_config
from resnet_train.config import make_config
from resnet_train.models import create_model
from resnet_train.models.blocks import BasicBlock, DropPath, set_bn_momentum
from resnet_train.models.cifar_resnet import CifarResNet
from tests.harness.trainers import assert_same_tensors


def test_the_imagenet_stem_is_torchvisions():
    from torchvision.models import resnet18 as torchvision_resnet18

    ours, theirs = create_model("resnet18", 7, stem="imagenet").eval(), torchvision_resnet18(num_classes=7).eval()
    renamed = {
        name.replace("downsample", "shortcut").replace("fc.", "linear."): value
        for name, value in theirs.state_dict().items()
    }
    ours.load_state_dict(renamed)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_conv_relu_bn_swaps_only_norms_followed_by_a_relu():
    block = create_model("resnet18", norm_order="conv-relu-bn").layer2[0].eval()
    for norm in (block.bn1, block.bn2, block.shortcut[1]):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
    x = torch.randn(2, 64, 8, 8)
    out = block.conv2(block.bn1(F.relu(block.conv1(x))))
    expected = F.relu(block.bn2(out) + block.shortcut[1](block.shortcut[0](x)))
    torch.testing.assert_close(block(x), expected)


def test_zero_init_makes_each_block_the_identity():
    model = create_model("resnet50", zero_init_residual=True)
    block = model.layer1[1].train()
    x = torch.rand(2, 256, 4, 4)
    assert torch.equal(block(x), x)


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    out = drop(torch.ones(4000, 2, 1, 1))
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(out[:, 0], out[:, 1])
    assert torch.equal(drop.eval()(out), out)


def test_drop_path_grows_to_the_last_block():
    model = create_model("resnet18", drop_path=0.4)
    probabilities = [m.probability for m in model.modules() if isinstance(m, DropPath)]
    assert probabilities == pytest.approx([0.05 * (i + 1) for i in range(8)])


def test_all_options_of_the_imagenet_family_work_together():
    options = {"stem": "imagenet", "norm_order": "conv-relu-bn", "zero_init_residual": True, "drop_path": 0.1}
    for name in ("resnet18", "resnet50"):
        logits = create_model(name, 5, **options)(torch.randn(2, 3, 40, 40))
        assert logits.shape == (2, 5)


def test_projection_shortcuts_of_the_6n_2_family():
    model = create_model("resnet20", shortcut="projection")
    assert isinstance(model.layer2[0].shortcut[0], nn.Conv2d)
    assert isinstance(model.layer2[1], BasicBlock)
    # He et al. 2016a: option B adds two 1×1 convolutions and their norms.
    extra = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert sum(p.numel() for p in model.parameters()) == 269_722 + extra


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18", {"stem": "big"}), ("resnet18", {"norm_order": "relu"}), ("resnet20", {"shortcut": "none"})],
)
def test_unknown_values_are_refused(name, options):
    with pytest.raises(ValueError, match="must be one of"):
        create_model(name, **options)


def test_options_of_another_family_are_refused():
    with pytest.raises(ValueError, match=r"resnet9 has no option 'stem'; its options: none"):
        create_model("resnet9", stem="imagenet")


@pytest.mark.parametrize("name", ["preact_resnet18", "wide_resnet16_8"])
def test_preact_ends_with_norm_relu_mean_and_linear(name):
    torch.manual_seed(0)
    model = create_model(name).eval()
    nn.init.normal_(model.bn.running_mean)
    nn.init.normal_(model.bn.bias)
    images = torch.randn(2, 3, 16, 16)
    x = model.conv1(images)  # without norm or ReLU: the first block starts with its own
    for stage in model.layers:
        x = model.get_submodule(stage)(x)
    assert (x < 0).any()  # nothing after the last addition
    x = F.batch_norm(x, model.bn.running_mean, model.bn.running_var, model.bn.weight, model.bn.bias)
    logits = F.linear(F.relu(x).flatten(2).mean(2), model.linear.weight, model.linear.bias)
    torch.testing.assert_close(model(images), logits, rtol=1e-4, atol=1e-5)


def test_bn_momentum_reaches_every_norm():
    model = create_model("wide_resnet16_8")
    set_bn_momentum(model, 0.4)
    momenta = {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {0.4}


def test_a_new_network_depends_only_on_torchs_seed():
    states = []
    for _ in range(2):
        torch.manual_seed(11)
        states.append(create_model("resnet20").state_dict())
    assert_same_tensors(*states)


@pytest.mark.parametrize("depth", [-4, 0, 2, 7, 9, 25])
def test_a_depth_that_is_not_6n_2_is_refused(depth):
    with pytest.raises(ValueError, match=rf"depth \(={depth}\) must be 6n\+2"):
        CifarResNet(depth)


@pytest.mark.parametrize(("name", "stages"), [("preact_resnet18", 4), ("preact_resnet110", 3), ("preact_resnet164", 3)])
def test_preact_networks_name_their_stages_by_number(name, stages):
    names = [child for child, _ in create_model(name).named_children() if child.startswith("layer")]
    assert names == [f"layer{number + 1}" for number in range(stages)]


def test_only_given_options_reach_the_network():
    assert arch_options(make_config({})) == {}
    given = {"stem": "cifar", "zero_init_residual": False, "drop_path": 0.0}
    assert arch_options(make_config(given)) == given
    check_config(make_config(given))
    for name in ("resnet18", "resnet20", "resnet9"):
        check_config(make_config({"arch": name}))


def test_single_pixel_feature_maps_need_two_images_per_part():
    values = {"arch": "resnet18", "image_size": 8}
    for batch_size, accumulate in ((1, 1), (4, 4)):
        with pytest.raises(ValueError, match=rf"batch_size \(={batch_size}\) must be more than accumulate"):
            check_config(make_config({**values, "batch_size": batch_size, "accumulate": accumulate}))
    check_config(make_config({**values, "batch_size": 8, "accumulate": 4}))
    check_config(make_config({**values, "image_size": 9, "batch_size": 1}))
