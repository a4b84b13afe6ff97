"""Augmentations: each on a batch against torchvision's functional on single images, and which ones a config selects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from resnet_train.config import make_config
from resnet_train.data.augment import (
    AUGMENTATIONS,
    AlternatingFlip,
    Cutout,
    Normalize,
    RandomCrop,
    RandomErasing,
    RandomFlip,
    Transform,
    TrivialAugment,
    build_transforms,
)
from resnet_train.data.sources.cifar import CIFAR10

MEAN, STD = CIFAR10.mean, CIFAR10.std
TRANSFORMS = [
    RandomCrop(4),
    RandomCrop(4, "reflect"),
    RandomFlip(),
    AlternatingFlip(),
    TrivialAugment(),
    Cutout(16, image_size=32),
    RandomErasing(0.5, image_size=32),
]
NAMES = [f"{type(transform).__name__}{number}" for number, transform in enumerate(TRANSFORMS)]
each_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=NAMES)


def random_images(num_images=64, height=32, width=32, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (num_images, 3, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


def drawn(transform, num_images, epoch=0, seed=0):
    return torch.from_numpy(transform.draw(np.random.default_rng(seed), num_images, epoch))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
@pytest.mark.parametrize("padding", [1, 4, 8])
@pytest.mark.parametrize(("mode", "padding_mode"), [("zeros", "constant"), ("reflect", "reflect")])
def test_crop_equals_torchvision_for_every_image(mode, padding_mode, padding, height, width):
    images, crop = random_images(height=height, width=width), RandomCrop(padding, mode)
    parameters = drawn(crop, len(images))
    result = crop(images, parameters)
    assert result.dtype == torch.uint8
    for image, (top, left), cropped in zip(images, parameters.tolist(), result):
        padded = v2.functional.pad(image, [padding] * 4, padding_mode=padding_mode)
        assert torch.equal(cropped, v2.functional.crop(padded, top, left, height, width))


def test_crop_without_padding_changes_nothing():
    images, crop = random_images(), RandomCrop(0)
    assert torch.equal(crop(images, drawn(crop, len(images))), images)


def test_crop_from_the_middle_changes_nothing():
    images = random_images()
    for mode in ("zeros", "reflect"):
        assert torch.equal(RandomCrop(4, mode)(images, torch.full((64, 2), 4)), images)


@pytest.mark.parametrize("padding", [1, 4])
def test_crop_draws_all_offsets_about_equally_often(padding):
    places = (2 * padding + 1) ** 2
    pairs, counts = np.unique(drawn(RandomCrop(padding), 200 * places).numpy(), axis=0, return_counts=True)
    assert {tuple(pair) for pair in pairs.tolist()} == {
        (top, left) for top in range(2 * padding + 1) for left in range(2 * padding + 1)
    }
    assert counts.min() > 120
    assert counts.max() < 280


@pytest.mark.parametrize("flip", [RandomFlip(), AlternatingFlip()])
def test_flip_equals_torchvision_for_every_image(flip):
    images = random_images()
    parameters = drawn(flip, len(images))
    result = flip(images, parameters)
    assert result.dtype == torch.uint8
    assert parameters.dtype == torch.bool
    for image, mirror, flipped in zip(images, parameters.tolist(), result):
        assert torch.equal(flipped, v2.functional.hflip(image) if mirror else image)


@pytest.mark.parametrize("flip", [RandomFlip(), AlternatingFlip()])
def test_flip_mirrors_about_half_of_the_images(flip):
    assert 4800 < drawn(flip, 10_000).sum() < 5200


@given(seed=st.integers(0, 2**32), num_images=st.integers(1, 300), epoch=st.integers(0, 500))
@settings(max_examples=30, deadline=None, database=None)
def test_alternating_flip_mirrors_in_every_other_epoch(seed, num_images, epoch):
    this, after, later = (drawn(AlternatingFlip(), num_images, epoch + i, seed) for i in range(3))
    assert torch.equal(this, ~after)
    assert torch.equal(this, later)


def test_alternating_flip_mirrors_half_of_the_images_each_epoch():
    for epoch in range(4):
        assert 4800 < drawn(AlternatingFlip(), 10_000, epoch).sum() < 5200


def test_only_alternating_flip_keeps_its_draws():
    assert [type(transform).__name__ for transform in TRANSFORMS if not transform.redraws] == ["AlternatingFlip"]


@pytest.mark.parametrize("channels_last", [True, False])
def test_normalize_equals_torchvision_for_every_image(channels_last):
    images = random_images()
    result = Normalize(MEAN, STD, channels_last)(images)
    assert result.dtype == torch.float32
    assert result.shape == images.shape
    for image, normalized in zip(images, result):
        scaled = v2.functional.to_dtype(image, torch.float32, scale=True)
        expected = v2.functional.normalize(scaled, list(MEAN), list(STD))
        torch.testing.assert_close(normalized.contiguous(), expected, rtol=0, atol=1e-5)


def test_normalize_returns_the_requested_memory_format():
    images = random_images(4)
    before = images.clone()
    assert Normalize(MEAN, STD)(images).is_contiguous(memory_format=torch.channels_last)
    assert Normalize(MEAN, STD, channels_last=False)(images).is_contiguous()
    assert torch.equal(images, before)


def cutout_by_loop(image, top, left, size):
    expected = image.clone()
    for row in range(top, top + size):
        for column in range(left, left + size):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                expected[:, row, column] = 0
    return expected


@pytest.mark.parametrize("size", [1, 7, 8, 16])
def test_cutout_equals_a_plain_loop_for_every_image(size):
    images, cutout = random_images(32).float() + 1, Cutout(size, image_size=32)
    parameters = drawn(cutout, len(images))
    for image, (top, left), cut in zip(images, parameters.tolist(), cutout(images, parameters)):
        assert torch.equal(cut, cutout_by_loop(image, top, left, size))


@given(top=st.integers(-20, 40), left=st.integers(-20, 40), size=st.integers(1, 20))
@settings(max_examples=40, deadline=None, database=None)
def test_cutout_anywhere_equals_a_plain_loop(top, left, size):
    images = random_images(1, 12, 9).float() + 1
    result = Cutout(size, image_size=12)(images, torch.tensor([[top, left]]))
    assert torch.equal(result[0], cutout_by_loop(images[0], top, left, size))


@pytest.mark.parametrize("size", [1, 7, 16])
def test_cutout_inside_the_image_blanks_size_by_size(size):
    images, cutout = torch.ones(500, 3, 32, 32), Cutout(size, image_size=32)
    parameters = drawn(cutout, len(images))
    inside = ((parameters >= 0) & (parameters <= 32 - size)).all(dim=1)
    blanked = (cutout(images, parameters) == 0).sum(dim=(2, 3))
    assert inside.any()
    assert (blanked[inside] == size * size).all()
    assert (blanked[~inside] < size * size).all()


def test_cutout_centres_on_all_pixels_about_equally_often():
    centres = drawn(Cutout(8, image_size=16), 16_000).numpy() + 4
    for axis in (0, 1):
        positions, counts = np.unique(centres[:, axis], return_counts=True)
        assert positions.tolist() == list(range(16))
        assert counts.min() > 800
        assert counts.max() < 1200


def test_cutout_blanks_to_the_mean_after_normalization():
    images = random_images(1)
    normalized = Normalize(MEAN, STD)(images)
    result = Cutout(4, 32)(normalized, torch.tensor([[10, 12]]))
    pixel = result[0, :, 11, 13] * torch.tensor(STD) + torch.tensor(MEAN)
    torch.testing.assert_close(pixel, torch.tensor(MEAN))


@each_transform
def test_parameters_differ_from_image_to_image(transform):
    parameters = drawn(transform, 100)
    assert len(parameters) == 100
    assert len(parameters.unique(dim=0)) > 1


@each_transform
def test_the_stored_images_are_left_as_they_are(transform):
    images = random_images(16)
    before = images.clone()
    result = transform(images, drawn(transform, 16))
    assert not torch.equal(result, before)
    assert torch.equal(images, before)


@each_transform
def test_an_image_is_transformed_alone_as_in_a_batch(transform):
    images = random_images(8)
    parameters = drawn(transform, 8)
    together = transform(images, parameters)
    for number in range(8):
        alone = transform(images[number : number + 1], parameters[number : number + 1])
        assert torch.equal(alone[0], together[number])


# --- Random erasing ----------------------------------------------------------------------------------------------


def test_erasing_equals_torchvision_for_every_image():
    images, erasing = random_images(200).float() + 1, RandomErasing(0.5, image_size=32)
    parameters = drawn(erasing, len(images))
    for image, (top, left, height, width), erased in zip(images, parameters.tolist(), erasing(images, parameters)):
        expected = v2.functional.erase(image, top, left, height, width, torch.zeros(1)) if height else image
        assert torch.equal(erased, expected)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_erasing_has_its_probability(probability):
    erased = drawn(RandomErasing(probability, image_size=32), 10_000)[:, 2] > 0
    assert erased.float().mean() == pytest.approx(probability, abs=0.02)


def test_erased_areas_and_shapes_are_uniform_within_bounds():
    height, width = drawn(RandomErasing(1.0, image_size=320), 20_000)[:, 2:].double().unbind(1)
    area, log_aspect = height * width / 320**2, (height / width).log()
    uncut = (height < 320) & (width < 320)  # the largest and narrowest rectangles are clipped to the image
    assert uncut.double().mean() > 0.99
    assert area.min() == pytest.approx(0.02, rel=0.03)
    assert area.max() == pytest.approx(0.33, rel=0.03)
    assert area.mean() == pytest.approx((0.02 + 0.33) / 2, abs=0.003)
    assert log_aspect[uncut].min() == pytest.approx(np.log(0.3), abs=0.05)
    assert log_aspect[uncut].max() == pytest.approx(-np.log(0.3), abs=0.05)
    assert log_aspect.mean() == pytest.approx(0, abs=0.02)


def test_erased_rectangles_touch_every_border_and_never_leave():
    top, left, height, width = drawn(RandomErasing(1.0, image_size=32), 5_000).numpy().T
    for low, size in ((top, height), (left, width)):
        free = 32 - size
        assert low.min() == 0
        assert (low <= free).all()
        # Uniform over all places: as often at the far border as at the near one, and in the middle on average.
        assert (low == free).sum() == pytest.approx((low == 0).sum(), rel=0.15)
        assert (low[free > 0] / free[free > 0]).mean() == pytest.approx(0.5, abs=0.02)


# --- The registry ------------------------------------------------------------------------------------------------

EVERYTHING = {
    "trivial_augment": True,
    "crop_padding": 3,
    "padding_mode": "reflect",
    "flip": "alternating",
    "cutout": 6,
    "random_erasing": 0.25,
    "image_size": 24,
    "dataset": "digits",
}


def transforms_of(**settings):
    return build_transforms(dict(make_config(settings)))


def test_default_augmentation_is_crop_and_random_flip():
    assert transforms_of() == [RandomCrop(4, "zeros"), RandomFlip()]


def test_augmentations_take_their_settings_in_order():
    expected = [TrivialAugment(), RandomCrop(3, "reflect"), AlternatingFlip(), Cutout(6, 24), RandomErasing(0.25, 24)]
    assert transforms_of(**EVERYTHING) == expected


SWITCHES = {name: {"flip": "none", "trivial_augment": False}.get(name, 0) for name in AUGMENTATIONS.names()}


@pytest.mark.parametrize("name", sorted(EVERYTHING.keys() & SWITCHES))
def test_each_augmentation_can_be_switched_off(name):
    everything, without = transforms_of(**EVERYTHING), transforms_of(**{**EVERYTHING, name: SWITCHES[name]})
    assert len(without) == len(everything) - 1
    assert [transform for transform in everything if transform in without] == without


def test_every_augmentation_can_be_switched_off():
    assert transforms_of(**SWITCHES) == []


def test_pixel_transforms_are_registered_before_the_others():
    normalized = [transform.normalized for transform in transforms_of(**EVERYTHING)]
    assert normalized == sorted(normalized) == [False, False, False, True, True]


def test_streams_of_random_numbers_keep_their_names():
    streams = [transform.stream for transform in transforms_of(**EVERYTHING)]
    assert streams == ["trivial-augment", "crop", "flip", "cutout", "random-erasing"]
    assert RandomFlip.stream == AlternatingFlip.stream


def test_a_new_transform_is_named_after_its_class_and_redraws():
    class RandomGrayScale(Transform):
        def draw(self, rng, num_images, epoch):
            return rng.random(num_images) < 0.5

        def __call__(self, images, parameters):
            return images

    assert (RandomGrayScale.stream, RandomGrayScale.redraws) == ("random-gray-scale", True)
