"""The train state, the train step and the loop, in the order in which a run goes through them."""

import dataclasses
import itertools
import signal
import time

import jax
import jax.numpy as jnp
import optax
from clu import parameter_overview
from etils import epath
from flax import nnx

from cyclip_jax import evals, parallel, report
from cyclip_jax.checkpoint import Checkpointer, restore_model
from cyclip_jax.data import tokenizers
from cyclip_jax.data.pipeline import BadExamples, Position, steps_per_epoch, train_batches
from cyclip_jax.data.sources import create_source
from cyclip_jax.errors import UserError
from cyclip_jax.losses import cyclip_loss
from cyclip_jax.losses.cyclip import check_normalization
from cyclip_jax.models import create_model
from cyclip_jax.models.clip import MAX_LOGIT_SCALE, normalise_images, unit_norm
from cyclip_jax.models.presets import resolve_sizes
from cyclip_jax.optim import create_optimizer, learning_rate_schedule
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
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    rng: jax.Array
    skipped_steps: jax.Array
    skipped_in_a_row: jax.Array


def split_model(model):
    """Splits a module into (graphdef, params, batch_stats), the latter two nested dicts."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def create_state(create, optimizer, *, seed, sharding=None):
    """The state before the first step.

    Args:
      create: function without arguments that returns the model.
      optimizer: an optax.GradientTransformation.
      seed: of the state's random key.
      sharding: of every array; None leaves that to JAX.
    """

    def initial_state():
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
        )

    # It runs once: optimising its hundreds of small loops costs a CPU more than it saves.
    unoptimised = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(initial_state, out_shardings=sharding, compiler_options=unoptimised)()


def make_train_step(graphdef, optimizer, schedule, *, dtype="float32", **loss):
    """The train step, a pure function (state, batch) -> (state, metrics).

    The batch is global: {"images": uint8 [N, H, W, 3], "tokens": int32 [N, L]}. Under jit with rows
    sharded over a mesh, losses, gradients and BatchNorm's statistics are those of the whole batch.
    A step in which the loss, a gradient or a new statistic is not finite changes nothing but
    `step` and the two counters.

    Args:
      graphdef: of the model in training mode.
      optimizer: gives updates to be multiplied by −learning rate.
      schedule: function from step to learning rate.
      dtype: of the normalised images.
      **loss: keyword arguments of `cyclip_loss`.
    """

    def train_step(state, batch):
        def loss_fn(params):
            model = nnx.merge(graphdef, params, state.batch_stats, copy=True)
            images = normalise_images(batch["images"], jnp.dtype(dtype))
            loss_value, metrics = cyclip_loss(*model(images, batch["tokens"]), **loss)
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
        skipped = jnp.where(finite, 0, 1)
        metrics |= {
            "learning_rate": learning_rate,
            "grad_norm": optax.global_norm(grads),
            "skipped_steps": state.skipped_steps + skipped,
            "skipped_in_a_row": jnp.where(finite, 0, state.skipped_in_a_row + 1),
        }
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=kept[0],
            batch_stats=kept[1],
            opt_state=kept[2],
            skipped_steps=metrics["skipped_steps"].astype(jnp.int32),
            skipped_in_a_row=metrics["skipped_in_a_row"].astype(jnp.int32),
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
    config = resolve_paths(config, workdir)
    workdir = epath.Path(workdir)
    jax.config.update("jax_default_matmul_precision", _matmul_precision(config))
    evals.check_settings(config.evals)
    check_normalization(config.loss.cyclic_normalization)
    check_same_model(config, workdir)
    mesh = parallel.create_mesh()
    parallel.check_batch_size(config.batch_size, mesh)
    source = parallel.process_zero_first(lambda: open_source(config))
    total_steps = run_length(config, len(source))
    schedule = learning_rate_schedule(
        config.optimizer.learning_rate,
        warmup_steps=config.optimizer.warmup_steps,
        total_steps=total_steps,
    )
    workdir.mkdir(parents=True, exist_ok=True)
    tokenizer = parallel.process_zero_first(lambda: open_tokenizer(config, workdir, source))

    is_first_process = jax.process_index() == 0
    console = Console(workdir, enabled=is_first_process)
    optimizer = create_optimizer(
        **{
            key: value
            for key, value in config.optimizer.items()
            if key not in ("learning_rate", "warmup_steps")
        }
    )
    model = Model(config, mesh)
    state = create_state(
        model.create, optimizer, seed=config.seed, sharding=parallel.replicated(mesh)
    )
    checkpointer = Checkpointer(
        workdir, keep=config.keep_checkpoints, keep_every_steps=config.keep_every_steps
    )
    state, position = _starting_point(config, checkpointer, state, console)
    first_step = int(state.step)
    if is_first_process:
        write_config(config, workdir)
    if first_step == 0:
        console.say(_parameter_summary(state.params))
        console.log(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    console.say(
        f"{config.model.name} on {len(source)} pairs from {config.data.train}: "
        f"steps {first_step} to {total_steps} of {config.batch_size} pairs on {mesh.size} "
        f"{mesh.devices.flat[0].device_kind} device(s); workdir {workdir}"
    )
    writer = MetricWriter(workdir, first_step=first_step, enabled=is_first_process)
    batches = train_batches(
        source,
        tokenizer,
        batch_size=config.batch_size,
        image_size=model.sizes["image_size"],
        seed=config.seed,
        position=position,
        shuffle=config.data.shuffle,
        augmentation=config.data.augmentation,
        crop_scale=config.data.crop_scale,
        bad_examples=bad_examples(config, workdir, len(source)),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    try:
        with StopOnSignal() as stop:
            return _loop(
                config,
                workdir,
                state=state,
                position=position,
                total_steps=total_steps,
                step_fn=make_train_step(
                    model.train_graphdef,
                    optimizer,
                    schedule,
                    dtype=config.model.dtype,
                    **config.loss,
                ),
                batches=batches,
                mesh=mesh,
                make_encoders=lambda state: model.encoders(
                    state.params, state.batch_stats, tokenizer
                ),
                checkpointer=checkpointer,
                writer=writer,
                console=console,
                stop=stop,
            )
    finally:
        batches.close()
        console.close()
        writer.close()
        checkpointer.close()


def _loop(
    config,
    workdir,
    *,
    state,
    position,
    total_steps,
    step_fn,
    batches,
    mesh,
    make_encoders,
    checkpointer,
    writer,
    console,
    stop,
):
    """Evaluate if due → save if due or pre-empted → next batch → step → log."""
    first_step = step = int(state.step)
    if step < total_steps:
        step_fn, batches, compile_seconds = _compile(step_fn, state, batches, mesh)
        console.say(f"train step compiled in {compile_seconds:.1f} s")
        writer.write(step, {"compile_seconds": compile_seconds})
    console.start(step, total_steps)
    window = Window(step)
    while True:
        is_new, is_last = step > first_step, step == total_steps
        if is_new and (is_last or _is_due(step, config.eval_every_steps)):
            with window.paused():
                results = evals.evaluate(
                    config.evals, make_encoders(state), figures=workdir / FIGURES
                )
                writer.write(step, results)
                _say_results(console, step, results)
        preempted = stop.requested or checkpointer.reached_preemption(step)
        if is_new and (is_last or preempted or _is_due(step, config.checkpoint_every_steps)):
            with window.paused():
                save(checkpointer, step, state, position, config)
        if is_last:
            checkpointer.wait()
            metrics = metrics_at(workdir, step)
            console.say(report.final_table(metrics))
            console.say(f"{total_steps} steps done; everything is in {workdir}")
            return metrics
        if preempted:
            console.say(f"asked to stop: saved step {step}; the same command continues from there")
            return None
        batch, position = next(batches)
        state, metrics = step_fn(state, parallel.to_global(batch, mesh))
        step += 1
        console.step()
        if _is_due(step, config.log_every_steps) or step == total_steps:
            metrics = jax.device_get(metrics)
            seconds_per_step = window.seconds_per_step(step)
            metrics["images_per_second"] = config.batch_size / seconds_per_step
            metrics["epoch"] = position.epoch
            writer.write(step, metrics)
            console.report(step, total_steps, metrics, (total_steps - step) * seconds_per_step)
            _check_skipped(metrics, step, config.max_skipped_in_a_row)


def _parameter_summary(params):
    count = parameter_overview.count_parameters
    towers = ", ".join(f"{count(params[tower]):,} in {tower}" for tower in ("visual", "text"))
    return f"{count(params):,} parameters, {towers} (each in {LOG})"


def _is_due(step, every):
    return every > 0 and step % every == 0


def _compile(step_fn, state, batches, mesh):
    """Compiles ahead of the first step, so that its time is not mistaken for a step's.

    The first batch is read before: what is wrong with the data shows before anything is compiled.
    """
    first = next(batches)
    shardings = parallel.replicated(mesh)
    start = time.perf_counter()
    compiled = (
        jax.jit(step_fn, donate_argnums=0, out_shardings=(shardings, shardings))
        .lower(state, parallel.to_global(first[0], mesh))
        .compile()
    )
    return compiled, itertools.chain([first], batches), time.perf_counter() - start


def save(checkpointer, step, state, position, config):
    """Saves the state and the position of the last batch trained on."""
    model, training = _checkpoint_items(state)
    meta = {"position": dataclasses.asdict(position), **describe_run(config)}
    checkpointer.save(step, model=model, training=training, meta=meta)


def _checkpoint_items(state):
    model = {"params": state.params, "batch_stats": state.batch_stats}
    fields = dataclasses.fields(TrainState)
    training = {field.name: getattr(state, field.name) for field in fields}
    return model, {name: value for name, value in training.items() if name not in model}


def _starting_point(config, checkpointer, state, console):
    """(state, position): the newest good checkpoint, else config.init_from, else from scratch."""
    abstract = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), state
    )
    model, training = _checkpoint_items(abstract)
    restored = checkpointer.restore_newest(model=model, training=training)
    if restored is not None:
        step, model, training, meta = restored
        console.say(f"continuing from step {step}")
        return TrainState(**model, **training), Position(**meta["position"])
    position = Position(epoch=0, examples=0, seed=config.seed)
    if config.init_from is None:
        return state, position
    step, model = restore_model(config.init_from, model)
    console.say(f"starting from the parameters of step {step} of {config.init_from}")
    return dataclasses.replace(state, **model), position


def _say_results(console, step, results):
    for name in dict.fromkeys(key.split("/")[0] for key in results):
        headlines = ("loss", "image_to_text_recall@1", "text_to_image_recall@1", "top1")
        shown = [key for key in headlines if f"{name}/{key}" in results]
        numbers = "  ".join(f"{key} {results[f'{name}/{key}']:.4f}" for key in shown)
        console.say(f"step {step}  {name}: {numbers}")


def _check_skipped(metrics, step, limit):
    if metrics["skipped_in_a_row"] >= limit:
        raise UserError(
            f"the loss or its gradient was not finite in {int(metrics['skipped_in_a_row'])} steps "
            f"in a row, up to step {step}; the parameters are those from before. Lower "
            "config.optimizer.learning_rate, set config.optimizer.gradient_clip_norm, or look at "
            "the data"
        )


class Window:
    """Measures seconds per step since the last question, without what is paused."""

    def __init__(self, step):
        self._step, self._start, self._paused = step, time.perf_counter(), 0.0

    def paused(self):
        """A context whose time does not count."""
        return _Pause(self)

    def seconds_per_step(self, step):
        """Average since the last call, or since the start."""
        now = time.perf_counter()
        seconds = (now - self._start - self._paused) / max(step - self._step, 1)
        self._step, self._start, self._paused = step, now, 0.0
        return seconds


class _Pause:
    def __init__(self, window):
        self._window = window

    def __enter__(self):
        self._start = time.perf_counter()

    def __exit__(self, *_):
        self._window._paused += time.perf_counter() - self._start


class StopOnSignal:
    """Turns the first SIGTERM or Ctrl-C into a request to save and stop; a second one kills.

    With several processes JAX's own preemption service listens instead, so that all stop at the
    same step (see Checkpointer.reached_preemption).
    """

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self):
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number, _):
        self.requested = True
        signal.signal(number, signal.SIG_DFL)


class Model:
    """The configured model on a mesh: how to create it, and its encoders for evaluation."""

    def __init__(self, config, mesh):
        kwargs = dict(config.model)
        self._loss = dict(config.loss)
        self._seed, self._mesh, self._batch_size = config.seed, mesh, config.batch_size
        self._kwargs = kwargs
        self.sizes = resolve_sizes(
            **{
                key: value
                for key, value in kwargs.items()
                if key not in ("quick_gelu", "dtype", "batch_norm_group_size")
            }
        )
        abstract = nnx.eval_shape(self.create)
        abstract.train()
        self.train_graphdef = nnx.split(abstract)[0]
        abstract.eval()
        graphdef = nnx.split(abstract)[0]
        whole = parallel.replicated(mesh)
        dtype = jnp.dtype(config.model.dtype)

        def encode_image(params, batch_stats, images):
            model = nnx.merge(graphdef, params, batch_stats)
            return unit_norm(model.encode_image(normalise_images(images, dtype)))

        def encode_text(params, batch_stats, tokens):
            return unit_norm(nnx.merge(graphdef, params, batch_stats).encode_text(tokens))

        self._encode_image = jax.jit(encode_image, out_shardings=whole)
        self._encode_text = jax.jit(encode_text, out_shardings=whole)
        self._gather = jax.jit(lambda rows: rows, out_shardings=whole)
        self._metrics = jax.jit(lambda *embeds: cyclip_loss(*embeds, **self._loss)[1])

    def create(self):
        """A new model with the seed's initial parameters."""
        return create_model(**self._kwargs, rngs=nnx.Rngs(self._seed))

    def abstract(self):
        """Shapes and shardings of {"params", "batch_stats"}, to restore a checkpoint into."""
        params, batch_stats = jax.eval_shape(lambda: split_model(self.create())[1:])
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=parallel.replicated(self._mesh)
            ),
            {"params": params, "batch_stats": batch_stats},
        )

    def encoders(self, params, batch_stats, tokenize):
        """The model with these parameters as an evaluator sees it."""

        def of_rows(function, *leading):
            def encode(rows):
                return jax.device_get(function(*leading, parallel.to_global(rows, self._mesh)))

            return encode

        scale = jnp.exp(params["logit_scale"])
        return evals.Encoders(
            encode_image=of_rows(self._encode_image, params, batch_stats),
            encode_text=of_rows(self._encode_text, params, batch_stats),
            gather=of_rows(self._gather),
            loss=lambda images, texts: jax.device_get(self._metrics(images, texts, scale)),
            tokenize=tokenize,
            image_size=self.sizes["image_size"],
            batch_size=self._batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


def open_source(config):
    """Opens the training data, or says in one sentence what is wrong with it."""
    source = create_source(
        config.data.source,
        config.data.train,
        config_key="config.data.train",
        image_key=config.data.image_key,
        caption_key=config.data.caption_key,
        delimiter=config.data.delimiter,
    )
    steps_per_epoch(len(source), config.batch_size)
    return source


def run_length(config, examples):
    """Total steps of a run, from total_steps or num_epochs.

    Raises:
      UserError: both are set, or neither.
    """
    if (config.total_steps is None) == (config.num_epochs is None):
        raise UserError("set exactly one of config.total_steps and config.num_epochs")
    if config.total_steps is not None:
        return config.total_steps
    return config.num_epochs * steps_per_epoch(examples, config.batch_size)


def open_tokenizer(config, workdir, source=None):
    """The run's tokenizer; a SentencePiece model that is not named is trained on the captions.

    Args:
      config: the run's.
      workdir: where a model trained here is kept, as tokenizer.model.
      source: the training data, or None where only a trained model will do.

    Raises:
      UserError: no vocabulary, or one of another size than the model's.
    """
    sizes = resolve_sizes(
        config.model.name,
        vocab_size=config.model.vocab_size,
        context_length=config.model.context_length,
    )
    sizes = {key: sizes[key] for key in ("vocab_size", "context_length")}
    vocabulary = config.data.vocabulary
    if config.data.tokenizer == "sentencepiece" and vocabulary is None:
        vocabulary = epath.Path(workdir) / "tokenizer.model"
        if not vocabulary.exists() and source is not None:
            tokenizers.train_sentencepiece(
                source.captions(), vocab_size=sizes["vocab_size"], output=str(vocabulary)
            )
    vocabulary = None if vocabulary is None else str(vocabulary)
    return tokenizers.create_tokenizer(config.data.tokenizer, vocabulary=vocabulary, **sizes)


def bad_examples(config, workdir, dataset_size):
    """The run's account of unreadable examples, one file a process."""
    suffix = "" if jax.process_count() == 1 else f"_{jax.process_index()}"
    path = epath.Path(workdir) / f"bad_examples{suffix}.jsonl"
    return BadExamples(str(path), config.data.max_bad_share, dataset_size)


def _matmul_precision(config):
    return None if config.matmul_precision == "default" else config.matmul_precision
