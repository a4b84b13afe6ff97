"""Optimizers: the right groups, torch's own steps, Muon on convolutions as matrices."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from resnet_train.models import create_model
from resnet_train.optim.optimizers import OPTIMIZERS, build_optimizer, load_optimizer_state, orthogonalize, set_lr
from tests.harness.trainers import assert_same_tensors

SETTINGS = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "no_decay_norm_bias": False}


def with_gradients(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_every_parameter_is_updated_and_none_twice(name):
    torch.manual_seed(0)
    model = with_gradients(create_model("resnet8").to(memory_format=torch.channels_last))
    before = copy.deepcopy(list(model.parameters()))
    optimizer = build_optimizer(name, model, **SETTINGS)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_norms_and_biases_can_be_left_out_of_the_decay(name):
    model = create_model("resnet8")
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = build_optimizer(name, model, **{**SETTINGS, "no_decay_norm_bias": True})
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n, p in model.named_parameters() if p.ndim > 1}


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_a_restored_optimizer_goes_on_as_before(name):
    torch.manual_seed(0)
    model = with_gradients(create_model("resnet8"))
    optimizer = build_optimizer(name, model, **SETTINGS)
    optimizer.step()
    twin = copy.deepcopy(model)
    restored = build_optimizer(name, twin, **SETTINGS)
    load_optimizer_state(restored, copy.deepcopy(optimizer.state_dict()))
    for one, its_optimizer in ((model, optimizer), (twin, restored)):
        set_lr(its_optimizer, 0.02)
        with_gradients(one)
        its_optimizer.step()
    assert_same_tensors(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_treats_a_convolution_as_torchs_muon_treats_its_matrix(layout):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 2)).to(memory_format=layout)
    weight, gradient = model[0].weight, torch.randn(8, 4, 3, 3)
    matrix = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format).flatten(1))
    start = matrix.detach().clone()
    reference = torch.optim.Muon([matrix], lr=0.01, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    optimizer = build_optimizer("muon", model, **SETTINGS)
    for _ in range(3):
        weight.grad = gradient.clone().to(memory_format=layout)
        matrix.grad = gradient.flatten(1)
        optimizer.step()
        reference.step()
    # torch's Newton-Schulz iteration is in bfloat16 everywhere, this one in float32 on a CPU.
    moved = (matrix - start).norm()
    assert (weight.flatten(1) - matrix).norm() < 0.02 * moved


def test_muons_matrices_have_singular_values_about_one():
    torch.manual_seed(0)
    for shape in ((3, 8, 40), (2, 40, 8), (1, 16, 16)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert 0.3 < values.min() < values.max() < 1.3, shape


def test_muon_skips_an_update_where_found_inf_says_so_and_nowhere_else():
    torch.manual_seed(0)
    model = with_gradients(create_model("resnet8"))
    optimizer = build_optimizer("muon", model, **SETTINGS)
    optimizer.step()
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    for parameter in model.parameters():
        parameter.grad.fill_(float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert_same_tensors(model.state_dict(), weights)
    assert_same_tensors(optimizer.state_dict(), state)
    with_gradients(model)
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert not torch.equal(model.conv1.weight, weights["conv1.weight"])


def test_muon_gives_norms_biases_and_head_to_adamw():
    torch.manual_seed(0)
    model = with_gradients(create_model("resnet8"))
    twin = copy.deepcopy(model)
    for old, new in zip(model.parameters(), twin.parameters()):
        new.grad = old.grad.clone()
    rest = [p for p in twin.parameters() if p.ndim != 4]
    build_optimizer("muon", model, **SETTINGS).step()
    torch.optim.AdamW(rest, lr=0.01, weight_decay=0.1).step()
    for ours, theirs in zip(model.parameters(), twin.parameters()):
        if ours.ndim != 4:
            torch.testing.assert_close(ours, theirs)


def test_an_unknown_optimizer_gives_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'adamw'"):
        build_optimizer("adam", nn.Linear(1, 1), **SETTINGS)
