"""The linear layer of the transformers, in the form of each platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cyclip_jax.models.linear import Linear, PartsApart, RowsTogether, linear


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("form", [RowsTogether, PartsApart])
def test_each_form_is_the_definition_in_value_and_gradient(x64, form, parts):
    rng = np.random.default_rng(0)
    shapes = ((2, 5, 4), (4, 6), (6,), (2, 5, 6))
    x, kernel, bias, seen = (jnp.asarray(rng.normal(size=shape)) for shape in shapes)

    def definition(x, kernel, bias):
        return jnp.einsum("nli,io->nlo", x, kernel) + bias

    value, pull_back = jax.vjp(definition, x, kernel, bias)
    here = jnp.concatenate(form.value(x, kernel, bias, parts), axis=-1)
    np.testing.assert_allclose(here, value, rtol=1e-12)
    grads = form.gradients(x, kernel, jnp.split(seen, parts, axis=-1))
    for here, there in zip(grads, pull_back(seen), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-12)


@pytest.mark.parametrize("platform, form", [("cpu", "rows"), ("tpu", "parts"), ("cuda", "parts")])
def test_rows_are_made_for_cpus_alone(platform, form):
    def total(x, kernel, bias):
        return sum(jnp.sum(jnp.sin(part)) for part in linear(x, kernel, bias, 3))

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 5, 4), (4, 6), (6,))]
    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    text = gradients.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    products = {"rows": 3, "parts": 9}  # of the value, and of the gradients of x and the kernel
    assert text.count("stablehlo.dot_general") == products[form]
    assert ("tensor<10x4xf32>" in text) == (form == "rows")


def test_the_layer_is_that_of_flax():
    layer, flax = (kind(4, 6, rngs=nnx.Rngs(0)) for kind in (Linear, nnx.Linear))
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    np.testing.assert_allclose(layer(x), flax(x), rtol=1e-6)
    np.testing.assert_array_equal(jnp.concatenate(layer.split(x, 3), axis=-1), layer(x))
