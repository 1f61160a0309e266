"""Accuracy of classes beside how often captions name them."""

import json

import numpy as np
import pytest

from cyclip_jax.evals import Output
from cyclip_jax.evals.statistics.frequency import captions_with, frequency_correlation
from cyclip_jax.evals.zeroshot import Zeroshot
from tests.evals.fakes import fake_encoders
from tests.pictures import COLOURS, SHAPES, write_pairs


def test_a_name_counts_as_whole_words_once_in_a_caption():
    captions = ["A red disc, and a RED disc.", "disc red", "reddish discs", "a tree-frog", ""]
    names = ["red disc", "disc", "red", "tree frog", "red disc", "…"]
    assert captions_with(iter(captions), names).tolist() == [1, 2, 2, 1, 1, 0]


def test_the_correlation_is_spearmans_over_classes_that_have_pictures():
    counts = np.array([1, 5, 9, 1000])
    labels = np.array([0, 0, 1, 1, 2, 2])
    hits = np.array([False, False, True, False, True, True])
    rising = frequency_correlation(counts, hits, labels)
    assert rising.value == pytest.approx(1) and rising.chance == 0
    falling = frequency_correlation(counts, ~hits, labels)
    assert falling.value == pytest.approx(-1)
    assert falling.interval[0] == pytest.approx(-1)


def test_zeroshot_has_it_beside_its_accuracy(tmp_path):
    """A model that takes every picture for a red one, of captions that name red ones more often."""
    folder = tmp_path / "pictures"
    write_pairs(folder)
    rows = [f"{c}_{s}.png,{c} {s}" for s in SHAPES for c in COLOURS]
    (folder / "labels.csv").write_text("\n".join(["image,label", *rows]))
    (folder / "classes.json").write_text('{"templates": ["a {}"]}')
    captions = [f"red_{s}.png,a red {s} here" for s in SHAPES] * 3
    captions += [f"{c}_{s}.png,a {c} {s}" for s in SHAPES for c in COLOURS if c != "red"]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *captions]))
    settings = {"folder": str(folder), "frequencies": str(tmp_path / "captions.csv")}
    encoders = fake_encoders(8, misread=lambda colour: "red")
    found = Zeroshot("x", **settings).open()(encoders, Output(tmp_path))
    assert found["frequency_correlation"].value == pytest.approx(1)
    assert found["top1"].value == 1 / len(COLOURS)
    table = {row["class"]: row for row in json.loads((tmp_path / "classes.json").read_text())}
    assert table["red disc"]["captions"] == 3 and table["blue disc"]["captions"] == 1
    plain = Zeroshot("x", folder=str(folder)).open()(encoders, Output(None))
    assert plain.keys() == found.keys() - {"frequency_correlation"}
