"""A ViT that sees smaller images than its own, in the cheap phase of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cyclip_jax.models.presets import create_model
from cyclip_jax.models.vit import resized_positions
from tests.interop.models import VIT, drawn_model

SIGLIP = {**VIT, "vision_tower": "siglip", "embed_dim": 24, "quick_gelu": False}
KINDS = {
    "vit": VIT,
    "sin_cos": {**VIT, "vision_positions": "sin_cos"},
    "mean": {**VIT, "pool": "mean"},
    "siglip": SIGLIP,
}


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 4), (5, 2), (6, 6)])
def test_positions_that_rise_linearly_stay_exact(x64, grid):
    """A patch of the smaller image has the position of its centre."""
    rows, columns = np.indices((6, 6)).reshape(2, -1, 1)
    slopes = np.array([[1.0, -2.0], [0.5, 3.0]])
    positions = 0.7 + rows * slopes[0] + columns * slopes[1]
    found = resized_positions(jnp.asarray(positions), (6, 6), grid)
    places = [(np.arange(n) + 0.5) * 6 / n - 0.5 for n in grid]
    row, column = np.meshgrid(*places, indexing="ij")
    expected = 0.7 + row.reshape(-1, 1) * slopes[0] + column.reshape(-1, 1) * slopes[1]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_half_as_many_patches_have_the_mean_of_four(x64):
    positions = np.random.default_rng(0).normal(size=(16, 3))
    found = resized_positions(jnp.asarray(positions), (4, 4), (2, 2))
    squares = positions.reshape(2, 2, 2, 2, 3)
    np.testing.assert_allclose(found, squares.mean(axis=(1, 3)).reshape(4, 3), atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_smaller_tower_with_the_interpolated_positions(x64, kind):
    """With all patches and with some of them; the class token's position stays."""
    settings = {**KINDS[kind], "dtype": "float64"}
    model = drawn_model(settings)
    small = nnx.merge(*nnx.split(model))
    tower = small.visual if kind != "siglip" else small.visual.trunk
    if kind == "siglip":
        own = tower.pos_embed[0]
        tower.pos_embed = nnx.Param(resized_positions(own, (4, 4), (2, 2))[None])
    else:
        positions = tower._positions(24)
        resized = resized_positions(positions[1:], (4, 4), (2, 2))
        tower.positional_embedding = nnx.Param(jnp.concatenate([positions[:1], resized]))
    tower.grid = (2, 2)
    images = jax.random.normal(jax.random.key(0), (3, 16, 16, 3), jnp.float64)
    kept = jnp.array([[0, 3], [1, 2], [2, 3]])
    encode = nnx.jit(lambda model, *given: model.encode_image(*given))
    for given in ((images,), (images, kept)):
        found = encode(model, *given)
        np.testing.assert_allclose(found, encode(small, *given), rtol=0, atol=1e-12)
        assert np.abs(found).max() > 1e-2


def test_positions_learn_from_smaller_images():
    graphdef, params = nnx.split(drawn_model(VIT))
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))

    def total(params):
        return nnx.merge(graphdef, params).encode_image(images).sum()

    gradient = jax.jit(jax.grad(total))(params)["visual"]["positional_embedding"][...]
    assert gradient.shape == (17, 24) and (jnp.abs(gradient).max(axis=1) > 0).all()


def test_no_parameter_has_another_shape():
    shapes = nnx.eval_shape(lambda: create_model("ViT-tiny", rngs=nnx.Rngs(0)))
    text = jnp.zeros((1, 16), jnp.int32)
    for size in (32, 16, 8):
        images = jnp.zeros((1, size, size, 3))
        embeds, _, _ = nnx.eval_shape(lambda model, x=images: model(x, text), shapes)
        assert embeds.shape == (1, shapes.visual.proj.shape[1])
