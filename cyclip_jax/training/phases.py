"""Stretches of a run that have one compiled step each."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding

from cyclip_jax import parallel
from cyclip_jax.models.presets import sizes_in
from cyclip_jax.training.flops import model_flops, peak_flops
from cyclip_jax.training.objective import Objective
from cyclip_jax.training.sentences import Sentences
from cyclip_jax.training.step import Batch, Step, TrainState, View, jit_step
from cyclip_jax.training.token_reduction import TokenReduction, see_everything

if TYPE_CHECKING:
    from cyclip_jax.training.open_run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What is trained, and on what, from a step of a run on.

    Attributes:
      first_step: the step at which it begins.
      view: what the towers see of a batch.
      objective: what is minimised.
      trainable: which parameters train, see `make_train_step`.
      starts_anew: whether the optimiser's state is that of a new run when the stage begins.
    """

    first_step: int
    view: View = see_everything
    objective: Objective
    trainable: Callable[[tuple[str, ...]], bool] | None = None
    starts_anew: bool = False

    @property
    def has_pairs(self) -> bool:
        """Whether it sees images and captions."""
        return "images" in self.objective.inputs


def stages_of_run(
    objective: Objective,
    sentences: Sentences,
    tokens: TokenReduction,
    *,
    sizes: Any,
    total_steps: int,
) -> list[Stage]:
    """The stages of a run, in the order of its steps.

    While sentences are seen alone, the text tower alone trains. Where pairs follow, they begin as
    a new run would begin from this text tower: with the optimiser's first state.

    Args:
      objective: of the run, with all its terms.
      sentences: config.sentences.
      tokens: config.tokens.
      sizes: the model's sizes.
      total_steps: length of the run.

    Raises:
      UserError: the settings do not suit the model.
    """
    only, end = (sentences.only_steps, sentences.ends(total_steps)) if sentences.is_on else (0, 0)
    views = tokens.views_of_run(sizes, total_steps)
    first_steps = sorted({0, only, end, *(first for first, _ in views)})
    others = [name for name in objective.terms if name != "sentences"]
    stages = []
    for first in [first for first in first_steps if first < total_steps] or [0]:
        if first < only:
            if first == 0:
                alone = objective.only("sentences")
                stages.append(Stage(first_step=0, objective=alone, trainable=is_of_sentences))
            continue
        stages.append(
            Stage(
                first_step=first,
                view=[view for start, view in views if start <= first][-1],
                objective=objective if first < end else objective.only(*others),
                starts_anew=0 < first == only,
            )
        )
    return stages


def is_of_sentences(path: tuple[str, ...]) -> bool:
    """Whether training on sentences trains the parameter at a path."""
    return path[0] in ("text", "sentence_head")


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """The stage that a step belongs to."""
    return [stage for stage in stages if stage.first_step <= step][-1]


def batch_shapes(
    config: Any, keys: Sequence[str], rows: int | None = None, sharding: Sharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch of a config as shapes.

    Args:
      config: as defaults.py makes it.
      keys: what the batch holds, as `Objective.inputs` names it.
      rows: pairs of the batch; None is config.batch_size.
      sharding: of the arrays.

    Returns:
      {key: jax.ShapeDtypeStruct}.
    """
    sizes, rows = sizes_in(config.model), rows or config.batch_size
    side, length = sizes["image_size"], sizes["context_length"]
    shapes: dict[str, Any] = {}
    shapes |= dict.fromkeys(("images", "second_images"), ((rows, side, side, 3), jnp.uint8))
    shapes |= dict.fromkeys(("tokens", "second_tokens"), ((rows, length), jnp.int32))
    if not set(keys) <= shapes.keys():
        sentences = config.sentences
        shape = (sentences.batch_size, min(sentences.length, length))
        shapes |= dict.fromkeys(("sentences", "positives", "negatives"), (shape, jnp.int32))
    return {key: jax.ShapeDtypeStruct(*shapes[key], sharding=sharding) for key in keys}


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
    with run.clock.phase("compile"):
        for stage, step_fn in run.steps:
            if stage.first_step < last:
                continue
            batch = batch_shapes(config, stage.objective.inputs, sharding=rows_over)
            step_fn = jit_step(step_fn, mesh=run.mesh, state_sharding=shardings)
            step_fn = step_fn.lower(state, batch).compile()
            seen = jax.eval_shape(lambda *of, s=stage: seen_of(s, *of), state.rng, batch)
            rows = stage.objective.rows
            flops = model_flops(config.model, seen, rows) if has_peak else None
            begun = _begun(stage, run.optimizer, shardings)
            compiled.append(Phase(stage, step_fn, flops, begun))
    seconds = run.clock.seconds()["compile"]
    run.console.say(f"train step compiled in {seconds:.1f} s")
    run.writer.write(int(state.step), {"compile_seconds": seconds})
    return compiled


def seen_of(stage: Stage, key: jax.Array, batch: Batch) -> Batch:
    """What is embedded of a batch in a stage, with what is drawn for it."""
    return stage.objective.with_drawn(key, stage.view(key, batch))


def _begun(
    stage: Stage, optimizer: optax.GradientTransformation, shardings: TrainState
) -> Callable[[TrainState], TrainState]:
    if not stage.starts_anew:
        return lambda state: state
    initial = jax.jit(optimizer.init, out_shardings=shardings.opt_state)
    return lambda state: dataclasses.replace(state, opt_state=initial(state.params))
