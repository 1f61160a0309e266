"""A run from its config to its last step; the step itself is in train_step.py."""

import contextlib
import dataclasses
import functools
import time
import traceback

import jax
import jax.numpy as jnp
import ml_collections
from clu import parameter_overview
from etils import epath

from cyclip_jax import evals, parallel, report
from cyclip_jax.checkpoint import Checkpointer
from cyclip_jax.configured import configured_step, jit_step, set_matmul_precision
from cyclip_jax.costs.flops import model_flops, peak_flops, utilisation
from cyclip_jax.data.configured import (
    check_continued,
    open_bad_examples,
    open_batches,
    open_source,
    open_tokenizer,
    run_length,
)
from cyclip_jax.data.order import Position, drawn_from_parts
from cyclip_jax.data.pipeline import BadExamples, steps_per_epoch
from cyclip_jax.data.sources import Mixture
from cyclip_jax.errors import UserError
from cyclip_jax.files import FULL, absolute, remove_unfinished
from cyclip_jax.inference import Model
from cyclip_jax.losses.cyclip import check_loss
from cyclip_jax.optim import create_optimizer
from cyclip_jax.pretrained import inherit_vocabulary, starting_point
from cyclip_jax.report.runs import flat
from cyclip_jax.runtime import distributed
from cyclip_jax.runtime.clock import Clock
from cyclip_jax.runtime.lock import lock_workdir
from cyclip_jax.runtime.loop import Feed, StopOnSignal, keep_compiled
from cyclip_jax.runtime.memory import give_back_memory
from cyclip_jax.runtime.profiling import Profiler, check_profile_steps
from cyclip_jax.runtime.watch import Watch, read_heartbeat
from cyclip_jax.runtime.weights_and_biases import WandbMirror, check_wandb
from cyclip_jax.train_step import TrainState, abstract_state, create_state
from cyclip_jax.views import views_of_run
from cyclip_jax.workdir import (
    EVALS,
    LOG,
    METRICS,
    Console,
    MetricWriter,
    check_same_model,
    describe_run,
    metrics_at,
    resolve_paths,
    write_config,
)


def train(config, workdir, *, began=None):
    """Runs an experiment, or continues the one in `workdir`.

    Args:
      config: a ConfigDict as configs/common.py makes it.
      workdir: directory of the run, local or remote; {workdir} in the config's paths.
      began: when the process began, by time.monotonic; by default now.

    Returns:
      The last step's metrics, or None where a signal ended the run before.

    Raises:
      UserError: something in the config, the data or the workdir that the user can mend.
    """
    began = time.monotonic() if began is None else began
    workdir = absolute(workdir)
    settings = flat(config.to_dict(), "config.") | {"--workdir": str(workdir)}
    parallel.check_same_everywhere(settings)
    with contextlib.ExitStack() as stack:
        lock = functools.partial(lock_workdir, workdir, enabled=jax.process_index() == 0)
        parallel.process_zero_first(lambda: stack.enter_context(lock()))
        try:
            return _train(config, workdir, began)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise UserError(
                f"{error}; free space for {workdir}, and the same command begins or continues the "
                "run"
            ) from error


def _train(config, workdir, began):
    written_config, config = config, resolve_paths(config, workdir)
    check_loss(**config.loss)
    check_profile_steps(config.profile_steps)
    check_wandb(**config.wandb)
    check_same_model(config, workdir)
    set_matmul_precision(config)
    keep_compiled(config.compilation_cache)
    mesh = parallel.create_mesh(fsdp=config.mesh.fsdp)
    parallel.check_batch_size(config.batch_size, mesh, micro_batches=config.micro_batches)
    model = Model(config, mesh)
    source = parallel.process_zero_first(lambda: open_source(config))
    evaluators = evals.create_evaluators(config.evals)
    total_steps = run_length(config, len(source))
    views = views_of_run(model.sizes, total_steps, **config.tokens)
    optimizer, schedule = create_optimizer(
        **config.optimizer,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch(len(source), config.batch_size),
    )
    parallel.process_zero_first(lambda: inherit_vocabulary(config, workdir))
    tokenizer = parallel.process_zero_first(
        lambda: open_tokenizer(config, workdir, model.sizes, source)
    )

    with contextlib.ExitStack() as stack:
        is_first_process = jax.process_index() == 0
        if is_first_process:
            remove_unfinished(workdir)
        console = Console(workdir, enabled=is_first_process)
        stack.enter_context(contextlib.closing(console))
        clock = Clock(began, earlier=read_heartbeat(workdir) if is_first_process else None)
        watch = Watch(
            clock,
            workdir,
            stall_factor=config.stall_factor,
            console=console if is_first_process else None,
        )
        stack.enter_context(contextlib.closing(watch))
        profiler = stack.enter_context(
            Profiler(workdir, config.profile_steps, clock=clock, say=console.say)
        )
        checkpointer = Checkpointer(
            workdir, keep=config.keep_checkpoints, keep_every_steps=config.keep_every_steps
        )
        stack.enter_context(contextlib.closing(checkpointer))
        state, position, owes_evaluation = _starting_point(
            config, model, optimizer, checkpointer, mesh, source, console
        )
        bad_examples = open_bad_examples(config, workdir, source, position=position)
        stack.enter_context(contextlib.closing(bad_examples))
        batches = open_batches(
            config,
            source,
            tokenizer,
            bad_examples,
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
        mirror = WandbMirror(written_config, workdir, say=console.say, enabled=is_first_process)
        stack.enter_context(contextlib.closing(mirror))
        writer = MetricWriter(
            workdir, first_step=int(state.step), enabled=is_first_process, mirror=mirror
        )
        stack.enter_context(contextlib.closing(writer))
        console.say(
            f"{config.model.name} on {len(source)} pairs from {_data_name(config)}: steps "
            f"{int(state.step)} to {total_steps} of {config.batch_size} pairs on {mesh.size} "
            f"{mesh.devices.flat[0].device_kind} device(s); workdir {workdir}"
        )
        run = Run(
            config,
            workdir,
            mesh,
            model,
            tokenizer,
            source,
            bad_examples,
            evaluators,
            total_steps,
            console,
            checkpointer,
            writer,
            clock,
            profiler,
        )
        make_step = functools.partial(
            configured_step,
            config,
            model.train_graphdef,
            optimizer,
            schedule,
            mesh=mesh,
            state_sharding=jax.tree.map(lambda array: array.sharding, state),
        )
        phases = [(first_step, view, make_step(view=view)) for first_step, view in views]
        feed = Feed(batches, functools.partial(parallel.to_global, mesh=mesh), clock)
        stack.enter_context(contextlib.closing(feed))
        stack.enter_context(distributed.failing_together())
        stop = stack.enter_context(StopOnSignal())
        return _loop(run, state, position, phases, feed, stop, owes_evaluation=owes_evaluation)


def _data_name(config):
    is_mixture = config.data.source == "mixture"
    return " and ".join(config.data.mixture) if is_mixture else config.data.train


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last."""

    config: ml_collections.ConfigDict
    workdir: epath.Path
    mesh: jax.sharding.Mesh
    model: Model
    tokenizer: object
    source: object
    bad_examples: BadExamples
    evaluators: dict
    total_steps: int
    console: Console
    checkpointer: Checkpointer
    writer: MetricWriter
    clock: Clock
    profiler: Profiler


def _loop(run, state, position, phases, feed, stop, *, owes_evaluation):
    """Evaluate if due → save if due or pre-empted → next batch → step → log.

    `owes_evaluation` says that the run was stopped in the evaluation of the step it begins at.
    """
    config, clock = run.config, run.clock
    first_step = step = int(state.step)
    upcoming = None
    if step < run.total_steps:
        upcoming = feed.next()
        phases = _compile(run, phases, state, upcoming[0])
        parallel.wait_for_all_processes()
    owes_evaluation &= not any("/" in name for name in metrics_at(run.workdir, step))
    run.console.start(step, run.total_steps)
    clock.begin_training(step)
    while True:
        is_new, is_last = step > first_step, step == run.total_steps
        is_evaluated = True
        if (is_new or owes_evaluation) and (is_last or _is_due(step, config.eval_every_steps)):
            with clock.phase("evaluation", after=state):
                is_evaluated = _evaluate(run, step, state, stop)
                give_back_memory()
        preempted = not is_evaluated or stop.requested()
        if is_new and (is_last or preempted or _is_due(step, config.checkpoint_every_steps)):
            with clock.phase("checkpoint", after=state):
                _save(run, step, state, position, is_evaluated=is_evaluated)
                give_back_memory()
        if is_last or preempted:
            break
        owes_evaluation = False
        batch, position = upcoming
        phase = [phase for phase in phases if phase.first_step <= step][-1]
        with run.profiler.step(step + 1, state):
            state, metrics = phase.step_fn(state, batch)
            step += 1
            run.console.step()
            if step < run.total_steps:
                upcoming = feed.next(while_computing=metrics)
        run.profiler.step_done(step, state)
        if _is_due(step, config.log_every_steps) or step == run.total_steps:
            metrics = jax.device_get(metrics)
            steps, seconds, waited = clock.lap(step)
            metrics |= clock.metrics() | {"data_wait_share": waited / seconds}
            mfu = utilisation(phase.flops, seconds / steps, run.mesh.devices.flat)
            metrics |= {} if mfu is None else {"model_flops_utilisation": mfu}
            _log(run, step, position, metrics, seconds / steps)
        clock.step_done(step)
    clock.end_training()
    _check_written(run, step)
    if run.bad_examples.count:
        run.console.say(f"replaced bad examples: {run.bad_examples}")
    if not (is_last and is_evaluated):
        run.console.say(f"asked to stop at step {step}; the same command continues from there")
        return None
    metrics = metrics_at(run.workdir, step)
    run.console.say(report.final_table(metrics, headlines_only=True))
    _report(run, step)
    run.console.say(f"{step} steps done; everything is in {run.workdir}")
    return metrics


def _check_written(run, step):
    """Raises UserError where the last save, which it waits for, or a line is not on disk."""
    failures = {
        f"checkpoint {step}": run.checkpointer.wait(),
        METRICS: run.writer.flush(),
        "the list of bad examples": run.bad_examples.flush(),
    }
    failures = {name: failure for name, failure in failures.items() if failure is not None}
    if failures:
        raise UserError(
            f"{step} steps are done, but {' and '.join(failures)} could not be written to "
            f"{run.workdir}: {'; '.join(map(str, failures.values()))}. Free space or mend that; "
            "the same command continues from the newest checkpoint"
        )


def _report(run, step):
    """Writes the page of tables and figures, on process 0; a picture must not fail the run."""
    if jax.process_index() != 0:
        return
    try:
        from cyclip_jax.report.write import write_report  # matplotlib is slow to import

        page = write_report([run.workdir], tensorboard_step=step)
    except Exception as error:  # all else is saved; whatever went wrong can be drawn again
        run.console.log(traceback.format_exc())
        run.console.say(
            f"no report was written ({error}; more in {LOG}); everything else is saved, and "
            f"`python -m cyclip_jax.report {run.workdir}` tries again"
        )
    else:
        run.console.say(f"report: {page}")


def _is_due(step, every):
    return every > 0 and step % every == 0


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of the run with one compiled step.

    Attributes:
      first_step: from which it holds.
      step_fn: the compiled step.
      flops: of the model in a step; None where the device's peak is not known.
    """

    first_step: int
    step_fn: object
    flops: float | None


def _compile(run, phases, state, batch):
    """Compiles ahead of the first step, so that its time is not mistaken for a step's.

    Args:
      phases: [(first step, view, step function)].
      batch: the first one: what is wrong with the data shows before anything is compiled.

    Returns:
      The phases that are still to come, as Phase.
    """
    last = max(first_step for first_step, *_ in phases if first_step <= int(state.step))
    shardings = jax.tree.map(lambda array: array.sharding, state)
    has_peak = peak_flops(run.mesh.devices.flat[0].device_kind) is not None
    compiled = []
    with run.clock.phase("compile"):
        for first_step, view, step_fn in phases:
            if first_step < last:
                continue
            step_fn = jit_step(step_fn, mesh=run.mesh, state_sharding=shardings)
            step_fn = step_fn.lower(state, batch).compile()
            seen = jax.eval_shape(view, state.rng, batch)
            flops = model_flops(run.config.model, seen) if has_peak else None
            compiled.append(Phase(first_step, step_fn, flops))
    seconds = run.clock.seconds()["compile"]
    run.console.say(f"train step compiled in {seconds:.1f} s")
    run.writer.write(int(state.step), {"compile_seconds": seconds})
    return compiled


def _evaluate(run, step, state, stop):
    """Runs and writes all evaluations; returns False where it was told to stop before their end."""

    def check_stop():
        if stop.requested():
            raise evals.Interrupted

    encoders = run.model.encoders(state.params, state.batch_stats, run.tokenizer, check_stop)
    try:
        results = evals.evaluate(
            run.evaluators,
            encoders,
            directory=run.workdir / EVALS,
            model=run.config.model.name,
            checkpoint=run.workdir,
        )
    except evals.EvaluationFailed as error:  # training is worth more than a number
        run.console.say(f"step {step}  {error}")
        results = error.results
    except evals.Interrupted:
        return False
    run.writer.write(step, results)
    for line in report.headline_lines(results):
        run.console.say(f"step {step}  {line}")
    return True


def _log(run, step, position, metrics, seconds_per_step):
    # The most, not the latest: the metrics of most steps are never fetched.
    skipped = int(metrics.pop("most_skipped_in_a_row"))
    metrics["images_per_second"] = run.config.batch_size / seconds_per_step
    metrics["epoch"] = position.epoch
    metrics["bad_examples"] = run.bad_examples.count
    if isinstance(run.source, Mixture):
        drawn = drawn_from_parts(run.source, position, run.config.batch_size)
        metrics |= {f"examples/{name}": count for name, count in drawn.items()}
    run.writer.write(step, metrics)
    seconds_left = (run.total_steps - step) * seconds_per_step
    run.console.report(step, run.total_steps, metrics, seconds_left)
    if skipped >= run.config.max_skipped_in_a_row:
        raise UserError(
            f"the loss or its gradient was not finite in {skipped} steps in a row, up to step "
            f"{step}; the parameters are those from before. Lower config.optimizer.learning_rate, "
            "set config.optimizer.gradient_clip_norm, or look at the data"
        )


def _save(run, step, state, position, *, is_evaluated):
    """Saves the state and the position of the last batch trained on."""
    model, training = _checkpoint_items(state)
    place = {
        "position": dataclasses.asdict(position),
        "dataset_size": len(run.source),
        "is_evaluated": is_evaluated,
    }
    meta = place | describe_run(run.config)
    run.checkpointer.save(step, model=model, training=training, meta=meta)


def _checkpoint_items(state):
    """A state as the two trees of a checkpoint: the model, and what else training needs."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    model = {name: fields.pop(name) for name in ("params", "batch_stats")}
    return model, fields


def _starting_point(config, model, optimizer, checkpointer, mesh, source, console):
    """The newest good checkpoint, else config.init_from, else from scratch.

    Returns:
      (state, position, whether the evaluation of its step was not finished).
    """
    seed = config.seed
    abstract = abstract_state(
        model.create, optimizer, mesh, seed=seed, min_size=config.mesh.fsdp_min_size
    )
    abstract_model, abstract_training = _checkpoint_items(abstract)
    restored = checkpointer.restore_newest(model=abstract_model, training=abstract_training)
    if restored is not None:
        step, trained, training, meta = restored
        check_continued(config, source, meta)
        console.say(f"continuing from step {step}")
        # What ended the run before is mended, or the next steps will show that it is not.
        training["most_skipped_in_a_row"] = jnp.zeros_like(training["most_skipped_in_a_row"])
        owes_evaluation = not meta.get("is_evaluated", True)  # older checkpoints do not say
        return TrainState(**trained, **training), Position(**meta["position"]), owes_evaluation
    # Before anything is computed: what does not fit is said at once.
    given = {} if config.init_from is None else starting_point(config, abstract_model, console)
    sharding = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state = create_state(model.create, optimizer, seed=seed, sharding=sharding)
    overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    console.log(overview)
    console.say(_parameter_summary(state.params))
    return dataclasses.replace(state, **given), Position(epoch=0, examples=0, seed=seed), False


def _parameter_summary(params):
    count = parameter_overview.count_parameters
    towers = ", ".join(f"{count(params[tower]):,.0f} in {tower}" for tower in ("visual", "text"))
    return f"{count(params):,.0f} parameters, {towers} (each in {LOG})"
