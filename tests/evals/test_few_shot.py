import dataclasses
import json
import logging

import numpy as np
import pytest
from etils import epath

from cyclip_jax import defaults, evals
from cyclip_jax.errors import UserError
from cyclip_jax.evals import Output
from cyclip_jax.evals.few_shot import FewShot, checked_shots, interval_over_both, possible_shots
from cyclip_jax.evals.flat import flat_numbers
from cyclip_jax.evals.statistics.intervals import interval
from cyclip_jax.evals.statistics.splits import k_shot, places_in_class
from tests.evals.fakes import fake_encoders
from tests.evals.test_linear_probe import (
    colour_encoders,
    diverged_encoders,
    same_again,
    write_labels,
)

SWAP = {"red": "blue", "blue": "red"}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Six pictures of each of four colours."""
    return write_labels(tmp_path_factory.mktemp("train"), lambda colour, shape: colour)


@pytest.fixture(scope="module")
def again(train):
    return same_again(train)


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
    probe = FewShot("x", train=train, test=swapped, shots=(1, 2, 4, 8), seeds=2).open()
    results = flat_numbers(probe(seen, Output(epath.Path(tmp_path))))
    tops = ("top1@1", "top1@2", "top1@4")  # no colour has eight pictures
    assert {name for name in results if "ci" not in name} == {
        *tops,
        *(f"chance_{top}" for top in tops),
        *("classes", "images"),
    }
    assert [results[f"top1@{k}"] for k in (1, 2, 4)] == [0.5] * 3
    assert results["top1@1_ci_low"] < 0.5 < results["top1@1_ci_high"]
    assert {results[f"chance_{top}"] for top in tops} == {0.25}
    assert (results["classes"], results["images"]) == (4, 24)
    table = json.loads((tmp_path / "few_shot.json").read_text())
    assert [(row["shots"], row["draw"]) for row in table] == [
        (k, draw) for k in (1, 2, 4) for draw in (0, 1)
    ]
    assert all(row["top1"] == 0.5 and row["regularization"] == 0.1 for row in table)


def test_results_are_means_over_draws_and_do_not_depend_on_the_batch_size(train, again, tmp_path):
    settings = {"train": train, "test": again, "shots": [1, 2]}
    probe = FewShot("x", **settings).open()
    results = flat_numbers(probe(blurred_encoders(7), Output(epath.Path(tmp_path))))
    assert results == flat_numbers(probe(blurred_encoders(24), Output()))
    table = json.loads((tmp_path / "few_shot.json").read_text())
    accuracies = [row["top1"] for row in table if row["shots"] == 1]
    assert len(set(accuracies)) > 1  # so the draws differ
    np.testing.assert_allclose(results["top1@1"], np.mean(accuracies))


def test_the_regularisation_may_be_chosen_on_further_images(train, again, seen, tmp_path):
    probe = FewShot("x", train=train, test=again, shots=(2, 6), seeds=1, regularization=None).open()
    results = flat_numbers(probe(seen, Output(epath.Path(tmp_path))))
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


def test_a_diverged_model_is_never_right(train, again):
    results = flat_numbers(
        FewShot("x", train=train, test=again, shots=[2]).open()(diverged_encoders(), Output())
    )
    assert (results["top1@2"], results["top1@2_ci_high"]) == (0, 0)


def test_a_single_k_may_be_a_number():
    assert checked_shots("", 4) == [4]
    assert checked_shots("", (4, 1, 4)) == [1, 4]


def test_a_k_that_is_left_out_is_named_with_what_it_lacks(train, again, caplog):
    with caplog.at_level(logging.WARNING):
        FewShot("x", train=train, test=again, shots=(4, 8)).open()
    (record,) = caplog.records
    assert record.getMessage() == (
        "config.evals.x: top1@8 is left out: train has 6 images of the class 'blue'; "
        "shots=8 needs at least 8 of every class"
    )


def test_the_k_that_readable_pictures_suffice_for(caplog):
    names, labels = ["a", "b"], np.repeat([0, 1], [4, 3])
    with caplog.at_level(logging.WARNING):
        assert possible_shots("x", labels, names, [2, 3, 4], also_validation=True) == [2, 3]
        assert possible_shots("x", labels[1:], names, [2, 3], also_validation=True) == [2]
        assert possible_shots("x", labels[1:], names, [2, 3], also_validation=False) == [2, 3]
    assert ["@4" in r.getMessage() for r in caplog.records] == [True, False]
    assert "train has only 3 images of each class" in caplog.records[1].getMessage()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"shots": (8, 16)}, r"x.train has 6 images of the class 'blue'; shots=8 needs .* 8"),
        ({"shots": ()}, r"x.shots \(\) must be whole numbers"),
        ({"shots": (0, 1)}, r"x.shots \(0, 1\) must be"),
        ({"shots": 0}, r"x.shots 0 must be"),
        ({"shots": "4"}, r"x.shots '4' must be"),
        ({"shots": (1.5,)}, r"x.shots \(1.5,\) must be"),
        ({"seeds": 0}, r"x.seeds 0 must be"),
        ({"regularization": -1.0}, r"x.regularization -1.0 must be above 0"),
        ({"shots": (6,), "regularization": None}, r"only 6 images of each class; .*fewer shots"),
    ],
)
def test_what_is_wrong_is_said_at_once(train, again, settings, message):
    with pytest.raises(UserError, match=message):
        FewShot("x", train=train, test=again, **settings).open()


def test_an_evaluation_without_data_is_left_out():
    assert evals.create_evaluators({"x": defaults.few_shot("/no/train", None)}) == {}
