"""The train step that a config describes, for the devices of a run or for any others."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from cyclip_jax import parallel
from cyclip_jax.models.clip import normalise_images
from cyclip_jax.models.presets import create_model, sizes_in
from cyclip_jax.train_step import abstract_state, make_train_step
from cyclip_jax.views import see_everything


def set_matmul_precision(config):
    """Sets JAX's default precision of matrix products to the config's, for this process."""
    precision = None if config.matmul_precision == "default" else config.matmul_precision
    jax.config.update("jax_default_matmul_precision", precision)


def normaliser(config):
    """Function from uint8 images to what the image tower takes."""
    return functools.partial(
        normalise_images,
        dtype=jnp.dtype(config.model.dtype),
        mean=config.data.image_mean,
        std=config.data.image_std,
    )


def configured_step(
    config, graphdef, optimizer, schedule, *, mesh, state_sharding, view=see_everything
):
    """The train step, a pure function (state, batch) -> (state, metrics).

    Args:
      config: as configs/common.py makes it.
      graphdef: of its model in training mode.
      optimizer, schedule: of `create_optimizer`.
      mesh: the mesh that rows are sharded over.
      state_sharding: a TrainState of shardings.
      view: what the towers see of a batch (see views.py).
    """
    return make_train_step(
        graphdef,
        optimizer,
        schedule,
        normalise=normaliser(config),
        view=view,
        micro_batches=config.micro_batches,
        mesh=mesh,
        param_sharding=state_sharding.params,
        **config.loss,
    )


def jit_step(step, *, mesh, state_sharding):
    """A train step under jit: it takes the state's memory for the new state's."""
    out_shardings = (state_sharding, parallel.replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def state_shapes(config, optimizer, mesh):
    """The state before the first step as a TrainState of jax.ShapeDtypeStruct with shardings."""
    return abstract_state(
        lambda: create_model(**config.model, rngs=nnx.Rngs(config.seed)),
        optimizer,
        mesh,
        seed=config.seed,
        min_size=config.mesh.fsdp_min_size,
    )


def batch_shapes(config, rows, sharding=None):
    """{"images", "tokens"} of so many rows, as jax.ShapeDtypeStruct."""
    sizes = sizes_in(config.model)
    side, length = sizes["image_size"], sizes["context_length"]
    return {
        "images": jax.ShapeDtypeStruct((rows, side, side, 3), jnp.uint8, sharding=sharding),
        "tokens": jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=sharding),
    }
