"""Tests of differences: false alarms and power are what they claim to be, on simulated runs and networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from resnet_train.evaluation.significance import (
    POWER,
    adjust_p_values,
    compare_image_means,
    compare_networks,
    compare_seeds,
    detectable_by_images,
    detectable_by_seeds,
    images_power,
    pooled_sd,
    sd_interval,
    seeds_needed,
    seeds_power,
)

NUM_IMAGES = 2000
ALARMS = (0.035, 0.065)  # 5 ± 1.5 %
MORE_SPREAD = 2.0  # the standard deviation of the second group, where they differ


def share_found(
    sizes: tuple[int, int], sds: tuple[float, float], difference: float, count: int, seed: int
) -> tuple[float, float]:
    """Return how often `compare_seeds` finds a difference of simulated runs, and how often its interval holds it."""
    rng = np.random.default_rng(seed)
    found = held = 0
    for _ in range(count):
        spread = compare_seeds(rng.normal(0.9, sds[0], sizes[0]), rng.normal(0.9 + difference, sds[1], sizes[1]))
        found += spread.p < 0.05
        held += spread.low <= difference <= spread.high
    return found / count, held / count


def simulate_networks(
    lost: float, gained: float, count: int, seed: int, num_images: int = NUM_IMAGES
) -> tuple[float, float]:
    """Return how often `compare_networks` finds a difference of simulated networks, and how often it is held."""
    rng = np.random.default_rng(seed)
    found = held = 0
    for only_first, only_second, _ in rng.multinomial(num_images, [lost, gained, 1 - lost - gained], count).tolist():
        spread = compare_networks(only_first, only_second, num_images)
        found += spread.p < 0.05
        held += spread.low <= gained - lost <= spread.high
    return found / count, held / count


# --- Over seeds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5])
def test_runs_without_a_difference_rarely_raise_an_alarm(n: int) -> None:
    found, held = share_found((n, n), (0.002, 0.002), 0.0, 500, seed=n)
    assert 0.02 < found < 0.08  # 5 % of 500, with three standard errors
    assert held == pytest.approx(1 - found)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [1.0, 1.5, MORE_SPREAD, 3.0])
@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_false_alarms_are_5_percent_of_simulated_groups(n: int, ratio: float) -> None:
    found, _ = share_found((n, n), (0.002, ratio * 0.002), 0.0, 10_000, seed=n)
    print(f"n={n}, ratio of standard deviations {ratio}: {found:.1%} false alarms")
    assert ALARMS[0] < found < ALARMS[1]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (2, 5), (5, 3), (10, 10)])
@pytest.mark.parametrize("sds", [(1.0, 1.0), (1.0, MORE_SPREAD)])
def test_stated_power_is_that_of_simulated_groups(sizes: tuple[int, int], sds: tuple[float, float]) -> None:
    for difference in (0.5, 1.0, 2.0, 4.0):
        found, _ = share_found(sizes, sds, difference, 3000, seed=7)
        print(f"n={sizes}, sd={sds}, difference {difference}: {found:.1%}", end="")
        print(f", stated {seeds_power(difference, sds, sizes):.1%}")
        assert seeds_power(difference, sds, sizes) == pytest.approx(found, abs=0.03)


def test_power_of_few_runs_is_that_of_the_simulation() -> None:
    found, _ = share_found((3, 2), (1.0, 2.0), 4.0, 1000, seed=1)
    assert seeds_power(4.0, (1.0, 2.0), (3, 2)) == pytest.approx(found, abs=0.03)


def test_many_runs_give_the_interval_of_welch() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(0.90, 0.01, 80), rng.normal(0.91, 0.03, 60)
    spread, welch = compare_seeds(before, after), stats.ttest_ind(after, before, equal_var=False)
    interval = welch.confidence_interval()
    assert (spread.low, spread.high) == pytest.approx((interval.low, interval.high), abs=1e-5)
    assert spread.p == pytest.approx(welch.pvalue, rel=0.02)


def test_the_difference_is_that_of_the_second_group_to_the_first() -> None:
    spread = compare_seeds([0.80, 0.81], [0.90, 0.91])
    assert 0 < spread.low < 0.1 < spread.high


def test_runs_that_find_a_difference_have_the_power_for_it() -> None:
    sd, difference = 0.002, 0.004
    needed = seeds_needed(difference, sd)
    assert needed is not None
    assert seeds_power(difference, (sd, sd), (needed, needed)) >= POWER
    assert seeds_power(difference, (sd, sd), (needed - 1, needed - 1)) < POWER
    assert detectable_by_seeds(sd, (needed, needed)) <= difference < detectable_by_seeds(sd, (needed - 1, needed - 1))


def test_a_difference_that_no_number_of_runs_shows_needs_none() -> None:
    assert seeds_needed(0.0, 0.002) is None


def test_the_pooled_deviation_weighs_groups_by_their_runs() -> None:
    first, second = [1.0, 3.0], [0.0, 0.0, 0.0, 3.0]
    sd, df = pooled_sd(first, second)
    assert (sd, df) == (pytest.approx(math.sqrt((2.0 + 6.75) / 4)), 4)
    low, high = sd_interval(sd, df)
    assert low < sd < high
    assert stats.chi2.sf(4 * sd**2 / low**2, 4) == pytest.approx(0.025)


def test_adjusted_p_values_are_those_of_holm() -> None:
    assert adjust_p_values([0.04, 0.01, 0.5]) == pytest.approx([0.08, 0.03, 0.5])
    assert adjust_p_values([0.03, 0.02]) == pytest.approx([0.04, 0.04])
    assert adjust_p_values([0.9, 0.8]) == [1.0, 1.0]


# --- Over test images ------------------------------------------------------------------------------------------------


def test_networks_without_a_difference_rarely_raise_an_alarm() -> None:
    found, held = simulate_networks(0.04, 0.04, 1000, seed=0)
    assert ALARMS[0] < found < ALARMS[1]
    assert held > 0.935


@pytest.mark.slow
@pytest.mark.parametrize("disputed", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("num_images", [1000, 10_000])
def test_false_alarms_are_5_percent_of_simulated_networks(disputed: float, num_images: int) -> None:
    found, held = simulate_networks(disputed / 2, disputed / 2, 10_000, 3, num_images)
    print(f"{num_images} images, {disputed:.0%} disputed: {found:.1%} false alarms, {held:.1%} held")
    assert ALARMS[0] < found < ALARMS[1]
    assert 0.935 < held < 0.985


@pytest.mark.parametrize("difference", [0.01, *(pytest.param(d, marks=pytest.mark.slow) for d in (0.005, 0.02))])
def test_stated_power_is_that_of_simulated_networks(difference: float) -> None:
    found, _ = simulate_networks(0.04 - difference / 2, 0.04 + difference / 2, 3000, seed=2)
    assert images_power(difference, 0.08, NUM_IMAGES) == pytest.approx(found, abs=0.03)


def test_images_show_the_difference_that_they_are_said_to_show() -> None:
    shown = detectable_by_images(0.08, NUM_IMAGES)
    assert shown is not None
    assert images_power(shown, 0.08, NUM_IMAGES) == pytest.approx(POWER, abs=1e-3)
    assert detectable_by_images(0.0, NUM_IMAGES) is None
    assert detectable_by_images(2 / NUM_IMAGES, NUM_IMAGES) is None  # two images show nothing


def test_equal_networks_have_no_difference() -> None:
    spread = compare_networks(0, 0, 100)
    assert spread.p == 1.0
    assert spread.low == -spread.high


def test_an_odd_image_out_is_no_evidence() -> None:
    assert compare_networks(3, 3, 100).p == pytest.approx(1.0)
    assert compare_networks(0, 10, 100).p == pytest.approx(0.5**10)  # half of the exact two-sided 2 · 0.5^10
    assert compare_networks(0, 10, 100).p == compare_networks(10, 0, 100).p


def test_means_over_networks_are_compared_image_by_image() -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(0, 3, 1000) / 2  # the share of two networks that classify an image correctly
    after = np.where(rng.random(1000) < 0.9, before, rng.integers(0, 4, 1000) / 3)
    spread, paired = compare_image_means(before, after), stats.ttest_rel(after, before)
    interval = paired.confidence_interval()
    assert (spread.low, spread.high) == pytest.approx((interval.low, interval.high), rel=0.02)
    assert spread.p == pytest.approx(paired.pvalue, rel=0.01)
    assert compare_image_means(before, before).p == 1.0
