"""Checks a run's config: each section becomes what its own constructor makes of it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from cyclip_jax import evals, parallel
from cyclip_jax.data.order import Position, steps_per_epoch
from cyclip_jax.data.sentences import CAPTIONS
from cyclip_jax.data.settings import Data
from cyclip_jax.errors import UserError
from cyclip_jax.files import FilePath, located_from_anywhere
from cyclip_jax.interop.long_texts import check_stretch
from cyclip_jax.interop.weights import check_parts
from cyclip_jax.models.presets import sizes_in
from cyclip_jax.runtime.profiling import check_profile_steps
from cyclip_jax.runtime.sections import constructed
from cyclip_jax.runtime.weights_and_biases import WeightsAndBiases
from cyclip_jax.training.averaging import Average
from cyclip_jax.training.classes import Classes
from cyclip_jax.training.objective import Objective
from cyclip_jax.training.optimizer import Optimizer
from cyclip_jax.training.schedules import check_lengths, check_warmup
from cyclip_jax.training.sentences import Sentences
from cyclip_jax.training.token_reduction import TokenReduction
from cyclip_jax.workdir.layout import OF_AVERAGE

# {section: its constructor}; a section that is missing here stays as it is written.
SECTIONS: dict[str, Callable[..., Any]] = {
    "wandb": WeightsAndBiases,
    "mesh": parallel.MeshSettings,
    "tokens": TokenReduction,
    "loss": Objective,
    "sentences": Sentences,
    "classes": Classes,
    "optimizer": Optimizer,
    "average": Average,
    "data": Data,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The config of a run, whose fields are the config's.

    Attributes:
      wandb, mesh, tokens, loss, sentences, classes, optimizer, average, data: what SECTIONS makes
        of these sections.
      model, evals: these sections as they are written, for `create_model` and the evaluators.
      …: see defaults.py.

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    seed: int
    batch_size: int
    micro_batches: int
    total_steps: int | None
    num_epochs: int | None
    log_every_steps: int
    eval_every_steps: int
    checkpoint_every_steps: int
    keep_checkpoints: int | None
    keep_every_steps: int | None
    keep_best: str | None
    init_from: FilePath | None
    init_parts: Sequence[str]
    init_keep_positions: int | None
    max_skipped_in_a_row: int
    matmul_precision: str
    compilation_cache: FilePath | None
    profile_steps: tuple[int, int] | None
    stall_factor: float
    wandb: WeightsAndBiases
    model: Mapping[str, Any]
    tokens: TokenReduction
    mesh: parallel.MeshSettings
    loss: Objective
    sentences: Sentences
    classes: Classes
    optimizer: Optimizer
    average: Average
    data: Data
    evals: Mapping[str, Any]

    def __post_init__(self) -> None:
        if (self.total_steps is None) == (self.num_epochs is None):
            raise UserError("set exactly one of config.total_steps and config.num_epochs")
        for name in ("total_steps", "num_epochs", "keep_checkpoints"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UserError(f"config.{name} is {number}; set it to at least 1")
        if not -(2**63) <= self.seed < 2**63:
            raise UserError(
                f"config.seed is {self.seed}, which does not fit into 64 bits; set it below 2**63"
            )
        if self.mesh.gradient_dtype == "bfloat16" != self.model["dtype"]:
            raise UserError(
                "config.mesh.gradient_dtype 'bfloat16' is for models that compute in it; set "
                "config.model.dtype to 'bfloat16' as well"
            )
        check_parts(self.init_parts, self.init_from)
        sizes = sizes_in(self.model)
        check_stretch(self.init_keep_positions, self.init_from, self.init_parts, sizes)
        check_profile_steps(self.profile_steps)
        self.loss.check_model(self.model)
        if self.loss.wants_short_captions and self.data.second_caption == "none":
            raise UserError(
                "config.loss.primary_components_weight is that of a term with short captions, "
                "which are second views of captions; set config.data.second_caption="
                "'first_sentence', or 'another' if the examples have short captions of their own"
            )
        self.tokens.reduced_view(sizes)
        self.check_length(self.total_steps)
        if self.classes.is_on:
            self._check_classes()
        elif self.has_pairs:
            self.data.training_sets()
        self._check_keep_best(evals.check_settings(self.evals))

    def _check_classes(self):
        """Raises UserError where something else is asked for that labelled pictures do not have."""
        others = {
            "data.train": self.data.train,
            "data.mixture": dict(self.data.mixture) or None,
            "data.kept": self.data.kept,
            "sentences.train": self.sentences.train,
        }
        for name, value in others.items():
            if value is not None:
                raise UserError(
                    f"config.classes.train and config.{name} are both set, and a run trains on "
                    "one of them; leave out the other"
                )

    def _check_keep_best(self, evaluations):
        if self.keep_best is None:
            return
        evaluation, _, metric = self.keep_best.partition("/")
        if self.average.is_on:
            evaluation = evaluation.removesuffix(OF_AVERAGE)
        if evaluation not in evaluations or not metric:
            raise UserError(
                f"config.keep_best {self.keep_best!r} is no metric of an evaluation of this run; "
                "write it as in metrics.jsonl, <evaluation>/<metric>; the evaluations are "
                f"{', '.join(evaluations) or 'none, as config.data.validation is not set'}"
            )
        if self.eval_every_steps <= 0:
            raise UserError(
                f"config.keep_best {self.keep_best!r} needs evaluations during the run; set "
                "config.eval_every_steps"
            )

    @property
    def has_pairs(self) -> bool:
        """Whether the run reads pairs: for a step that sees them, or for their captions."""
        only = self.total_steps is not None and self.sentences.only_steps >= self.total_steps
        return not only or self.sentences.train == CAPTIONS

    def check_length(self, total_steps: int | None) -> None:
        """Raises UserError where a run is too short for what is to happen in it.

        Args:
          total_steps: its length; None where that is not known yet.
        """
        only = self.sentences.only_steps
        if total_steps is not None:
            if only > total_steps:
                raise UserError(
                    f"config.sentences.only_steps {only} are more than the run's {total_steps} "
                    "steps; lower them, or set config.total_steps higher"
                )
            if only == total_steps:  # there are no pairs, for which the weights grow
                return self._check_schedule(total_steps)
            total_steps -= only
        for name, steps in self.loss.warmups.items():
            check_warmup(steps, total_steps, f"config.loss.{name}")
        self._check_schedule(total_steps)

    def _check_schedule(self, total_steps):
        own = self.tokens.own_course
        if own is not None:
            steps, _, warmup_steps = own
            check_lengths(warmup_steps, steps, self.optimizer.cooldown_steps)
            if total_steps is not None and total_steps > steps:
                total_steps -= steps
        check_lengths(self.optimizer.warmup_steps, total_steps, self.optimizer.cooldown_steps)

    def run_length(self, examples: int, step: int = 0, position: Position | None = None) -> int:
        """The total steps of the run over data of so many examples.

        Args:
          examples: how many examples the data have.
          step: the steps that are done.
          position: the place in the data that they led to, by which the length in epochs is right
            with any batch size; None is the beginning.

        Steps on sentences alone come before the epochs.
        """
        if self.total_steps is not None:
            return self.total_steps
        whole = steps_per_epoch(examples, self.batch_size)
        position = position or Position(epoch=0, examples=0, seed=self.seed)
        left_of_epoch = (examples - position.examples) // self.batch_size
        left_of_sentences = max(self.sentences.only_steps - step, 0)
        return (
            step
            + left_of_sentences
            + ((self.num_epochs or 0) - position.epoch - 1) * whole
            + left_of_epoch
        )


def checked(config: Any) -> Settings:
    """The Settings of a config, a ConfigDict as defaults.py makes it.

    Raises:
      UserError: a field is missing or unknown, or the config alone shows that something is wrong.
    """
    sections = {
        name: constructed(SECTIONS[name], value, f"config.{name}") if name in SECTIONS else value
        for name, value in config.items()
    }
    return constructed(Settings, sections, "config")


def with_absolute_paths(config: Any) -> Any:
    """A locked copy of a config whose paths mean the same from any folder.

    Which fields are paths, the types of the sections' constructors say (see `files.Located`). ~ is
    the home folder. {workdir} stays as it is written.

    Args:
      config: a ConfigDict as defaults.py makes it.
    """
    written = located_from_anywhere(Settings, config.to_dict())
    for name, constructor in SECTIONS.items():
        if isinstance(written.get(name), Mapping):
            written[name] = located_from_anywhere(constructor, written[name])
    if isinstance(written.get("evals"), Mapping):
        written["evals"] = evals.settings_from_anywhere(written["evals"])
    return ml_collections.ConfigDict(written).lock()
