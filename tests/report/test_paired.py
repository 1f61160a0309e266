"""Differences between two runs, from the outcomes of the same items."""

import json

import numpy as np
import pytest

from cyclip_jax.errors import UserError
from cyclip_jax.evals.statistics.rank_correlation import Spearman
from cyclip_jax.report.differences import item_by_item
from cyclip_jax.report.paired import paired_differences
from cyclip_jax.report.runs import group_runs, read_run
from tests.test_report import Page, write_arrays, write_run

RNG = np.random.default_rng(0)
CAPTION = "Every number less that of"


def with_outcomes(directory, metrics, outcomes, *, evaluation="val", **settings):
    """A run with these numbers and outcomes of an evaluation; the numbers that are None have none.

    Args:
      metrics: {name: number}.
      outcomes: {"<items>/<name>": array}, or None of an older workdir.
    """
    write_run(directory, **settings)
    numbers = {f"{evaluation}/{name}": float(value) for name, value in metrics.items()}
    lines = (directory / "metrics.jsonl").read_text().splitlines()[:-1]
    lines.append(json.dumps({"step": 4} | numbers))
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    if outcomes is not None:
        write_arrays(directory / "evals" / evaluation / "outcomes.npz", **outcomes)
    return read_run(directory)


def of_hits(directory, hits, index=None, **settings):
    """A run with an accuracy, the mean of these hits."""
    index = np.arange(len(hits)) if index is None else index
    outcomes = {"images/index": index, "images/top1": hits, "images/label": index % 5}
    return with_outcomes(directory, {"top1": hits.mean()}, outcomes, **settings)


def resampled(statistic, n):
    """The interval that `intervals.interval` draws, item by item."""
    rng = np.random.default_rng(0)
    drawn = [statistic(rng.integers(n, size=n)) for _ in range(1000)]
    return tuple(np.percentile(drawn, [2.5, 97.5]))


def test_a_difference_of_means_is_drawn_for_both_together(tmp_path):
    first = RNG.random(200) < 0.5
    second = np.where(RNG.random(200) < 0.1, ~first, first)
    runs = of_hits(tmp_path / "b", second), of_hits(tmp_path / "a", first)
    found = paired_differences(*runs, "val")["top1"]
    gain = second.astype(float) - first
    assert found.value == pytest.approx(gain.mean(), abs=1e-12)
    assert found.interval == pytest.approx(resampled(lambda i: gain[i].mean(), 200), abs=1e-12)
    # Far narrower than that of runs that did not answer the same questions.
    low, high = found.interval
    assert high - low < 0.5 * 2 * 1.96 * (2 * 0.25 / 200) ** 0.5


def test_items_of_one_cluster_are_drawn_together(tmp_path):
    cluster = np.repeat(np.arange(30), 5)
    runs = []
    for name in "ba":
        hits = RNG.random(150) < RNG.random(30)[cluster]
        outcomes = {"images/index": np.arange(150), "images/top1": hits, "images/cluster": cluster}
        runs.append((hits, with_outcomes(tmp_path / name, {"top1": hits.mean()}, outcomes)))
    gain = (runs[0][0].astype(float) - runs[1][0]).reshape(30, 5).mean(axis=1)
    found = paired_differences(runs[0][1], runs[1][1], "val")["top1"]
    assert found.interval == pytest.approx(resampled(lambda i: gain[i].mean(), 30), abs=1e-12)


def test_what_one_run_could_not_read_is_in_no_interval(tmp_path):
    first, second = RNG.random(100) < 0.5, RNG.random(100) < 0.6
    left = np.arange(100) != 7
    runs = (
        of_hits(tmp_path / "b", second[left], np.flatnonzero(left)),
        of_hits(tmp_path / "a", first),
    )
    gain = (second.astype(float) - first)[left]
    found = paired_differences(*runs, "val")["top1"]
    assert found.interval == pytest.approx(resampled(lambda i: gain[i].mean(), 99), abs=1e-12)
    assert found.value == pytest.approx(second[left].mean() - first.mean(), abs=1e-12)


def test_recall_and_the_median_rank_have_intervals(tmp_path):
    runs, ranks = [], {}
    for name in "ba":
        metrics, outcomes = {}, {}
        for kind, way in (("images", "image_to_text"), ("captions", "text_to_image")):
            ranks[name, kind] = own = RNG.integers(1, 30, size=60)
            arrays = {f"{way}_recall@{k}": own <= k for k in (1, 5, 10)} | {f"{way}_rank": own}
            arrays |= {"index": np.arange(60), "cluster": np.arange(60) // 2}
            outcomes |= {f"{kind}/{key}": array for key, array in arrays.items()}
            metrics |= {f"{way}_recall@{k}": (own <= k).mean() for k in (1, 5, 10)}
            metrics[f"{way}_median_rank"] = np.median(own)
        metrics["mean_recall"] = np.mean([v for n, v in metrics.items() if "recall@" in n])
        runs.append(with_outcomes(tmp_path / name, metrics, outcomes))
    found = paired_differences(*runs, "val")
    assert all(one.interval is not None for one in found.values()) and len(found) == 9

    def recalls(name, chosen):
        rows = np.concatenate([np.flatnonzero(np.arange(60) // 2 == unit) for unit in chosen])
        return [(ranks[name, kind][rows] <= k).mean() for kind in KINDS for k in (1, 5, 10)]

    def difference(chosen):
        return np.mean(recalls("b", chosen)) - np.mean(recalls("a", chosen))

    assert found["mean_recall"].interval == pytest.approx(resampled(difference, 30), abs=1e-12)

    def medians(chosen):
        rows = np.concatenate([np.flatnonzero(np.arange(60) // 2 == unit) for unit in chosen])
        return np.median(ranks["b", "images"][rows]) - np.median(ranks["a", "images"][rows])

    interval = found["image_to_text_median_rank"].interval
    assert interval == pytest.approx(resampled(medians, 30), abs=1e-12)


KINDS = ("images", "captions")


def test_a_mean_over_pairs_of_items_varies_as_twice_its_rows_do(tmp_path):
    rows = {name: RNG.random(80) for name in "ba"}
    runs = [
        with_outcomes(
            tmp_path / name,
            {"inmodal_consistency": its.mean(), "alignment": its.mean()},
            {
                "pairs/index": np.arange(80),
                "pairs/inmodal_consistency": its,
                "pairs/alignment": its,
            },
        )
        for name, its in rows.items()
    ]
    found = paired_differences(*runs, "val")
    mean = found["alignment"].value
    for wide, narrow in zip(
        found["inmodal_consistency"].interval, found["alignment"].interval, strict=True
    ):
        assert wide - mean == pytest.approx(2 * (narrow - mean), abs=1e-12)


def test_a_rank_correlation_is_that_of_each_resample(tmp_path):
    scores = RNG.random(50)
    cosines = {name: scores + noise * RNG.random(50) for name, noise in (("b", 1), ("a", 3))}
    runs = []
    for name, its in cosines.items():
        arrays = {"spearman": Spearman(scores, its).parts(), "cosine": its, "score": scores}
        arrays |= {"index": np.arange(50), "first": np.arange(50), "second": np.arange(50, 100)}
        outcomes = {f"pairs/{key}": array for key, array in arrays.items()}
        metrics = {"spearman": Spearman(scores, its)(np.ones(50))}
        runs.append(with_outcomes(tmp_path / name, metrics, outcomes))

    def difference(chosen):
        weights = np.bincount(chosen, minlength=50)
        first, second = (Spearman(scores, its)(weights) for its in cosines.values())
        return first - second

    found = paired_differences(*runs, "val")["spearman"]
    assert found.interval == pytest.approx(resampled(difference, 50), abs=1e-12)


def test_a_mean_over_classes_counts_each_class_alike(tmp_path):
    labels = np.repeat([0, 1], [90, 10])
    hits = {"b": labels == 1, "a": labels == 0}  # opposite, so that the mean does not differ
    runs = [
        with_outcomes(
            tmp_path / name,
            {"top1": its.mean(), "mean_per_class": 0.5},
            {"images/index": np.arange(100), "images/top1": its, "images/label": labels},
        )
        for name, its in hits.items()
    ]
    found = paired_differences(*runs, "val")
    assert found["mean_per_class"].value == 0 and found["mean_per_class"].interval == (0, 0)
    assert found["top1"].interval[1] < -0.6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"outcomes": None}, "a workdir of an older version keeps no outcomes of its items"),
        ({"label": 1}, "the two were evaluated on other data"),
        ({"metric": 0.9}, "no outcome for each item tells of it"),  # the file is of another step
        ({"index": 1000}, "the two scored no item in common"),
    ],
)
def test_where_there_is_no_interval_the_reason_is_told(tmp_path, change, reason):
    hits = np.arange(40) % 2 == 0
    outcomes = {
        "images/index": np.arange(40) + change.get("index", 0),
        "images/top1": hits,
        "images/label": (np.arange(40) + change.get("label", 0)) % 5,
    }
    outcomes = change.get("outcomes", outcomes)
    metrics = {"top1": change.get("metric", hits.mean()), "images": 40}
    ours = with_outcomes(tmp_path / "b", metrics, outcomes)
    found = paired_differences(ours, of_hits(tmp_path / "a", hits), "val")
    assert found["top1"].interval is None and found["top1"].reason == reason
    assert found["top1"].value == pytest.approx(metrics["top1"] - 0.5)
    assert "images" not in found


def test_runs_that_were_evaluated_on_other_files_are_not_compared(tmp_path):
    hits = np.arange(40) % 2 == 0
    evals = [{"val": {"type": "zeroshot", "folder": folder}} for folder in ("/x/a", "/y/a", "/b")]
    first, second, third = (
        of_hits(tmp_path / str(number), hits, evals=its) for number, its in enumerate(evals)
    )
    assert paired_differences(first, second, "val")["top1"].interval == (0, 0)
    assert "with other settings" in paired_differences(first, third, "val")["top1"].reason


def test_two_runs_have_a_table_of_every_number(tmp_path):
    hits = RNG.random(100) < 0.5
    clip = of_hits(tmp_path / "clip", hits)
    ours = of_hits(tmp_path / "cyclip", hits | (RNG.random(100) < 0.4), weights=(0.25, 0.25))
    rows = Page(str(item_by_item(group_runs([ours, clip]), None))).rows(CAPTION)
    assert rows["metric"] == ["CyCLIP"]  # less CLIP, however they are named
    (told,) = rows["top1 ↑ val"]
    assert told.startswith("+") and told.count("+") == 3
    again = of_hits(tmp_path / "again", hits, seed=1)
    # Of two seeds, too; but not of groups that have means over seeds.
    assert item_by_item(group_runs([clip, again]), None) is not None
    assert item_by_item(group_runs([clip, again, ours]), None) is None
    assert item_by_item(group_runs([clip]), None) is None


def test_a_broken_file_of_outcomes_is_named(tmp_path):
    hits = np.arange(40) % 2 == 0
    runs = of_hits(tmp_path / "b", hits), of_hits(tmp_path / "a", hits)
    (tmp_path / "a" / "evals" / "val" / "outcomes.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"outcomes\.npz cannot be read as arrays"):
        paired_differences(*runs, "val")
