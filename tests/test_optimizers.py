"""Optimizers: parameter groups, torch's updates, Muon on convolutions as matrices."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from resnet_train.models import create_model
from resnet_train.optim.groups import set_lr
from resnet_train.optim.muon import orthogonalize
from resnet_train.optim.optimizers import OPTIMIZERS
from resnet_train.optim.state import load_optimizer_state
from resnet_train.registry import call_with
from tests.harness.trainers import assert_same_tensors

SETTINGS = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "no_decay_norm_bias": False}


def build(name: str, model: nn.Module, **changes: Any) -> Optimizer:
    return call_with(OPTIMIZERS[name], SETTINGS | changes, model=model)


def make_gradients(parameters: Sequence[nn.Parameter], seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def make_model(seed: int = 0, layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
    torch.manual_seed(seed)
    model = create_model("resnet8").to(memory_format=layout)
    make_gradients(list(model.parameters()))
    return model


def test_the_optimizers_of_the_recipes_are_registered() -> None:
    assert {"sgd", "adamw", "muon"} <= set(OPTIMIZERS.names())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_kernels_are_fused_also_after_a_state_without_them(name: str) -> None:
    optimizer = build(name, make_model())
    assert all(group["fused"] for group in optimizer.param_groups)
    stepped = build(name, model := make_model())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    stepped.step()
    state = stepped.state_dict()
    for group in state["param_groups"]:
        group["fused"] = None
    load_optimizer_state(optimizer, state)
    assert all(group["fused"] for group in optimizer.param_groups)


@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_every_parameter_is_updated_once(name: str, spare: bool) -> None:
    model = make_model(layout=torch.channels_last)
    before = copy.deepcopy(list(model.parameters()))
    optimizer = build(name, model, no_decay_norm_bias=spare)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters()))


@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_norms_and_biases_can_be_spared_from_decay(name: str, spare: bool) -> None:
    model = make_model()
    before = copy.deepcopy(dict(model.named_parameters()))
    nn.init.constant_(before["bn1.bias"], 1.0)
    model.load_state_dict(before, strict=False)
    optimizer = build(name, model, no_decay_norm_bias=spare, nesterov=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, parameter in model.named_parameters():
        factor = 1 if spare and parameter.ndim <= 1 else 1 - SETTINGS["lr"] * SETTINGS["weight_decay"]
        if factor == 1 or name in {"sgd", "adamw", "muon"}:
            torch.testing.assert_close(parameter, factor * before[key], msg=key)
        else:  # an optimizer that scales the decay with the gradient
            assert (parameter.abs() <= before[key].abs()).all(), key


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_passes_momentum_and_nesterov_to_torch(nesterov: bool) -> None:
    model, twin = make_model(), make_model()
    optimizer = build("sgd", model, nesterov=nesterov)
    reference = torch.optim.SGD(twin.parameters(), lr=0.01, momentum=0.9, nesterov=nesterov, weight_decay=0.1)
    for seed in range(3):
        for net, its_optimizer in ((model, optimizer), (twin, reference)):
            make_gradients(list(net.parameters()), seed)
            its_optimizer.step()
    for ours, theirs in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(ours, theirs)


def test_adamw_is_that_of_torch() -> None:
    model, twin = make_model(), make_model()
    optimizer, reference = build("adamw", model), torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1)
    for seed in range(3):
        for net, its_optimizer in ((model, optimizer), (twin, reference)):
            make_gradients(list(net.parameters()), seed)
            its_optimizer.step()
    for ours, theirs in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_a_first_step_that_is_skipped_leaves_a_state_of_zeros(name: str) -> None:
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    optimizer = build(name, model)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert_same_tensors(model.state_dict(), before)
    state = optimizer.state_dict().get("state", {})
    tensors = [tensor for of_parameter in state.values() for tensor in of_parameter.values()]
    assert tensors or name == "muon"
    assert not any(tensor.any() for tensor in [*tensors, *optimizer.state_dict().get("momentum", [])])


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_lr_is_one_tensor_and_a_number_in_the_state(name: str) -> None:
    optimizer, other = (build(name, make_model(), no_decay_norm_bias=True) for _ in range(2))
    lr = optimizer.param_groups[0]["lr"]
    other.step()
    load_optimizer_state(optimizer, copy.deepcopy(other.state_dict()))  # leaves the tensor where it is
    set_lr(optimizer, 0.3)
    assert all(group["lr"] is lr for group in optimizer.param_groups)
    assert lr == 0.3  # in float64
    state = optimizer.state_dict()
    assert {group["lr"] for group in state.get("rest", state)["param_groups"]} == {0.3}


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_set_lr_reaches_every_group(name: str) -> None:
    optimizer = build(name, make_model(), no_decay_norm_bias=True)
    assert len(optimizer.param_groups) > 1
    set_lr(optimizer, 0.5)
    assert {float(group["lr"]) for group in optimizer.param_groups} == {0.5}


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_a_restored_optimizer_continues_as_before(name: str) -> None:
    model = make_model()
    optimizer = build(name, model)
    optimizer.step()
    twin = copy.deepcopy(model)
    restored = build(name, twin)
    load_optimizer_state(restored, copy.deepcopy(optimizer.state_dict()))
    for net, its_optimizer in ((model, optimizer), (twin, restored)):
        set_lr(its_optimizer, 0.02)
        make_gradients(list(net.parameters()), seed=4)
        its_optimizer.step()
    assert_same_tensors(model.state_dict(), twin.state_dict())


# --- Muon ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ns_steps", [3, 5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_equals_torchs_muon_and_adamw(layout: torch.memory_format, ns_steps: int) -> None:
    wide, tall = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 24, 1)
    model = nn.Sequential(wide, tall, nn.Flatten(), nn.Linear(24, 2)).to(memory_format=layout)
    twin = copy.deepcopy(model)
    optimizer = build("muon", model, ns_steps=ns_steps)
    weights = [twin[0].weight, twin[1].weight]
    matrices = [nn.Parameter(w.detach().clone(memory_format=torch.contiguous_format).flatten(1)) for w in weights]
    rest = [parameter for parameter in twin.parameters() if parameter.ndim != 4]
    references = [
        torch.optim.Muon(
            matrices, lr=0.01, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw", ns_steps=ns_steps
        ),
        torch.optim.AdamW(rest, lr=0.01, weight_decay=0.1),
    ]
    starts = [matrix.detach().clone() for matrix in matrices]
    for step in range(5):
        lr = 0.01 / (step + 1)
        make_gradients(list(model.parameters()), step)
        make_gradients(list(twin.parameters()), step)
        for weight, matrix in zip(weights, matrices):
            matrix.grad = weight.grad.flatten(1)
        for each in (optimizer, *references):
            set_lr(each, lr)
            each.step()
    # torch's Newton-Schulz iteration is in bfloat16 everywhere, this one in float32 on a CPU.
    for conv, matrix, start in zip((wide, tall), matrices, starts):
        assert (conv.weight.flatten(1) - matrix).norm() < 0.02 * (matrix - start).norm()
    for ours, theirs in zip((p for p in model.parameters() if p.ndim != 4), rest):
        torch.testing.assert_close(ours, theirs)


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 8, 40), (2, 40, 8), (1, 16, 16)):
        matrices = torch.randn(shape) * torch.logspace(0, 6, shape[0])[:, None, None]  # of different scales
        result = orthogonalize(matrices)
        values = torch.linalg.svdvals(result)
        assert 0.3 < values.min() < values.max() < 1.3, shape
        left, _, right = torch.linalg.svd(matrices, full_matrices=False)
        core = left.mT @ result @ right.mT  # diagonal if the singular vectors are the same
        torch.testing.assert_close(core, torch.diag_embed(torch.diagonal(core, dim1=1, dim2=2)), atol=1e-4, rtol=0)


def test_muon_skips_an_update_if_found_inf_is_one() -> None:
    model = make_model()
    optimizer = build("muon", model)
    assert optimizer._step_supports_amp_scaling  # so that torch's GradScaler sets found_inf
    optimizer.step()
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    for parameter in model.parameters():
        parameter.grad.fill_(float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert_same_tensors(model.state_dict(), weights)
    assert_same_tensors(optimizer.state_dict(), state)
    make_gradients(list(model.parameters()), seed=5)
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert not torch.equal(model.conv1.weight, weights["conv1.weight"])


def test_muon_refuses_the_momentum_of_another_network() -> None:
    state = build("muon", make_model()).state_dict()
    state["momentum"][0] = state["momentum"][0][:1, :1]
    with pytest.raises(ValueError, match=r"optimizer\.momentum\.0 is a float32 tensor"):
        load_optimizer_state(build("muon", make_model()), state)
    with pytest.raises(ValueError, match=r"optimizer\.momentum \(=\[\]\) must be a list"):
        load_optimizer_state(build("muon", make_model()), {**state, "momentum": []})


def test_an_unknown_optimizer_gives_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'adamw'"):
        OPTIMIZERS["adam"]
