"""A run with all that it needs open, from its config to the moment before its first step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import jax
import ml_collections
import numpy as np
import optax
from etils import epath

from cyclip_jax import evals, parallel
from cyclip_jax.data.bad_examples import BadExamples
from cyclip_jax.data.no_pairs import NoPairs
from cyclip_jax.data.order import Position, steps_per_epoch
from cyclip_jax.data.sentences import SentenceBatches, SentenceSet
from cyclip_jax.data.settings import (
    open_bad_examples,
    open_batches,
    open_source,
    open_tokenizer,
)
from cyclip_jax.data.sources import Mixture, Source
from cyclip_jax.data.tokenizers import Tokenizer
from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.labelled import LabelledImages
from cyclip_jax.files import remove_unfinished
from cyclip_jax.models.presets import with_preset_named
from cyclip_jax.runtime import distributed
from cyclip_jax.runtime.agreement import process_zero_first
from cyclip_jax.runtime.clock import Clock
from cyclip_jax.runtime.loop import Feed, StopOnSignal, keep_compiled, set_matmul_precision
from cyclip_jax.runtime.profiling import Profiler
from cyclip_jax.runtime.sections import flat, resolve_paths
from cyclip_jax.runtime.watch import Watch, read_heartbeat
from cyclip_jax.runtime.weights_and_biases import WandbMirror
from cyclip_jax.training.classes import as_pairs, write_classes
from cyclip_jax.training.clipping import ClipAlarm
from cyclip_jax.training.collapse import CollapseAlarm, collapsed_steps
from cyclip_jax.training.configured_model import Model
from cyclip_jax.training.freezing import check_freeze
from cyclip_jax.training.objective import configured_objective
from cyclip_jax.training.sentences import name_faults, open_sentences, shorter_tokenizer
from cyclip_jax.training.settings import Settings, checked, with_absolute_paths
from cyclip_jax.training.stages import (
    Pairs,
    Stage,
    batches_of_run,
    is_of_sentences,
    stages_of_run,
)
from cyclip_jax.training.starting_point import (
    StartingPoint,
    inherit_vocabulary,
    starting_point,
    takes_texts,
    with_commit,
)
from cyclip_jax.training.step import Step, configured_step
from cyclip_jax.workdir.best import BestSoFar
from cyclip_jax.workdir.changes import (
    Changes,
    check_changes,
    other_evaluations,
    recorded,
    written,
)
from cyclip_jax.workdir.config_json import check_same_model, write_config
from cyclip_jax.workdir.console import Console
from cyclip_jax.workdir.metrics import MetricWriter, read_metrics
from cyclip_jax.workdir.saved import newest_meta, saved_steps


class _Closable(Protocol):
    def close(self) -> object: ...


_Opened = TypeVar("_Opened", bound=_Closable)

if TYPE_CHECKING:
    from cyclip_jax.workdir.checkpoints import Checkpointer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What stays the same from the first step to the last.

    Attributes:
      config: the config, resolved and locked.
      workdir: the run's directory.
      mesh: the mesh that the state and the batches lie on.
      model: the config's model on the mesh.
      tokenizer: function from texts to token ids, int32 [n, L].
      source: the training data.
      bad_examples: counts the examples that could not be used.
      evaluators: {name: Evaluation}, with their data open.
      sentences: what the text tower is trained on besides; None is nothing.
      classes: of the labelled pictures that are trained on in place of pairs; None are none.
      total_steps: length of the run.
      steps: [(stage, step function)], which are not compiled yet.
      optimizer: the transformation that the state belongs to.
      feed: gives (batch on the mesh, position after it).
      stop: says whether the run was told to stop.
      console: takes lines for a person.
      writer: takes numbers.
      checkpointer: takes states.
      clock: measures where the time goes.
      profiler: traces chosen steps.
      alarm: says where nothing is learned.
      best: knows which checkpoint has the best value of config.keep_best.
      clip_alarm: says where the bound of the gradient is too low.
    """

    config: ml_collections.ConfigDict
    workdir: epath.Path
    mesh: jax.sharding.Mesh
    model: Model
    tokenizer: Tokenizer
    source: Source | Mixture
    bad_examples: BadExamples
    evaluators: dict[str, evals.Evaluation]
    sentences: SentenceSet | None
    classes: LabelledImages | None
    total_steps: int
    steps: list[tuple[Stage, Step]]
    optimizer: optax.GradientTransformation
    feed: Feed
    stop: StopOnSignal
    console: Console
    writer: MetricWriter
    checkpointer: Checkpointer
    clock: Clock
    profiler: Profiler
    alarm: CollapseAlarm
    clip_alarm: ClipAlarm
    best: BestSoFar


@contextlib.contextmanager
def open_run(
    config: Any, workdir: epath.Path, *, began: float, allow_changes: Collection[str] = ()
) -> Iterator[tuple[Run, StartingPoint]]:
    """A context in which everything that a run needs is open.

    Mistakes are reported in the order of what it costs to find them: first those that the config
    alone shows, then those of the workdir, of the data and of the checkpoint. TensorFlow and Orbax,
    which take seconds to import, are imported only after the first two.

    Args:
      config: a ConfigDict as defaults.py makes it.
      workdir: the run's directory, which this process may write.
      began: when the process began, by time.monotonic.
      allow_changes: names of settings that may differ from those of the checkpoint it continues.

    Yields:
      (Run, StartingPoint).

    Raises:
      UserError: the config, the data or the workdir has a fault that the user can mend.
    """
    written_config = with_absolute_paths(config)
    settings = checked(resolve_paths(written_config, workdir))
    written_config = with_commit(with_preset_named(written_config), workdir)
    config = resolve_paths(written_config, workdir)
    plan = _plan(settings, config, workdir, allow_changes)
    with contextlib.ExitStack() as stack:
        console, clock, profiler = _open_instruments(settings, workdir, began, stack)
        checkpointer = _closed_with(stack, _open_checkpointer(settings, workdir))
        start = starting_point(
            *(config, plan.model, plan.optimizer, checkpointer, plan.mesh, plan.source),
            *(plan.sentences, plan.classes, plan.tokenizer, console),
        )
        step = int(start.state.step)
        schedule = _schedule(settings, config, plan.model, plan.source, step, start.position)
        plan = dataclasses.replace(plan, **schedule)
        changes = _changes(config, workdir, start, plan, allow_changes, console)
        batches, bad_examples = _open_data(plan, workdir, step, start.position, stack)
        _check_not_past(workdir, step, plan.total_steps)
        _record(written_config, workdir, step, changes, plan, console)
        alarm = _alarm(config, workdir)  # before the writer cuts off what is trained anew
        writer = _open_writer(config, workdir, step, console, stack)
        best = BestSoFar(settings.keep_best, workdir, until=step)
        checkpointer.best = best.among
        _introduce(plan, start.state, workdir, console)
        feed = Feed(batches, functools.partial(parallel.to_global, mesh=plan.mesh), clock)
        _closed_with(stack, feed)
        stack.enter_context(distributed.failing_together())
        run = Run(
            config=config,
            workdir=workdir,
            mesh=plan.mesh,
            model=plan.model,
            tokenizer=plan.tokenizer,
            source=plan.source,
            bad_examples=bad_examples,
            evaluators=plan.evaluators,
            sentences=plan.sentences,
            classes=plan.classes,
            total_steps=plan.total_steps,
            steps=_steps(config, plan, start.state),
            optimizer=plan.optimizer,
            feed=feed,
            stop=stack.enter_context(StopOnSignal(clock, console.say)),
            console=console,
            writer=writer,
            checkpointer=checkpointer,
            clock=clock,
            profiler=profiler,
            alarm=alarm,
            best=best,
            clip_alarm=ClipAlarm(settings.optimizer.gradient_clip_norm),
        )
        yield run, start


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """The settings, the data and the length of a run, known before anything is written."""

    settings: Settings
    mesh: jax.sharding.Mesh
    model: Model
    source: Source | Mixture
    sentences: SentenceSet | None
    classes: LabelledImages | None
    evaluators: dict[str, evals.Evaluation]
    total_steps: int
    stages: list[Stage]
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    tokenizer: Tokenizer


def _plan(settings, config, workdir, allow_changes):
    set_matmul_precision(settings.matmul_precision)
    keep_compiled(settings.compilation_cache)
    mesh = settings.mesh.create()
    parallel.check_batch_size(settings.batch_size, mesh, micro_batches=settings.micro_batches)
    if settings.sentences.is_on:
        parallel.check_batch_size(
            settings.sentences.batch_size,
            mesh,
            micro_batches=settings.micro_batches,
            name="config.sentences.batch_size",
        )
    model = Model(config, mesh)
    check_freeze(settings.optimizer.freeze, model.trained)
    if settings.sentences.is_on and settings.sentences.only_steps:
        check_freeze(settings.optimizer.freeze, model.trained, is_of_sentences)
    check_same_model(config, workdir)
    saved = newest_meta(workdir)
    if saved is not None:  # once more when it is restored, which may be the one before
        check_changes(config, workdir, *saved, allow_changes)

    data = settings.data
    source: Source | Mixture = NoPairs()
    classes = None
    if settings.classes.is_on:
        classes = process_zero_first(lambda: settings.classes.open(model.num_classes, workdir))
        source = as_pairs(classes)
        steps_per_epoch(len(source), settings.batch_size)
    elif settings.has_pairs:
        source = process_zero_first(lambda: open_source(data, settings.batch_size))
    sentences = None
    if settings.sentences.is_on:
        sentences = process_zero_first(lambda: open_sentences(settings.sentences, data, source))
        source = source if settings.has_pairs else NoPairs(sentences)
    evaluators = evals.create_evaluators(config.evals)
    step, position = (0, None) if saved is None else (saved[0], Position(**saved[1]["position"]))
    process_zero_first(lambda: inherit_vocabulary(config, workdir))
    # The others find what process 0 has made or compared.
    is_new = not (takes_texts(config) or saved_steps(workdir)) and jax.process_index() == 0
    return _Plan(
        settings=settings,
        mesh=mesh,
        model=model,
        source=source,
        sentences=sentences,
        classes=classes,
        evaluators=evaluators,
        optimizer=settings.optimizer.transformation(),
        tokenizer=process_zero_first(
            lambda: open_tokenizer(data, workdir, model.sizes, source, is_new=is_new)
        ),
        **_schedule(settings, config, model, source, step, position),
    )


def _introduce(plan, state, workdir, console):
    """Says what the run is, and what there is to know of its average."""
    console.say(_summary(plan, int(state.step), workdir))
    _tell_of_average(state, console)


def _summary(plan, step, workdir):
    """What the run is, in a line."""
    settings, data, rows = plan.settings, [], []
    only = settings.sentences.only_steps
    if settings.has_pairs:
        what, name = "pairs", settings.data.name
        if plan.classes is not None:
            what, name = f"pictures of {len(plan.classes.classes)} classes", plan.classes.path
        data.append(f"{len(plan.source)} {what} from {name}")
        rows.append(f"{settings.batch_size} {what.split()[0]}")
    if plan.sentences is not None:
        alone = f", alone up to step {only}" if only else ""
        data.append(f"{len(plan.sentences)} sentences from {plan.sentences.name}{alone}")
        rows.append(f"{settings.sentences.batch_size} sentences")
    return (
        f"{settings.model['name']} on {' and '.join(data)}: steps {step} to {plan.total_steps} of "
        f"{' and '.join(rows)} on {plan.mesh.size} {plan.mesh.devices.flat[0].device_kind} "
        f"device(s); workdir {workdir}"
    )


def _schedule(settings, config, model, source, step, position):
    """How long the run is from a step and a place in its data on, and what is done when."""
    total_steps = settings.run_length(len(source), step, position)
    settings.check_length(total_steps)
    an_epoch = steps_per_epoch(len(source), settings.batch_size) if settings.has_pairs else 1
    stages = stages_of_run(
        *(configured_objective(config), settings.sentences, settings.tokens),
        sizes=model.sizes,
        total_steps=total_steps,
    )
    return {
        "total_steps": total_steps,
        "stages": stages,
        "schedule": settings.optimizer.learning_rate_schedule(
            total_steps=total_steps,
            steps_per_epoch=an_epoch,
            steps_before=settings.sentences.only_steps,
            own_course=settings.tokens.own_course,
        ),
    }


def _check_not_past(workdir, step, total_steps):
    if step > total_steps:
        raise UserError(
            f"{workdir} is at step {step}, past this config's {total_steps} steps; set "
            "config.total_steps or num_epochs higher, and add --allow_changes with its name, or "
            "choose another --workdir"
        )


def _changes(config, workdir, start, plan, allow_changes, console):
    """The settings that change from the checkpoint on that was restored, which are told."""
    changes: Changes = {}
    step = int(start.state.step)
    if start.meta is not None:
        changes = check_changes(config, workdir, step, start.meta, allow_changes)
    if changes:
        console.say(
            f"from step {step} on with other settings: {written(changes)}. The learning rate there "
            f"is {float(plan.schedule(step)):.3g}, and the schedule ends at step {plan.total_steps}"
        )
    return changes


def _record(config, workdir, step, changes, plan, console):
    """Writes config.json, and says which numbers of a finished run are not of its settings.

    It does so on process 0.
    """
    if jax.process_index() != 0:
        return
    others = other_evaluations(config, workdir, step) if step == plan.total_steps else []
    if others:
        console.say(
            f"the numbers of {', '.join(others)} are those of the settings before; to evaluate "
            f"with the new ones, run `python -m cyclip_jax.evaluate --checkpoint={workdir}`"
        )
    write_config(config, workdir, recorded(workdir, step, changes))
    write_classes(plan.classes, workdir)


def _closed_with(stack: contextlib.ExitStack, opened: _Opened) -> _Opened:
    return stack.enter_context(contextlib.closing(opened))


def _open_instruments(settings, workdir, began, stack):
    """The console, the clock and the profiler of a run."""
    is_first_process = jax.process_index() == 0
    if is_first_process:
        remove_unfinished(workdir)
    console = _closed_with(stack, Console(workdir, enabled=is_first_process))
    clock = Clock(began, earlier=read_heartbeat(workdir) if is_first_process else None)
    told = console if is_first_process else None
    _closed_with(stack, Watch(clock, workdir, stall_factor=settings.stall_factor, console=told))
    profiler = Profiler(workdir, settings.profile_steps, clock=clock, say=console.say)
    return console, clock, stack.enter_context(profiler)


def _open_writer(config, workdir, step, console, stack):
    """What takes the numbers of a run from a step on."""
    is_first_process = jax.process_index() == 0
    mirror = WandbMirror(config, workdir, say=console.say, enabled=is_first_process)
    writer = MetricWriter(
        workdir,
        first_step=step,
        enabled=is_first_process,
        mirror=_closed_with(stack, mirror),
        settings=flat(config.to_dict()),
    )
    return _closed_with(stack, writer)


def _open_checkpointer(settings, workdir):
    from cyclip_jax.workdir.checkpoints import Checkpointer  # Orbax: slow to import

    return Checkpointer(
        workdir, keep=settings.keep_checkpoints, keep_every_steps=settings.keep_every_steps
    )


def _open_data(plan, workdir, step, position, stack):
    """The batches from a step and a position on, and what counts those that could not be used."""
    settings = plan.settings
    bad_examples = open_bad_examples(settings.data, workdir, plan.source, position=position)
    _closed_with(stack, bad_examples)

    def pairs_from(position: Position, image_size: int | None) -> Pairs:
        return open_batches(
            settings.data,
            plan.source,
            plan.tokenizer,
            bad_examples,
            batch_size=settings.batch_size,
            seed=settings.seed,
            image_size=image_size or plan.model.sizes["image_size"],
            position=position,
            labels=None if plan.classes is None else plan.classes.labels.astype(np.int32),
        )

    sentences = None
    if plan.sentences is not None:
        name_faults(plan.sentences, settings.data, workdir)
        sentences = SentenceBatches(
            plan.sentences,
            shorter_tokenizer(settings.data, plan.tokenizer, plan.model.sizes, settings.sentences),
            batch_size=settings.sentences.batch_size,
            seed=settings.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    batches = batches_of_run(plan.stages, step, pairs_from, position, sentences)
    return _closed_with(stack, batches), bad_examples


def _alarm(config, workdir):
    """The alarm of a run, which is not given again after the run was continued."""
    return CollapseAlarm(
        configured_objective(config),
        batch_size=config.batch_size,
        warmup_steps=config.optimizer.warmup_steps,
        is_told=jax.process_index() == 0 and bool(collapsed_steps(read_metrics(workdir))),
    )


def _steps(config, plan, state):
    """[(stage, step function)] of the run's stages."""
    make_step = functools.partial(
        configured_step,
        config,
        plan.model.train_graphdef,
        plan.optimizer,
        plan.schedule,
        mesh=plan.mesh,
        state_sharding=jax.tree.map(lambda array: array.sharding, state),
        average_share=plan.settings.average.share(
            total_steps=plan.total_steps, steps_before=plan.settings.sentences.only_steps
        ),
    )
    return [
        (
            stage,
            make_step(view=stage.view, objective=stage.objective, trainable=stage.trainable),
        )
        for stage in plan.stages
    ]


def _tell_of_average(state, console):
    """Says what an average is not, where the model has statistics."""
    if state.average is not None and jax.tree.leaves(state.average["batch_stats"]):
        console.say(
            "the average has the averages of BatchNorm's statistics, which are not the statistics "
            "of the average: its numbers are worse for it"
        )
