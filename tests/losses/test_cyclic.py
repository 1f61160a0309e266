import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cyclip_jax.losses import cyclic_consistency
from cyclip_jax.losses.cyclic import cyclic_consistency_closed_form, cyclic_consistency_dense
from tests.conftest import unit_rows


def double_sums(images, texts):
    """The published double sums, one pair at a time."""
    n = len(images)
    pairs = [(j, k) for j in range(n) for k in range(n)]
    inmodal = sum((images[j] @ images[k] - texts[j] @ texts[k]) ** 2 for j, k in pairs)
    crossmodal = sum((images[j] @ texts[k] - images[k] @ texts[j]) ** 2 for j, k in pairs)
    return inmodal / n, crossmodal / n


@pytest.mark.parametrize("n, d", [(12, 5), (5, 12), (1, 3)])
@pytest.mark.parametrize(
    "form", [cyclic_consistency_dense, cyclic_consistency_closed_form, cyclic_consistency]
)
def test_every_form_equals_the_double_sums(x64, form, n, d):
    images, texts = unit_rows(0, n, d), unit_rows(1, n, d)
    actual, expected = form(images, texts), double_sums(images, texts)
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("n, d", [(40, 16), (16, 40)])
@pytest.mark.parametrize("distance", [1.0, 1e-3])
def test_closed_form_has_the_gradients_of_the_definition(x64, n, d, distance):
    images = unit_rows(0, n, d)
    texts = images + distance * unit_rows(1, n, d)

    def total(form):  # unequal weights, so that no error of one term hides in the other
        return jax.grad(lambda i, t: jnp.dot(jnp.stack(form(i, t)), jnp.array([1.0, 3.0])), (0, 1))

    expected = total(cyclic_consistency_dense)(images, texts)
    actual = total(cyclic_consistency_closed_form)(images, texts)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-11 * np.abs(e).max())


def test_float32_keeps_its_digits_where_the_modalities_nearly_agree():
    images = unit_rows(0, 512, 64)
    texts = images + 1e-3 * unit_rows(1, 512, 64)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    images, texts = images.astype(np.float32), texts.astype(np.float32)
    with jax.enable_x64(True):
        exact = cyclic_consistency_dense(images.astype(np.float64), texts.astype(np.float64))
    actual = cyclic_consistency_closed_form(images, texts)
    assert np.abs(np.subtract(actual, exact)).max() <= 2e-6 * sum(map(float, exact))


def test_equal_modalities_are_consistent():
    same = unit_rows(0, 32, 8, np.float32)
    assert max(map(float, cyclic_consistency(same, same))) == 0


def test_the_cheaper_form_is_chosen_by_shape():
    def largest_intermediate(n, d):
        shape = jax.ShapeDtypeStruct((n, d), jnp.float32)
        jaxpr = jax.make_jaxpr(cyclic_consistency)(shape, shape)
        return max(v.aval.size for equation in jaxpr.jaxpr.eqns for v in equation.outvars)

    assert largest_intermediate(256, 8) == 256 * 8  # no N×N matrix
    assert largest_intermediate(8, 256) == 8 * 256  # no D×D matrix
