"""Batch normalisation in one pass, beside its definition in two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cyclip_jax.models import batch_norm
from cyclip_jax.models.batch_norm import moments, normalised, rectified_linear

EPSILON = 1e-5
SHAPE = (2, 4, 3, 5, 3)  # groups, images, rows, columns, channels


def definition(x, scale, bias, rectified):
    mean = x.mean((1, 2, 3), keepdims=True)
    var = jnp.square(x - mean).mean((1, 2, 3), keepdims=True)
    out = (x - mean) / jnp.sqrt(var + EPSILON) * scale + bias
    return jax.nn.relu(out) if rectified else out


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mean", [0.3, 40.0])  # within and beyond what one pass is used for
def test_it_is_the_definition_in_value_and_gradient(x64, rectified, groups, mean):
    rng = np.random.default_rng(0)
    x, seen = (jnp.asarray(rng.normal(size=(groups, *SHAPE[1:]))) for _ in range(2))
    x = x + mean
    scale, bias, near = (jnp.asarray(rng.normal(size=SHAPE[-1])) for _ in range(3))

    def ours(x, scale, bias):
        return normalised(x, scale, bias, near, EPSILON, rectified)[0]

    value, pull = jax.vjp(ours, x, scale, bias)
    expected, expected_pull = jax.vjp(lambda *args: definition(*args, rectified), x, scale, bias)
    np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-10)
    for grad, other in zip(pull(seen), expected_pull(seen), strict=True):
        np.testing.assert_allclose(grad, other, rtol=1e-10, atol=1e-10)


def test_a_guess_of_the_mean_changes_nothing_and_has_no_gradient(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE))
    ones = jnp.ones(SHAPE[-1])

    def total(near):
        out, (mean, var) = normalised(x, ones, ones, near, EPSILON, True)
        return jnp.sum(jnp.sin(out)) + jnp.sum(mean * var)

    values = [total(near * ones) for near in (0.0, 0.1, 3.0, 1e3)]
    np.testing.assert_allclose(values, values[0], rtol=1e-10)
    assert not jax.grad(total)(0.1 * ones).any()


def worst_error(means, near):
    """The largest relative error of a float32 variance, of channels of deviation 1."""
    draws = np.random.default_rng(0).normal(size=(1, 64, 16, 16, 1))
    x = (draws + means).astype(np.float32)
    in_float32 = jax.jit(lambda x, near: moments(x, near, EPSILON))
    _, var = in_float32(x, np.full(len(means), near, np.float32))
    expected = x.astype(np.float64).var((0, 1, 2, 3))
    return float(np.abs(np.asarray(var).ravel() / expected - 1).max())


# Deviations below 1e-4 of the mean are rounding of x itself.
FAR = np.array([0.0, 1.0, 1.9, 2.1, 8.0, 30.0, 1e3, 1e4])


@pytest.mark.parametrize("near", [0.0, 1.5, 1e3])
def test_float32_is_safe_however_far_the_means_are(near, monkeypatch):
    assert worst_error(FAR, near) < 1e-6
    # One channel alone that is not far enough for the second pass: the worst that one pass gives.
    assert worst_error(near + np.array([0.999 * batch_norm.MAX_SHIFTED_MEAN**0.5]), near) < 1e-6
    monkeypatch.setattr(batch_norm, "MAX_SHIFTED_MEAN", np.inf)
    assert worst_error(FAR, near) > 1e-2


def test_a_constant_channel_has_no_variance():
    x = jnp.full(SHAPE, 3e3)
    out, (mean, var) = normalised(x, *jnp.ones((3, SHAPE[-1])), EPSILON, False)
    np.testing.assert_allclose(mean.ravel(), 3e3, rtol=1e-6)
    np.testing.assert_allclose(var.ravel(), 0, atol=1e-6)
    np.testing.assert_allclose(out, 1, atol=0.1)


def test_a_rectified_number_is_that_of_jax_in_value_and_gradient():
    x = jnp.array([-jnp.inf, -1.0, -0.0, 0.0, 2.0, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(rectified_linear(x), jax.nn.relu(x))
    ours, theirs = (jax.vmap(jax.grad(f))(x[1:5]) for f in (rectified_linear, jax.nn.relu))
    np.testing.assert_array_equal(ours, theirs)
