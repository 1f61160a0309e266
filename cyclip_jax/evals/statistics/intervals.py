"""How far a number might have come out otherwise: bootstrap intervals (Efron 1979)."""

import numpy as np

RESAMPLES = 1000


def interval(statistic, n, *, seed=0):
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
        return np.full((2, *np.shape(drawn[0])), np.nan)
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    return low, high


def mean_with_interval(name, values, *, clusters=None):
    """The mean of values as a metric, with its interval.

    Args:
      name: of the metric.
      values: float or bool [N], one of each query.
      clusters: int [N], which image each query belongs to, where one image has several: images are
        drawn, not queries. Default: every query is its own.

    Returns:
      {name: mean, f"{name}_ci_low": …, f"{name}_ci_high": …}.
    """
    values = np.asarray(values, np.float64)
    if clusters is None:
        clusters = np.arange(len(values))
    clusters = np.unique(clusters, return_inverse=True)[1]
    sums = np.bincount(clusters, weights=values)
    sizes = np.bincount(clusters)
    bounds = interval(lambda weights: weights @ sums / (weights @ sizes), len(sums))
    return {name: float(values.mean())} | bounds_of(name, bounds)


def mean_over_pairs_with_interval(name, rows, *, clusters=None):
    """The mean over all j, k of a function of two units as a metric, with its interval.

    It varies, to first order, as twice the mean of its rows' means does (Hoeffding 1948): that is
    what is bootstrapped.

    Args:
      name: of the metric.
      rows: float [N], the mean over k for each j.
      clusters: as `mean_with_interval`.
    """
    mean = float(np.mean(rows))
    once = mean_with_interval(name, rows, clusters=clusters)
    bounds = (2 * once[f"{name}_ci_{end}"] - mean for end in ("low", "high"))
    return {name: mean} | bounds_of(name, tuple(bounds))


def bounds_of(name, bounds):
    """The metrics of an interval (low, high) around the metric `name`."""
    return {f"{name}_ci_low": float(bounds[0]), f"{name}_ci_high": float(bounds[1])}
