"""The stages of a run with their steps compiled, before the first step."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import optax
from etils import epath

from cyclip_jax import parallel
from cyclip_jax.runtime.progress import duration_in_words
from cyclip_jax.training.flops import model_flops, peak_flops
from cyclip_jax.training.freezing import frozen_towers
from cyclip_jax.training.stages import Stage, batch_shapes, seen_of
from cyclip_jax.training.step import Step, TrainState, jit_step
from cyclip_jax.workdir.metrics import read_metrics

if TYPE_CHECKING:
    from cyclip_jax.training.open_run import Run


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of the run with one compiled step.

    Attributes:
      stage: what is trained in it.
      step_fn: the compiled step.
      flops: the model's floating point operations in a step; None where the device's peak is not
        known.
      begun: function from the state at the stage's first step to the one that it begins with.
    """

    stage: Stage
    step_fn: Step
    flops: float | None
    begun: Callable[[TrainState], TrainState]


def compile_phases(run: "Run", state: TrainState) -> list[Phase]:
    """Compiles ahead of the first step, so that its time is not mistaken for a step's.

    Args:
      run: the run, whose `steps` are compiled.
      state: the TrainState that the first step takes.

    Returns:
      The phases that are still to come.
    """
    last = max(stage.first_step for stage, _ in run.steps if stage.first_step <= int(state.step))
    shardings = jax.tree.map(lambda array: array.sharding, state)
    has_peak = peak_flops(run.mesh.devices.flat[0].device_kind) is not None
    config: Any = run.config
    rows_over = parallel.batch_sharding(run.mesh)
    compiled = []
    run.console.say(f"compiling the train step ({_how_long(run.workdir)})")
    with run.clock.phase("compile"):
        for stage, step_fn in run.steps:
            if stage.first_step < last:
                continue
            batch = batch_shapes(
                config, stage.objective.inputs, sharding=rows_over, image_size=stage.image_size
            )
            step_fn = jit_step(step_fn, mesh=run.mesh, state_sharding=shardings)
            step_fn = step_fn.lower(state, batch).compile()
            seen = jax.eval_shape(lambda *of, s=stage: seen_of(s, *of), state.rng, batch)
            rows = stage.objective.rows
            frozen = frozen_towers(config.optimizer.freeze, state.params)
            flops = model_flops(config.model, seen, rows, frozen) if has_peak else None
            begun = _begun(stage, run.optimizer, shardings)
            compiled.append(Phase(stage, step_fn, flops, begun))
    seconds = run.clock.seconds()["compile"]
    run.console.say(f"train step compiled in {seconds:.1f} s")
    run.writer.write(int(state.step), {}, system={"compile_seconds": seconds})
    return compiled


def _how_long(workdir: epath.Path) -> str:
    """About how long compilation takes: as long as at the last start of this run."""
    if jax.process_index() != 0:
        return ""  # which is not said
    lines = read_metrics(workdir)
    seconds = [line["compile_seconds"] for line in lines if line.get("compile_seconds")]
    if seconds:
        return f"about {duration_in_words(seconds[-1])}, as at the last start"
    return "about a minute; large models take several"


def _begun(
    stage: Stage, optimizer: optax.GradientTransformation, shardings: TrainState
) -> Callable[[TrainState], TrainState]:
    if not stage.starts_anew:
        return lambda state: state
    initial = jax.jit(optimizer.init, out_shardings=shardings.opt_state)
    return lambda state: dataclasses.replace(state, opt_state=initial(state.params))
