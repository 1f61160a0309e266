"""A step with the sigmoid loss, uniformity, nested dimensions, label smoothing, negatives."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cyclip_jax import defaults
from cyclip_jax.errors import UserError
from cyclip_jax.training.configured_model import create_trained
from cyclip_jax.training.objective import Objective
from tests.training import test_step as of_step
from tests.training.test_step import VIT, worst_difference

EVERYTHING = {
    "contrastive": "sigmoid",
    "uniformity_weight": 0.3,
    "cross_uniformity_weight": 0.2,
    "alignment_weight": 0.1,
    "nested_dims": (16, 4),
}


def objective():
    return Objective(**of_step.LOSS, **EVERYTHING, chunk_size=3)


def run(devices=1, **step):
    with jax.enable_x64(True):
        state, graphdef = of_step.perturbed_state("float64", **VIT, logit_bias=True)
        batch = of_step.make_batch()
        return of_step.run_on(
            devices, state, graphdef, batch, "float64", objective=objective(), **step
        )


@functools.cache
def on_one_device():
    return run()


@pytest.mark.parametrize("devices, step", [(8, {"fsdp": 2}), (1, {"micro_batches": 4})])
def test_any_mesh_and_micro_batches_give_one_gradient(devices, step):
    assert worst_difference(run(devices, **step), on_one_device()) <= 1e-10


def test_any_mesh_and_micro_batches_give_one_gradient_with_negatives():
    batch, others = of_step.make_batch(), of_step.make_batch(seed=1)
    rows = np.arange(of_step.ROWS)
    batch |= {"negative_images": others["images"], "negative_tokens": others["tokens"]}
    batch |= {"has_negative": rows % 4 > 0, "has_negative_image": rows % 4 > 1}
    negatives = Objective(**of_step.LOSS, negatives=("texts", "images"), chunk_size=3)
    with jax.enable_x64(True):
        given = (*of_step.perturbed_state("float64", **VIT), batch, "float64")
        one = of_step.run_on(1, *given, objective=negatives)
        eight = of_step.run_on(8, *given, objective=negatives, fsdp=2, micro_batches=2)
    assert worst_difference(eight, one) <= 1e-10


def test_the_bias_learns():
    gradient = {jax.tree_util.keystr(path): leaf for path, leaf in on_one_device()}
    assert abs(gradient["['gradient']['logit_bias']"]) > 1e-3


@pytest.mark.parametrize(
    "loss, scale, bias",
    [
        ({}, 1 / 0.07, -10.0),
        ({"contrastive": "sigmoid"}, 10.0, -10.0),
        (
            {"contrastive": "sigmoid", "initial_logit_scale": 5.0, "initial_logit_bias": -2.71},
            5,
            -2.71,
        ),
    ],
)
def test_a_new_model_starts_with_the_scale_and_the_bias_of_its_loss(loss, scale, bias):
    config = defaults.get_config()
    config.model.name, config.model.logit_bias = "ViT-tiny", True
    config.loss.update(loss)
    model = create_trained(config)
    assert float(jnp.exp(model.logit_scale[...])) == pytest.approx(scale, rel=1e-6)
    assert float(model.logit_bias[...]) == pytest.approx(bias)


def test_label_smoothing_is_in_the_loss_and_the_plain_one_stands_beside_it(x64):
    orthonormal = {"images": np.eye(6), "texts": np.eye(6)}
    settings = {"inmodal_weight": 0.0, "crossmodal_weight": 0.0}
    scale, smoothing = 3.0, 0.1

    def measured(**loss):
        return Objective(**settings, **loss)(orthonormal, {}, {"logit_scale": scale})

    loss, metrics = measured(label_smoothing=smoothing)
    plain, before = measured()
    assert float(plain) == pytest.approx(math.log(1 + 5 * math.exp(-scale)))
    assert float(loss) == pytest.approx(float(plain) + smoothing * scale * 5 / 6)
    assert float(metrics["contrastive_loss"]) == float(loss)
    assert float(metrics["unsmoothed_contrastive_loss"]) == float(plain)
    assert metrics["image_to_text_accuracy"] == before["image_to_text_accuracy"] == 1
    meaning = Objective(label_smoothing=smoothing).reports["contrastive_loss"].meaning
    assert meaning == "The contrastive term with label smoothing 0.1"


@pytest.mark.parametrize(
    "settings",
    [{"label_smoothing": 0.1}, {"second_views": {"views": ["text"]}}],
)
def test_what_goes_with_the_softmax_alone_is_refused_beside_the_sigmoid(settings):
    with pytest.raises(UserError, match=r"or config\.loss\.contrastive to 'softmax'"):
        Objective(contrastive="sigmoid", **settings)


def test_every_term_beside_the_contrastive_one_grows_under_a_name_of_its_own():
    warmups = dict.fromkeys(Objective().warmups, 10)
    assert warmups.keys() == {
        "cyclic_warmup_steps",
        "second_view_warmup_steps",
        "primary_components_warmup_steps",
        "uniformity_warmup_steps",
    }
    rng = np.random.default_rng(0)
    names = ("images", "texts", "second_images", "second_texts")
    embeds = {name: rng.normal(size=(6, 4)) for name in names}
    embeds = {n: x / np.linalg.norm(x, axis=1, keepdims=True) for n, x in embeds.items()}
    growing = Objective(
        **warmups,
        uniformity_weight=0.5,
        primary_components_weight=0.6,
        second_view_weight=0.4,
        second_views={"views": ["image", "text"]},
    )
    for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (70, 1.0)):
        loss, metrics = growing(embeds, {}, {"logit_scale": 5.0}, step=jnp.asarray(step))
        assert metrics["uniformity_weight"] == pytest.approx(0.5 * share)
        assert metrics["primary_components_weight"] == pytest.approx(0.6 * share)
        assert metrics["image_view_weight"] == pytest.approx(0.2 * share)
        assert metrics["contrastive_weight"] == pytest.approx(1 - 0.4 * share)
        assert metrics["inmodal_weight"] == pytest.approx(0.25 * share)
        whole = (
            (1 - 0.4 * share) * metrics["contrastive_loss"]
            + 0.2 * share * (metrics["image_view_loss"] + metrics["text_view_loss"])
            + 0.6 * share * metrics["primary_components_loss"]
            + 0.25 * share * (metrics["inmodal_cyclic_loss"] + metrics["crossmodal_cyclic_loss"])
            + 0.5 * share * metrics["uniformity_loss"]
        )
        assert float(loss) == pytest.approx(float(whole), rel=1e-5)
        assert metrics.keys() <= {"loss", "temperature", *growing.reports}


def test_sentences_have_their_whole_weight_before_pairs_begin():
    """A weight that counted from the first pair would be negative there."""
    section = defaults.get_config().sentences.to_dict()
    section |= {"train": "captions", "warmup_steps": 10, "only_steps": 100}
    alone = Objective(sentences=section)
    assert alone.first_step == 100
    rows = np.eye(4)
    embeds = dict.fromkeys(("images", "texts", "sentences", "sentences_again"), rows)
    batch = {"sentences": np.arange(8).reshape(4, 2)}
    for step, weight in ((0, 1.0), (99, 1.0), (100, 0.0), (105, 0.5), (300, 1.0)):
        _, metrics = alone(embeds, batch, {"logit_scale": 1.0}, step=jnp.asarray(step))
        assert metrics["sentence_weight"] == pytest.approx(weight)
