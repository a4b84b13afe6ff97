"""TrivialAugment: every operation at every strength equals torchvision's on every image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from torchvision.transforms import v2

from resnet_train.data.augment import TrivialAugment
from resnet_train.data.plan import generator
from resnet_train.data.trivial_augment import NUM_BINS, OPERATIONS

NAMES = [
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
]


def photographs(size: int = 32) -> torch.Tensor:
    """Return uint8 [6, 3, S, S]: pieces of a photograph, and one image of a single colour."""
    china = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    pieces = [china[:, 30 * i : 30 * i + size, 100 * i : 100 * i + size] for i in range(5)]
    return torch.stack([*pieces, torch.full((3, size, size), 77, dtype=torch.uint8)])


def torchvisions(name: str, image: torch.Tensor, strength: float) -> torch.Tensor:
    """Apply the same operation to one image with torchvision's dispatcher."""
    magnitude = strength / 255 if name == "Solarize" else strength
    policy = v2.TrivialAugmentWide()
    return policy._apply_image_or_video_transform(
        image, name, magnitude, v2.InterpolationMode.NEAREST, {type(image): None}
    )


@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=NAMES)
def test_operation_equals_torchvisions(number):
    operation, strengths, signed = OPERATIONS[number]
    images = photographs()
    for strength in np.unique(strengths):
        for sign in (1, -1) if signed else (1,):
            ours = operation(images, torch.full((len(images),), sign * strength, dtype=torch.float32))
            theirs = torch.stack([torchvisions(NAMES[number], image, float(sign * strength)) for image in images])
            assert ours.dtype == torch.uint8
            # Colour: one unit may differ where float32 sums are rounded in another order.
            difference = (ours.int() - theirs.int()).abs()
            assert difference.max() <= (1 if NAMES[number] in {"Color", "Contrast", "Sharpness"} else 0), strength
            assert (difference > 0).float().mean() < 1e-3


def test_strengths_are_torchvisions():
    space = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    assert list(space) == NAMES
    for name, (_, strengths, signed) in zip(NAMES, OPERATIONS):
        theirs = space[name][0](NUM_BINS, 32, 32)
        expected = (
            np.zeros(NUM_BINS) if theirs is None else theirs.double().numpy() * (255 if name == "Solarize" else 1)
        )
        np.testing.assert_allclose(strengths, expected, rtol=1e-6)
        assert signed == space[name][1]


def test_each_image_gets_its_own_operation():
    transform = TrivialAugment()
    images = photographs()
    parameters = transform.draw(generator(0, 0, transform.stream), len(images), 0)
    batch = transform(images, torch.from_numpy(parameters))
    for number, (image, (operation, strength)) in enumerate(zip(images, parameters)):
        alone = OPERATIONS[int(operation)][0](image[None], torch.tensor([strength]))
        assert torch.equal(batch[number], alone[0])


def test_all_operations_strengths_and_signs_are_drawn():
    parameters = TrivialAugment().draw(generator(0, 0, "trivial-augment"), 20_000, 0)
    counts = np.bincount(parameters[:, 0].astype(int), minlength=len(OPERATIONS))
    assert counts.min() > 0.9 * 20_000 / len(OPERATIONS)
    for number, (_, strengths, signed) in enumerate(OPERATIONS):
        drawn = parameters[parameters[:, 0] == number, 1]
        expected = np.unique(np.concatenate([strengths, -strengths]) if signed else strengths).astype(np.float32)
        np.testing.assert_allclose(np.unique(drawn), expected)
