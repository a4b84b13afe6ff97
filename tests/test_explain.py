"""Heat maps: which layer they come from, that they point at what matters, and the check by deletion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_train.evaluation.explain import _find_layer, check_by_deletion, draw_overlay, heat_maps
from resnet_train.models import create_model


class Corner(nn.Module):
    """A network whose class 1 is the brightness of the upper left quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(4)

    def forward(self, images: Tensor) -> Tensor:
        corner = self.layer1(images)[:, :, :8, :8].mean(dim=(1, 2, 3))
        self.pool(images)
        return torch.stack([torch.zeros_like(corner), 5 * corner], dim=1)


def test_the_heat_is_where_the_class_is_decided() -> None:
    images = torch.rand(3, 3, 16, 16) + 0.5
    maps = heat_maps(Corner(), images, torch.ones(3, dtype=torch.int64))
    assert maps.shape == (3, 16, 16)
    assert maps[:, :8, :8].min() > 0.2
    assert maps[:, 8:].max() == 0
    torch.testing.assert_close(maps.amax(dim=(1, 2)), torch.ones(3))


def test_what_speaks_against_a_class_is_cold() -> None:
    assert heat_maps(Corner(), -torch.ones(1, 3, 16, 16), torch.tensor([1])).max() == 0


@pytest.mark.parametrize(
    ("arch", "size", "layer"),
    [
        ("resnet20", 32, "layer3"),
        ("resnet18", 32, "layer3"),
        ("resnet18", 64, "layer4"),
        ("resnet9", 32, "layer2"),
        ("resnet8", 8, "layer1"),
        ("resnet8", 4, "conv1"),
    ],
)
def test_the_layer_is_the_last_that_is_larger_than_4(arch: str, size: int, layer: str) -> None:
    model = create_model(arch).eval()
    assert _find_layer(model, torch.zeros(1, 3, size, size)) == layer
    maps = heat_maps(model, torch.randn(2, 3, size, size), torch.tensor([0, 9]))
    assert maps.shape == (2, size, size)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_heat_maps_work_in_inference_mode_and_on_frozen_weights() -> None:
    model = create_model("resnet8").eval().requires_grad_(False)
    with torch.inference_mode():
        maps = heat_maps(model, torch.randn(2, 3, 16, 16), torch.tensor([0, 1]))
    assert maps.isfinite().all()


def test_the_check_prefers_the_pixels_that_decide() -> None:
    images, classes = torch.ones(20, 3, 16, 16), torch.ones(20, dtype=torch.int64)
    true_maps = torch.zeros(20, 16, 16)
    true_maps[:, :8, :8] = 1
    right = check_by_deletion(Corner(), images, classes, true_maps)
    assert right.n == 20
    assert right.drop > 2 * right.random_drop
    assert right.share_better > 0.9
    wrong = check_by_deletion(Corner(), images, classes, true_maps.flip(1, 2))
    assert wrong.drop < wrong.random_drop
    assert right == check_by_deletion(Corner(), images, classes, true_maps)


def test_an_overlay_is_large_and_red_where_it_is_hot() -> None:
    heat = np.zeros((8, 8), np.float32)
    heat[:4] = 1
    overlay = draw_overlay(np.full((3, 8, 8), 100, np.uint8), heat)
    assert (overlay.shape, overlay.dtype) == ((256, 256, 3), np.uint8)
    assert overlay[-1, 0].tolist() == [100, 100, 100]
    assert overlay[0, 0].tolist() == [193, 193, 40]
    assert F.l1_loss(torch.from_numpy(overlay[0].astype(float)), torch.from_numpy(overlay[50].astype(float))) == 0


def test_deletion_is_a_mean_over_the_images() -> None:
    def network(images: Tensor) -> Tensor:
        brightness = images.mean(dim=(1, 2, 3))
        return torch.stack([4 * brightness, torch.zeros_like(brightness)], dim=1)

    # Which pixels of a plain image are deleted makes no difference.
    images, maps = torch.ones(3, 3, 8, 8), torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    result = check_by_deletion(network, images, torch.zeros(3, dtype=torch.int64), maps)
    assert result.n == 3
    assert result.drop > 0
    assert result.random_drop == pytest.approx(result.drop, rel=1e-5)
