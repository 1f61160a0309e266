"""A run with all that it needs open, from its config to the moment before its first step."""

import contextlib
import dataclasses
import functools

import jax
import ml_collections
from etils import epath

from cyclip_jax import evals, parallel
from cyclip_jax.data.pipeline import BadExamples, steps_per_epoch
from cyclip_jax.data.settings import (
    open_bad_examples,
    open_batches,
    open_source,
    open_tokenizer,
    run_length,
)
from cyclip_jax.defaults import resolve_paths
from cyclip_jax.errors import UserError
from cyclip_jax.files import remove_unfinished
from cyclip_jax.runtime import distributed
from cyclip_jax.runtime.agreement import process_zero_first
from cyclip_jax.runtime.clock import Clock
from cyclip_jax.runtime.loop import Feed, StopOnSignal, keep_compiled, set_matmul_precision
from cyclip_jax.runtime.profiling import Profiler, check_profile_steps
from cyclip_jax.runtime.watch import Watch, read_heartbeat
from cyclip_jax.runtime.weights_and_biases import WandbMirror, check_wandb
from cyclip_jax.training.configured_model import Model
from cyclip_jax.training.objective import configured_objective
from cyclip_jax.training.optimizer import create_optimizer
from cyclip_jax.training.starting_point import inherit_vocabulary, starting_point
from cyclip_jax.training.step import configured_step
from cyclip_jax.training.token_reduction import views_of_run
from cyclip_jax.workdir.checkpoints import Checkpointer
from cyclip_jax.workdir.config_json import check_same_model, write_config
from cyclip_jax.workdir.console import Console
from cyclip_jax.workdir.metrics import MetricWriter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What stays the same from the first step to the last.

    Attributes:
      config: resolved and locked.
      workdir: the run's directory.
      mesh: that state and batches lie on.
      model: the config's, on the mesh.
      tokenizer: function from texts to token ids, int32 [n, L].
      source: the training data.
      bad_examples: counts what of it could not be used.
      evaluators: {name: Evaluation}, with their data open.
      total_steps: length of the run.
      steps: [(first step, view, step function)], not compiled yet.
      feed: gives (batch on the mesh, position after it).
      stop: says whether the run was told to stop.
      console, writer, checkpointer: where lines, numbers and states go.
      clock, profiler: measure it.
    """

    config: ml_collections.ConfigDict
    workdir: epath.Path
    mesh: jax.sharding.Mesh
    model: Model
    tokenizer: object
    source: object
    bad_examples: BadExamples
    evaluators: dict
    total_steps: int
    steps: list
    feed: Feed
    stop: StopOnSignal
    console: Console
    writer: MetricWriter
    checkpointer: Checkpointer
    clock: Clock
    profiler: Profiler


@contextlib.contextmanager
def open_run(config, workdir, *, began):
    """A context in which everything that a run needs is open.

    What can be known to be wrong is said in the order of what it costs to find out: by the config
    alone, by the data, by the checkpoint.

    Args:
      config: a ConfigDict as defaults.py makes it.
      workdir: epath.Path of the run's directory, which this process may write.
      began: when the process began, by time.monotonic.

    Yields:
      (Run, StartingPoint).

    Raises:
      UserError: something in the config, the data or the workdir that the user can mend.
    """
    written_config, config = config, resolve_paths(config, workdir)
    _check(config, workdir)
    set_matmul_precision(config)
    keep_compiled(config.compilation_cache)
    mesh = parallel.create_mesh(fsdp=config.mesh.fsdp)
    parallel.check_batch_size(config.batch_size, mesh, micro_batches=config.micro_batches)
    model = Model(config, mesh)
    source = process_zero_first(lambda: open_source(config))
    evaluators = evals.create_evaluators(config.evals)
    total_steps = run_length(config, len(source))
    views = views_of_run(model.sizes, total_steps, **config.tokens)
    optimizer, schedule = create_optimizer(
        **config.optimizer,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch(len(source), config.batch_size),
    )
    process_zero_first(lambda: inherit_vocabulary(config, workdir))
    tokenizer = process_zero_first(lambda: open_tokenizer(config, workdir, model.sizes, source))

    with contextlib.ExitStack() as stack:

        def closed_at_the_end(opened):
            return stack.enter_context(contextlib.closing(opened))

        is_first_process = jax.process_index() == 0
        if is_first_process:
            remove_unfinished(workdir)
        console = closed_at_the_end(Console(workdir, enabled=is_first_process))
        clock = Clock(began, earlier=read_heartbeat(workdir) if is_first_process else None)
        told = console if is_first_process else None
        closed_at_the_end(Watch(clock, workdir, stall_factor=config.stall_factor, console=told))
        profiler = stack.enter_context(
            Profiler(workdir, config.profile_steps, clock=clock, say=console.say)
        )
        checkpointer = closed_at_the_end(
            Checkpointer(
                workdir, keep=config.keep_checkpoints, keep_every_steps=config.keep_every_steps
            )
        )
        start = starting_point(config, model, optimizer, checkpointer, mesh, source, console)
        state, position, step = start.state, start.position, int(start.state.step)
        bad_examples = closed_at_the_end(
            open_bad_examples(config, workdir, source, position=position)
        )
        batches = closed_at_the_end(
            open_batches(
                config,
                source,
                tokenizer,
                bad_examples,
                image_size=model.sizes["image_size"],
                position=position,
            )
        )
        if step > total_steps:
            raise UserError(
                f"{workdir} is at step {step}, past this config's {total_steps} steps; "
                "set config.total_steps or num_epochs higher, or choose another --workdir"
            )
        if is_first_process:
            write_config(written_config, workdir)
        mirror = closed_at_the_end(
            WandbMirror(written_config, workdir, say=console.say, enabled=is_first_process)
        )
        writer = closed_at_the_end(
            MetricWriter(workdir, first_step=step, enabled=is_first_process, mirror=mirror)
        )
        console.say(
            f"{config.model.name} on {len(source)} pairs from {_data_name(config)}: steps "
            f"{step} to {total_steps} of {config.batch_size} pairs on {mesh.size} "
            f"{mesh.devices.flat[0].device_kind} device(s); workdir {workdir}"
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
        feed = closed_at_the_end(
            Feed(batches, functools.partial(parallel.to_global, mesh=mesh), clock)
        )
        stack.enter_context(distributed.failing_together())
        run = Run(
            config=config,
            workdir=workdir,
            mesh=mesh,
            model=model,
            tokenizer=tokenizer,
            source=source,
            bad_examples=bad_examples,
            evaluators=evaluators,
            total_steps=total_steps,
            steps=[(first_step, view, make_step(view=view)) for first_step, view in views],
            feed=feed,
            stop=stack.enter_context(StopOnSignal()),
            console=console,
            writer=writer,
            checkpointer=checkpointer,
            clock=clock,
            profiler=profiler,
        )
        yield run, start


def _check(config, workdir):
    """Raises UserError for what the config alone, and the workdir's, show to be wrong."""
    configured_objective(config)
    check_profile_steps(config.profile_steps)
    check_wandb(**config.wandb)
    check_same_model(config, workdir)


def _data_name(config):
    is_mixture = config.data.source == "mixture"
    return " and ".join(config.data.mixture) if is_mixture else config.data.train
