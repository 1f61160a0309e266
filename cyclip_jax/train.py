"""A run, from top to bottom: open, compile, loop, close."""

import contextlib
import dataclasses
import functools
import os
import time
import traceback
from collections.abc import Collection
from typing import Any

import jax
import ml_collections

from cyclip_jax import evals
from cyclip_jax.data.order import Position, drawn_from_parts
from cyclip_jax.data.sources import Mixture
from cyclip_jax.data.sources.kept import kept_sum
from cyclip_jax.errors import UserError
from cyclip_jax.evals.flat import flattened, values_alone
from cyclip_jax.evals.output import read_abouts
from cyclip_jax.files import FULL, absolute, check_literal
from cyclip_jax.runtime.agreement import (
    check_same_everywhere,
    process_zero_first,
    wait_for_all_processes,
)
from cyclip_jax.runtime.memory import give_back_memory, peak_in_words
from cyclip_jax.runtime.outlook import Outlook
from cyclip_jax.runtime.sections import flat
from cyclip_jax.training.flops import utilisation
from cyclip_jax.training.objective import configured_objective
from cyclip_jax.training.open_run import Run, open_run
from cyclip_jax.training.phases import Phase, compile_phases
from cyclip_jax.training.starting_point import checkpoint_items
from cyclip_jax.workdir.changes import check_names
from cyclip_jax.workdir.config_json import describe_run
from cyclip_jax.workdir.layout import EVALS, LOG, METRICS, OF_AVERAGE
from cyclip_jax.workdir.lock import lock_workdir
from cyclip_jax.workdir.metrics import evaluated_at, metrics_at, read_reports
from cyclip_jax.workdir.saved import saved_steps
from cyclip_jax.workdir.table import final_table, headline_lines


def train(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    began: float | None = None,
    allow_changes: Collection[str] = (),
) -> dict[str, float] | None:
    """Runs an experiment, or continues the one in `workdir`.

    Args:
      config: a ConfigDict as defaults.py makes it.
      workdir: directory of the run, local or remote; it replaces {workdir} in the config's paths.
      began: when the process began, by time.monotonic; by default this moment.
      allow_changes: names of settings, such as "optimizer.learning_rate", that may differ from
        those with which the run began (see workdir/changes.py).

    Returns:
      The last step's metrics, or None where a signal ended the run before.

    Raises:
      UserError: the config, the data or the workdir has a fault that the user can mend.
    """
    began = time.monotonic() if began is None else began
    workdir = absolute(workdir, "--workdir")
    check_literal(workdir, "--workdir")
    check_names(allow_changes)
    told = {"--workdir": str(workdir), "--allow_changes": list(allow_changes)}
    check_same_everywhere(flat(config.to_dict(), "config.") | told)
    with contextlib.ExitStack() as stack:
        lock = functools.partial(lock_workdir, workdir, enabled=jax.process_index() == 0)
        process_zero_first(lambda: stack.enter_context(lock()))
        try:
            opening = open_run(config, workdir, began=began, allow_changes=allow_changes)
            with opening as (run, start):
                return _loop(run, start)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise UserError(
                f"{error}; free space for {workdir}, and the same command begins or continues the "
                "run"
            ) from error


def _loop(run, start):
    """Evaluate if due → save if due or pre-empted → next batch → step → log."""
    config, clock, feed, stop = run.config, run.clock, run.feed, run.stop
    state, position = start.state, start.position
    run.writer.describe(configured_objective(config).reports)
    first_step = step = int(state.step)
    upcoming: tuple[Any, Position] | None = None
    phases: list[Phase] = []
    if step < run.total_steps:
        upcoming = feed.next()  # faults of the data show before anything is compiled
        phases = compile_phases(run, state)
        wait_for_all_processes()
    owed = {}
    if start.owes_evaluation or step == run.total_steps:  # which may have new evaluations
        done = evaluated_at(run.workdir, step)
        owed = {name: one for name, one in run.evaluators.items() if name not in done}
    outlook = _outlook(run)
    stop.begin(first_step)
    run.console.start(step, run.total_steps)
    clock.begin_training(step)
    while True:
        is_new, is_last = step > first_step, step == run.total_steps
        is_evaluated, is_best = True, False
        if (is_new or owed) and (is_last or _is_due(step, config.eval_every_steps)):
            with clock.phase("evaluation", after=state):
                is_evaluated = _evaluate(run, step, state, run.evaluators if is_new else owed)
                is_best = is_evaluated and run.best.is_at(step)
                give_back_memory()
        preempted = not is_evaluated or stop.requested()
        is_due = is_best or _is_due(step, config.checkpoint_every_steps)
        if is_new and (is_last or preempted or is_due):
            with clock.phase("checkpoint", after=state):
                _save(run, step, state, position, is_evaluated=is_evaluated)
                give_back_memory()
        if is_last or preempted or upcoming is None:
            break
        owed = {}
        batch, position = upcoming
        phase = [phase for phase in phases if phase.stage.first_step <= step][-1]
        if step == phase.stage.first_step:
            state = phase.begun(state)
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
            system = clock.metrics() | {"data_wait_share": waited / seconds}
            if phase.flops is not None:
                mfu = utilisation(phase.flops, seconds / steps, run.mesh.devices.flat)
                system |= {} if mfu is None else {"model_flops_utilisation": mfu}
            _log(run, step, position, metrics, system, seconds / steps, phase.stage)
            if (told := outlook.after_lap(step, steps, seconds)) is not None:
                run.console.say(told)
        clock.step_done(step)
    clock.end_training()
    return _end(run, step, is_done=is_last and is_evaluated)


def _end(run, step, *, is_done):
    """Says how the run ended; returns the last step's metrics, or None where it is not done."""
    _check_written(run, step)
    if run.bad_examples.count:
        run.console.say(f"replaced bad examples: {run.bad_examples}")
    if not is_done:
        run.console.say(f"asked to stop at step {step}; the same command continues from there")
        return None
    metrics = metrics_at(run.workdir, step)
    abouts, reports = read_abouts(run.workdir / EVALS), read_reports(run.workdir)
    run.console.say(final_table(metrics, abouts, reports=reports, headlines_only=True))
    report_at_end(run, step)
    if (best := run.best.summary(saved_steps(run.workdir))) is not None:
        run.console.say(best)
    run.console.say(f"{step} steps done; everything is in {run.workdir}")
    return metrics


def _check_written(run, step):
    """Waits for the last save; raises UserError where that or a line could not be written."""
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


def report_at_end(run: Run, step: int) -> None:
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


def _outlook(run):
    """Tells how long the rest of the run takes, and what it holds of memory."""
    every = {"evaluation": run.config.eval_every_steps} if run.evaluators else {}
    every["checkpoint"] = run.config.checkpoint_every_steps
    return Outlook(
        run.clock,
        total_steps=run.total_steps,
        every=every,
        memory=lambda: peak_in_words(jax.local_devices()),
    )


def _is_due(step, every):
    return every > 0 and step % every == 0


def _evaluate(run, step, state, evaluators):
    """Runs and writes evaluations; returns False where it was told to stop before their end."""

    def check_stop():
        if run.stop.requested():
            raise evals.Interrupted

    if evaluators and run.clock.mean_seconds("evaluation") is None:
        run.console.say(f"step {step}  evaluating; the first time, the towers are compiled for it")
    model, training = checkpoint_items(state)
    weights = {"": model} | ({OF_AVERAGE: training["average"]} if "average" in training else {})
    results, pictures = {}, {}
    for ending, trees in weights.items():
        encoders = run.model.encoders(
            **trees,
            tokenize=run.tokenizer,
            check_stop=check_stop,
            classes=None if run.classes is None else run.classes.classes,
        )
        try:
            results |= evals.evaluate(
                {f"{name}{ending}": evaluation for name, evaluation in evaluators.items()},
                encoders,
                directory=run.workdir / EVALS,
                model=run.config.model.name,
                checkpoint=run.workdir,
                show=pictures.__setitem__,
            )
        except evals.EvaluationFailed as error:  # training is worth more than a number
            run.console.say(f"step {step}  {error}")
            results |= error.results
        except evals.Interrupted:
            return False
    run.writer.write(step, flattened(results), curves=values_alone(results))
    for name, pixels in pictures.items():
        run.writer.write_image(step, name, pixels)
    if (reason := run.best.add(step, results)) is not None:
        run.console.say(f"step {step}  {reason}")
    for line in headline_lines(results):
        run.console.say(f"step {step}  {line}")
    return True


def _log(run, step, position, metrics, system, seconds_per_step, stage):
    """Writes what a step measured, and what was measured of the machine; refuses a run astray."""
    # The most, not the latest: the metrics of most steps are never fetched.
    skipped = int(metrics.pop("most_skipped_in_a_row"))
    if stage.has_pairs:
        system["images_per_second"] = run.config.batch_size / seconds_per_step
    else:
        system["sentences_per_second"] = run.config.sentences.batch_size / seconds_per_step
    metrics["epoch"] = position.epoch
    metrics["bad_examples"] = run.bad_examples.count
    if isinstance(run.source, Mixture):
        drawn = drawn_from_parts(run.source, position, run.config.batch_size)
        metrics |= {f"examples/{name}": count for name, count in drawn.items()}
    judged, alarm = run.alarm.check(step, metrics)
    run.writer.write(step, metrics | judged, system=system)
    for told in (alarm, run.clip_alarm.check(metrics["grad_norm"])):
        if told is not None:
            run.console.say(told)
    seconds_left = (run.total_steps - step) * seconds_per_step
    run.console.report(step, run.total_steps, metrics | system, seconds_left)
    if skipped >= run.config.max_skipped_in_a_row:
        raise UserError(
            f"the loss or its gradient was not finite in {skipped} steps in a row, up to step "
            f"{step}; the parameters are those from before. Lower config.optimizer.learning_rate, "
            "set config.optimizer.gradient_clip_norm, or look at the data"
        )


def _save(run, step, state, position, *, is_evaluated):
    """Saves the state and the position of the last batch trained on."""
    model, training = checkpoint_items(state)
    place = {
        "position": dataclasses.asdict(position),
        "dataset_size": len(run.source),
        "is_evaluated": is_evaluated,
        "kept_sum": kept_sum(run.source),
        "vocabulary_sum": run.tokenizer.vocabulary_sum,
    }
    if run.sentences is not None:
        place["sentences_sum"] = run.sentences.sum
    meta = place | describe_run(run.config)
    run.checkpointer.save(step, model=model, training=training, meta=meta)
