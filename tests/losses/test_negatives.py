"""NegCLIP's and TripletCLIP's losses as the contrastive term with negatives."""

import math

import jax
import numpy as np
import pytest

from cyclip_jax import parallel
from cyclip_jax.errors import UserError
from cyclip_jax.training.objective import Objective
from tests.conftest import unit_rows

N, SCALE = 24, 7.0


def measured(embeds, has_negative, devices=1, *, has_image=None, **loss):
    negatives = ("texts",) if has_image is None else ("texts", "images")
    objective = Objective(inmodal_weight=0.0, crossmodal_weight=0.0, negatives=negatives, **loss)
    mesh = parallel.create_mesh(jax.devices()[:devices])
    batch = {"has_negative": has_negative, "has_negative_image": has_image}
    return jax.device_get(objective(embeds, batch, {"logit_scale": SCALE}, mesh=mesh))


def rows(*further):
    names = ("images", "texts", "negative_texts", *further)
    return {name: unit_rows(seed, N, 5) for seed, name in enumerate(names)}


def slowly(embeds, has_negative):
    """The formula, row by row."""
    images, texts, negatives = embeds.values()
    total = 0.0
    for i in range(N):
        own = math.exp(SCALE * images[i] @ texts[i])
        rivals = sum(math.exp(SCALE * images[i] @ text) for text in texts)
        rivals += sum(math.exp(SCALE * images[i] @ text) for text in negatives[has_negative])
        total -= math.log(own / rivals) / (2 * N)
        total -= math.log(own / sum(math.exp(SCALE * image @ texts[i]) for image in images)) / (
            2 * N
        )
    return total


@pytest.mark.parametrize("devices", [1, 8])
def test_it_is_the_formula(x64, devices):
    embeds, has_negative = rows(), np.arange(N) % 4 != 0
    loss, metrics = measured(embeds, has_negative, devices, chunk_size=2)
    assert float(loss) == pytest.approx(slowly(embeds, has_negative), rel=1e-12)
    assert metrics["negative_share"] == pytest.approx(0.75)


def test_right_values(x64):
    everywhere = np.ones(N, bool)
    equal = dict.fromkeys(rows(), np.full((N, 4), 0.5))
    loss, _ = measured(equal, everywhere)
    assert float(loss) == pytest.approx((math.log(2 * N) + math.log(N)) / 2)
    embeds = rows()
    embeds["negative_texts"] = embeds["texts"]
    _, metrics = measured(embeds, everywhere)
    assert metrics["image_to_text_accuracy"] == 0  # ties are misses
    plain = Objective(inmodal_weight=0.0, crossmodal_weight=0.0)
    expected, _ = plain(embeds, {}, {"logit_scale": SCALE})
    loss, _ = measured(embeds, ~everywhere)
    assert float(loss) == pytest.approx(float(expected), rel=1e-14)


def of_negatives_slowly(embeds, there):
    """The second part of TripletCLIP's loss, row by row."""
    texts, negatives, images = (
        embeds[name] for name in ("texts", "negative_texts", "negative_images")
    )
    total = 0.0
    for i in np.flatnonzero(there):
        own = math.exp(SCALE * images[i] @ negatives[i])
        rivals = sum(math.exp(SCALE * images[i] @ text) for text in [*negatives[there], *texts])
        back = sum(math.exp(SCALE * image @ negatives[i]) for image in images[there])
        total -= (math.log(own / rivals) + math.log(own / back)) / (2 * N)
    return total


@pytest.mark.parametrize("devices", [1, 8])
def test_with_negative_images_it_is_the_sum_of_both_formulas(x64, devices):
    embeds, has_negative = rows("negative_images"), np.arange(N) % 4 != 0
    has_image = np.arange(N) % 5 > 1
    first = slowly({name: embeds[name] for name in rows()}, has_negative)
    second = of_negatives_slowly(embeds, has_image)
    loss, metrics = measured(embeds, has_negative, devices, has_image=has_image, chunk_size=2)
    assert float(loss) == pytest.approx(first + second, rel=1e-12)
    assert float(metrics["negative_contrastive_loss"]) == pytest.approx(second, rel=1e-12)
    assert metrics["negative_image_share"] == pytest.approx(has_image.mean())


def test_right_values_with_negative_images(x64):
    everywhere = np.ones(N, bool)
    equal = dict.fromkeys(rows("negative_images"), np.full((N, 4), 0.5))
    loss, _ = measured(equal, everywhere, has_image=everywhere)
    assert float(loss) == pytest.approx(math.log(2 * N) + math.log(N))  # a sum, not a mean
    embeds = rows("negative_images")
    alone, _ = measured({name: embeds[name] for name in rows()}, everywhere)
    loss, metrics = measured(embeds, everywhere, has_image=~everywhere)
    assert float(loss) == pytest.approx(float(alone), rel=1e-14)
    assert float(metrics["negative_contrastive_loss"]) == 0
    smoothed, _ = measured(embeds, everywhere, has_image=~everywhere, label_smoothing=0.1)
    without, _ = measured({n: embeds[n] for n in rows()}, everywhere, label_smoothing=0.1)
    assert float(smoothed) == pytest.approx(float(without), rel=1e-14)


def test_the_cyclic_terms_see_the_true_pairs_alone():
    objective = Objective(negatives=("texts",))
    assert set(objective.terms["cyclic"].rows) == {"images", "texts"}
    assert set(objective.inputs) == {"images", "tokens", "negative_tokens", "has_negative"}


def test_the_sigmoid_refuses_negatives():
    with pytest.raises(UserError, match=r"negative texts are for the softmax; set config\.data"):
        Objective(contrastive="sigmoid", negatives=("texts",))
