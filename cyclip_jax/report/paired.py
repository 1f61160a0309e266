"""Differences between two runs, item by item: both answered the same questions."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from cyclip_jax.evals.statistics.intervals import interval, weighted_median
from cyclip_jax.evals.statistics.rank_correlation import Spearman
from cyclip_jax.report.runs import Run, read_all_arrays

# Means over pairs of items: they vary as twice the mean of their rows does (Hoeffding 1948).
_OVER_PAIRS = ("inmodal_consistency", "crossmodal_consistency")
_OVER_PAIRS += ("image_conformity", "text_conformity")
_MEDIAN, _MEAN_RECALL = re.compile(r"(.+)_median_rank"), "mean_recall"
_CLOSE = 1e-4  # relative; models may be scored in float32


@dataclasses.dataclass(frozen=True)
class Difference:
    """A metric of one run less that of another on the same items.

    Attributes:
      value: the difference, of all that each run scored.
      interval: its 95 % bootstrap interval (low, high), drawn over the items that both scored; None
        where there is none.
      reason: why there is none, in a few words; empty where there is one.
    """

    value: float | None
    interval: tuple[float, float] | None
    reason: str = ""


@functools.lru_cache(maxsize=64)  # several sections of a page ask for the same
def paired_differences(ours: Run, theirs: Run, evaluation: str) -> dict[str, Difference]:
    """{metric: Difference} of every number that both runs have of an evaluation.

    Items are resampled for both runs together, those of one cluster together (see
    `evals.output.Output`).

    Raises:
      UserError: a file of outcomes cannot be read.
    """
    mine, others = (run.evaluations.get(evaluation, {}) for run in (ours, theirs))
    names = [name for name in mine if name in others]
    values = {name: _less(mine[name], others[name]) for name in names}
    kinds, reason = _both_outcomes(ours, theirs, evaluation)
    bounds = _intervals(kinds, mine, others) if kinds else {}
    found = {}
    for name in names:
        if mine[name].is_count:
            continue
        told = reason or ("" if name in bounds else "no outcome for each item tells of it")
        found[name] = Difference(values[name], bounds.get(name), told)
    return found


def _less(mine, other):
    return mine.value - other.value if mine.is_finite and other.is_finite else None


@dataclasses.dataclass(frozen=True)
class _Items:
    """Items of one kind that both runs scored: their arrays, row by row the same items.

    Attributes:
      kind: what the items are.
      clusters: int [N], what is drawn together.
      ours, theirs: {name: array [N, …]}.
      means: {name: the means of all items that each run scored}.
    """

    kind: str
    clusters: Int[np.ndarray, "n"]
    ours: Mapping[str, Shaped[np.ndarray, "n ..."]]
    theirs: Mapping[str, Shaped[np.ndarray, "n ..."]]
    means: Mapping[str, tuple[float, float]]


def _both_outcomes(ours, theirs, evaluation):
    """([_Items], why there are none)."""
    if _settings(ours, evaluation) != _settings(theirs, evaluation):
        return [], "the two were evaluated with other settings"
    paths = [
        run.details[evaluation] / "outcomes.npz"
        for run in (ours, theirs)
        if evaluation in run.details
    ]
    if len(paths) < 2 or not all(path.exists() for path in paths):
        return [], "a workdir of an older version keeps no outcomes of its items"
    first, second = (_by_kind(read_all_arrays(path)) for path in paths)
    kinds = []
    for kind in [kind for kind in first if kind in second]:
        mine, other = first[kind], second[kind]
        _, rows, others = np.intersect1d(mine["index"], other["index"], return_indices=True)
        if not len(rows):
            continue
        ours_, theirs_ = (
            {name: array[chosen] for name, array in arrays.items() if len(array) == size}
            for arrays, chosen, size in (
                (mine, rows, len(mine["index"])),
                (other, others, len(other["index"])),
            )
        )
        if not np.array_equal(ours_.get("label", 0), theirs_.get("label", 0)):
            return [], "the two were evaluated on other data"
        clusters = ours_.get("cluster", np.arange(len(rows)))
        means = {
            name: (_mean(mine[name]), _mean(other[name]))
            for name in ours_.keys() & theirs_.keys()
            if mine[name].dtype.kind in "bif"
        }
        kinds.append(_Items(kind, np.asarray(clusters), ours_, theirs_, means))
    return kinds, "" if kinds else "the two scored no item in common"


def _settings(run: Run, evaluation: str) -> Any:
    """What an evaluation of the run's config is about; None where its config does not say."""
    settings = ((run.config or {}).get("evals") or {}).get(evaluation)
    if not isinstance(settings, Mapping):
        return None
    data = ("pairs", "train", "test", "folder", "preset", "examples", "sentences", "split")
    return {
        name: value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else value
        for name, value in settings.items()
        if name in data
    }


def _by_kind(arrays):
    kinds = {}
    for name, array in arrays.items():
        kind, _, inner = name.partition("/")
        kinds.setdefault(kind, {})[inner] = array
    return {kind: inner for kind, inner in kinds.items() if "index" in inner}


def _intervals(kinds, mine, others):
    """{metric: (low, high)} of those metrics whose outcomes tell of them."""
    found = {}
    for items in kinds:
        names = [
            name
            for name, (first, second) in items.means.items()
            if name in mine
            and name in others
            and not name.endswith("spearman")
            and _is_close(first, mine[name])
            and _is_close(second, others[name])
        ]
        found |= _of_means(items, sorted(names))
    for further in (_of_medians, _of_correlations, _of_class_means, _of_mean_recall):
        found |= further(kinds, mine, others)
    return found


def _mean(outcomes):
    return float(np.mean(outcomes, dtype=np.float64))


def _is_close(mean, metric):
    """Whether the number is the items' mean: it may not be one, or the file of another step."""
    return metric.is_finite and abs(mean - metric.value) <= _CLOSE * max(abs(mean), 1e-3)


def _of_means(items, names):
    """Bootstrap intervals of differences of means over clusters, of several metrics at once."""
    if not names:
        return {}
    rows = np.stack([_rows(items.ours[n]) - _rows(items.theirs[n]) for n in names])  # [M, N]
    units, sums, sizes = _sums(items.clusters, rows)
    means = rows.mean(axis=1)
    low, high = _interval(lambda weights: sums @ weights / (sizes @ weights), units)
    wide = np.array([2 if name in _OVER_PAIRS else 1 for name in names])
    ends = [means + wide * (end - means) for end in (low, high)]
    return _finite_pairs(names, *ends)


def _rows(outcomes: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, "n"]:
    """One number for each item: several draws of it are a mean."""
    return np.asarray(outcomes, np.float64).reshape(len(outcomes), -1).mean(axis=1)


def _sums(clusters, rows):
    """(number of clusters, sums of the rows [M, N] over them, their sizes)."""
    number = np.unique(clusters, return_inverse=True)[1]
    units = int(number.max()) + 1
    sums = np.stack([np.bincount(number, weights=row, minlength=units) for row in rows])
    return units, sums, np.bincount(number, minlength=units)


def _interval(statistic, units):
    with np.errstate(invalid="ignore"):
        return interval(statistic, units)


def _of_medians(kinds, mine, others):
    """Of median ranks, from the rank of each item."""
    found = {}
    for items in kinds:
        for name in mine.keys() & others.keys():
            median = _MEDIAN.fullmatch(name)
            rank = f"{median[1]}_rank" if median else ""
            if rank not in items.ours or rank not in items.theirs:
                continue
            both = [np.asarray(one[rank], np.float64) for one in (items.ours, items.theirs)]
            number = np.unique(items.clusters, return_inverse=True)[1]
            ours, theirs = (weighted_median(ranks, number) for ranks in both)
            ends = _interval(
                lambda weights, a=ours, b=theirs: a(weights) - b(weights), int(number.max()) + 1
            )
            found |= _finite_pairs([name], *([end] for end in ends))
    return found


def _of_correlations(kinds, mine, others):
    """Of rank correlations of cosines with people's scores."""
    found = {}
    for items in kinds:
        names = [name for name in items.ours if name.endswith("spearman")]
        if not {"score", "cosine", "first", "second"} <= items.ours.keys() & items.theirs.keys():
            continue
        ours, theirs = (Spearman(one["score"], one["cosine"]) for one in (items.ours, items.theirs))
        n = len(items.clusters)
        sentences = np.concatenate([items.ours["first"], items.ours["second"]])
        sentences = np.unique(sentences, return_inverse=True)[1]
        units = int(sentences.max()) + 1
        is_of_sentences = 2 * units <= n  # which the evaluation draws then, and not pairs

        def difference(drawn, a=ours, b=theirs, n=n, both=sentences, apart=is_of_sentences):
            weights = drawn[both[:n]] * drawn[both[n:]] if apart else drawn
            return a(weights) - b(weights)

        low, high = _interval(difference, units if is_of_sentences else n)
        known = [name for name in names if name in mine and name in others]
        found |= _finite_pairs(known, *([end] * len(known) for end in (low, high)))
    return found


def _of_class_means(kinds, mine, others):
    """Of the mean of the classes' accuracies."""
    name, hit = "mean_per_class", "top1"
    if name not in mine or name not in others:
        return {}
    for items in kinds:
        if not {"label", hit} <= items.ours.keys() & items.theirs.keys():
            continue
        labels = np.unique(items.ours["label"], return_inverse=True)[1]
        gain = _rows(items.ours[hit]) - _rows(items.theirs[hit])

        def mean(weights, labels=labels, gain=gain):
            sizes = np.bincount(labels, weights=weights)
            return np.mean((np.bincount(labels, weights=weights * gain) / sizes)[sizes > 0])

        return _finite_pairs([name], *([end] for end in _interval(mean, len(labels))))
    return {}


def _of_mean_recall(kinds, mine, others):
    """Of the mean recall, a mean over both directions whose clusters are drawn together."""
    if _MEAN_RECALL not in mine or _MEAN_RECALL not in others:
        return {}
    parts = [
        (items.clusters, np.stack([_rows(items.ours[n]) - _rows(items.theirs[n]) for n in names]))
        for items in kinds
        if (names := sorted(name for name in items.ours if "_recall@" in name))
        and "cluster" in items.ours
    ]
    if len(parts) != 2:
        return {}
    numbers = np.unique(np.concatenate([clusters for clusters, _ in parts]))
    units = len(numbers)
    sums, sizes = [], []
    for clusters, rows in parts:
        place = np.searchsorted(numbers, clusters)
        sums.append(np.stack([np.bincount(place, weights=r, minlength=units) for r in rows]))
        sizes.append(np.bincount(place, minlength=units))

    def mean_recall(weights):
        recalls = [s @ weights / (size @ weights) for s, size in zip(sums, sizes, strict=True)]
        return np.concatenate(recalls).mean()

    return _finite_pairs([_MEAN_RECALL], *([end] for end in _interval(mean_recall, units)))


def _finite_pairs(names, lows, highs):
    pairs = zip(
        names, np.broadcast_to(lows, len(names)), np.broadcast_to(highs, len(names)), strict=True
    )
    return {
        n: (float(low), float(high)) for n, low, high in pairs if np.isfinite([low, high]).all()
    }
