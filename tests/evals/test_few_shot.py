import dataclasses
import json

import numpy as np
import pytest
from etils import epath

from configs import common
from cyclip_jax import evals
from cyclip_jax.errors import UserError
from cyclip_jax.evals import Output
from cyclip_jax.evals.few_shot import few_shot, interval_over_both, k_shot
from cyclip_jax.evals.intervals import interval
from cyclip_jax.evals.linear_probe import places_in_class
from tests.evals.fakes import fake_encoders
from tests.evals.test_linear_probe import colour_encoders, write_labels

SWAP = {"red": "blue", "blue": "red"}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Six pictures of each of four colours."""
    return write_labels(tmp_path_factory.mktemp("train"), lambda colour, shape: colour)


@pytest.fixture(scope="module")
def swapped(tmp_path_factory):
    """The same with two colours mixed up in the labels."""
    label = lambda colour, shape: SWAP.get(colour, colour)  # noqa: E731
    return write_labels(tmp_path_factory.mktemp("test"), label)


@pytest.fixture(scope="module")
def seen():
    """Encoders for several tests: they embed each folder once."""
    return colour_encoders(8)


def blurred_encoders(batch_size):
    """Encoders whose 11 features tell the colour with some noise."""
    colours, rng = colour_encoders(batch_size), np.random.default_rng(0)
    noise = rng.normal(size=(25, 11)).astype(np.float32)

    def encode(images):
        return colours.encode_features(images) + fake_encoders(8).encode_features(images) @ noise

    return dataclasses.replace(colours, encode_features=encode)


def test_a_model_whose_labels_are_mixed_up_is_half_right_at_every_k(train, swapped, seen, tmp_path):
    probe = few_shot("x", train=train, test=swapped, shots=(1, 2, 4, 8), seeds=2)
    results = probe(seen, Output(epath.Path(tmp_path)))
    assert {name for name in results if "ci" not in name} == {
        *("top1@1", "top1@2", "top1@4"),  # no colour has eight pictures
        *("chance_top1", "classes", "images"),
    }
    assert [results[f"top1@{k}"] for k in (1, 2, 4)] == [0.5] * 3
    assert results["top1@1_ci_low"] < 0.5 < results["top1@1_ci_high"]
    assert (results["chance_top1"], results["classes"], results["images"]) == (0.25, 4, 24)
    table = json.loads((tmp_path / "few_shot.json").read_text())
    assert [(row["shots"], row["draw"]) for row in table] == [
        (k, draw) for k in (1, 2, 4) for draw in (0, 1)
    ]
    assert all(row["top1"] == 0.5 and row["regularization"] == 0.1 for row in table)


def test_results_are_means_over_draws_and_do_not_depend_on_the_batch_size(train, tmp_path):
    settings = {"train": train, "test": train, "shots": [1, 2]}
    results = few_shot("x", **settings)(blurred_encoders(7), Output(epath.Path(tmp_path)))
    assert results == few_shot("x", **settings)(blurred_encoders(24), Output())
    table = json.loads((tmp_path / "few_shot.json").read_text())
    accuracies = [row["top1"] for row in table if row["shots"] == 1]
    assert len(set(accuracies)) > 1  # so the draws differ
    np.testing.assert_allclose(results["top1@1"], np.mean(accuracies))


def test_the_regularisation_may_be_chosen_on_further_images(train, seen, tmp_path):
    probe = few_shot("x", train=train, test=train, shots=(2, 6), seeds=1, regularization=None)
    results = probe(seen, Output(epath.Path(tmp_path)))
    assert results["top1@2"] == 1.0
    assert "top1@6" not in results  # all six are trained on, none is left to choose by
    (row,) = json.loads((tmp_path / "few_shot.json").read_text())
    assert 1e-6 <= row["regularization"] <= 1e6 and row["regularization"] != 0.1


def test_the_images_of_a_smaller_k_are_among_those_of_a_larger():
    labels = np.repeat([0, 1, 2], [9, 5, 3])
    places = places_in_class(labels, 0)
    one, further = k_shot(places, 1)
    two, _ = k_shot(places, 2)
    np.testing.assert_array_equal(np.bincount(labels[one]), [1, 1, 1])
    np.testing.assert_array_equal(np.bincount(labels[two]), [2, 2, 2])
    np.testing.assert_array_equal(two, one | further)
    _, further = k_shot(places, 5)
    np.testing.assert_array_equal(np.bincount(labels[further], minlength=3), [4, 0, 0])


def test_the_interval_is_over_draws_and_images():
    draws_differ = np.repeat([[True], [False]], 50, axis=1)
    assert interval_over_both(draws_differ) == (0, 1)
    images_differ = np.random.default_rng(0).random((1, 50)) < 0.3
    by_images = interval(lambda weights: weights @ images_differ[0] / 50, 50)
    np.testing.assert_allclose(interval_over_both(images_differ), by_images)
    np.testing.assert_allclose(interval_over_both(np.repeat(images_differ, 3, axis=0)), by_images)


def test_a_diverged_model_is_never_right(train):
    def encode(images):
        return np.full((len(images), 11), np.nan, np.float32)

    encoders = dataclasses.replace(colour_encoders(8), encode_features=encode)
    results = few_shot("x", train=train, test=train, shots=[2])(encoders, Output())
    assert (results["top1@2"], results["top1@2_ci_high"]) == (0, 0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"shots": (8, 16)}, r"x.train has 6 images of the class 'blue'; shots=8 needs 8"),
        ({"shots": ()}, r"x.shots \[\] must be numbers"),
        ({"shots": (0, 1)}, r"x.shots \[0, 1\] must be"),
        ({"seeds": 0}, r"x.seeds 0 must be"),
        ({"regularization": -1.0}, r"x.regularization -1.0 must be above 0"),
        ({"shots": (6,), "regularization": None}, r"only 6 images of each class; .*fewer shots"),
    ],
)
def test_what_is_wrong_is_said_at_once(train, settings, message):
    with pytest.raises(UserError, match=message):
        few_shot("x", train=train, test=train, **settings)


def test_an_evaluation_without_data_is_left_out():
    assert evals.create_evaluators({"x": common.few_shot("/no/train", None)}) == {}
