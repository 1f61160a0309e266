"""The stages of a run: what is trained, and on what, from which step on."""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from cyclip_jax.data.order import Position
from cyclip_jax.data.sentences import BATCH_KEYS, SentenceBatches
from cyclip_jax.models.presets import sizes_in
from cyclip_jax.training.freezing import Trainable
from cyclip_jax.training.objective import Objective
from cyclip_jax.training.sentences import Sentences
from cyclip_jax.training.step import Batch, View
from cyclip_jax.training.token_reduction import TokenReduction, see_everything

# Rows of pairs, with the place in the data after them.
Pairs: TypeAlias = Generator[tuple[dict[str, np.ndarray], Position], None, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What is trained, and on what, from a step of a run on.

    Attributes:
      first_step: the step at which it begins.
      view: what the towers see of a batch.
      objective: what is minimised.
      trainable: which parameters train, see `make_train_step`.
      starts_anew: whether the optimiser's state is that of a new run when the stage begins.
      image_size: pixels per side of the images that it sees; None is those of the model.
    """

    first_step: int
    view: View = see_everything
    objective: Objective
    trainable: Trainable | None = None
    starts_anew: bool = False
    image_size: int | None = None

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
    stages = []
    if only:
        alone = objective.only("sentences")
        stages.append(Stage(first_step=0, objective=alone, trainable=is_of_sentences))
    pairs_alone = objective.only(*(name for name in objective.terms if name != "sentences"))
    changes = sorted({only, end, *(first for first, _ in views)})
    for first in [first for first in changes if only <= first < total_steps]:
        stages.append(
            Stage(
                first_step=first,
                view=[view for start, view in views if start <= first][-1],
                objective=objective if first < end else pairs_alone,
                starts_anew=0 < first == only,
                image_size=tokens.image_size_at(first, total_steps),
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
    config: Any,
    keys: Sequence[str],
    rows: int | None = None,
    sharding: Sharding | None = None,
    image_size: int | None = None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch of a config as shapes.

    Args:
      config: as defaults.py makes it.
      keys: what the batch holds, as `Objective.inputs` names it.
      rows: pairs of the batch; None is config.batch_size.
      sharding: of the arrays.
      image_size: pixels per side of the images; None is those of the model.

    Returns:
      {key: jax.ShapeDtypeStruct}.
    """
    sizes, rows = sizes_in(config.model), rows or config.batch_size
    side, length = image_size or sizes["image_size"], sizes["context_length"]
    shapes: dict[str, Any] = {}
    pictures = ("images", "second_images", "negative_images")
    shapes |= dict.fromkeys(pictures, ((rows, side, side, 3), jnp.uint8))
    texts = ("tokens", "second_tokens", "negative_tokens")
    shapes |= dict.fromkeys(texts, ((rows, length), jnp.int32))
    shapes |= dict.fromkeys(("has_negative", "has_negative_image"), ((rows,), jnp.bool_))
    shapes["labels"] = (rows,), jnp.int32
    if not set(keys) <= shapes.keys():
        sentences = config.sentences
        shape = (sentences.batch_size, min(sentences.length, length))
        shapes |= dict.fromkeys(BATCH_KEYS, (shape, jnp.int32))
    return {key: jax.ShapeDtypeStruct(*shapes[key], sharding=sharding) for key in keys}


def seen_of(stage: Stage, key: jax.Array, batch: Batch) -> Batch:
    """What is embedded of a batch in a stage, with what is drawn for it."""
    return stage.objective.with_drawn(key, stage.view(key, batch))


def batches_of_run(
    stages: Sequence[Stage],
    step: int,
    pairs_from: Callable[[Position, int | None], Pairs],
    position: Position,
    sentences: SentenceBatches | None,
) -> Pairs:
    """What each step from `step` on sees, with the place in the pairs after it.

    Pairs are opened at once, and anew where a stage sees images of another size.

    Args:
      stages: of the run.
      step: the first step.
      pairs_from: function from a place in the pairs, and the pixels per side of images, None for
        those of the model, to a generator of (rows, position after them).
      position: the place in the pairs before the first step.
      sentences: function from a step to its rows; None where no stage asks for any.
    """
    begun = stage_at(stages, step).first_step
    of_pairs = [stage for stage in stages if stage.first_step >= begun and stage.has_pairs]
    size = of_pairs[0].image_size if of_pairs else None
    first = pairs_from(position, size) if of_pairs else None

    def batches(step: int, position: Position, pairs: Any, size: int | None) -> Pairs:
        with contextlib.ExitStack() as opened:
            if of_pairs:
                opened.enter_context(contextlib.closing(pairs))
            while True:
                stage, batch = stage_at(stages, step), {}
                if stage.has_pairs:
                    if stage.image_size != size:
                        opened.close()
                        size = stage.image_size
                        pairs = opened.enter_context(contextlib.closing(pairs_from(position, size)))
                    batch, position = next(pairs)
                if sentences is not None and "sentences" in stage.objective.inputs:
                    batch = {**batch, **sentences(step)}
                yield {key: batch[key] for key in stage.objective.inputs}, position
                step += 1

    return batches(step, position, first, size)
