import dataclasses
import importlib
import json

import numpy as np
import pytest
from etils import epath
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from cyclip_jax import defaults, evals
from cyclip_jax.errors import UserError
from cyclip_jax.evals import Output
from cyclip_jax.evals.flat import flat_numbers
from cyclip_jax.evals.gda import Gda, discriminant
from cyclip_jax.evals.statistics.classification import ranks_of_label, with_constant
from cyclip_jax.evals.zeroshot import Zeroshot
from tests.evals.test_linear_probe import colour_encoders, same_again, write_labels
from tests.pictures import COLOURS

TEMPLATES = ["a photo of a {}.", "the colour {}"]
CLASSES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six pictures of each of four colours."""
    folder = write_labels(tmp_path_factory.mktemp("train"), lambda colour, shape: colour)
    content = {"classes": list(COLOURS), "templates": TEMPLATES}
    (folder / "classes.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def again(folder):
    return same_again(folder)


def encoders(batch_size):
    """Images tell their colour; red and blue are the wrong way round in texts."""
    taken_for = [list(COLOURS).index(c) for c in ("blue", "green", "red", "grey")]
    table = np.eye(11, dtype=np.float32)

    def tokenize(texts):
        return np.array([[c in text for c in COLOURS].index(True) for text in texts])[:, None]

    return dataclasses.replace(
        colour_encoders(batch_size),
        tokenize=tokenize,
        encode_text=lambda tokens: table[[taken_for[token] for token in tokens[:, 0]]],
    )


@pytest.fixture(scope="module")
def seen():
    """One of them for all tests: it embeds the folder once."""
    return encoders(8)


def balanced(n=20, d=6):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), n))
    features = rng.normal(size=(CLASSES, d))[labels] + rng.normal(size=(len(labels), d))
    return features @ rng.normal(size=(d, d)), labels


def test_the_classifier_is_the_definition(monkeypatch):
    monkeypatch.setattr(importlib.import_module("cyclip_jax.evals.gda"), "_TILE_ROWS", 7)
    features, labels = balanced()
    features, labels = features[:47], labels[:47]  # the classes' sizes differ
    n, d = features.shape
    means = np.stack([features[labels == c].mean(axis=0) for c in range(CLASSES)])
    covariance = np.cov((features - means[labels]).T)
    precision = d * np.linalg.inv((n - 1) * covariance + np.trace(covariance) * np.eye(d))
    rows = discriminant(features, labels, CLASSES)
    for c in range(CLASSES):
        np.testing.assert_allclose(rows[c, :-1], precision @ means[c], atol=1e-12)
        bias = np.log(1 / 3) - means[c] @ precision @ means[c] / 2
        np.testing.assert_allclose(rows[c, -1], bias, atol=1e-12)


def test_a_hand_made_case():
    """(N − 1) Σ = 4 and tr Σ = 4/3 in one dimension: P = 3/16, means 1 and 5."""
    features = np.array([[0.0], [2.0], [4.0], [6.0]])
    rows = discriminant(features, np.array([0, 0, 1, 1]), 2)
    expected = [[3 / 16, np.log(0.5) - 3 / 32], [15 / 16, np.log(0.5) - 75 / 32]]
    np.testing.assert_allclose(rows, expected, atol=1e-12)


def test_it_is_scikit_learn_with_the_shrinkage_that_makes_the_same_ridge():
    features, labels = balanced()
    n, d = features.shape
    shrinkage = d / (n - 1 + d)
    rows = discriminant(features, labels, CLASSES)
    others = np.random.default_rng(1).normal(size=(200, d)) * 3
    for solver in ("lsqr", "eigen"):
        theirs = LinearDiscriminantAnalysis(
            solver=solver, shrinkage=shrinkage, priors=np.full(CLASSES, 1 / CLASSES)
        ).fit(features, labels)
        predictions = (with_constant(others) @ rows.T).argmax(axis=1)
        np.testing.assert_array_equal(predictions, theirs.predict(others))
        scores = theirs.decision_function(others)
        ours = with_constant(others) @ rows.T * n / d / (1 - shrinkage)
        centred = ours - ours.mean(axis=1, keepdims=True)
        scores -= scores.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(centred, scores, atol=1e-8)


def test_collapsed_and_diverged_models_are_never_right():
    labels = np.array([0, 0, 1, 1, 2, 2])
    for value in (np.zeros((6, 4)), np.full((6, 4), np.nan)):
        rows = discriminant(value, labels, CLASSES)
        assert (ranks_of_label(with_constant(value), rows, labels) > 0).all()


@pytest.mark.parametrize("shots, images", [(None, 24), (2, 8)])
def test_images_mend_what_names_mix_up(folder, again, seen, tmp_path, shots, images):
    evaluate = Gda("x", train=folder, test=again, shots=shots).open()
    results = flat_numbers(evaluate(seen, Output(epath.Path(tmp_path))))
    assert (results["zeroshot_top1"], results["gda_top1"], results["ensemble_top1"]) == (0.5, 1, 1)
    assert results["zeroshot_top1_ci_low"] < 0.5 < results["zeroshot_top1_ci_high"]
    assert (results["images"], results["train_images"]) == (24, images)
    chances = {name: value for name, value in results.items() if name.startswith("chance_")}
    assert chances == {f"chance_{by}_top1": 0.25 for by in ("zeroshot", "gda", "ensemble")}
    table = json.loads((tmp_path / "alphas.json").read_text())
    assert [row["alpha"] for row in table] == [1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100]
    best = [row["alpha"] for row in table if row["validation_top1"] == 1]
    assert results["alpha"] == best[0] > 1e-4  # the smallest of equally good ones


def test_results_do_not_depend_on_the_batch_size(folder, again, seen):
    evaluate = Gda("x", train=folder, test=again, shots=2).open()
    assert flat_numbers(evaluate(seen, Output())) == flat_numbers(evaluate(encoders(7), Output()))


def test_without_weight_the_ensemble_is_zero_shot(folder, again, seen, tmp_path):
    evaluate = Gda("x", train=folder, test=again, alpha=0.0).open()
    results = flat_numbers(evaluate(seen, Output(epath.Path(tmp_path))))
    reference = flat_numbers(Zeroshot("x", folder=folder).open()(seen, Output()))
    for bound in ("", "_ci_low", "_ci_high"):
        assert results[f"ensemble_top1{bound}"] == results[f"zeroshot_top1{bound}"]
        assert results[f"zeroshot_top1{bound}"] == reference[f"top1{bound}"]
    assert (results["alpha"], results["train_images"]) == (0.0, 24)
    assert [path.name for path in tmp_path.iterdir()] == ["outcomes.npz"]


def test_templates_may_be_given(folder, again, seen):
    texts = []

    def tokenize(batch):
        texts.extend(batch)
        return seen.tokenize(batch)

    evaluate = Gda("x", train=folder, test=again, alpha=1.0, templates=["some {}"]).open()
    evaluate(dataclasses.replace(encoders(8), tokenize=tokenize), Output())
    assert texts == 2 * [f"some {colour}" for colour in COLOURS]  # compared, then embedded


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"shots": 1}, "x.shots 1 must be at least 2"),
        ({"shots": 7}, r"x.train has 6 images of the class 'red'; shots=7 needs .* 7"),
        ({"shots": 6}, r"x.train has only 6 images of each class; .*fewer shots"),
        ({"alpha": -1.0}, r"x.alpha -1.0 must be at least 0"),
        ({"templates": ["photo"]}, r"x.templates needs a \{\}"),
        ({"templates": "a {}"}, r"x.templates must be a list"),
        ({"validation_share": 0.0}, r"x.validation_share 0.0 must be between"),
    ],
)
def test_what_is_wrong_is_said_at_once(folder, again, settings, message):
    with pytest.raises(UserError, match=message):
        Gda("x", train=folder, test=again, **settings).open()


def test_all_images_may_be_shots_where_alpha_is_given(folder, again, seen):
    results = flat_numbers(
        Gda("x", train=folder, test=again, shots=6, alpha=100.0).open()(seen, Output())
    )
    assert (results["train_images"], results["ensemble_top1"]) == (24, 1.0)


def test_a_class_without_an_image_is_said(tmp_path):
    train = write_labels(tmp_path, lambda colour, shape: colour)
    content = {"classes": [*COLOURS, "pink"], "templates": TEMPLATES}
    (train / "classes.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"x.train has 0 images of the class 'pink'"):
        Gda("x", train=train, test=same_again(train)).open()


def test_pictures_that_cannot_be_read_are_left_out_of_the_shots(tmp_path, folder):
    train = write_labels(tmp_path, lambda colour, shape: colour)
    settings = {"train": train, "test": folder, "classes": folder / "classes.json"}
    evaluate = Gda("x", **settings, shots=4, alpha=1.0).open()
    reds = sorted(train.glob("red_*.png"))
    for picture in reds[:4]:
        picture.write_bytes(b"no picture")
    results = flat_numbers(evaluate(encoders(8), Output()))
    assert (results["train_images"], results["gda_top1"]) == (14, 1)
    reds[4].write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"x.train has 1 images of the class 'red'; .*at least 2"):
        evaluate(encoders(8), Output())


def test_no_readable_image_to_choose_alpha_by_is_said(tmp_path, folder):
    train = write_labels(tmp_path, lambda colour, shape: colour)
    settings = {"train": train, "test": folder, "classes": folder / "classes.json"}
    evaluate = Gda("x", **settings, shots=5).open()
    for picture in train.glob("*_disc.png"):
        picture.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"x.train has only 5 images of each class"):
        evaluate(encoders(8), Output())


def test_an_evaluation_without_data_is_left_out():
    assert evals.create_evaluators({"x": defaults.gda(None, "/no/test")}) == {}
