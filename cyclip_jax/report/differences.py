"""The sections of differences: between two runs item by item, between groups seed by seed."""

from collections.abc import Sequence
from typing import NamedTuple

from cyclip_jax.evals.metric import Metric
from cyclip_jax.page.markup import Cell, Html, element, join, table, told
from cyclip_jax.report.paired import Difference, paired_differences
from cyclip_jax.report.parts import (
    ARROWS_MEAN,
    Drawings,
    evaluations_of,
    headlines_of,
    named,
    run_names,
)
from cyclip_jax.report.runs import Group, Run

_BASELINES = ("CLIP", "CyCLIP")  # the first that there is
_COMPARED = 6  # runs beside the one that they are compared with


def item_by_item(groups: Sequence[Group], _: Drawings | None) -> Html | None:
    """The paired difference of every number of two runs, or of each of some runs and the first."""
    pairs = _compared(groups)
    found = [_differences(groups, pair) for pair in pairs]
    rows = []
    for evaluation in evaluations_of(groups):
        names = dict.fromkeys(name for one in found for name in one.get(evaluation, {}))
        metrics = {
            name: metric
            for pair in pairs
            for name, metric in pair.run.evaluations.get(evaluation, {}).items()
        }
        for name in sorted(names, key=lambda name: not metrics[name].is_headline):
            metric = metrics[name]
            cells = [paired_cell(one.get(evaluation, {}).get(name), metric) for one in found]
            rows.append([named(name, evaluation, metric.better), *cells])
    if not rows:
        return None
    caption = (
        f"Every number less that of {pairs[0].base_name}, of shares in percentage points. Both "
        "answered the same questions, so that the 95 % intervals are of resampled items that both "
        f"scored; bold where they leave out 0, as one in twenty does by chance; {ARROWS_MEAN}"
    )
    return table(caption, ["metric", *(pair.name for pair in pairs)], rows)


class OfTwo(NamedTuple):
    """What two runs differ in.

    Attributes:
      name: "this less that".
      found: {(evaluation, metric): Difference}.
    """

    name: str
    found: dict[tuple[str, str], Difference]


def of_two(groups: Sequence[Group]) -> OfTwo | None:
    """What two groups of one run each differ in, item by item; None of any other groups."""
    pairs = _compared(groups)
    if len(pairs) != 1 or len(groups) != 2:
        return None
    found = {
        (evaluation, name): difference
        for evaluation, its in _differences(groups, pairs[0]).items()
        for name, difference in its.items()
    }
    return OfTwo(f"{pairs[0].name} less {pairs[0].base_name}", found)


def differences(groups: Sequence[Group], _: Drawings | None) -> Html | None:
    """What each group changes beside plain CLIP, or else beside plain CyCLIP, seed by seed."""
    plain = [group for name in _BASELINES for group in groups if group.name == name]
    baseline = plain[0] if plain else None
    others = [group for group in groups if group is not baseline]
    if baseline is None or not others:
        return None
    rows = []
    for evaluation in evaluations_of(groups):
        for name, metric in headlines_of(groups, evaluation):
            found = [group.difference(baseline, evaluation, name) for group in others]
            if any(one is not None for one in found):
                row = named(name, evaluation, metric.better)
                rows.append([row, *map(_difference_cell, found)])
    if not rows:
        return None
    caption = (
        f"Means over seeds of a run's number less {baseline.name}'s with the same seed, of shares "
        "in percentage points; in brackets 95 % intervals by Student's t over the seeds, bold "
        f"where they leave out 0, as one in twenty does by chance; {ARROWS_MEAN}"
    )
    return table(caption, ["metric", *(group.name for group in others)], rows)


class _Pair(NamedTuple):
    """A run, the one that it is compared with, and what they are called."""

    name: str
    run: Run
    base_name: str
    base: Run


def _compared(groups):
    """The pairs that are compared item by item; none where seeds make means."""
    runs = [run for group in groups for run in group.runs]
    is_single = all(len(group.runs) == 1 for group in groups)
    names = [group.name for group in groups] if is_single else run_names(groups)
    names = dict(zip([run.path for run in runs], names, strict=True))
    if len(runs) < 2 or len(runs) > 1 + _COMPARED or not (len(runs) == 2 or is_single):
        return []
    plain = [group.runs[0] for name in _BASELINES for group in groups if group.name == name]
    base = plain[0] if plain and is_single else runs[0]
    return [_Pair(names[run.path], run, names[base.path], base) for run in runs if run is not base]


def _differences(groups, pair):
    """{evaluation: {metric: Difference}} of those evaluations that both have."""
    return {
        evaluation: paired_differences(pair.run, pair.base, evaluation)
        for evaluation in evaluations_of(groups)
        if evaluation in pair.run.evaluations and evaluation in pair.base.evaluations
    }


def paired_cell(difference: Difference | None, metric: Metric) -> Cell:
    """A difference of such a metric with its interval, or the difference and why there is none."""
    if difference is None or difference.value is None:
        return Cell("", None)
    if difference.interval is None:
        missing = element("span", told("interval not available", difference.reason), class_="of")
        return Cell(join(_signed(metric, difference.value), " ", missing), difference.value)
    return _difference_cell(metric.about.metric(difference.value, difference.interval))


def _difference_cell(metric):
    if metric is None or metric.bounds is None:
        return Cell("", None)
    low, high = metric.bounds
    value, *ends = (_signed(metric, number) for number in (metric.value, low, high))
    text = f"{value} [{', '.join(ends)}]"
    is_clear = low > 0 or high < 0
    return Cell(element("strong", text) if is_clear else text, metric.value, metric.bounds)


def _signed(metric, number):
    """A difference with its sign; of shares in percentage points."""
    return f"{100 * number:+.1f}" if metric.is_share else f"{number:+.3g}"
