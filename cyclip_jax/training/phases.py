"""Stretches of a run that have one compiled step each."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax

from cyclip_jax.training.flops import model_flops, peak_flops
from cyclip_jax.training.objective import configured_objective
from cyclip_jax.training.step import Batch, Step, TrainState, jit_step

if TYPE_CHECKING:
    from cyclip_jax.training.open_run import Run


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of the run with one compiled step.

    Attributes:
      first_step: the step at which the stretch begins.
      step_fn: the compiled step.
      flops: the model's floating point operations in a step; None where the device's peak is not
        known.
    """

    first_step: int
    step_fn: Step
    flops: float | None


def compile_phases(run: "Run", state: TrainState, batch: Batch) -> list[Phase]:
    """Compiles ahead of the first step, so that its time is not mistaken for a step's.

    Args:
      run: the run, whose `steps` are compiled. Each may have a view and an objective of its own.
      state: the TrainState that the first step takes.
      batch: the first batch. As it has been read, faults of the data show before anything is
        compiled.

    Returns:
      The phases that are still to come.
    """
    last = max(first_step for first_step, *_ in run.steps if first_step <= int(state.step))
    shardings = jax.tree.map(lambda array: array.sharding, state)
    has_peak = peak_flops(run.mesh.devices.flat[0].device_kind) is not None
    config: Any = run.config
    rows = configured_objective(config).rows
    compiled = []
    with run.clock.phase("compile"):
        for first_step, view, step_fn in run.steps:
            if first_step < last:
                continue
            step_fn = jit_step(step_fn, mesh=run.mesh, state_sharding=shardings)
            step_fn = step_fn.lower(state, batch).compile()
            seen = jax.eval_shape(view, state.rng, batch)
            flops = model_flops(config.model, seen, rows) if has_peak else None
            compiled.append(Phase(first_step, step_fn, flops))
    seconds = run.clock.seconds()["compile"]
    run.console.say(f"train step compiled in {seconds:.1f} s")
    run.writer.write(int(state.step), {"compile_seconds": seconds})
    return compiled
