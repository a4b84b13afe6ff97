"""The plan of an epoch: a pure function of seed, epoch and stream names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_train.data.augment import AlternatingFlip, Cutout, RandomCrop, RandomErasing, RandomFlip
from resnet_train.data.plan import draw_order, draw_plan, fixed_plan, generator

CROP, FLIP, CUTOUT, ERASING = TRANSFORMS = RandomCrop(4), RandomFlip(), Cutout(16, 32), RandomErasing(0.5, 32)
FEW = settings(max_examples=15, deadline=None, database=None)
SEEDS, EPOCHS, SIZES = st.integers(0, 2**63), st.integers(0, 10_000), st.integers(1, 200)


def same(left, right):
    return (
        np.array_equal(left.order, right.order)
        and left.parameters.keys() == right.parameters.keys()
        and all(np.array_equal(rows, right.parameters[stream]) for stream, rows in left.parameters.items())
    )


@given(SEEDS, EPOCHS, SIZES)
@FEW
def test_plan_is_the_same_every_time(seed, epoch, size):
    first = draw_plan(seed, epoch, size, TRANSFORMS)
    np.random.default_rng().random()  # other random numbers do not matter
    assert same(first, draw_plan(seed, epoch, size, TRANSFORMS))


@given(SEEDS, EPOCHS, SIZES)
@FEW
def test_order_holds_every_image_once(seed, epoch, size):
    order = draw_plan(seed, epoch, size, ()).order
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(size))


@given(SEEDS, SIZES, st.data())
@FEW
def test_shorter_epochs_use_every_image_equally_often(seed, size, data):
    length = data.draw(st.integers(1, size))
    orders = [draw_order(seed, epoch, size, length) for epoch in range(2 * size)]
    assert {len(order) for order in orders} == {length}
    counts = np.bincount(np.concatenate(orders), minlength=size)
    assert counts.tolist() == [2 * length] * size  # 2 × size epochs are 2 × length passes


@given(SEEDS, EPOCHS, SIZES)
@FEW
def test_parameters_have_one_row_per_image(seed, epoch, size):
    parameters = draw_plan(seed, epoch, size, TRANSFORMS).parameters
    shapes = {"crop": (size, 2), "flip": (size,), "cutout": (size, 2), "random-erasing": (size, 4)}
    assert {stream: rows.shape for stream, rows in parameters.items()} == shapes
    assert parameters["flip"].dtype == np.bool_
    assert all(rows.dtype == np.int64 for stream, rows in parameters.items() if stream != "flip")


@given(SEEDS, EPOCHS, st.integers(0, 2**63), EPOCHS)
@FEW
def test_plans_of_two_seeds_or_epochs_differ(seed, epoch, other_seed, other_epoch):
    if (seed, epoch) == (other_seed, other_epoch):
        other_epoch += 1
    one = draw_plan(seed, epoch, 100, TRANSFORMS)
    other = draw_plan(other_seed, other_epoch, 100, TRANSFORMS)
    assert not np.array_equal(one.order, other.order)
    for stream in one.parameters:
        assert not np.array_equal(one.parameters[stream], other.parameters[stream]), stream


@given(SEEDS, EPOCHS, st.lists(st.sampled_from(TRANSFORMS), unique=True))
@FEW
def test_switching_transforms_leaves_the_order_and_other_draws(seed, epoch, chosen):
    few, everything = (draw_plan(seed, epoch, 50, transforms) for transforms in (chosen, TRANSFORMS))
    assert np.array_equal(few.order, everything.order)
    assert list(few.parameters) == [transform.stream for transform in chosen]
    for stream, rows in few.parameters.items():
        assert np.array_equal(rows, everything.parameters[stream])


def test_streams_are_independent():
    streams = ["order", "mix", "trivial-augment", *(transform.stream for transform in TRANSFORMS)]
    draws = [generator(0, 0, stream).random(1000) for stream in streams]
    correlations = np.corrcoef(draws)[~np.eye(len(streams), dtype=bool)]
    assert np.abs(correlations).max() < 0.15


def test_erased_images_are_not_the_flipped_ones():
    parameters = draw_plan(0, 0, 4000, TRANSFORMS).parameters
    erased = parameters["random-erasing"][:, 2] > 0
    assert 0.4 < erased[parameters["flip"]].mean() < 0.6


def test_draws_come_from_seed_then_epoch_then_stream() -> None:
    flips = draw_plan(3, 5, 50, [FLIP]).parameters[FLIP.stream]
    assert np.array_equal(flips, FLIP.draw(generator(3, 5, FLIP.stream), 50, 5))
    assert not np.array_equal(flips, FLIP.draw(generator(5, 3, FLIP.stream), 50, 5))


def test_two_transforms_of_one_stream_are_refused():
    with pytest.raises(AssertionError, match="two transforms share the stream 'flip'"):
        draw_plan(0, 0, 8, (FLIP, AlternatingFlip()))


def test_seed_and_epoch_are_not_interchangeable():
    assert not np.array_equal(draw_plan(1, 2, 100, ()).order, draw_plan(2, 1, 100, ()).order)


@pytest.mark.parametrize("epoch", [0, 1, 6])
def test_the_plan_inverts_alternating_flips_every_epoch(epoch):
    flips = [draw_plan(3, epoch + i, 500, (CROP, AlternatingFlip())).parameters["flip"] for i in range(3)]
    assert np.array_equal(flips[0], ~flips[1])
    assert np.array_equal(flips[0], flips[2])
    assert 200 < flips[0].sum() < 300


def test_alternating_flip_depends_on_the_seed():
    one, other = (draw_plan(seed, 0, 500, (AlternatingFlip(),)).parameters["flip"] for seed in (3, 4))
    assert not np.array_equal(one, other)


def test_fixed_plan_is_every_image_in_order():
    plan = fixed_plan(7)
    assert plan.order.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert plan.parameters == {}


def test_draws_do_not_change_between_versions():
    plan = draw_plan(0, 0, 8, (CROP, FLIP))
    assert plan.order.tolist() == [3, 1, 7, 0, 4, 5, 2, 6]
    assert plan.parameters["crop"].tolist() == [[8, 8], [6, 6], [6, 8], [5, 3], [2, 0], [3, 3], [8, 2], [1, 7]]
    assert plan.parameters["flip"].tolist() == [False, True, True, False, False, False, False, False]
