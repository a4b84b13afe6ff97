"""Where a network looks: heat maps of the pixels that support a class, and a check that they do.

Draelos & Carin 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations": activations times gradients, summed
over channels. The last feature map of most networks for small images has 4×4 pixels, so the last larger one is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST_SIDE = 5  # side length of a feature map whose heat map is more than a blob
DELETED_SHARE = 0.2  # share of the pixels deleted in the check
OVERLAY_SIDE = 256  # smallest side length in pixels
OPACITY = 0.6  # of the hottest pixel


@dataclass(frozen=True, kw_only=True)
class DeletionResult:
    """How far the probability of a class drops when a fifth of the pixels is replaced by the mean color.

    Attributes:
        n: number of images.
        drop: mean drop, 0–1, if the hottest pixels are replaced.
        random_drop: mean drop if the same mask is moved to a random place in the image.
        share_better: share of the images on which the first is larger.
    """

    n: int
    drop: float
    random_drop: float
    share_better: float


def heat_maps(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Return how much each pixel supports a class, float [B, H, W] from 0 to 1.

    Args:
        model: a network in evaluation mode.
        images: normalized, float [B, 3, H, W].
        classes: int64 [B], one for each image.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # Clones are not inference tensors, and gradients of the images reach the layer even if all weights are frozen.
        images, classes = images.clone().requires_grad_(), classes.clone()
        with _outputs(model, _find_layer(model, images[:1])) as outputs:
            logits = model(images)  # [B, C]
        (features,) = outputs  # [B, K, h, w]
        (gradients,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)
    maps = (features.detach() * gradients).sum(dim=1, keepdim=True).relu()
    maps = F.interpolate(maps.float(), size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def _find_layer(model: nn.Module, image: Tensor) -> str:
    """Return the name of the last stage whose feature map is larger than 4×4, or of the first one if none is."""
    sides: dict[str, int] = {}
    handles = []
    for name, child in model.named_children():

        def note(module: nn.Module, inputs: object, output: Tensor, name: str = name) -> None:
            if output.ndim == 4:
                sides[name] = min(output.shape[2:])

        handles.append(child.register_forward_hook(note))
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    large = [name for name, side in sides.items() if side >= SMALLEST_SIDE]
    return large[-1] if large else next(iter(sides))


@contextmanager
def _outputs(model: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Collect what a layer returns."""
    outputs: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda *call: outputs.append(call[-1]))
    try:
        yield outputs
    finally:
        handle.remove()


@torch.no_grad()
def check_by_deletion(model: nn.Module, images: Tensor, classes: Tensor, maps: Tensor, seed: int = 0) -> DeletionResult:
    """Replace the hottest pixels with the mean color, then as many others, and compare how far the probability drops.

    Args:
        model: a network in evaluation mode.
        images: normalized, float [B, 3, H, W], so that the mean color is 0.
        classes: int64 [B].
        maps: float [B, H, W].
        seed: the seed of the places that the masks are moved to.
    """
    num_images, side = len(images), maps.shape[-1]
    hottest = maps.flatten(1).argsort(dim=1, descending=True)[:, : int(DELETED_SHARE * maps[0].numel())]
    masks = torch.zeros_like(maps).flatten(1).scatter_(1, hottest, 1.0).view_as(maps)[:, None]  # [B, 1, H, W]
    moves = np.random.default_rng(seed).integers(side // 4, side - side // 4, (num_images, 2)).tolist()
    moved = torch.stack([mask.roll(move, dims=(1, 2)) for mask, move in zip(masks, moves)])

    def probability(batch: Tensor) -> Tensor:
        return model(batch).float().softmax(dim=1).gather(1, classes[:, None])[:, 0]  # [B]

    whole = probability(images)
    drop, random_drop = whole - probability(images * (1 - masks)), whole - probability(images * (1 - moved))
    return DeletionResult(
        n=num_images,
        drop=float(drop.mean()),
        random_drop=float(random_drop.mean()),
        share_better=float((drop > random_drop).float().mean()),
    )


def draw_overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return an enlarged picture with the heat over it, from transparent through red to yellow.

    Args:
        image: uint8 [3, H, W].
        heat: float [H, W] from 0 to 1.

    Returns:
        uint8 [S, S, 3], where S is at least 256.
    """
    scale = max(1, -(-OVERLAY_SIDE // image.shape[-1]))
    pixels = F.interpolate(torch.from_numpy(image)[None].float(), scale_factor=scale, mode="nearest")[0]
    opacity = F.interpolate(torch.from_numpy(heat)[None, None].float(), scale_factor=scale, mode="bilinear")[0, 0]
    color = torch.stack([torch.full_like(opacity, 255.0), 255 * opacity, torch.zeros_like(opacity)])
    blended = pixels + OPACITY * opacity * (color - pixels)
    return blended.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
