"""Uniformity and alignment: definition, tiles over devices, right values."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cyclip_jax import parallel
from cyclip_jax.losses.terms import weighted_sum
from cyclip_jax.losses.uniformity import uniformity, uniformity_dense, uniformity_term
from tests.conftest import unit_rows


def slowly(left, right):
    """log of the mean of e^(−2‖x−y‖²) over pairs of different numbers, pair by pair."""
    n = len(left)
    pairs = [(j, k) for j in range(n) for k in range(n) if j != k]
    kernels = [math.exp(-2 * ((left[j] - right[k]) ** 2).sum()) for j, k in pairs]
    return math.log(sum(kernels) / len(pairs))


def rows(n=24, d=5):
    return unit_rows(1, n, d), unit_rows(2, n, d)


def term(**weights):
    zero = {"uniformity_weight": 0.0, "cross_uniformity_weight": 0.0, "alignment_weight": 0.0}
    return uniformity_term(**zero | weights, uniformity_warmup_steps=0, chunk_size=2)


def test_the_definition_is_the_formula(x64):
    images, texts = rows(6)
    assert float(uniformity_dense(images, texts)) == pytest.approx(slowly(images, texts))
    assert float(uniformity_dense(images, images)) == pytest.approx(slowly(images, images))


@pytest.mark.parametrize("devices", [1, 8])
def test_the_term_has_the_value_and_the_gradient_of_the_definitions(x64, devices):
    weights = {"uniformity_weight": 0.7, "cross_uniformity_weight": 0.4, "alignment_weight": 0.3}
    mesh = parallel.create_mesh(jax.devices()[:devices])

    def tiled(images, texts):
        return weighted_sum(
            [term(**weights)], {"images": images, "texts": texts}, {}, {}, mesh=mesh
        )

    def definition(images, texts):
        parts = {
            "uniformity_loss": (uniformity_dense(images, images) + uniformity_dense(texts, texts))
            / 2,
            "cross_uniformity_loss": uniformity_dense(images, texts),
            "alignment_loss": jnp.mean(jnp.sum((images - texts) ** 2, axis=1)),
        }
        return sum(w * p for w, p in zip(weights.values(), parts.values(), strict=True)), parts

    results = [
        jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True))(*rows())
        for function in (tiled, definition)
    ]
    ((value, metrics), gradient), ((expected, parts), of_definition) = jax.device_get(results)
    assert value == pytest.approx(expected, rel=1e-12)
    for name, part in parts.items():
        assert metrics[name] == pytest.approx(part, rel=1e-12)
    for ours, theirs in zip(gradient, of_definition, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_right_values(x64):
    n = 5
    assert float(uniformity(np.eye(n))) == pytest.approx(-4)
    simplex = np.eye(n) - 1 / n
    simplex /= np.linalg.norm(simplex, axis=1, keepdims=True)
    assert float(uniformity(simplex)) == pytest.approx(-4 * n / (n - 1))
    same = np.full((n, 4), 0.5)
    assert float(uniformity(same, same)) == 0
    images, texts = rows(n)
    _, metrics = weighted_sum(
        [term(alignment_weight=1.0)], {"images": images, "texts": texts}, {}, {}
    )
    cosines = np.sum(images * texts, axis=1)
    assert float(metrics["alignment_loss"]) == pytest.approx(2 - 2 * cosines.mean())


def test_a_value_of_weight_zero_is_not_computed():
    assert not term().is_computed
    alone = term(alignment_weight=1.0)
    assert list(alone.reports) == ["alignment_loss"]
    pairs = {"images": np.ones((4, 3)), "texts": np.ones((4, 3))}
    jaxpr = jax.make_jaxpr(functools.partial(weighted_sum, [alone]))(pairs, {}, {})
    assert "dot_general" not in str(jaxpr)
