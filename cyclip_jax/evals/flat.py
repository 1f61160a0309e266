"""Metrics as flat names and numbers, which is how files hold them, and back.

The metric `top1` of the evaluation `cifar` is `cifar/top1`; beside it stand `cifar/top1_ci_low` and
`cifar/top1_ci_high`, its 95 % interval, and `cifar/chance_top1`.
"""

import math
from collections.abc import Mapping

from cyclip_jax.evals.known_metrics import known_about
from cyclip_jax.evals.metric import About, Metric

_LOW, _HIGH, _CHANCE = "_ci_low", "_ci_high", "chance_"


def flattened(evaluations: Mapping[str, Mapping[str, Metric]]) -> dict[str, float]:
    """{"<evaluation>/<metric>": number} of {evaluation: {metric: Metric}}, as files hold it."""
    return {
        f"{evaluation}/{name}": number
        for evaluation, metrics in evaluations.items()
        for name, number in flat_numbers(metrics).items()
    }


def values_alone(evaluations: Mapping[str, Mapping[str, Metric]]) -> dict[str, float]:
    """{"<evaluation>/<metric>": value}, for curves: without intervals and without chance."""
    return {
        f"{evaluation}/{name}": float(metric.value)
        for evaluation, metrics in evaluations.items()
        for name, metric in metrics.items()
    }


def flat_numbers(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """The numbers of one evaluation's metrics by their names: each value, its interval, chance."""
    numbers = {}
    for name, metric in metrics.items():
        numbers[name] = float(metric.value)
        if metric.interval is not None:
            numbers[name + _LOW], numbers[name + _HIGH] = map(float, metric.interval)
        if metric.chance is not None:
            numbers[_CHANCE + name] = float(metric.chance)
    return numbers


def by_evaluation(
    numbers: Mapping[str, float | None],
    abouts: Mapping[str, Mapping[str, About]] | None = None,
) -> dict[str, dict[str, Metric]]:
    """The inverse of `flattened`: {evaluation: {metric: Metric}}.

    Args:
      numbers: {"<evaluation>/<metric>": number, or None where it was not finite}; names without a
        slash are left out.
      abouts: {evaluation: {metric: About}}, what the evaluations said of their metrics.
    """
    found = {}
    for full_name, value in numbers.items():
        evaluation, slash, name = full_name.partition("/")
        if slash:
            found.setdefault(evaluation, {})[name] = value
    abouts = abouts or {}
    return {name: metrics_of(inner, abouts.get(name)) for name, inner in found.items()}


def metrics_of(
    numbers: Mapping[str, float | None], abouts: Mapping[str, About] | None = None
) -> dict[str, Metric]:
    """The inverse of `flat_numbers`: intervals and chance go to their metric.

    Args:
      numbers: of one evaluation.
      abouts: what it said of its metrics; of others `known_about` tells.
    """
    abouts = abouts or {}

    def number(name):
        value = numbers.get(name)
        return math.nan if value is None else float(value)

    def metric(name):
        has_interval = {name + _LOW, name + _HIGH} <= numbers.keys()
        chance = number(_CHANCE + name)
        chance = chance if math.isfinite(chance) else None
        about = abouts.get(name) or known_about(name, has_chance=chance is not None)
        interval = (number(name + _LOW), number(name + _HIGH)) if has_interval else None
        return about.metric(number(name), interval, chance)

    return {name: metric(name) for name in numbers if not _is_beside(name, numbers)}


def _is_beside(name, numbers):
    """Whether a number is the bound or the chance of another."""
    bases = [name.removeprefix(_CHANCE), name.removesuffix(_LOW), name.removesuffix(_HIGH)]
    return any(base != name and base in numbers for base in bases)
