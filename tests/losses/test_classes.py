"""The cross-entropy over classes: its definition, CLIPood's margin, PyTorch's own, any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cyclip_jax import defaults
from cyclip_jax.errors import UserError
from cyclip_jax.losses.classes import class_logits, class_term
from cyclip_jax.losses.terms import weighted_sum
from cyclip_jax.training.freezing import trainable_by
from cyclip_jax.training.objective import Objective
from tests.conftest import unit_rows
from tests.pytorch import torch
from tests.training import test_step as of_step
from tests.training.test_step import VIT, worst_difference

CLASSES, SCALE = 7, 12.0


def given(n=9, d=5):
    rng = np.random.default_rng(3)
    kernel, labels = unit_rows(2, CLASSES, d).T, rng.integers(0, CLASSES, n)
    return unit_rows(1, n, d), kernel, rng.normal(size=CLASSES), labels


def loss_of(images, kernel, bias, labels, *, margin=0.0, label_smoothing=0.0):
    term = class_term(weight=1.0, margin=margin, label_smoothing=label_smoothing)
    scales = {"class_head": {"kernel": kernel, "bias": bias}, "logit_scale": SCALE}
    return weighted_sum([term], {"images": images}, {"labels": labels}, scales)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_without_a_margin_it_is_pytorchs_cross_entropy_of_a_linear_layer(x64, label_smoothing):
    images, kernel, bias, labels = given()
    loss, metrics = loss_of(images, kernel, bias, labels, label_smoothing=label_smoothing)
    logits = torch.from_numpy(SCALE * images @ kernel + bias)
    theirs = torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(labels), label_smoothing=label_smoothing
    )
    assert float(loss) == pytest.approx(float(theirs), rel=1e-13)
    hits = (logits.numpy().argmax(axis=1) == labels).mean()
    assert float(metrics["class_accuracy"]) == pytest.approx(hits)


def test_a_picture_that_is_its_class_loses_the_margin(x64):
    """Of orthonormal classes the others lose nothing."""
    kernel, labels = np.eye(4), np.array([2, 0])
    logits = class_logits(kernel[labels], kernel, np.zeros(4), labels, SCALE, margin=0.3)
    expected = np.zeros((2, 4))
    expected[[0, 1], labels] = SCALE * 0.7
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-13)


def test_the_margin_is_the_formula_picture_by_picture(x64):
    images, kernel, bias, labels = given()
    logits = class_logits(images, kernel, bias, labels, SCALE, margin=0.3)
    for row, (image, own) in enumerate(zip(images, labels, strict=True)):
        for c in range(CLASSES):
            value = SCALE * (image @ kernel[:, c] - 0.3 * kernel[:, own] @ kernel[:, c]) + bias[c]
            assert float(logits[row, c]) == pytest.approx(value, rel=1e-12)


def section(**classes):
    return defaults.get_config().classes.to_dict() | {"train": "labels.csv"} | classes


def run(devices=1, trainable=None, **step):
    settings = {**VIT, "num_classes": CLASSES}
    objective = Objective(**of_step.LOSS, classes=section(margin=0.2, label_smoothing=0.1))
    with jax.enable_x64(True):
        state, graphdef = of_step.perturbed_state("float64", **settings)
        labels = np.random.default_rng(5).integers(0, CLASSES, of_step.ROWS).astype(np.int32)
        batch = {"images": of_step.make_batch()["images"], "labels": labels}
        options = {"objective": objective, "trainable": trainable, **step}
        return of_step.run_on(devices, state, graphdef, batch, "float64", **options)


def test_any_mesh_and_micro_batches_give_one_gradient():
    one = run()
    assert worst_difference(run(8, fsdp=2, micro_batches=2), one) <= 1e-10
    by_name = {jax.tree_util.keystr(path): leaf for path, leaf in one}
    assert np.abs(by_name["['gradient']['class_head']['kernel']"]).max() > 1e-4
    assert all(np.abs(leaf).max() == 0 for name, leaf in by_name.items() if "['text']" in name)


def test_a_frozen_head_stays():
    frozen = run(trainable=trainable_by(["class_head/.*"]))
    by_name = {jax.tree_util.keystr(path): leaf for path, leaf in frozen}
    head = [leaf for name, leaf in by_name.items() if "class_head" in name]
    assert head and all(np.abs(leaf).max() == 0 for leaf in head)
    assert np.abs(by_name["['gradient']['visual']['proj']"]).max() > 1e-4


def test_it_stands_in_place_of_the_terms_of_pairs():
    assert Objective(classes=section()).inputs == ("images", "labels")
    pairs = Objective(classes=section(loss="pairs"))
    assert pairs.inputs == Objective().inputs == Objective(classes=section(train=None)).inputs


def test_a_model_without_a_head_is_refused():
    config = defaults.get_config()
    with pytest.raises(UserError, match=r"set config\.model\.num_classes"):
        Objective(classes=section()).check_model(config.model)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"loss": "hinge"}, r"config\.classes\.loss 'hinge'"),
        ({"margin": 1.0}, r"config\.classes\.margin 1\.0 must be from 0 to below 1"),
        ({"label_smoothing": -0.1}, r"label_smoothing -0\.1 must be"),
        ({"held_out_share": 1.5}, r"held_out_share 1\.5 must be"),
        ({"train": "preset:nothing"}, "nothing"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        Objective(classes=section(**wrong))


def test_the_head_gives_what_the_loss_sees(x64):
    from cyclip_jax.models.class_head import ClassHead

    images, kernel, bias, labels = given()
    head = ClassHead(*kernel.shape)
    assert not np.any(head.kernel[...]) and not np.any(head.bias[...])
    head.kernel[...], head.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
    logits = class_logits(images, kernel, bias, labels, SCALE, margin=0.0)
    np.testing.assert_allclose(head(images, SCALE), logits, rtol=1e-6)
