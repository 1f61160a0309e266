import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cyclip_jax import parallel
from cyclip_jax.models import create_model
from cyclip_jax.models.drawing import draws_of, replayed
from cyclip_jax.models.initializers import normal, torch_bias, torch_kernel, xavier_uniform
from cyclip_jax.training.step import create_state, initial_state

UNOPTIMISED = {"xla_backend_optimization_level": 0}  # as `create_state` compiles on CPUs
TINY = {"image_size": 32, "vision_layers": (1, 1, 0, 0), "text_layers": 1}


class Everything(nnx.Module):
    """A parameter of every initialiser, of one row and of several, and two of one law."""

    def __init__(self, rngs):
        inits = {
            "kernel": (torch_kernel, (3, 3, 5, 24)),
            "linear": (xavier_uniform, (24, 72)),
            "bias": (torch_bias(48), (72,)),
            "table": (normal(0.02), (300, 120)),
            "place": (normal(0.02), (7, 120)),
            "scale": (nnx.initializers.ones, (24,)),
        }
        for name, (init, shape) in inits.items():
            setattr(self, name, nnx.Param(init(rngs.params(), shape, np.float32)))


def everything():
    return Everything(nnx.Rngs(3))


@functools.cache
def one_by_one(create):
    state = functools.partial(initial_state, create, optax.scale_by_adam(), seed=3)
    return jax.jit(state, compiler_options=UNOPTIMISED)()


def assert_same_bits(ours, expected):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_parameters_drawn_together_have_the_bits_of_those_drawn_one_by_one():
    ours = create_state(everything, optax.scale_by_adam(), seed=3)
    assert_same_bits(ours, one_by_one(everything))


def test_any_devices_draw_the_same_bits():
    mesh, optimizer = parallel.create_mesh(jax.devices()), optax.scale_by_adam()
    whole, split = parallel.replicated(mesh), parallel.batch_sharding(mesh)
    state = jax.eval_shape(lambda: initial_state(everything, optimizer, seed=3))
    sharding = jax.tree.map(lambda leaf: split if leaf.shape[:1] == (24,) else whole, state)
    ours = create_state(everything, optimizer, seed=3, sharding=sharding)
    assert jax.tree.map(lambda leaf: leaf.sharding, ours) == sharding
    assert_same_bits(ours, one_by_one(everything))


@pytest.mark.slow  # the plain form takes seconds to compile
@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_the_towers_have_the_bits_of_those_drawn_one_by_one(name):
    def create():
        return create_model(name, rngs=nnx.Rngs(3))

    ours = create_state(create, optax.scale_by_adam(), seed=3)
    assert_same_bits(ours, one_by_one(create))


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_no_layer_of_the_towers_draws_by_itself(name):
    sizes = TINY | {"initial_weights_dtype": "float16"}  # which changes what was drawn
    sizes |= {"vision_layers": 1} if name == "ViT-tiny" else {}
    draws = draws_of(lambda: create_model(name, rngs=nnx.Rngs(0), **sizes))
    with replayed(draws, {one.law: jnp.zeros((99, 2**15)) for one in draws}):
        traced = jax.make_jaxpr(
            lambda: nnx.to_pure_dict(
                nnx.state(create_model(name, rngs=nnx.Rngs(0), **sizes), nnx.Param)
            )
        )()
    assert "random_bits" not in str(traced) and "random_fold_in" not in str(traced)


def test_other_numbers_are_drawn_as_they_are():
    with jax.threefry_partitionable(False):
        assert draws_of(everything) == []
    assert draws_of(lambda: Everything(nnx.Rngs(jax.random.key(3, impl="rbg")))) == []
    layer = {"kernel_init": torch_kernel, "param_dtype": jnp.bfloat16, "rngs": nnx.Rngs(0)}
    assert draws_of(lambda: nnx.Linear(2, 3, **layer)) == []
