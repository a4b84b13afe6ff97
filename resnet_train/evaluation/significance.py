"""Differences between accuracies: intervals, p-values and power, over seeds and over test images.

Accuracies and differences are shares (0.93), not percent. scipy is imported where it is used: it takes a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.05  # significance level of every test; intervals have 95 %
POWER = 0.8  # a difference that is found with this probability is called detectable
MAX_SEEDS = 8192  # more are never suggested
NODES = 24  # of the quadrature over each sample variance; 16 nodes give the same power within 0.001
PRIOR_DF = 1.0  # degrees of freedom that the pooled variance contributes to those of the test


@dataclass(frozen=True)
class Spread:
    """How far the difference of two accuracies may be off.

    Attributes:
        low, high: the bounds of its 95 % interval.
        p: the probability of so large a difference if there is none.
        method: how both were computed.
    """

    low: float
    high: float
    p: float
    method: str


# --- Over seeds ------------------------------------------------------------------------------------------------------


def compare_seeds(before: Sequence[float], after: Sequence[float]) -> Spread:
    """Compare the accuracies of two groups of runs by Welch's t-test, which lets their variances differ.

    With two or three runs each, Welch's degrees of freedom are too few on average, because they come from the sample
    variances: where there is no difference, 2.3 and 3.5 % of the p-values are below 0.05. So these variances are first
    moved toward the pooled one, which then counts like one more run: 4.0 and 4.2 %. With more runs this makes no
    difference. A permutation test of three runs each can't have a p-value below 0.1.

    Args:
        before, after: at least two values each, not all equal within both groups.
    """
    from scipy import stats

    difference = float(np.mean(after) - np.mean(before))
    error, df = _error_and_df(np.var(before, ddof=1), np.var(after, ddof=1), len(before), len(after))
    margin = float(error * stats.t.ppf(1 - LEVEL / 2, df))
    p = float(2 * stats.t.sf(abs(difference) / error, df))
    return Spread(difference - margin, difference + margin, p, "Welch's t-test")


def pooled_sd(*groups: Sequence[float]) -> tuple[float, int]:
    """Return the standard deviation within groups of runs, and its degrees of freedom."""
    df = sum(len(group) - 1 for group in groups)
    total = sum((len(group) - 1) * float(np.var(group, ddof=1)) for group in groups if len(group) > 1)
    return math.sqrt(total / df) if df else math.nan, df


def sd_interval(sd: float, df: int) -> tuple[float, float]:
    """Return the 95 % interval of a standard deviation that was estimated with `df` degrees of freedom."""
    from scipy import stats

    low, high = stats.chi2.ppf([LEVEL / 2, 1 - LEVEL / 2], df)
    return sd * math.sqrt(df / high), sd * math.sqrt(df / low)


def seeds_power(difference: float, sds: tuple[float, float], sizes: tuple[int, int]) -> float:
    """Return the probability that `compare_seeds` finds a difference (p < 0.05).

    It is the mean, by quadrature, over the sample variances that two normal distributions give. The noncentral t
    distribution, which takes them as known, is off by up to 8 points with two runs each and by 20 with two and five.

    Args:
        difference: the true difference.
        sds: the true standard deviations of single runs in both groups.
        sizes: the numbers of runs.
    """
    from scipy import stats

    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    quantiles, weights = (nodes + 1) / 2, weights / 2
    first, second = (
        sd**2 * stats.chi2.ppf(quantiles, size - 1) / (size - 1) for sd, size in zip(sds, sizes)
    )  # [NODES] each
    errors, dfs = _error_and_df(first[:, None], second[None, :], *sizes)  # [NODES, NODES]
    bounds = errors * stats.t.ppf(1 - LEVEL / 2, dfs)
    true_error = math.sqrt(sum(sd**2 / size for sd, size in zip(sds, sizes)))
    found = stats.norm.sf((bounds - difference) / true_error) + stats.norm.sf((bounds + difference) / true_error)
    return float(weights @ found @ weights)


def detectable_by_seeds(sd: float, sizes: tuple[int, int]) -> float:
    """Return the difference that these numbers of runs find with a probability of 80 %."""
    from scipy import optimize

    return float(
        sd * optimize.brentq(lambda ratio: seeds_power(ratio, (1.0, 1.0), sizes) - POWER, 1e-6, 1e3, xtol=1e-4)
    )


def seeds_needed(difference: float, sd: float) -> int | None:
    """Return how many runs per group find this difference with a probability of 80 %; None if that is over 8,192."""
    enough = 2
    while seeds_power(abs(difference), (sd, sd), (enough, enough)) < POWER:
        if enough >= MAX_SEEDS:
            return None
        enough *= 2

    # Search between the last two powers of two.
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        is_enough = seeds_power(abs(difference), (sd, sd), (middle, middle)) >= POWER
        too_few, enough = (too_few, middle) if is_enough else (middle, enough)
    return enough


def _error_and_df(first: Any, second: Any, n1: int, n2: int) -> tuple[Any, Any]:
    """Return the standard error of a difference of means, and its degrees of freedom, from two sample variances."""
    error = np.sqrt(first / n1 + second / n2)
    pooled = ((n1 - 1) * first + (n2 - 1) * second) / (n1 + n2 - 2)
    first, second = (
        ((n - 1) * variance + PRIOR_DF * pooled) / (n - 1 + PRIOR_DF) / n for variance, n in ((first, n1), (second, n2))
    )
    return error, (first + second) ** 2 / (first**2 / (n1 - 1) + second**2 / (n2 - 1))


def adjust_p_values(values: Sequence[float]) -> list[float]:
    """Return the p-values of several tests after Holm's correction, which keeps a false alarm in any of them at 5 %."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


# --- Over test images ------------------------------------------------------------------------------------------------


def compare_networks(lost: int, gained: int, num_images: int) -> Spread:
    """Compare two networks on the same images by McNemar's test (mid-p; Fagerland, Lydersen & Laake 2013).

    Args:
        lost: images that only the first network classifies correctly.
        gained: images that only the second one does.
        num_images: all images. The interval is that of Bonett & Price (2012).
    """
    from scipy import stats

    fewer, disputed = min(lost, gained), lost + gained
    p = 2 * stats.binom.cdf(fewer - 1, disputed, 0.5) + stats.binom.pmf(fewer, disputed, 0.5)
    shares = (lost + 1) / (num_images + 2), (gained + 1) / (num_images + 2)
    middle = shares[1] - shares[0]
    margin = _normal_quantile() * math.sqrt((sum(shares) - middle**2) / (num_images + 2))
    return Spread(middle - margin, middle + margin, min(1.0, float(p)), "McNemar's test")


def compare_image_means(before: np.ndarray, after: np.ndarray) -> Spread:
    """Compare two groups of networks by the shares of them that classify each image correctly, float [N], in pairs."""
    from scipy import stats

    difference = after - before
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    mean, margin = float(difference.mean()), error * _normal_quantile()
    p = float(2 * stats.norm.sf(abs(mean) / error)) if error else 1.0
    return Spread(mean - margin, mean + margin, p, "paired z-test")


def images_power(difference: float, disputed: float, num_images: int) -> float:
    """Return the probability that `compare_networks` finds a difference (p < 0.05), by the normal distribution.

    Args:
        difference: the true difference.
        disputed: the share of images that only one of the two networks classifies correctly.
        num_images: all images.
    """
    from scipy import stats

    root, bound = math.sqrt(disputed - difference**2), _normal_quantile() * math.sqrt(disputed)
    shift = abs(difference) * math.sqrt(num_images)
    return float(stats.norm.sf((bound - shift) / root) + stats.norm.sf((bound + shift) / root))


def detectable_by_images(disputed: float, num_images: int) -> float | None:
    """Return the difference that is found on this number of images in 80 % of cases; None if none is large enough."""
    from scipy import optimize

    def missing(difference: float) -> float:
        return images_power(difference, disputed, num_images) - POWER

    largest = disputed * (1 - 1e-9)
    return None if not disputed or missing(largest) < 0 else float(optimize.brentq(missing, 0.0, largest, xtol=1e-6))


def _normal_quantile() -> float:
    from scipy import stats

    return float(stats.norm.ppf(1 - LEVEL / 2))
