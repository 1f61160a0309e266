"""What evaluators leave of each item: enough to compare two runs pair by pair."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest

from cyclip_jax import evals
from cyclip_jax.evals.encoders import IMAGES, TEXTS
from cyclip_jax.evals.known_metrics import known_about
from cyclip_jax.evals.output import read_abouts
from cyclip_jax.evals.progress import rows_to_embed
from tests.evals.everything import every_evaluation
from tests.evals.fakes import fake_encoders
from tests.pictures import COLOURS, SHAPES, write_pairs
from tests.processes.program import encoders_of

# Metrics that are no mean over items: what they are made of is among the outcomes, or nothing is.
NO_MEANS = {
    "mean_per_class",
    "macro_accuracy",
    "macro_accuracy_before",
    "mean_recall",
    "image_to_text_median_rank",
    "text_to_image_median_rank",
    "imagenetv2_effective",
    "uniformity",
    "image_uniformity",
    "text_uniformity",
    "spearman",  # over several tasks
    "spearman_wmean",
    "sts13_spearman_wmean",
    "image_effective_rank",
    "text_effective_rank",
    "conformity_correlation",
    "alpha",
    "regularization",
}


@pytest.fixture(scope="module")
def one_pass(tmp_path_factory):
    """(settings, results, directory) of every evaluator and what a small model gets.

    And {name: Evaluation}, and {name: {kind: rows that were embedded for it}}.
    """
    folder = tmp_path_factory.mktemp("outcomes")
    settings = every_evaluation(folder / "data")
    labelled = {name: settings["consistency"][name] for name in ("train", "test")}
    groups = folder / "groups.json"
    groups.write_text(json.dumps({"round": ["disc", "ring"], "angular": [*SHAPES[::2], "frame"]}))
    settings["groups"] = {"type": "consistency", **labelled, "superclasses": str(groups)}
    pairs = [
        {
            "image_0": f"red_{shape}.png",
            "image_1": f"blue_{shape}.png",
            "caption_0": f"a red {shape}",
            "caption_1": f"a blue {shape}",
        }
        for shape in SHAPES
    ]
    examples = folder / "data" / "winoground.json"
    examples.write_text(json.dumps(pairs))
    settings["winoground"] = {
        "type": "compositional",
        "examples": str(examples),
        "layout": "winoground",
    }
    embedded = {}

    def begin(name):
        embedded[name] = {IMAGES: 0, TEXTS: 0}
        encoders._kept.clear()  # each evaluation embeds all that it needs

    @contextlib.contextmanager
    def embedding(kind, total):
        own = list(embedded.values())[-1]
        before = own[kind]

        def advance(rows):
            own[kind] += rows

        yield advance
        assert own[kind] - before == total

    encoders = encoders_of(jax.devices()[:1], batch_size=8)
    encoders = dataclasses.replace(encoders, embedding=embedding)
    directory, evaluators = folder / "evals", evals.create_evaluators(settings)
    results = evals.evaluate(evaluators, encoders, directory=directory, begin=begin)
    return settings, results, directory, evaluators, embedded


@pytest.fixture(scope="module")
def everything(one_pass):
    """(settings, results, directory)."""
    return one_pass[:3]


def test_every_evaluator_says_beforehand_what_it_has_embedded(one_pass):
    settings, _, _, evaluators, embedded = one_pass
    for name, evaluation in evaluators.items():
        assert rows_to_embed([evaluation.run.needs()]) == embedded[name], name
    assert embedded.keys() == settings.keys()


def outcomes_in(directory):
    """{items: {name: array}} of an evaluation."""
    items = {}
    with np.load(directory / "outcomes.npz") as arrays:
        for full_name, array in arrays.items():
            kind, name = full_name.split("/")
            items.setdefault(kind, {})[name] = array
    return items


def test_the_mean_of_the_outcomes_is_the_metric(everything):
    settings, results, directory = everything
    compared = set()
    for evaluation, metrics in results.items():
        means = {
            name: array.mean()
            for arrays in outcomes_in(directory / evaluation).values()
            for name, array in arrays.items()
            if name in metrics
        }
        for name, mean in means.items():
            assert mean == pytest.approx(metrics[name].value, rel=1e-9, abs=1e-12), name
        left = {name for name, metric in metrics.items() if not metric.is_count} - means.keys()
        if settings[evaluation]["type"] == "retrieval":
            left -= {name for name in left if known_about(name).unit == "loss"}
            left -= {"image_to_text_accuracy", "text_to_image_accuracy", "temperature"}
        assert left <= NO_MEANS, evaluation
        compared |= {settings[evaluation]["type"]} if means else set()
    assert compared == evals.EVALUATORS.keys()


def test_what_is_no_mean_follows_from_the_outcomes(everything):
    _, results, directory = everything
    of_pairs = outcomes_in(directory / "pairs")
    for kind, name in (("images", "image_to_text"), ("captions", "text_to_image")):
        ranks = of_pairs[kind][f"{name}_rank"]
        assert np.median(ranks) == results["pairs"][f"{name}_median_rank"].value
        assert np.mean(ranks <= 5) == results["pairs"][f"{name}_recall@5"].value
    images = outcomes_in(directory / "zeroshot")["images"]
    by_class = [images["top1"][images["label"] == c].mean() for c in np.unique(images["label"])]
    assert np.mean(by_class) == pytest.approx(results["zeroshot"]["mean_per_class"].value)
    examples = outcomes_in(directory / "choices")["examples"]
    categories = examples["category"]
    by_category = [examples["accuracy"][categories == c].mean() for c in np.unique(categories)]
    assert np.mean(by_category) == pytest.approx(results["choices"]["macro_accuracy"].value)


def test_items_are_numbered_alike_by_every_array_and_once_each(everything):
    settings, _, directory = everything
    for evaluation in settings:
        for arrays in outcomes_in(directory / evaluation).values():
            index = arrays["index"]
            assert len(set(index.tolist())) == len(index) > 0
            assert {len(array) for array in arrays.values()} == {len(index)}


def test_metrics_say_of_themselves_what_older_workdirs_are_known_to_mean(everything):
    _, results, directory = everything
    abouts = read_abouts(directory)
    assert abouts.keys() == results.keys()
    for evaluation, metrics in results.items():
        assert abouts[evaluation] == {name: metric.about for name, metric in metrics.items()}
        for name, metric in metrics.items():
            known = known_about(name, has_chance=metric.chance is not None)
            assert metric.about == known, (evaluation, name)


def test_runs_that_read_other_pictures_can_be_paired(tmp_path):
    """A picture that one run cannot read shifts rows, and no number of an item."""
    pairs = write_pairs(tmp_path)
    text = pairs.read_text()
    pairs.write_text(text + text.partition("\n")[2].replace(",a ", ",the "))
    settings = {"val": {"type": "retrieval", "pairs": str(pairs)}}
    swap = {"red": "blue", "blue": "red"}
    encoders = fake_encoders(8, misread=lambda colour: swap.get(colour, colour))
    found = []
    for name in ("first", "second"):
        evaluators = evals.create_evaluators(settings)
        evals.evaluate(evaluators, encoders, directory=tmp_path / name)
        found.append(outcomes_in(tmp_path / name / "val"))
        (tmp_path / "red_square.png").write_bytes(b"no picture")
        encoders = fake_encoders(8)
    first, second = found
    for kind, metric in (("images", "image_to_text"), ("captions", "text_to_image")):
        one, two = first[kind], second[kind]
        lost = set(one["index"].tolist()) - set(two["index"].tolist())
        assert lost == ({0} if kind == "images" else {0, 24})  # its two captions
        _, rows, others = np.intersect1d(one["index"], two["index"], return_indices=True)
        gained = two[f"{metric}_recall@1"][others].astype(int) - one[f"{metric}_recall@1"][rows]
        assert gained.tolist().count(1) == (11 if kind == "images" else 22)
        assert not (gained < 0).any()
    assert len(first["images"]["index"]) == len(COLOURS) * len(SHAPES)
