"""Mixup and cutmix: the mixed image is what the papers define, and the labels have the same shares."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from resnet_train.data.augment import Normalize, RandomCrop, RandomFlip
from resnet_train.data.loader import BatchLoader
from resnet_train.data.mix import Mix, mix_images
from resnet_train.data.plan import draw_plan, generator
from tests.harness.trainers import CPU, tiny_images, tiny_trainer

SIZE = 16


def draw(mixup: float, cutmix: float, num_images: int = 4000):
    return Mix(mixup, cutmix, SIZE).draw(generator(0, 0, "mix"), num_images)


def constant_images(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None].expand(-1, 3, SIZE, SIZE).contiguous()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.4, 0.6)])
def test_the_weight_is_the_images_share_of_the_mixed_image(mixup, cutmix):
    plan = draw(mixup, cutmix, 200)
    ones, zeros = constant_images(torch.ones(200)), constant_images(torch.zeros(200))
    mixed = mix_images(ones, zeros, torch.from_numpy(plan.weights), torch.from_numpy(plan.boxes))
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), torch.from_numpy(plan.weights), rtol=0, atol=1e-6)


def test_cutmix_pastes_a_box_and_mixup_blends():
    images, partners = torch.randn(2, 3, SIZE, SIZE), torch.randn(2, 3, SIZE, SIZE)
    boxes = torch.tensor([[2, 3, 4, 5], [-1, -1, -1, -1]])
    mixed = mix_images(images, partners, torch.tensor([0.9, 0.3]), boxes)
    expected = images[0].clone()
    expected[:, 2:6, 3:8] = partners[0, :, 2:6, 3:8]
    assert torch.equal(mixed[0], expected)
    torch.testing.assert_close(mixed[1], 0.3 * images[1] + 0.7 * partners[1])


def test_partners_are_a_permutation_and_a_coin_picks_the_mix():
    plan = draw(0.5, 0.5)
    assert sorted(plan.partners) == list(range(4000))
    assert (plan.partners == np.arange(4000)).sum() < 10  # few images are mixed with themselves
    assert 0.45 < (plan.boxes[:, 2] < 0).mean() < 0.55
    assert (draw(0.5, 0.0).boxes == -1).all()
    assert (draw(0.0, 0.5).boxes >= 0).all()


def test_weights_follow_the_beta_distribution():
    weights = draw(0.2, 0.0, 40_000).weights
    assert weights.mean() == pytest.approx(0.5, abs=0.01)
    assert weights.var() == pytest.approx(0.25 / (2 * 0.2 + 1), abs=0.005)  # of Beta(a, a): 1 / 4(2a + 1)


def test_boxes_follow_the_cutmix_paper_with_its_own_alpha():
    size, num = 1000, 6_000
    plan = Mix(8.0, 0.3, size).draw(generator(0, 0, "mix"), num)
    blended = plan.boxes[:, 2] < 0
    assert plan.weights[blended].var() == pytest.approx(0.25 / (2 * 8 + 1), abs=0.001)

    # Algorithm A1 of the paper, one image at a time.
    rng = np.random.default_rng(1)
    expected = []
    for _ in range(num):
        half = int(size * np.sqrt(1 - rng.beta(0.3, 0.3))) // 2
        x, y = rng.integers(0, size, size=2)
        width = min(x + half, size) - max(x - half, 0)
        height = min(y + half, size) - max(y - half, 0)
        expected.append(1 - width * height / size**2)
    shares = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(
        np.quantile(plan.weights[~blended], shares), np.quantile(expected, shares), rtol=0, atol=0.03
    )


def test_switching_the_mix_on_leaves_the_other_draws():
    transforms = [RandomCrop(2), RandomFlip()]
    without, with_mix = (draw_plan(3, 1, 50, transforms, mix) for mix in (None, Mix(1.0, 1.0, SIZE)))
    np.testing.assert_array_equal(without.order, with_mix.order)
    for stream, rows in without.parameters.items():
        np.testing.assert_array_equal(rows, with_mix.parameters[stream])


@pytest.mark.parametrize("resident", [True, False])
def test_partners_have_their_own_augmentation(resident):
    images, labels = tiny_images()
    transforms, normalize = [RandomCrop(1), RandomFlip()], Normalize((0.5,) * 3, (0.25,) * 3)
    mix = Mix(0.0, 1.0, 8)
    plan = partial(draw_plan, 0, num_images=len(labels), transforms=transforms, mix=mix)
    loader = BatchLoader(
        images,
        labels,
        batch_size=8,
        normalize=normalize,
        transforms=transforms,
        plan=plan,
        device=CPU,
        resident=resident,
    )
    batch = next(loader.epoch(0))
    draws = plan(0)
    one_by_one = []
    for number in range(len(labels)):
        image = torch.from_numpy(images[number : number + 1])
        for transform in transforms:
            image = transform(image, torch.from_numpy(draws.parameters[transform.stream][number : number + 1]))
        one_by_one.append(normalize(image)[0])
    for position, number in enumerate(draws.order[:8]):
        partner = draws.mix.partners[number]
        top, left, height, width = draws.mix.boxes[number]
        expected = one_by_one[number].clone()
        expected[:, top : top + height, left : left + width] = one_by_one[partner][
            :, top : top + height, left : left + width
        ]
        assert torch.equal(batch.images[position], expected)
        assert batch.labels[position] == labels[number]
        assert batch.partner_labels[position] == labels[partner]
        assert batch.weights[position] == draws.mix.weights[number]


def test_the_loss_is_the_cross_entropy_to_the_mixed_target():
    trainer = tiny_trainer(label_smoothing=0.1)
    logits = torch.randn(4, 3)
    batch = next(trainer.train_loader.epoch(0))._replace(
        labels=torch.tensor([0, 1, 2, 0]),
        partner_labels=torch.tensor([2, 2, 1, 0]),
        weights=torch.tensor([1.0, 0.0, 0.25, 0.5]),
    )
    one_hot = [F.one_hot(labels, 3).float() for labels in (batch.labels, batch.partner_labels)]
    target = one_hot[0] * batch.weights[:, None] + one_hot[1] * (1 - batch.weights[:, None])
    expected = F.cross_entropy(logits, target, label_smoothing=0.1)
    torch.testing.assert_close(trainer.loss(logits, batch), expected)
