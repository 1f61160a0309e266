"""The train state, the train step and the loop, in the order in which a run goes through them."""

import contextlib
import dataclasses
import functools
import itertools
import time

import jax
import jax.numpy as jnp
import ml_collections
import optax
from clu import parameter_overview
from etils import epath
from flax import nnx

from cyclip_jax import evals, parallel, report
from cyclip_jax.checkpoint import Checkpointer
from cyclip_jax.data.configured import open_batches, open_source, open_tokenizer, run_length
from cyclip_jax.data.pipeline import Position, steps_per_epoch
from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute
from cyclip_jax.inference import Model, set_matmul_precision
from cyclip_jax.losses import cyclip_loss
from cyclip_jax.losses.cyclip import check_loss
from cyclip_jax.models.clip import MAX_LOGIT_SCALE, normalise_images, split_model
from cyclip_jax.optim import create_optimizer
from cyclip_jax.pretrained import inherit_vocabulary, starting_point
from cyclip_jax.runtime import StopOnSignal, Stopwatch
from cyclip_jax.workdir import (
    FIGURES,
    LOG,
    Console,
    MetricWriter,
    check_same_model,
    describe_run,
    metrics_at,
    resolve_paths,
    write_config,
)


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
    """`initial_state`, computed; `sharding` is every array's, None leaves that to JAX."""
    # It runs once: optimising its hundreds of small loops costs a CPU more than it saves.
    unoptimised = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    state = functools.partial(initial_state, create, optimizer, seed=seed)
    return jax.jit(state, out_shardings=sharding, compiler_options=unoptimised)()


def make_train_step(graphdef, optimizer, schedule, *, normalise=normalise_images, **loss):
    """The train step, a pure function (state, batch) -> (state, metrics).

    The batch is global: {"images": uint8 [N, H, W, 3], "tokens": int32 [N, L]}. Under jit with rows
    sharded over a mesh, losses, gradients and BatchNorm's statistics are those of the whole batch.
    A step in which the loss, a gradient or a new statistic is not finite changes nothing but
    `step` and the two counters.

    Args:
      graphdef: of the model in training mode.
      optimizer: gives updates to be multiplied by −learning rate.
      schedule: function from step to learning rate.
      normalise: function from uint8 images to what the image tower takes.
      **loss: keyword arguments of `cyclip_loss`.
    """

    def train_step(state, batch):
        def loss_fn(params):
            model = nnx.merge(graphdef, params, state.batch_stats, copy=True)
            embeds = model(normalise(batch["images"]), batch["tokens"])
            loss_value, metrics = cyclip_loss(*embeds, **loss)
            return loss_value, (metrics, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

        (loss_value, (metrics, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
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
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def train(config, workdir):
    """Runs an experiment, or continues the one in `workdir`.

    Args:
      config: a ConfigDict as configs/common.py makes it.
      workdir: directory of the run, local or remote; {workdir} in the config's paths.

    Returns:
      The last step's metrics, or None where a signal ended the run before.

    Raises:
      UserError: something in the config, the data or the workdir that the user can mend.
    """
    workdir = absolute(workdir)
    written_config, config = config, resolve_paths(config, workdir)
    check_loss(**config.loss)
    check_same_model(config, workdir)
    set_matmul_precision(config)
    mesh = parallel.create_mesh()
    parallel.check_batch_size(config.batch_size, mesh)
    model = Model(config, mesh)
    source = parallel.process_zero_first(lambda: open_source(config))
    evaluators = evals.create_evaluators(config.evals)
    total_steps = run_length(config, len(source))
    optimizer, schedule = create_optimizer(
        **config.optimizer,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch(len(source), config.batch_size),
    )
    parallel.process_zero_first(lambda: inherit_vocabulary(config, workdir))
    tokenizer = parallel.process_zero_first(
        lambda: open_tokenizer(config, workdir, model.sizes, source)
    )
    workdir.mkdir(parents=True, exist_ok=True)

    with contextlib.ExitStack() as stack:
        is_first_process = jax.process_index() == 0
        console = Console(workdir, enabled=is_first_process)
        stack.enter_context(contextlib.closing(console))
        checkpointer = Checkpointer(
            workdir, keep=config.keep_checkpoints, keep_every_steps=config.keep_every_steps
        )
        stack.enter_context(contextlib.closing(checkpointer))
        state, position = _starting_point(config, model, optimizer, checkpointer, mesh, console)
        batches = open_batches(
            config,
            workdir,
            source,
            tokenizer,
            image_size=model.sizes["image_size"],
            position=position,
        )
        stack.enter_context(contextlib.closing(batches))
        if int(state.step) > total_steps:
            raise UserError(
                f"{workdir} is at step {int(state.step)}, past this config's {total_steps} steps; "
                "set config.total_steps or num_epochs higher, or choose another --workdir"
            )
        if is_first_process:
            write_config(written_config, workdir)
        writer = MetricWriter(workdir, first_step=int(state.step), enabled=is_first_process)
        stack.enter_context(contextlib.closing(writer))
        console.say(
            f"{config.model.name} on {len(source)} pairs from {config.data.train}: steps "
            f"{int(state.step)} to {total_steps} of {config.batch_size} pairs on {mesh.size} "
            f"{mesh.devices.flat[0].device_kind} device(s); workdir {workdir}"
        )
        run = Run(
            config,
            workdir,
            mesh,
            model,
            tokenizer,
            evaluators,
            total_steps,
            console,
            checkpointer,
            writer,
        )
        step_fn = make_train_step(
            model.train_graphdef, optimizer, schedule, normalise=model.normalise, **config.loss
        )
        return _loop(run, state, position, step_fn, batches, stack.enter_context(StopOnSignal()))


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last."""

    config: ml_collections.ConfigDict
    workdir: epath.Path
    mesh: jax.sharding.Mesh
    model: Model
    tokenizer: object
    evaluators: dict
    total_steps: int
    console: Console
    checkpointer: Checkpointer
    writer: MetricWriter


def _loop(run, state, position, step_fn, batches, stop):
    """Evaluate if due → save if due or pre-empted → next batch → step → log."""
    config = run.config
    first_step = step = int(state.step)
    if step < run.total_steps:
        step_fn, batches = _compile(run, step_fn, state, batches)
    run.console.start(step, run.total_steps)
    stopwatch = Stopwatch(step)
    while True:
        is_new, is_last = step > first_step, step == run.total_steps
        if is_new and (is_last or _is_due(step, config.eval_every_steps)):
            with stopwatch.paused(state):
                _evaluate(run, step, state)
        preempted = stop.requested or run.checkpointer.reached_preemption(step)
        if is_new and (is_last or preempted or _is_due(step, config.checkpoint_every_steps)):
            with stopwatch.paused(state):
                _save(run, step, state, position)
        if is_last or preempted:
            break
        batch, position = next(batches)
        state, metrics = step_fn(state, parallel.to_global(batch, run.mesh))
        step += 1
        run.console.step()
        if _is_due(step, config.log_every_steps) or step == run.total_steps:
            _log(run, step, position, jax.device_get(metrics), stopwatch.seconds_per_step(step))
    run.checkpointer.wait()
    if not is_last:
        run.console.say(f"asked to stop at step {step}; the same command continues from there")
        return None
    metrics = metrics_at(run.workdir, step)
    run.console.say(report.final_table(metrics))
    run.console.say(f"{step} steps done; everything is in {run.workdir}")
    return metrics


def _is_due(step, every):
    return every > 0 and step % every == 0


def _compile(run, step_fn, state, batches):
    """Compiles ahead of the first step, so that its time is not mistaken for a step's.

    The first batch is read before: what is wrong with the data shows before anything is compiled.

    Returns:
      (the compiled step, the batches with the first one back in front).
    """
    first = next(batches)
    whole = parallel.replicated(run.mesh)
    start = time.perf_counter()
    compiled = (
        jax.jit(step_fn, donate_argnums=0, out_shardings=(whole, whole))
        .lower(state, parallel.to_global(first[0], run.mesh))
        .compile()
    )
    seconds = time.perf_counter() - start
    run.console.say(f"train step compiled in {seconds:.1f} s")
    run.writer.write(int(state.step), {"compile_seconds": seconds})
    return compiled, itertools.chain([first], batches)


def _evaluate(run, step, state):
    encoders = run.model.encoders(state.params, state.batch_stats, run.tokenizer)
    results = evals.evaluate(run.evaluators, encoders, figures=run.workdir / FIGURES)
    run.writer.write(step, results)
    for name in dict.fromkeys(key.split("/")[0] for key in results):
        headlines = ("loss", "image_to_text_recall@1", "text_to_image_recall@1", "top1")
        shown = [key for key in headlines if f"{name}/{key}" in results]
        numbers = "  ".join(f"{key} {results[f'{name}/{key}']:.4f}" for key in shown)
        run.console.say(f"step {step}  {name}: {numbers}")


def _log(run, step, position, metrics, seconds_per_step):
    # The most, not the latest: the metrics of most steps are never fetched.
    skipped = int(metrics.pop("most_skipped_in_a_row"))
    metrics["images_per_second"] = run.config.batch_size / seconds_per_step
    metrics["epoch"] = position.epoch
    run.writer.write(step, metrics)
    seconds_left = (run.total_steps - step) * seconds_per_step
    run.console.report(step, run.total_steps, metrics, seconds_left)
    if skipped >= run.config.max_skipped_in_a_row:
        raise UserError(
            f"the loss or its gradient was not finite in {skipped} steps in a row, up to step "
            f"{step}; the parameters are those from before. Lower config.optimizer.learning_rate, "
            "set config.optimizer.gradient_clip_norm, or look at the data"
        )


def _save(run, step, state, position):
    """Saves the state and the position of the last batch trained on."""
    model, training = _checkpoint_items(state)
    meta = {"position": dataclasses.asdict(position), **describe_run(run.config)}
    run.checkpointer.save(step, model=model, training=training, meta=meta)


def _checkpoint_items(state):
    """A state as the two trees of a checkpoint: the model, and what else training needs."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    model = {name: fields.pop(name) for name in ("params", "batch_stats")}
    return model, fields


def _starting_point(config, model, optimizer, checkpointer, mesh, console):
    """(state, position): the newest good checkpoint, else config.init_from, else from scratch."""
    whole, seed = parallel.replicated(mesh), config.seed
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
        jax.eval_shape(functools.partial(initial_state, model.create, optimizer, seed=seed)),
    )
    abstract_model, abstract_training = _checkpoint_items(abstract)
    restored = checkpointer.restore_newest(model=abstract_model, training=abstract_training)
    if restored is not None:
        step, trained, training, meta = restored
        console.say(f"continuing from step {step}")
        # What ended the run before is mended, or the next steps will show that it is not.
        training["most_skipped_in_a_row"] = jnp.zeros_like(training["most_skipped_in_a_row"])
        return TrainState(**trained, **training), Position(**meta["position"])
    # Before anything is computed: what does not fit is said at once.
    given = {} if config.init_from is None else starting_point(config, abstract_model, console)
    state = create_state(model.create, optimizer, seed=seed, sharding=whole)
    overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    console.log(overview)
    console.say(_parameter_summary(state.params))
    return dataclasses.replace(state, **given), Position(epoch=0, examples=0, seed=seed)


def _parameter_summary(params):
    count = parameter_overview.count_parameters
    towers = ", ".join(f"{count(params[tower]):,.0f} in {tower}" for tower in ("visual", "text"))
    return f"{count(params):,.0f} parameters, {towers} (each in {LOG})"
