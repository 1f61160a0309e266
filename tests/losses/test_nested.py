"""Nested dimensions: the mean over sizes, each scaled to length 1 again."""

import jax
import numpy as np
import pytest

from cyclip_jax import parallel
from cyclip_jax.errors import UserError
from cyclip_jax.losses.contrastive import contrastive_loss_dense
from cyclip_jax.losses.cyclic import cyclic_consistency_dense
from cyclip_jax.losses.nested import check_nested_dims
from cyclip_jax.training.objective import Objective
from tests.conftest import unit_rows

DIMS = (12, 6, 2)


def objective(**settings):
    return Objective(chunk_size=2, **settings)


def loss_of(objective, mesh=None):
    def loss(images, texts, scale):
        embeds = {"images": images, "texts": texts}
        return objective(embeds, {}, {"logit_scale": scale}, mesh=mesh)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


def definition(images, texts, scale):
    total = 0.0
    for m in DIMS:
        short = [images, texts]
        if m < images.shape[1]:
            short = [x[:, :m] / (x[:, :m] ** 2).sum(1, keepdims=True) ** 0.5 for x in short]
        inmodal, crossmodal = cyclic_consistency_dense(*short)
        total += contrastive_loss_dense(*short, scale)[0] + 0.25 * (inmodal + crossmodal)
    return total / len(DIMS), None


@pytest.mark.parametrize("devices", [1, 8])
def test_it_is_the_mean_over_sizes_in_value_and_gradient(x64, devices):
    given = unit_rows(1, 24, 12), unit_rows(2, 24, 12), 7.0
    mesh = parallel.create_mesh(jax.devices()[:devices])
    (value, _), gradient = loss_of(objective(nested_dims=DIMS), mesh)(*given)
    (expected, _), of_definition = jax.value_and_grad(definition, (0, 1, 2), has_aux=True)(*given)
    assert float(value) == pytest.approx(float(expected), rel=1e-13)
    for ours, theirs in zip(gradient, of_definition, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_one_size_is_the_plain_loss_bit_by_bit():
    given = *(unit_rows(seed, 16, 12, np.float32) for seed in (1, 2)), np.float32(7)
    results = [loss_of(objective(nested_dims=dims))(*given) for dims in ((), (12,))]
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get(results))


@pytest.mark.parametrize("dims", [(2, 6), (6, 6), (6, 0)])
def test_sizes_that_do_not_fall_are_refused(dims):
    with pytest.raises(UserError, match="whole numbers of at least 1, the largest first"):
        objective(nested_dims=dims)


def test_the_first_size_is_the_models():
    check_nested_dims((64, 32), 64)
    with pytest.raises(UserError, match=r"must begin with the model's 64 dimensions"):
        check_nested_dims((32, 16), 64)
