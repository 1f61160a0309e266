"""CyCLIP's in-modal option: contrastive losses between embeddings and their second views."""

import math

import jax
import numpy as np
import pytest

from cyclip_jax import parallel
from cyclip_jax.errors import UserError
from cyclip_jax.losses import cyclip_loss
from cyclip_jax.training.objective import Objective
from tests.conftest import unit_rows

BOTH = ("image", "text")


def embeds_of(n=8, d=6):
    names = ("images", "texts", "second_images", "second_texts")
    return {name: unit_rows(seed, n, d) for seed, name in enumerate(names)}


def cross_entropy(rows, columns, scale):
    """Of the right column of each row, row by row."""
    total = 0.0
    for i, row in enumerate(rows):
        logits = [scale * row @ column for column in columns]
        total += math.log(sum(map(math.exp, logits))) - logits[i]
    return total / len(rows)


def by_definition(images, texts, second_images, second_texts, scale, w=0.5):
    across = (cross_entropy(images, texts, scale) + cross_entropy(texts, images, scale)) / 2
    within = cross_entropy(images, second_images, scale) + cross_entropy(texts, second_texts, scale)
    return (1 - w) * across + w * within / 2


def measured(embeds, scale=9.0, views=BOTH, devices=1, **loss):
    loss = {"inmodal_weight": 0, "crossmodal_weight": 0} | loss
    objective = Objective(**loss, second_views={"views": views})
    mesh = parallel.create_mesh(jax.devices()[:devices])

    def value(embeds, scale):
        return objective(embeds, {}, {"logit_scale": scale}, mesh=mesh)

    return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(embeds, scale)


@pytest.mark.parametrize("devices", [1, 8])
def test_it_is_the_published_formula_in_value_and_gradient(x64, devices):
    embeds = embeds_of()
    (value, metrics), (gradient, of_scale) = measured(embeds, devices=devices)
    assert float(value) == pytest.approx(by_definition(**embeds, scale=9.0), rel=1e-12)
    assert {"contrastive_loss", "image_view_loss", "text_view_loss"} <= metrics.keys()
    for name, rows in embeds.items():
        step = 1e-6 * unit_rows(9, *rows.shape)
        there, back = (
            by_definition(**(embeds | {name: rows + sign * step}), scale=9.0) for sign in (1, -1)
        )
        assert float(np.sum(gradient[name] * step)) == pytest.approx((there - back) / 2, rel=1e-6)
    there, back = (by_definition(**embeds, scale=9.0 + sign * 1e-6) for sign in (1, -1))
    assert float(of_scale) == pytest.approx((there - back) / 2e-6, rel=1e-6)


def test_equal_and_orthonormal_embeddings_have_their_closed_forms(x64):
    equal = {name: np.full((8, 4), 0.5) for name in embeds_of()}
    for w in (0.2, 0.5):
        assert float(measured(equal, second_view_weight=w)[0][0]) == pytest.approx(math.log(8))
    same = dict.fromkeys(embeds_of(), np.eye(8))
    assert float(measured(same)[0][0]) == pytest.approx(math.log(1 + 7 * math.exp(-9.0)))


def test_the_loss_goes_from_the_original_to_the_view(x64):
    embeds = embeds_of()
    turned = embeds | {
        "images": embeds["second_images"],
        "second_images": embeds["images"],
    }
    forward, backward = (
        float(measured(each)[0][1]["image_view_loss"]) for each in (embeds, turned)
    )
    assert abs(forward - backward) > 1e-3
    expected = cross_entropy(embeds["images"], embeds["second_images"], 9.0)
    assert forward == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("view", BOTH)
def test_one_kind_of_view_has_the_whole_share(x64, view):
    embeds = embeds_of()
    (value, metrics), _ = measured(embeds, views=(view,), second_view_weight=0.3)
    expected = 0.7 * metrics["contrastive_loss"] + 0.3 * metrics[f"{view}_view_loss"]
    assert float(value) == pytest.approx(float(expected), rel=1e-12)
    own, second = (embeds[f"{prefix}{view}s"] for prefix in ("", "second_"))
    assert float(metrics[f"{view}_view_loss"]) == pytest.approx(cross_entropy(own, second, 9.0))


def test_the_cyclic_terms_and_clip_s_do_not_see_the_views():
    embeds = {name: rows.astype(np.float32) for name, rows in embeds_of().items()}
    noise = embeds | {name: embeds[name][::-1] for name in ("second_images", "second_texts")}
    weights = {"inmodal_weight": 0.25, "crossmodal_weight": 0.25}
    ours, of_noise = (measured(each, **weights)[0][1] for each in (embeds, noise))
    _, alone = cyclip_loss(embeds["images"], embeds["texts"], 9.0, **weights)
    for name in ("contrastive_loss", "inmodal_cyclic_loss", "crossmodal_cyclic_loss"):
        assert float(ours[name]) == float(of_noise[name])
        assert float(ours[name]) == pytest.approx(float(alone[name]), rel=1e-6)
    assert float(ours["loss"]) != float(of_noise["loss"])


def test_gradients_of_all_four_are_divided_as_by_published_code(x64):
    true, divided = (
        measured(embeds_of(), detached_gather_devices=devices)[1][0] for devices in (1, 4)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a / 4, b, rtol=1e-12), true, divided)


@pytest.mark.parametrize("weight", [-0.1, 1.0])
def test_what_is_no_share_is_refused(weight):
    with pytest.raises(
        UserError, match=r"second_view_weight .* must be at least 0 and less than 1"
    ):
        Objective(second_view_weight=weight, second_views={"views": BOTH})
