import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cyclip_jax.models import create_model
from cyclip_jax.training.optimizer import adamw, weight_decay_mask


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_kernels_projections_and_token_embedding_are_decayed_and_nothing_else(name):
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    mask = weight_decay_mask(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    decayed, spared = set(), set()
    for path, is_decayed in jax.tree_util.tree_leaves_with_path(mask):
        (decayed if is_decayed else spared).add(path[-1].key)
    visual = {"proj"} if name == "ViT-tiny" else set()
    assert decayed == {"kernel", "token_embedding", "text_projection"} | visual
    classes = {"class_embedding"} if name == "ViT-tiny" else set()
    assert spared == {"scale", "bias", "logit_scale", "positional_embedding"} | classes


def adamw_arguments(**overrides):
    arguments = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
    return arguments | {"gradient_clip_norm": None} | overrides


def test_updates_are_those_of_adamw(x64):
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}
    ours = adamw(**adamw_arguments())
    theirs = optax.adamw(0.01, b1=0.9, b2=0.99, weight_decay=0.1, mask=weight_decay_mask)
    our_params = their_params = params
    our_state, their_state = ours.init(params), theirs.init(params)
    for step in range(3):
        grads = jax.tree.map(lambda p, step=step: jnp.sin(p + step), params)
        updates, our_state = ours.update(grads, our_state, our_params)
        our_params = jax.tree.map(lambda p, u: p - 0.01 * u, our_params, updates)
        updates, their_state = theirs.update(grads, their_state, their_params)
        their_params = optax.apply_updates(their_params, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), our_params, their_params
    )


def test_clipping_bounds_the_global_norm():
    params = {"kernel": jnp.zeros((1, 2)), "bias": jnp.zeros(1)}
    grads = {"kernel": jnp.array([[30.0, 0.0]]), "bias": jnp.array([40.0])}
    clipped = adamw(**adamw_arguments(gradient_clip_norm=5.0, eps=1e8))
    plain = adamw(**adamw_arguments(eps=1e8))  # so large an eps makes Adam linear
    small, _ = clipped.update(grads, clipped.init(params), params)
    large, _ = plain.update(grads, plain.init(params), params)
    np.testing.assert_allclose(large["bias"], 10 * small["bias"], rtol=1e-5)
