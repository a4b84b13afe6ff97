"""The plan of an epoch: a pure function of seed, epoch and stream names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_train.data.augment import AlternatingFlip, Cutout, Normalize, RandomCrop, RandomFlip
from resnet_train.data.plan import draw_plan, fixed_plan, generator

CROP, FLIP, CUTOUT = RandomCrop(4), RandomFlip(), Cutout(16, 32)
NORMALIZE = Normalize((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
FEW = settings(max_examples=30, deadline=None, database=None)
SEEDS, EPOCHS, SIZES = st.integers(0, 2**63), st.integers(0, 10_000), st.integers(1, 200)


def same(left, right):
    return np.array_equal(left.order, right.order) and all(
        a is b is None or np.array_equal(a, b) for a, b in zip(left.parameters, right.parameters, strict=True)
    )


@given(SEEDS, EPOCHS, SIZES)
@FEW
def test_plan_is_the_same_every_time(seed, epoch, size):
    transforms = (CROP, FLIP, NORMALIZE, CUTOUT)
    first = draw_plan(seed, epoch, size, transforms)
    np.random.default_rng().random()  # somebody else's random numbers do not matter
    assert same(first, draw_plan(seed, epoch, size, transforms))


@given(SEEDS, EPOCHS, SIZES)
@FEW
def test_order_holds_every_image_once(seed, epoch, size):
    order = draw_plan(seed, epoch, size, ()).order
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(size))


@given(SEEDS, EPOCHS, SIZES)
@FEW
def test_parameters_have_one_row_an_image(seed, epoch, size):
    crop, flip, nothing, cutout = draw_plan(seed, epoch, size, (CROP, FLIP, NORMALIZE, CUTOUT)).parameters
    assert (crop.shape, flip.shape, nothing, cutout.shape) == ((size, 2), (size,), None, (size, 2))
    assert (crop.dtype, flip.dtype, cutout.dtype) == (np.int64, np.bool_, np.int64)


@given(SEEDS, EPOCHS, st.integers(0, 2**63), EPOCHS)
@FEW
def test_plans_of_two_seeds_or_epochs_differ(seed, epoch, other_seed, other_epoch):
    if (seed, epoch) == (other_seed, other_epoch):
        other_epoch += 1
    one = draw_plan(seed, epoch, 100, (CROP, FLIP, CUTOUT))
    other = draw_plan(other_seed, other_epoch, 100, (CROP, FLIP, CUTOUT))
    assert not np.array_equal(one.order, other.order)
    for left, right in zip(one.parameters, other.parameters):
        assert not np.array_equal(left, right)


@given(SEEDS, EPOCHS, st.sets(st.sampled_from(["crop", "flip", "normalize", "cutout"])), st.randoms())
@FEW
def test_switching_transforms_on_leaves_the_other_draws_and_the_order(seed, epoch, chosen, shuffler):
    available = {transform.stream: transform for transform in (CROP, FLIP, NORMALIZE, CUTOUT)}
    streams = sorted(chosen)
    shuffler.shuffle(streams)
    few = draw_plan(seed, epoch, 50, [available[stream] for stream in streams])
    all_of_them = draw_plan(seed, epoch, 50, list(available.values()))
    reference = dict(zip(available, all_of_them.parameters))
    assert np.array_equal(few.order, all_of_them.order)
    for stream, parameters in zip(streams, few.parameters):
        assert parameters is reference[stream] is None or np.array_equal(parameters, reference[stream])


def test_streams_are_independent():
    draws = [generator(0, 0, stream).random(1000) for stream in ("order", "crop", "flip", "cutout")]
    correlations = np.corrcoef(draws)[~np.eye(4, dtype=bool)]
    assert np.abs(correlations).max() < 0.15


def test_seed_and_epoch_are_not_interchangeable():
    assert not np.array_equal(draw_plan(1, 2, 100, ()).order, draw_plan(2, 1, 100, ()).order)


@pytest.mark.parametrize("epoch", [0, 1, 6])
def test_alternating_flip_turns_all_coins_each_epoch_through_the_plan(epoch):
    flips = [draw_plan(3, epoch + i, 500, (CROP, AlternatingFlip())).parameters[1] for i in range(3)]
    assert np.array_equal(flips[0], ~flips[1])
    assert np.array_equal(flips[0], flips[2])
    assert 200 < flips[0].sum() < 300


def test_alternating_flip_depends_on_the_seed():
    one, other = (draw_plan(seed, 0, 500, (AlternatingFlip(),)).parameters[0] for seed in (3, 4))
    assert not np.array_equal(one, other)


def test_fixed_plan_is_every_image_in_its_place():
    plan = fixed_plan(7)
    assert plan.order.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert plan.parameters == ()


def test_draws_do_not_change_between_versions():
    plan = draw_plan(0, 0, 8, (CROP, FLIP))
    assert plan.order.tolist() == [3, 1, 7, 0, 4, 5, 2, 6]
    assert plan.parameters[0].tolist() == [[8, 8], [6, 6], [6, 8], [5, 3], [2, 0], [3, 3], [8, 2], [1, 7]]
    assert plan.parameters[1].tolist() == [False, True, True, False, False, False, False, False]
