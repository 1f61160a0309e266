"""The train state and the train step: no data, no files, no TensorFlow."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from cyclip_jax import parallel
from cyclip_jax.losses.rank import smallest_rank
from cyclip_jax.losses.terms import Row
from cyclip_jax.models.clip import (
    CLIP,
    MAX_LOGIT_SCALE,
    normalise_images,
    split_model,
    unit_norm,
)
from cyclip_jax.models.drawing import draw, draws_of, replayed
from cyclip_jax.models.dropout import Dropout
from cyclip_jax.models.initializers import undrawn
from cyclip_jax.models.presets import normaliser
from cyclip_jax.training.averaging import Share, followed, like
from cyclip_jax.training.freezing import (
    Trainable,
    both,
    joined,
    of_statistics,
    parted,
    trainable_by,
    where_trainable,
)
from cyclip_jax.training.gradient_cache import embed_with_pullback
from cyclip_jax.training.objective import Objective, configured_objective
from cyclip_jax.training.rates import rate_factors
from cyclip_jax.training.token_reduction import see_everything

Params = dict[str, Any]  # nested, its leaves arrays, shapes or shardings
Batch = Mapping[str, Shaped[Array, "n ..."]]
View = Callable[[Array, Batch], Batch]
Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]

_SMALL = 2**14  # numbers of an array that is looked through together with others


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes.

    Attributes:
      step: the number of steps done, int32 scalar.
      params: nested dict of float32 arrays.
      batch_stats: nested dict of BatchNorm's running means and variances; empty without BatchNorm.
      opt_state: the optimiser's state.
      rng: typed key, from which with the step everything random in a step derives.
      skipped_steps: how many steps were skipped because something was not finite, int32.
      skipped_in_a_row: how many steps were skipped since the last update, int32.
      most_skipped_in_a_row: the largest value that skipped_in_a_row has had, int32.
      average: of params and batch_stats along the run, as `averaging.part_of` says; None where
        there is none.
    """

    step: Int[Array, ""]
    params: Params
    batch_stats: Params
    opt_state: optax.OptState
    rng: Array
    skipped_steps: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]
    most_skipped_in_a_row: Int[Array, ""]
    average: Params | None = None


Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def initial_state(
    create: Callable[[], CLIP], optimizer: optax.GradientTransformation, *, seed: int
) -> TrainState:
    """The state before the first step.

    Args:
      create: function without arguments that returns the model.
      optimizer: gives the state that belongs to the parameters.
      seed: the seed of the state's random key.

    Returns:
      A TrainState of arrays.
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


def create_state(
    create: Callable[[], CLIP],
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    sharding: TrainState | None = None,
) -> TrainState:
    """Computes `initial_state` under jit, with the same numbers.

    Args:
      create: as `initial_state`.
      optimizer: as `initial_state`.
      seed: as `initial_state`.
      sharding: of the state, as `state_sharding` gives it; None leaves that to JAX.

    Returns:
      A TrainState of arrays.
    """
    # It runs once: optimising its small loops costs a CPU more than it saves.
    unoptimised = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    draws = draws_of(create)
    whole = None if sharding is None else sharding.step
    numbers = draw(draws, sharding=whole, numbers_options=unoptimised)

    def state(numbers):
        with replayed(draws, numbers):
            return initial_state(create, optimizer, seed=seed)

    return jax.jit(state, out_shardings=sharding, compiler_options=unoptimised)(numbers)


def state_sharding(
    state: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh, *, min_size: int
) -> TrainState:
    """The shardings of a state: what belongs to a parameter is split as the parameter is.

    Args:
      state: a TrainState of arrays or shapes.
      optimizer: the transformation that its opt_state belongs to.
      mesh: as `parallel.create_mesh` makes it.
      min_size: parameters of fewer numbers stay whole (see `parallel.parameter_sharding`).

    Returns:
      A TrainState of NamedSharding.
    """
    whole = parallel.replicated(mesh)
    params = parallel.parameter_sharding(state.params, mesh, min_size=min_size)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda leaf, sharding: leaf if isinstance(leaf, optax.MaskedNode) else sharding,
        state.opt_state,
        params,
        transform_non_params=lambda _: whole,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    everything = jax.tree.map(lambda _: whole, state)
    sharding = dataclasses.replace(everything, params=params, opt_state=opt_state)
    if state.average is None:
        return sharding
    full = {"params": params, "batch_stats": everything.batch_stats}
    return dataclasses.replace(sharding, average=like(state.average, full))


def abstract_state(
    create: Callable[[], CLIP],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    min_size: int,
) -> TrainState:
    """The shapes of `initial_state`, with the shardings of `state_sharding`; nothing is computed.

    Args:
      create: as `initial_state`.
      optimizer: as `initial_state`.
      mesh: as `state_sharding`.
      seed: as `initial_state`.
      min_size: as `state_sharding`.

    Returns:
      A TrainState of jax.ShapeDtypeStruct.
    """
    with undrawn():
        state = jax.eval_shape(functools.partial(initial_state, create, optimizer, seed=seed))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_sharding(state, optimizer, mesh, min_size=min_size),
    )


def make_train_step(
    graphdef: nnx.GraphDef[Any],
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    objective: Objective,
    normalise: Callable[[UInt8[Array, "n h w 3"]], Float[Array, "n h w 3"]] = normalise_images,
    view: View = see_everything,
    micro_batches: int = 1,
    mesh: Mesh | None = None,
    param_sharding: Params | None = None,
    gradient_dtype: str = "float32",
    trainable: Trainable | None = None,
    rates: Params | None = None,
    average_share: Share | None = None,
) -> Step:
    """Makes the train step, a pure function (state, batch) -> (state, metrics).

    The batch is global: {"images": uint8 [N, H, W, 3], "tokens": int32 [N, L]}, and whatever else
    the objective asks for. Under jit with rows sharded over a mesh, losses, gradients and
    BatchNorm's statistics are those of the whole batch. This holds with micro-batches too, except
    for BatchNorm: it normalises each micro-batch by itself, and its running statistics follow their
    average once a step. A step in which the loss, a gradient or a new statistic is not finite
    changes nothing but `step` and the counters of skipped steps.

    Args:
      graphdef: of the model in training mode.
      optimizer: gives updates to be multiplied by −learning rate.
      schedule: function from step to learning rate.
      objective: what is minimised, and which rows of the batch are embedded for it.
      normalise: function from uint8 images to what the image tower takes.
      view: function (key, batch) -> what the towers see of the batch (see token_reduction.py).
      micro_batches: parts in which the towers take the batch (see gradient_cache.py).
      mesh: the mesh that rows are sharded over, or None for one device.
      param_sharding: of the parameters, a tree like theirs; None leaves that to JAX.
      gradient_dtype: type in which the gradients of several devices are added up; "bfloat16" is for
        models that compute in it.
      trainable: function from a parameter's path, e.g. ("visual", "conv1", "kernel"), to whether it
        trains. The others get no gradient, no update and no decay. The statistics of a BatchNorm
        none of whose parameters trains stay the same too. None trains all parameters.
      rates: factors of the learning rate, a tree like that of the parameters; None is 1 for all.
      average_share: function from the step to how much of the state's average the new weights and
        statistics become; None where there is no average.
    """

    def embed(batch_stats, params, rows):
        params = parallel.gathered(params, param_sharding, gradient_dtype)
        model = nnx.merge(graphdef, params, batch_stats, copy=True)
        with parallel.rows_over(mesh):
            embeds = embed_rows(model, rows, objective.rows, normalise=normalise)
        return embeds, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def loss_fn(embeds, scalars, rows, step):
        return objective(embeds, rows, objective.exponentiated(scalars), mesh=mesh, step=step)

    def train_step(state, batch):
        key = jax.random.fold_in(state.rng, state.step)
        rows = objective.with_drawn(key, view(key, batch))
        trained, fixed = parted(trainable, state.params)
        embeds, batch_stats, pull = embed_with_pullback(
            lambda trained, rows: embed(state.batch_stats, joined(trained, fixed), rows),
            *(trained, rows, micro_batches),
        )
        scalars = {name: state.params[name] for name in (*objective.scales, *objective.biases)}
        (loss, metrics), (cotangents, scalar_grads) = jax.value_and_grad(
            loss_fn, argnums=(0, 1), has_aux=True
        )(embeds, scalars, rows, state.step)
        grads = joined(pull(cotangents), jax.tree.map(jnp.zeros_like, fixed))
        grads |= joined(parted(trainable, scalar_grads)[0], {n: grads[n] for n in scalars})
        learning_rate = schedule(state.step)
        params, opt_state, told = descended(optimizer, learning_rate, grads, state, rates)
        for name in objective.scales:
            params[name] = jnp.clip(params[name], 0, MAX_LOGIT_SCALE)
        params, batch_stats = held(trainable, params, batch_stats, state)
        finite = all_finite((loss, grads, batch_stats))
        changed = {"params": params, "batch_stats": batch_stats, "opt_state": opt_state}
        if average_share is not None:
            changed["average"] = followed(state.average, changed, average_share(state.step))
        changed = {
            name: jax.tree.map(functools.partial(jnp.where, finite), new, getattr(state, name))
            for name, new in changed.items()
        }
        counters = skipped(finite, state)
        metrics |= {"learning_rate": learning_rate, "grad_norm": optax.global_norm(grads), **told}
        metrics |= {"embedding_rank": smallest_rank(embeds, mesh=mesh), **counters}
        return dataclasses.replace(state, step=state.step + 1, **changed, **counters), metrics

    return train_step


def embed_rows(
    model: CLIP,
    batch: Batch,
    rows: Mapping[str, Row],
    *,
    normalise: Callable[[UInt8[Array, "n h w 3"]], Float[Array, "n h w 3"]] = normalise_images,
) -> dict[str, Float[Array, "n d"]]:
    """Embeds rows of a batch; rows of the same tower and shape go through it in one pass.

    In that pass the rows of an example stand side by side: they stay on its device and in its
    micro-batch, and BatchNorm's statistics are over all of them.

    Args:
      model: with its parameters.
      batch: holds what `rows` names, [N, ...]; and perhaps "kept_patches", int32 [N, K], which all
        pictures of an example keep.
      rows: which rows of the batch are embedded, by name.
      normalise: function from uint8 images to what the image tower takes.

    Returns:
      {name: unit-norm embeddings, float [N, D]}.
    """
    rows = {name: Row(*row) for name, row in rows.items()}
    passes = {}  # {(tower, share that is dropped, shape): names}, in their order
    for name, row in rows.items():
        passes.setdefault((row.tower, row.dropout, batch[row.key].shape), []).append(name)
    embeds = {}
    for (tower, rate, (n, *_)), names in passes.items():
        count = len(names)
        inputs = _side_by_side([batch[rows[name].key] for name in names])
        if tower == "sentences":
            dropout = None
            if rate:
                masks = [batch[masks] for name in names if (masks := rows[name].masks)]
                dropout = Dropout(_side_by_side(masks), rate)
            embedded = unit_norm(model.encode_sentences(inputs, dropout))
        elif tower == "visual":
            kept_patches = batch.get("kept_patches")
            if kept_patches is not None and count > 1:
                kept_patches = jnp.repeat(kept_patches, count, axis=0)  # [N·count, K]
            embedded = unit_norm(model.encode_image(normalise(inputs), kept_patches))
        else:
            embedded = unit_norm(model.encode_text(inputs))
        by_name = [embedded]
        if count > 1:
            by_name = jnp.moveaxis(embedded.reshape(n, count, -1), 1, 0)  # [count, N, D]
        embeds |= dict(zip(names, by_name, strict=True))
    return embeds


def _side_by_side(parts):
    """Several arrays [N, ...] as one [N·count, ...], in which the rows of an example are next."""
    if len(parts) == 1:
        return parts[0]
    return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


def descended(
    optimizer: optax.GradientTransformation,
    learning_rate: Float[Array, ""],
    grads: Params,
    state: TrainState,
    rates: Params | None = None,
) -> tuple[Params, optax.OptState, dict[str, Array]]:
    """Parameters and optimiser state after a step down the gradient.

    Args:
      optimizer: gives updates to be multiplied by −learning rate. It may enter metrics of the step
        into the dict `told`, an extra argument of its `update`.
      learning_rate: the step's learning rate, a scalar.
      grads: the gradients, a tree like that of the parameters.
      state: the state before the step.
      rates: factors of the learning rate, a tree like the parameters'; None is 1 for all.

    Returns:
      (params, opt_state, metrics of the optimiser).
    """
    told: dict[str, Array] = {}
    update = optax.with_extra_args_support(optimizer).update
    updates, opt_state = update(grads, state.opt_state, state.params, told=told)
    own = [learning_rate] * len(jax.tree.leaves(updates))
    if rates is not None:
        own = [learning_rate * factor for factor in jax.tree.leaves(rates)]
    params = jax.tree.map(
        lambda p, u, rate: (p - rate * u).astype(p.dtype),
        *(state.params, updates, jax.tree.unflatten(jax.tree.structure(updates), own)),
    )
    return params, opt_state, told


def held(
    trainable: Trainable | None, params: Params, batch_stats: Params, state: TrainState
) -> tuple[Params, Params]:
    """Parameters and statistics after a step, in which those that do not train are as before."""
    if trainable is None:
        return params, batch_stats
    params = where_trainable(trainable, params, state.params)
    return params, where_trainable(of_statistics(trainable), batch_stats, state.batch_stats)


def skipped(finite: Bool[Array, ""], state: TrainState) -> dict[str, Int[Array, ""]]:
    """The counters of skipped steps after a step, by their names in the state.

    Args:
      finite: whether the step's numbers are finite, so that it is not skipped.
      state: the state before the step.
    """
    in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
    return {
        "skipped_steps": state.skipped_steps + jnp.where(finite, 0, 1),
        "skipped_in_a_row": in_a_row,
        "most_skipped_in_a_row": jnp.maximum(in_a_row, state.most_skipped_in_a_row),
    }


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether every number of a tree of arrays is finite, a scalar."""
    leaves = jax.tree.leaves(tree)
    # Most are small. Together they cost one kernel, which takes as long to compile as that of one.
    small = [leaf.ravel() for leaf in leaves if leaf.size <= _SMALL]
    joined = [jnp.concatenate(small)] if small else []
    large = [leaf for leaf in leaves if leaf.size > _SMALL]
    finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in joined + large])
    bad = 1 - finite.astype(jnp.float32)
    # A product, because XLA repeats a cheaper reduction of these hundreds of scalars in each of the
    # hundreds of loops that select by it: the step's compilation then takes twice as long on a CPU.
    return jnp.dot(bad, bad) == 0


def configured_step(
    config: Any,
    graphdef: nnx.GraphDef[Any],
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    mesh: Mesh,
    state_sharding: TrainState,
    view: View = see_everything,
    objective: Objective | None = None,
    trainable: Trainable | None = None,
    average_share: Share | None = None,
) -> Step:
    """Makes the train step of a config.

    Args:
      config: as defaults.py makes it.
      graphdef: that of the model in training mode.
      optimizer: as `create_optimizer` returns it.
      schedule: as `create_optimizer` returns it.
      mesh: the mesh that rows are sharded over.
      state_sharding: a TrainState of shardings.
      view: what the towers see of a batch (see token_reduction.py).
      objective: what is minimised; None is the config's objective. In a phase in which some of its
        terms do not run it is `configured_objective(config).only(…)`.
      trainable: as in `make_train_step`; what the config freezes does not train in any case.
      average_share: as in `make_train_step`.

    Returns:
      The step, as `make_train_step` returns it.
    """
    return make_train_step(
        graphdef,
        optimizer,
        schedule,
        objective=objective or configured_objective(config),
        normalise=normaliser(config),
        view=view,
        micro_batches=config.micro_batches,
        mesh=mesh,
        param_sharding=state_sharding.params,
        gradient_dtype=config.mesh.gradient_dtype,
        trainable=both(trainable, trainable_by(config.optimizer.freeze)),
        rates=rate_factors(
            state_sharding.params,
            layer_decay=config.optimizer.layer_decay,
            tower_rates=config.optimizer.tower_rates,
        ),
        average_share=average_share,
    )


def jit_step(
    step: Callable[[TrainState, Batch], tuple[TrainState, Any]],
    *,
    mesh: Mesh,
    state_sharding: TrainState,
) -> Any:
    """Puts a train step under jit.

    Args:
      step: as `make_train_step` returns it.
      mesh: the mesh that rows are sharded over.
      state_sharding: a TrainState of shardings.

    Returns:
      The jitted function, which reuses the memory of the state that it is given for the new state.
    """
    out_shardings = (state_sharding, parallel.replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)
