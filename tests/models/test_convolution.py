"""The convolutions of the ResNets, in the form of each platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cyclip_jax.models.convolution import (
    Convolution,
    Definition,
    PaddedFirst,
    PointsAsRows,
    convolved,
    form_on_cpus,
)

FORMS = [
    (PointsAsRows, (2, 4, 5, 3), (1, 1, 3, 6)),
    (PaddedFirst, (2, 2, 2, 3), (3, 3, 3, 6)),
    (PaddedFirst, (2, 1, 4, 3), (3, 3, 3, 6)),
    (Definition, (2, 3, 4, 3), (3, 3, 3, 6)),
]


@pytest.mark.parametrize("form, x_shape, kernel_shape", FORMS)
def test_each_form_is_the_definition_in_value_and_gradient(x64, form, x_shape, kernel_shape):
    assert form_on_cpus(x_shape, kernel_shape, 1) is form
    rng = np.random.default_rng(0)
    shapes = (x_shape, kernel_shape, (*x_shape[:3], kernel_shape[-1]))
    x, kernel, seen = (jnp.asarray(rng.normal(size=shape)) for shape in shapes)
    value, pull_back = jax.vjp(Definition.value, x, kernel)
    np.testing.assert_allclose(form.value(x, kernel), value, rtol=1e-12, atol=1e-12)
    here, there = form.gradients(x, kernel, seen), pull_back(seen)
    through = jax.vjp(lambda x, kernel: convolved(x, kernel, 1), x, kernel)[1](seen)
    for grads in (here, through):
        for grad, expected in zip(grads, there, strict=True):
            np.testing.assert_allclose(grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
@pytest.mark.parametrize("form, x_shape, kernel_shape", FORMS)
def test_forms_of_their_own_are_for_cpus_alone(platform, form, x_shape, kernel_shape):
    def total(x, kernel):
        return jnp.sum(jnp.sin(convolved(x, kernel, 1)))

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x_shape, kernel_shape)]
    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))
    text = gradients.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    is_own = platform == "cpu" and form is not Definition
    # The value, and the gradients of x and the kernel.
    products = "dot_general" if is_own and form is PointsAsRows else "convolution"
    assert text.count(f"stablehlo.{products}") == 3
    assert ("optimization_barrier" in text) == (is_own and form is PaddedFirst)


@pytest.mark.parametrize("size, stride", [(1, 1), (3, 1), (3, 2)])
def test_the_layer_is_that_of_flax(size, stride):
    ours = Convolution(3, 6, size, stride=stride, dtype=jnp.float32, rngs=nnx.Rngs(0))
    flax = nnx.Conv(
        *(3, 6, (size, size)),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        rngs=nnx.Rngs(0),
    )
    flax.kernel[...] = ours.kernel[...]
    x = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
    np.testing.assert_allclose(ours(x), flax(x), rtol=1e-5, atol=1e-6)
