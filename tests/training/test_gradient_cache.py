"""Micro-batches on towers of one matrix each; tests/training/test_step.py has the real ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cyclip_jax.losses import cyclip_loss
from cyclip_jax.models.clip import unit_norm
from cyclip_jax.training.gradient_cache import embed_with_pullback

ROWS = 24


def embed(params, rows):
    embeds = tuple(unit_norm(jnp.tanh(rows[name] @ params[name])) for name in ("image", "text"))
    return embeds, {"mean": rows["image"].mean(axis=0)}


def make_problem():
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=(6, 5)) for name in ("image", "text")}
    return params, {name: rng.normal(size=(ROWS, 6)) for name in ("image", "text")}


def gradients(params, rows, log_scale, micro_batches):
    """(loss, gradient of the towers, of the log of the scale), and the mean statistics."""

    def loss(embeds, log_scale):
        return cyclip_loss(*embeds, jnp.exp(log_scale))[0]

    embeds, statistics, pull = embed_with_pullback(embed, params, rows, micro_batches=micro_batches)
    value, (cotangents, scale_gradient) = jax.value_and_grad(loss, (0, 1))(embeds, log_scale)
    return (value, pull(cotangents), scale_gradient), statistics


@pytest.mark.parametrize("micro_batches", [2, 3, 24])
def test_equals_the_whole_batch(x64, micro_batches):
    """The scale's gradient too, of which accumulation over parts gives as many times too much."""
    params, rows = make_problem()
    expected, statistics = gradients(params, rows, 2.0, 1)
    actual, means = gradients(params, rows, 2.0, micro_batches)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-12), actual, expected)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-12), means, statistics)
    assert abs(expected[2]) > 1e-3


def test_embeddings_keep_the_order_of_the_batch(x64):
    params, rows = make_problem()
    whole, _, _ = embed_with_pullback(embed, params, rows)
    parts, _, _ = embed_with_pullback(embed, params, rows, micro_batches=4)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-12), parts, whole)


def test_a_pullback_of_another_micro_batch_would_fail(x64, monkeypatch):
    params, rows = make_problem()
    expected, _ = gradients(params, rows, 2.0, 1)
    monkeypatch.setattr(
        # Blocks, where the embeddings are put together by rows.
        "cyclip_jax.training.gradient_cache.split_rows",
        lambda tree, parts: jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), tree),
    )
    actual, _ = gradients(params, rows, 2.0, 4)
    assert np.abs(actual[1]["image"] - expected[1]["image"]).max() > 1e-2


def test_activations_of_one_micro_batch_at_a_time_are_kept():
    """Memory falls with the number of parts: that is what they are for."""

    def deep(params, rows):
        def tower(x, matrix):
            for _ in range(8):
                x = jnp.tanh(x @ matrix)
            return unit_norm(x)

        return (tower(rows["image"], params["image"]), tower(rows["text"], params["text"])), {}

    def temporary_bytes(micro_batches):
        def step(params, rows):
            embeds, _, pull = embed_with_pullback(deep, params, rows, micro_batches=micro_batches)
            return pull(jax.grad(lambda e: cyclip_loss(*e, 10.0)[0])(embeds))

        params = {name: jnp.zeros((16, 16)) for name in ("image", "text")}
        rows = {name: jnp.zeros((4096, 16)) for name in ("image", "text")}
        compiled = jax.jit(lambda p, r: step(p, r)).lower(params, rows).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    embeddings = 2 * 4096 * 16 * 4
    whole, parts = temporary_bytes(1), temporary_bytes(16)
    assert whole > 8 * embeddings
    assert parts < whole - 5 * embeddings
