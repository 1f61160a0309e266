import dataclasses
import inspect

import jax
import numpy as np
import pytest
from PIL import Image

from configs import common
from cyclip_jax import evals, parallel
from cyclip_jax.data.order import order
from cyclip_jax.errors import UserError
from cyclip_jax.evals import Output
from cyclip_jax.evals.linear_probe import linear_probe, train_classifier
from cyclip_jax.inference import Model
from cyclip_jax.models.clip import split_model
from tests.conftest import COLOURS, SHAPES, write_pairs
from tests.evals.fakes import fake_encoders

TRAINING = {"epochs": 3, "learning_rate": 0.1, "weight_decay": 0.5, "seed": 7}


def write_labels(folder, label):
    """24 pictures with label(colour, shape)."""
    write_pairs(folder)
    rows = [f"{c}_{s}.png,{label(c, s)}" for s in SHAPES for c in COLOURS]
    (folder / "labels.csv").write_text("\n".join(["image,label", *rows]))
    return folder


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
    probe = linear_probe("x", train=train, test=test, learning_rate=0.1)
    tops = {f"top{k}{bound}": 1.0 for k in (1, 5) for bound in ("", "_ci_low", "_ci_high")}
    assert probe(fake_encoders(8), Output()) == tops | {
        "chance_top1": 1 / 6,
        "chance_top5": 5 / 6,
        "images": 6,
        "train_images": 24,
    }


def test_a_model_whose_labels_are_mixed_up_in_the_test_is_half_right(tmp_path):
    swap = {"red": "blue", "blue": "red"}
    train = write_labels(tmp_path / "train", lambda colour, shape: colour)
    test = write_labels(tmp_path / "test", lambda colour, shape: swap.get(colour, colour))
    probe = linear_probe("x", train=train, test=test, learning_rate=0.1)
    results = probe(fake_encoders(8), Output())
    assert (results["top1"], results["chance_top1"]) == (0.5, 0.25)
    assert "top5" not in results  # of four classes


def test_features_are_not_normalised(tmp_path):
    """Two pictures whose features differ in length alone."""
    for name, grey in (("dark", 60), ("bright", 180)):
        picture = np.full((40, 40, 3), grey, np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    (tmp_path / "labels.csv").write_text("image,label\ndark.png,dark\nbright.png,bright")
    brightness = dataclasses.replace(
        fake_encoders(8),
        encode_features=lambda images: images.mean(axis=(1, 2), dtype=np.float32) / 60,  # [N, 3]
    )
    probe = linear_probe("x", train=tmp_path, test=tmp_path, learning_rate=0.3, epochs=60)
    assert probe(brightness, Output())["top1"] == 1.0


def test_features_of_a_model_are_its_embeddings_before_the_unit_norm():
    config = common.get_config()
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
    results = linear_probe("x", train=train, test=train, epochs=1)(fake_encoders(8), Output())
    assert (results["images"], results["train_images"]) == (23, 23)


def test_what_is_wrong_with_the_folders_is_said(tmp_path):
    train = write_labels(tmp_path / "train", lambda colour, shape: shape)
    test = write_labels(tmp_path / "test", lambda colour, shape: f"a {shape}")
    with pytest.raises(UserError, match=r"test/labels.csv has labels that .*train/labels.csv has"):
        linear_probe("x", train=train, test=test)
    with pytest.raises(UserError, match=r"config.evals.x.train"):
        linear_probe("x", train=tmp_path, test=test)
    with pytest.raises(UserError, match=r"config.evals.x.batch_size 0"):
        linear_probe("x", train=train, test=train, batch_size=0)
    for path in test.glob("*.png"):
        path.write_bytes(b"no picture")
    labels = (train / "labels.csv").read_text()
    (test / "labels.csv").write_text(labels)
    with pytest.raises(UserError, match=r"none of .*test/labels.csv can be read"):
        linear_probe("x", train=train, test=test)(fake_encoders(8), Output())


def test_a_probe_without_data_is_left_out():
    settings = common.linear_probe(None, None)
    assert settings.batch_size == 16
    assert evals.create_evaluators({"probe": settings}) == {}
    assert evals.create_evaluators({"probe": common.linear_probe("/no/train", None)}) == {}


def test_the_defaults_are_those_of_the_published_probe():
    parameters = inspect.signature(linear_probe).parameters
    published = {"batch_size": 16, "epochs": 32, "learning_rate": 5e-3, "weight_decay": 0.01}
    assert {name: parameters[name].default for name in published} == published
