"""The train state and the train step: no data, no files, no TensorFlow."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cyclip_jax import parallel
from cyclip_jax.losses import cyclip_loss
from cyclip_jax.models.clip import MAX_LOGIT_SCALE, normalise_images, split_model
from cyclip_jax.models.presets import normaliser
from cyclip_jax.training.gradient_cache import embed_with_pullback
from cyclip_jax.training.token_reduction import see_everything


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes.

    Attributes:
      step: steps done, int32 scalar.
      params: nested dict of float32 arrays.
      batch_stats: nested dict of BatchNorm's running means and variances; empty without BatchNorm.
      opt_state: of the optimiser.
      rng: typed key; what is random in a step derives from it and the step.
      skipped_steps: steps whose update was left out because something was not finite, int32.
      skipped_in_a_row: the same since the last update, int32.
      most_skipped_in_a_row: the largest that this ever was, int32.
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    rng: jax.Array
    skipped_steps: jax.Array
    skipped_in_a_row: jax.Array
    most_skipped_in_a_row: jax.Array


def initial_state(create, optimizer, *, seed):
    """The state before the first step.

    Args:
      create: function without arguments that returns the model.
      optimizer: an optax.GradientTransformation.
      seed: of the state's random key.
    """
    _, params, batch_stats = split_model(create())
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        rng=jax.random.key(seed),
        skipped_steps=zero,
        skipped_in_a_row=zero,
        most_skipped_in_a_row=zero,
    )


def create_state(create, optimizer, *, seed, sharding=None):
    """`initial_state`, computed; `sharding` as `state_sharding`'s, None leaves that to JAX."""
    # It runs once: optimising its hundreds of small loops costs a CPU more than it saves.
    unoptimised = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    state = functools.partial(initial_state, create, optimizer, seed=seed)
    return jax.jit(state, out_shardings=sharding, compiler_options=unoptimised)()


def state_sharding(state, optimizer, mesh, *, min_size):
    """The shardings of a state: what belongs to a parameter is split as the parameter is.

    Args:
      state: a TrainState of arrays or shapes.
      optimizer: the one that its opt_state is of.
      mesh, min_size: as `parallel.parameter_sharding`.

    Returns:
      A TrainState of NamedSharding.
    """
    whole = parallel.replicated(mesh)
    params = parallel.parameter_sharding(state.params, mesh, min_size=min_size)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state.opt_state,
        params,
        transform_non_params=lambda _: whole,
    )
    everything = jax.tree.map(lambda _: whole, state)
    return dataclasses.replace(everything, params=params, opt_state=opt_state)


def abstract_state(create, optimizer, mesh, *, seed, min_size):
    """The shapes of `initial_state`, with the shardings of `state_sharding`; nothing is computed.

    Args: as theirs.

    Returns:
      A TrainState of jax.ShapeDtypeStruct.
    """
    state = jax.eval_shape(functools.partial(initial_state, create, optimizer, seed=seed))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_sharding(state, optimizer, mesh, min_size=min_size),
    )


def make_train_step(
    graphdef,
    optimizer,
    schedule,
    *,
    normalise=normalise_images,
    view=see_everything,
    micro_batches=1,
    mesh=None,
    param_sharding=None,
    **loss,
):
    """The train step, a pure function (state, batch) -> (state, metrics).

    The batch is global: {"images": uint8 [N, H, W, 3], "tokens": int32 [N, L]}. Under jit with rows
    sharded over a mesh, losses, gradients and BatchNorm's statistics are those of the whole batch.
    So they are with micro-batches, but for BatchNorm: it normalises each micro-batch by itself, and
    its running statistics follow their average, once a step. A step in which the loss, a gradient
    or a new statistic is not finite changes nothing but `step` and the two counters.

    Args:
      graphdef: of the model in training mode.
      optimizer: gives updates to be multiplied by −learning rate.
      schedule: function from step to learning rate.
      normalise: function from uint8 images to what the image tower takes.
      view: function (key, batch) -> what the towers see of the batch (see views.py).
      micro_batches: parts in which the towers take the batch (see gradient_cache.py).
      mesh: the mesh that rows are sharded over, or None for one device.
      param_sharding: of the parameters, a tree like theirs; None leaves that to JAX.
      **loss: keyword arguments of `cyclip_loss`.
    """

    def train_step(state, batch):
        def embed(params, rows):
            if param_sharding is not None:
                params = parallel.gathered(params, param_sharding)
            model = nnx.merge(graphdef, params, state.batch_stats, copy=True)
            images = normalise(rows["images"])
            image_embeds, text_embeds, _ = model(images, rows["tokens"], rows.get("kept_patches"))
            statistics = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
            return (image_embeds, text_embeds), statistics

        def loss_fn(embeds, log_scale):
            return cyclip_loss(*embeds, jnp.exp(log_scale), mesh=mesh, **loss)

        rows = view(jax.random.fold_in(state.rng, state.step), batch)
        embeds, batch_stats, pull = embed_with_pullback(
            embed, state.params, rows, micro_batches=micro_batches
        )
        (loss_value, metrics), (cotangents, scale_grad) = jax.value_and_grad(
            loss_fn, argnums=(0, 1), has_aux=True
        )(embeds, state.params["logit_scale"])
        grads = pull(cotangents) | {"logit_scale": scale_grad}
        learning_rate = schedule(state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(
            lambda p, u: (p - learning_rate * u).astype(p.dtype), state.params, updates
        )
        params["logit_scale"] = jnp.clip(params["logit_scale"], 0, MAX_LOGIT_SCALE)

        finite = all_finite((loss_value, grads, batch_stats))
        kept = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, batch_stats, opt_state),
            (state.params, state.batch_stats, state.opt_state),
        )
        in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
        counters = {
            "skipped_steps": state.skipped_steps + jnp.where(finite, 0, 1),
            "skipped_in_a_row": in_a_row,
            "most_skipped_in_a_row": jnp.maximum(in_a_row, state.most_skipped_in_a_row),
        }
        metrics |= {
            "learning_rate": learning_rate,
            "grad_norm": optax.global_norm(grads),
            **counters,
        }
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=kept[0],
            batch_stats=kept[1],
            opt_state=kept[2],
            **counters,
        )
        return new_state, metrics

    return train_step


def all_finite(tree):
    """Whether every number of a tree is finite, a boolean scalar."""
    finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])
    bad = 1 - finite.astype(jnp.float32)
    # A product, because XLA repeats a cheaper reduction of these hundreds of scalars in each of the
    # hundreds of loops that select by it: the step's compilation then takes twice as long on a CPU.
    return jnp.dot(bad, bad) == 0


def configured_step(
    config, graphdef, optimizer, schedule, *, mesh, state_sharding, view=see_everything
):
    """The train step, a pure function (state, batch) -> (state, metrics).

    Args:
      config: as defaults.py makes it.
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
