import dataclasses
import inspect
import json

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from cyclip_jax import defaults, evals, parallel
from cyclip_jax.data.order import order
from cyclip_jax.errors import UserError
from cyclip_jax.evals import Output
from cyclip_jax.evals.flat import flat_numbers, flattened
from cyclip_jax.evals.linear_probe import LinearProbe, train_classifier
from cyclip_jax.evals.logistic_probe import LogisticProbe
from cyclip_jax.evals.old_settings import LINEAR_ALONE, LOGISTIC_ALONE
from cyclip_jax.evals.statistics.splits import held_out, places_in_class
from cyclip_jax.models.clip import split_model
from cyclip_jax.training.configured_model import Model
from tests.evals.fakes import fake_encoders
from tests.pictures import COLOURS, SHAPES, write_pairs

TRAINING = {"epochs": 3, "learning_rate": 0.1, "weight_decay": 0.5, "seed": 7}


def write_labels(folder, label):
    """24 pictures with label(colour, shape)."""
    write_pairs(folder)
    rows = [f"{c}_{s}.png,{label(c, s)}" for s in SHAPES for c in COLOURS]
    (folder / "labels.csv").write_text("\n".join(["image,label", *rows]))
    return folder


def same_again(folder):
    """The pictures of `write_labels` as another data set: another table of them."""
    copy = folder / "again.csv"
    copy.write_text((folder / "labels.csv").read_text())
    return copy


def diverged_encoders():
    """Encoders whose features are NaN, float32 [N, 11]."""
    return dataclasses.replace(
        fake_encoders(8),
        encode_features=lambda images: np.full((len(images), 11), np.nan, np.float32),
    )


def colour_encoders(batch_size):
    """Encoders whose features are the colour and, more faintly, the shape; float32 [N, 11]."""
    encoders = fake_encoders(batch_size)
    table = np.zeros((len(SHAPES) * len(COLOURS) + 1, 11), np.float32)
    for number in range(len(table) - 1):
        shape, colour = divmod(number, len(COLOURS))
        table[number, colour], table[number, len(COLOURS) + shape] = 1, 0.3
    table[-1, -1] = 1
    return dataclasses.replace(
        encoders, encode_features=lambda images: encoders.encode_features(images) @ table
    )


def numpy_adamw(
    features, labels, classes, *, batch_size, epochs, learning_rate, weight_decay, seed
):
    """Logistic regression by AdamW, written out with the gradients by hand."""
    n, d = features.shape
    rng = np.random.default_rng(seed)
    kernel = rng.uniform(-(d**-0.5), d**-0.5, (d, classes))
    bias = rng.uniform(-(d**-0.5), d**-0.5, classes)
    moments = [[np.zeros_like(p), np.zeros_like(p)] for p in (kernel, bias)]
    batches = [
        rows
        for epoch in range(epochs)
        for rows in np.split(order(seed, epoch, n), range(batch_size, n, batch_size))
    ]
    for t, rows in enumerate(batches):
        logits = features[rows] @ kernel + bias
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        errors = (probabilities - np.eye(classes)[labels[rows]]) / len(rows)
        rate = learning_rate * (1 + np.cos(np.pi * t / len(batches))) / 2
        gradients = features[rows].T @ errors, errors.sum(axis=0)
        for p, g, m in zip((kernel, bias), gradients, moments, strict=True):
            m[0] = 0.9 * m[0] + 0.1 * g
            m[1] = 0.999 * m[1] + 0.001 * g**2
            first, second = m[0] / (1 - 0.9 ** (t + 1)), m[1] / (1 - 0.999 ** (t + 1))
            p -= rate * (first / (np.sqrt(second) + 1e-8) + weight_decay * p)
    return kernel, bias


@pytest.mark.parametrize("batch_size", [4, 11, 128])
def test_the_classifier_is_logistic_regression_by_adamw(x64, batch_size):
    rng = np.random.default_rng(0)
    features, labels = 3 * rng.normal(size=(11, 5)), rng.integers(0, 3, 11)
    arguments = {**TRAINING, "batch_size": batch_size}
    ours = train_classifier(features, labels, 3, **arguments)
    for actual, expected in zip(ours, numpy_adamw(features, labels, 3, **arguments), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)


def test_the_same_seed_gives_the_same_classifier_and_another_another():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(11, 5)).astype(np.float32), rng.integers(0, 3, 11)
    one, same, other = (
        train_classifier(features, labels, 3, **{**TRAINING, "seed": seed}, batch_size=4)[0]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert one.dtype == np.float32 and np.abs(one - other).max() > 1e-3


def test_a_model_that_sees_everything_is_right(tmp_path):
    train = write_labels(tmp_path / "train", lambda colour, shape: shape)
    test = write_labels(tmp_path / "test", lambda colour, shape: shape)
    rows = (test / "labels.csv").read_text().splitlines()
    (test / "labels.csv").write_text("\n".join(rows[:7]))  # two of the six classes
    probe = LinearProbe("x", train=train, test=test, learning_rate=0.1).open()
    bounds = ("", "_ci_low", "_ci_high")
    tops = {f"{m}{bound}": 1.0 for m in ("top1", "top5", "mean_per_class") for bound in bounds}
    assert flat_numbers(probe(fake_encoders(8), Output())) == tops | {
        "chance_mean_per_class": 1 / 6,
        "chance_top1": 1 / 6,
        "chance_top5": 5 / 6,
        "images": 6,
        "train_images": 24,
    }


def test_a_model_whose_labels_are_mixed_up_in_the_test_is_half_right(tmp_path):
    swap = {"red": "blue", "blue": "red"}
    train = write_labels(tmp_path / "train", lambda colour, shape: colour)
    test = write_labels(tmp_path / "test", lambda colour, shape: swap.get(colour, colour))
    probe = LinearProbe("x", train=train, test=test, learning_rate=0.1).open()
    results = flat_numbers(probe(fake_encoders(8), Output()))
    assert (results["top1"], results["chance_top1"]) == (0.5, 0.25)
    assert "top5" not in results  # of four classes


@pytest.mark.parametrize("normalize, top1", [(False, 1.0), (True, 0.5)])
def test_features_get_unit_norm_on_demand_alone(tmp_path, normalize, top1):
    """Two pictures whose features differ in length alone: with unit norm they are one."""
    for name, grey in (("dark", 60), ("bright", 180)):
        picture = np.full((40, 40, 3), grey, np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    (tmp_path / "labels.csv").write_text("image,label\ndark.png,dark\nbright.png,bright")
    brightness = dataclasses.replace(
        fake_encoders(8),
        encode_features=lambda images: images.mean(axis=(1, 2), dtype=np.float32) / 60,  # [N, 3]
    )
    settings = {"learning_rate": 0.3, "epochs": 60, "normalize": normalize}
    probe = LinearProbe("x", train=tmp_path, test=same_again(tmp_path), **settings).open()
    assert probe(brightness, Output())["top1"].value == top1


def test_features_of_a_model_are_its_embeddings_before_the_unit_norm():
    config = defaults.get_config()
    config.model.name = "ViT-tiny"
    config.model.vision_layers = config.model.text_layers = 1
    model = Model(config, parallel.create_mesh(jax.devices()[:1]))
    module = model.create()
    _, params, batch_stats = split_model(module)
    encoders = model.encoders(params, batch_stats, tokenize=None)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    features = encoders.encode_features(images)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 1e-2
    embeds, _, _ = module(model.normalise(images), np.zeros((3, 16), np.int32))
    np.testing.assert_allclose(features / lengths, embeds, atol=1e-6)


def test_pictures_that_cannot_be_read_are_left_out_of_the_counts(tmp_path):
    train = write_labels(tmp_path / "train", lambda colour, shape: shape)
    (train / "red_disc.png").write_bytes(b"no picture")
    probe = LinearProbe("x", train=train, test=same_again(train), epochs=1).open()
    results = flat_numbers(probe(fake_encoders(8), Output()))
    assert (results["images"], results["train_images"]) == (23, 23)


def test_what_is_wrong_with_the_folders_is_said(tmp_path):
    train = write_labels(tmp_path / "train", lambda colour, shape: shape)
    test = write_labels(tmp_path / "test", lambda colour, shape: f"a {shape}")
    with pytest.raises(UserError, match=r"test/labels.csv has labels that .*train/labels.csv has"):
        LinearProbe("x", train=train, test=test).open()
    with pytest.raises(UserError, match=r"config.evals.x.train"):
        LinearProbe("x", train=tmp_path, test=test).open()
    with pytest.raises(
        UserError, match=r"x.train and .*x.test are the same pictures \(.*labels.csv"
    ):
        LinearProbe("x", train=train, test=train / "labels.csv").open()
    with pytest.raises(UserError, match=r"config.evals.x.batch_size 0"):
        LinearProbe("x", train=train, test=train, batch_size=0).open()
    for path in test.glob("*.png"):
        path.write_bytes(b"no picture")
    labels = (train / "labels.csv").read_text()
    (test / "labels.csv").write_text(labels)
    with pytest.raises(UserError, match=r"none of .*test/labels.csv can be read"):
        LinearProbe("x", train=train, test=test).open()(fake_encoders(8), Output())


def test_a_probe_without_data_is_left_out():
    settings = defaults.linear_probe(None, None)
    assert settings.batch_size == 16
    assert evals.create_evaluators({"probe": settings}) == {}
    assert evals.create_evaluators({"probe": defaults.linear_probe("/no/train", None)}) == {}


def test_the_defaults_are_those_of_the_published_probe():
    parameters = inspect.signature(LinearProbe).parameters
    published = {"batch_size": 16, "epochs": 32, "learning_rate": 5e-3, "weight_decay": 0.01}
    assert {name: parameters[name].default for name in published} == published


def test_logistic_regression_sweeps_its_regularisation(tmp_path):
    swap = {"red": "blue", "blue": "red"}
    train = write_labels(tmp_path / "train", lambda colour, shape: colour)
    test = write_labels(tmp_path / "test", lambda colour, shape: swap.get(colour, colour))
    colours = colour_encoders(8)
    probe = LogisticProbe("x", train=train, test=test).open()
    results = flat_numbers(probe(colours, Output(epath.Path(tmp_path / "out"))))
    assert (results["top1"], results["mean_per_class"], results["images"]) == (0.5, 0.5, 24)
    assert results["top1_ci_low"] < 0.5 < results["top1_ci_high"]
    assert results["train_images"] == 24 and 0 < results["iterations"] < 50
    table = json.loads((tmp_path / "out" / "regularization_sweep.json").read_text())
    tried = {row["regularization"]: row["validation_top1"] for row in table}
    assert tried[results["regularization"]] == max(tried.values()) == 1.0


def test_a_given_regularisation_is_not_swept(tmp_path):
    train = write_labels(tmp_path / "train", lambda colour, shape: colour)
    settings = {"regularization": 0.3, "test": same_again(train)}
    probe = LogisticProbe("x", train=train, **settings).open()
    results = flat_numbers(probe(colour_encoders(8), Output(epath.Path(tmp_path / "out"))))
    assert (results["regularization"], results["top1"]) == (0.3, 1.0)
    assert not (tmp_path / "out" / "regularization_sweep.json").exists()
    assert results == flat_numbers(probe(colour_encoders(24), Output()))


@pytest.mark.parametrize(
    "probe_of, settings",
    [(LinearProbe, {"epochs": 1}), (LogisticProbe, {"regularization": 1.0})],
    ids=["linear", "logistic"],
)
def test_a_diverged_model_is_never_right_even_among_one_class(tmp_path, probe_of, settings):
    train = write_labels(tmp_path, lambda colour, shape: "picture")
    probe = probe_of("x", train=train, test=same_again(train), **settings).open()
    results = flat_numbers(probe(diverged_encoders(), Output()))
    assert (results["mean_per_class"], results["chance_mean_per_class"]) == (0, 1)


def test_the_same_share_of_each_class_is_held_out():
    labels = np.repeat([0, 1, 2, 3], [10, 5, 2, 1])
    held = held_out(labels, 0.2, 0, "", "")
    np.testing.assert_array_equal(np.bincount(labels[held], minlength=4), [2, 1, 1, 0])
    np.testing.assert_array_equal(held, held_out(labels, 0.2, 0, "", ""))
    assert (held != held_out(labels, 0.2, 1, "", "")).any()


def test_places_number_each_class_and_depend_on_the_draw():
    labels = np.array([1, 0, 1, 1, 0, 2])
    draws = [places_in_class(labels, draw) for draw in range(20)]
    for places in draws:
        for label, size in enumerate([2, 3, 1]):
            assert sorted(places[labels == label]) == list(range(size))
    assert len({tuple(places) for places in draws}) > 5


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"method": "sgd"}, "config.evals.x.method is 'sgd'; choose one of adamw, lbfgs"),
        ({"regularization": 1.0}, "x.regularization is of the type 'logistic_probe'; AdamW has"),
        ({"batch_size": 0}, "x.batch_size 0 must be at least 1"),
        ({"method": "lbfgs", "regularization": 0.0}, "x.regularization 0.0 must be above 0"),
        ({"method": "lbfgs", "validation_share": 1.0}, "x.validation_share 1.0 must be between"),
        ({"type": "logistic_probe", "regularization": 0.0}, "x.regularization 0.0 must be above"),
        ({"type": "logistic_probe", "epochs": 3}, "x.epochs is of the type 'linear_probe'; L-BFGS"),
    ],
)
def test_what_is_wrong_with_the_settings_is_said(tmp_path, settings, message):
    data = {"type": "linear_probe", "train": tmp_path, "test": tmp_path}
    with pytest.raises(UserError, match=message):
        evals.create_evaluators({"x": data | settings})


def results_of(settings):
    """The numbers of one evaluation whose name is x."""
    evaluators = evals.create_evaluators({"x": settings})
    return flattened(evals.evaluate(evaluators, colour_encoders(8), directory=None))


@pytest.mark.parametrize("method", ["adamw", "lbfgs"])
def test_settings_from_before_the_two_probes_were_two_go_on_working(tmp_path, method):
    """Each took the other's settings, and every config.json of old has a batch size."""
    train = write_labels(tmp_path / "train", lambda colour, shape: colour)
    data = {"train": str(train), "test": str(same_again(train))}
    of_adamw = {"batch_size": 16, "epochs": 2, "learning_rate": 0.1, "weight_decay": 0.1}
    of_lbfgs = {"validation_share": 0.3, "max_iterations": 50}
    own, other = (of_adamw, of_lbfgs) if method == "adamw" else (of_lbfgs, of_adamw)
    old = {"type": "linear_probe", "method": method, **own, **other, "seed": 1, **data}
    kind = {"adamw": "linear_probe", "lbfgs": "logistic_probe"}[method]
    results = results_of(old)
    assert results == results_of({"type": kind, **own, "seed": 1, **data})
    assert ("x/iterations" in results) == (method == "lbfgs")
    assert evals.create_evaluators({"x": old})["x"].kind == kind


def test_a_config_file_may_name_the_method_as_before():
    settings = defaults.linear_probe("/train", "/test", method="lbfgs", max_iterations=5)
    assert settings == defaults.logistic_probe("/train", "/test", max_iterations=5)
    assert settings.to_dict() == {
        "type": "logistic_probe",
        "train": "/train",
        "test": "/test",
        "max_iterations": 5,
    }


def test_neither_probe_takes_a_setting_of_the_other():
    own = {
        kind: inspect.signature(evals.EVALUATORS[kind]).parameters.keys()
        for kind in ("linear_probe", "logistic_probe")
    }
    assert own["linear_probe"] - own["logistic_probe"] == set(LINEAR_ALONE)
    assert own["logistic_probe"] - own["linear_probe"] == set(LOGISTIC_ALONE)


def test_classes_of_one_image_need_a_given_regularisation(tmp_path):
    train = write_labels(tmp_path / "train", lambda colour, shape: f"{colour} {shape}")
    with pytest.raises(UserError, match=r"x.train has one image of each class .*`regularization`"):
        LogisticProbe("x", train=train, test=same_again(train)).open()
