"""How far a number might have come out otherwise: bootstrap intervals (Efron 1979)."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from cyclip_jax.evals.metric import SHARE, About, Metric

RESAMPLES = 1000


def interval(
    statistic: Callable[[Int[np.ndarray, "n"]], Any], n: int, *, seed: int = 0
) -> tuple[Any, Any]:
    """The middle 95 % of a statistic over data sets drawn from the data, with replacement.

    Args:
      statistic: function of weights int [n], how often each unit was drawn, to a float or an array;
        NaN where a draw does not define it.
      n: number of the units that were sampled when the data was collected: images, not the
        several captions of one.
      seed: of the draws; the same for every metric, so that they can be compared.

    Returns:
      (low, high), each of the statistic's shape; NaN of a single unit. Where all units are alike
      the interval is a point, which few units make too narrow.
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic(np.bincount(rng.integers(n, size=n), minlength=n)) for _ in range(RESAMPLES)]
    if np.isnan(drawn).all():  # of a run that has diverged; NumPy would warn
        return np.nan, np.nan
    if n < 2:  # which tells nothing of others
        low, high = np.full((2, *np.shape(drawn[0])), np.nan)
    else:
        low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    return low, high


def mean_with_interval(
    values: Bool[np.ndarray, "n"] | Float[np.ndarray, "n"],
    *,
    clusters: Int[np.ndarray, "n"] | None = None,
    chance: float | None = None,
    about: About = SHARE,
) -> Metric:
    """The mean of values as a Metric with its interval.

    Args:
      values: float or bool [N], one of each query.
      clusters: int [N], which image each query belongs to, where one image has several: images are
        drawn, not queries. By default every query is its own.
      chance: as Metric.
      about: what the mean says of itself; by default it is a share of hits.
    """
    values = np.asarray(values, np.float64)
    if clusters is None:
        clusters = np.arange(len(values))
    clusters = np.unique(clusters, return_inverse=True)[1]
    sums = np.bincount(clusters, weights=values)
    sizes = np.bincount(clusters)
    bounds = interval(lambda weights: weights @ sums / (weights @ sizes), len(sums))
    return about.metric(float(values.mean()), floats(bounds), chance)


def mean_over_pairs_with_interval(
    rows: Float[np.ndarray, "n"],
    about: About,
    *,
    clusters: Int[np.ndarray, "n"] | None = None,
) -> Metric:
    """The mean over all j, k of a function of two units as a Metric with its interval.

    It varies, to first order, as twice the mean of its rows' means does (Hoeffding 1948): that is
    what is bootstrapped.

    Args:
      rows: float [N], the mean over k for each j.
      about: what the mean says of itself.
      clusters: as `mean_with_interval`.
    """
    mean = float(np.mean(rows))
    once = mean_with_interval(rows, clusters=clusters).interval or (np.nan, np.nan)
    low, high = (2 * bound - mean for bound in once)
    return about.metric(mean, (low, high))


def weighted_median(
    values: Shaped[np.ndarray, "n"], clusters: Int[np.ndarray, "n"]
) -> Callable[[Int[np.ndarray, "c"]], float]:
    """A function of weights of the clusters to the median of values, each that often; NaN of none.

    Args:
      values: [N].
      clusters: the cluster of each, int [N].
    """
    order = np.argsort(values, kind="stable")
    values, clusters = values[order], clusters[order]

    def median(weights):
        ends = np.cumsum(weights[clusters])
        if not ends[-1]:
            return np.nan
        middle = np.searchsorted(ends, [(ends[-1] - 1) // 2, ends[-1] // 2], side="right")
        return values[middle].mean()

    return median


def floats(bounds: tuple[Any, Any]) -> tuple[float, float]:
    """The `bounds` (low, high) of one number, in Python's floats."""
    low, high = bounds
    return float(low), float(high)
