"""Dropout by row in the text tower."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cyclip_jax import parallel
from cyclip_jax.models.dropout import Dropout
from cyclip_jax.models.rows import by_rows
from cyclip_jax.models.sentence_head import SentenceHead
from cyclip_jax.models.text import TextTransformer

ROWS = 8


def keys(rows=ROWS, seed=0):
    return jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(seed), rows))


@functools.cache
def tower(dtype="float32", **execution):
    return TextTransformer(
        context_length=6,
        vocab_size=40,
        width=16,
        layers=2,
        heads=2,
        embed_dim=12,
        quick_gelu=True,
        dtype=jnp.dtype(dtype),
        rngs=nnx.Rngs(0),
        **execution,
    )


def tokens(rows=ROWS):
    ids = np.random.default_rng(0).integers(1, 38, (rows, 6)).astype(np.int32)
    ids[:, 4] = 39
    return ids


def test_a_tenth_of_all_numbers_is_dropped_and_the_mean_stays():
    x = jnp.ones((10, 10_000))
    dropped = Dropout(keys(10), 0.1)(x, 3)
    kept = float((dropped != 0).mean())
    assert abs(kept - 0.9) < 5 * np.sqrt(0.9 * 0.1 / x.size)
    np.testing.assert_allclose(dropped[dropped != 0], 1 / 0.9, rtol=1e-6)


def test_rows_places_and_keys_have_masks_of_their_own():
    x = jnp.ones((ROWS, 200))
    masks = [
        Dropout(keys(seed=seed), 0.5)(x, place)[row] != 0
        for seed in (0, 1)
        for place in (0, 1)
        for row in (0, 1)
    ]
    agreements = [(a == b).mean() for i, a in enumerate(masks) for b in masks[:i]]
    assert max(agreements) < 0.8
    again = Dropout(keys()[3:4], 0.5)(x[:1], 1)
    assert jnp.array_equal(again[0], Dropout(keys(), 0.5)(x, 1)[3])  # wherever the row lies


@pytest.mark.parametrize(
    "execution", [{"remat": "full"}, {"scan_blocks": True}, {"scan_blocks": True, "remat": "dots"}]
)
def test_masks_do_not_depend_on_how_blocks_are_run(x64, execution):
    dropout = Dropout(keys(), 0.2)
    plain, other = tower("float64"), tower("float64", **execution)

    def loss(tower, ids):
        return jnp.sum(tower(ids, dropout) ** 2)

    value, gradient = nnx.value_and_grad(loss)(plain, tokens())
    other_value, other_gradient = nnx.value_and_grad(loss)(other, tokens())
    assert value.dtype == jnp.float64
    assert float(value) == pytest.approx(float(other_value), rel=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10),
        nnx.to_pure_dict(gradient),
        nnx.to_pure_dict(other_gradient),
    )


def test_every_place_drops(monkeypatch):
    """Without one of them the embedding would be another."""
    drop, seen = Dropout.__call__, []

    def embed(left_out):
        def call(self, x, place):
            seen.append(place)
            return x if place == left_out else drop(self, x, place)

        monkeypatch.setattr(Dropout, "__call__", call)
        return tower()(tokens(), Dropout(keys(), 0.3))

    whole = embed(None)
    assert sorted(seen) == list(range(1 + 3 * 2))  # before the blocks, and three in each
    for place in range(7):
        assert not jnp.allclose(whole, embed(place)), place


def test_two_masks_give_two_embeddings_and_one_mask_gives_one():
    ids = np.repeat(tokens(1), 3, axis=0)
    masks = keys(2)[np.array([0, 1, 0])]
    embeds = tower()(ids, Dropout(masks, 0.1))
    assert jnp.array_equal(embeds[0], embeds[2])
    assert not jnp.allclose(embeds[0], embeds[1], atol=1e-3)


def test_rate_zero_is_no_dropout():
    assert jnp.allclose(tower()(tokens(), Dropout(keys(), 0.0)), tower()(tokens()), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_devices_draw_the_same(dtype):
    mesh = parallel.create_mesh(jax.devices()[:8])

    model = tower(dtype)

    def embed(ids, keys):
        with parallel.rows_over(mesh):
            return by_rows(model, ids, Dropout(keys, 0.2))

    rows = parallel.to_global({"ids": tokens(), "keys": np.asarray(keys())}, mesh)
    split = jax.jit(embed)(rows["ids"], rows["keys"])
    alone = model(tokens(), Dropout(keys(), 0.2))
    np.testing.assert_allclose(
        split.astype("float32"), alone.astype("float32"), atol=0.05 if dtype == "bfloat16" else 1e-5
    )


def test_features_are_what_is_projected():
    features = tower()(tokens(), is_projected=False)
    assert features.shape == (ROWS, 16)
    expected = features @ tower().text_projection[...]
    np.testing.assert_allclose(tower()(tokens()), expected, rtol=1e-5)
    head = SentenceHead(16, dtype=jnp.float32, rngs=nnx.Rngs(1))
    kernel, bias = head.dense.kernel[...], head.dense.bias[...]
    np.testing.assert_allclose(head(features), jnp.tanh(features @ kernel + bias), rtol=1e-5)
