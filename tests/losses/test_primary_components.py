"""Images' primary components against short texts: definition, devices, right values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cyclip_jax import parallel
from cyclip_jax.losses.contrastive import info_nce_dense
from cyclip_jax.losses.primary_components import (
    primary_components,
    primary_components_dense,
    primary_components_term,
)
from cyclip_jax.losses.terms import weighted_sum
from cyclip_jax.training.objective import Objective
from tests.conftest import unit_rows

N, D, SCALE = 24, 6, 5.0


def term(kept=3, **settings):
    given = {
        "primary_components_weight": 0.7,
        "primary_components_warmup_steps": 0,
        "chunk_size": 2,
    }
    return primary_components_term(**given | settings, primary_components_kept=kept)


def rows():
    return {"images": unit_rows(1, N, D), "second_texts": unit_rows(2, N, D)}


def test_the_definition_is_what_a_principal_component_analysis_reconstructs(x64):
    """By NumPy's eigenvectors of the covariance."""
    images = rows()["images"]
    _, directions = np.linalg.eigh(np.cov(images.T))
    mean = images.mean(axis=0)
    expected = sum(
        np.outer((images - mean) @ direction, direction) for direction in directions.T[-3:]
    )
    cut = primary_components_dense(images, 3)
    np.testing.assert_allclose(cut, mean + expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("devices", [1, 8])
def test_the_term_has_the_value_and_the_gradient_of_the_definition(x64, devices, smoothing):
    mesh = parallel.create_mesh(jax.devices()[:devices])

    def tiled(embeds, scale):
        of_term = term(label_smoothing=smoothing)
        loss, _ = weighted_sum([of_term], embeds, {}, {"logit_scale": scale}, mesh=mesh)
        return loss

    def definition(embeds, scale):
        images = primary_components_dense(embeds["images"], 3)
        keys = embeds["second_texts"]
        return 0.7 * info_nce_dense(images, keys, scale, label_smoothing=smoothing)[0]

    (value, gradient), (expected, of_definition) = jax.device_get(
        [jax.jit(jax.value_and_grad(f, (0, 1)))(rows(), SCALE) for f in (tiled, definition)]
    )
    assert value == pytest.approx(expected, rel=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), gradient, of_definition
    )


@pytest.mark.parametrize("kept", [D, D + 1])
def test_all_components_give_the_rows_back(x64, kept):
    images = rows()["images"]
    np.testing.assert_array_equal(primary_components(images, kept), images)
    np.testing.assert_allclose(primary_components_dense(images, kept), images, atol=1e-14)


def test_rows_of_few_directions_keep_them_all(x64):
    """Rows on a plane through their mean are not changed by two components."""
    plane = 0.3 + unit_rows(3, N, 2) @ unit_rows(4, 2, D)
    np.testing.assert_allclose(primary_components(plane, 2), plane, rtol=0, atol=1e-12)
    cut = primary_components(plane, 1)
    assert np.abs(cut - plane).max() > 0.1
    # What is cut off is no part of the mean.
    np.testing.assert_allclose(cut.mean(axis=0), plane.mean(axis=0), rtol=0, atol=1e-12)


def test_equal_embeddings_have_the_loss_of_a_guess_and_a_finite_gradient():
    """All components are of length 0 there, and no direction is the first."""
    same = dict.fromkeys(("images", "second_texts"), jnp.full((N, 4), 0.5))
    of_term = term(kept=2, primary_components_weight=1.0)

    def loss(embeds):
        return weighted_sum([of_term], embeds, {}, {"logit_scale": SCALE})[0]

    value, gradient = jax.value_and_grad(loss)(same)
    assert float(value) == pytest.approx(np.log(N), rel=1e-6)
    assert of_term.of_equal_embeds["primary_components_loss"](N) == np.log(N)
    assert all(bool(jnp.isfinite(x).all()) for x in gradient.values())


def test_a_weight_of_zero_is_not_computed():
    assert not term(primary_components_weight=0.0).is_computed


def test_without_short_captions_the_term_is_left_out():
    """As in evaluations, which have pairs alone; a run's settings refuse it."""
    alone = Objective(primary_components_weight=1.0)
    assert alone.wants_short_captions and "primary_components" not in alone.terms
    views = {"views": ["text"]}
    both = Objective(primary_components_weight=1.0, second_view_weight=0.0, second_views=views)
    assert list(both.terms) == ["contrastive", "primary_components", "cyclic"]
    assert both.inputs == ("images", "tokens", "second_tokens")
