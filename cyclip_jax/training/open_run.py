"""A run with all that it needs open, from its config to the moment before its first step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING, Protocol, TypeVar

import jax
import ml_collections
from etils import epath

from cyclip_jax import evals, parallel
from cyclip_jax.data.bad_examples import BadExamples
from cyclip_jax.data.order import steps_per_epoch
from cyclip_jax.data.settings import (
    open_bad_examples,
    open_batches,
    open_source,
    open_tokenizer,
)
from cyclip_jax.data.sources import Mixture, Source
from cyclip_jax.data.tokenizers import Tokenizer
from cyclip_jax.defaults import resolve_paths
from cyclip_jax.errors import UserError
from cyclip_jax.files import remove_unfinished
from cyclip_jax.runtime import distributed
from cyclip_jax.runtime.agreement import process_zero_first
from cyclip_jax.runtime.clock import Clock
from cyclip_jax.runtime.loop import Feed, StopOnSignal, keep_compiled, set_matmul_precision
from cyclip_jax.runtime.profiling import Profiler
from cyclip_jax.runtime.watch import Watch, read_heartbeat
from cyclip_jax.runtime.weights_and_biases import WandbMirror
from cyclip_jax.training.configured_model import Model
from cyclip_jax.training.settings import checked
from cyclip_jax.training.starting_point import inherit_vocabulary, starting_point
from cyclip_jax.training.step import configured_step
from cyclip_jax.workdir.config_json import check_same_model, write_config
from cyclip_jax.workdir.console import Console
from cyclip_jax.workdir.metrics import MetricWriter


class _Closable(Protocol):
    def close(self) -> object: ...


_Opened = TypeVar("_Opened", bound=_Closable)

if TYPE_CHECKING:
    from cyclip_jax.workdir.checkpoints import Checkpointer


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
    tokenizer: Tokenizer
    source: Source | Mixture
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
    alone, by the workdir, by the data, by the checkpoint. TensorFlow and Orbax, which take seconds
    to import, are imported only after the first two.

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
    settings = checked(config)
    set_matmul_precision(settings.matmul_precision)
    keep_compiled(settings.compilation_cache)
    mesh = settings.mesh.create()
    parallel.check_batch_size(settings.batch_size, mesh, micro_batches=settings.micro_batches)
    model = Model(config, mesh)
    check_same_model(config, workdir)

    data = settings.data
    source = process_zero_first(lambda: open_source(data, settings.batch_size))
    evaluators = evals.create_evaluators(config.evals)
    total_steps = settings.run_length(len(source))
    views = settings.tokens.views_of_run(model.sizes, total_steps)
    optimizer = settings.optimizer.transformation()
    schedule = settings.optimizer.schedule(
        total_steps=total_steps, steps_per_epoch=steps_per_epoch(len(source), settings.batch_size)
    )
    process_zero_first(lambda: inherit_vocabulary(config, workdir))
    tokenizer = process_zero_first(lambda: open_tokenizer(data, workdir, model.sizes, source))
    from cyclip_jax.workdir.checkpoints import Checkpointer  # Orbax: slow to import

    with contextlib.ExitStack() as stack:

        def closed_at_the_end(opened: _Opened) -> _Opened:
            return stack.enter_context(contextlib.closing(opened))

        is_first_process = jax.process_index() == 0
        if is_first_process:
            remove_unfinished(workdir)
        console = closed_at_the_end(Console(workdir, enabled=is_first_process))
        clock = Clock(began, earlier=read_heartbeat(workdir) if is_first_process else None)
        told = console if is_first_process else None
        closed_at_the_end(Watch(clock, workdir, stall_factor=settings.stall_factor, console=told))
        profiler = stack.enter_context(
            Profiler(workdir, settings.profile_steps, clock=clock, say=console.say)
        )
        checkpointer = closed_at_the_end(
            Checkpointer(
                workdir, keep=settings.keep_checkpoints, keep_every_steps=settings.keep_every_steps
            )
        )
        start = starting_point(config, model, optimizer, checkpointer, mesh, source, console)
        state, position, step = start.state, start.position, int(start.state.step)
        bad_examples = closed_at_the_end(
            open_bad_examples(data, workdir, source, position=position)
        )
        batches = closed_at_the_end(
            open_batches(
                data,
                source,
                tokenizer,
                bad_examples,
                batch_size=settings.batch_size,
                seed=settings.seed,
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
            f"{config.model.name} on {len(source)} pairs from {data.name}: steps "
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
