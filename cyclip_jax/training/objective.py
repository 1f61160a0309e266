"""What a step minimises: a table of terms, each a function of embeddings and of the batch."""

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from cyclip_jax.errors import UserError
from cyclip_jax.losses.classes import HEAD
from cyclip_jax.losses.cyclip import contrastive_term, cyclic_term
from cyclip_jax.losses.nested import check_nested_dims, nested
from cyclip_jax.losses.primary_components import primary_components_term
from cyclip_jax.losses.second_views import VIEWS, second_view_term
from cyclip_jax.losses.sigmoid import INITIAL_LOGIT_SCALE
from cyclip_jax.losses.terms import (
    Embeds,
    Reported,
    Row,
    Rows,
    Scalars,
    Scales,
    Term,
    Weight,
    check_detached_gather,
    is_zero,
    weighted_sum,
)
from cyclip_jax.losses.tiles import CHUNK_SIZE
from cyclip_jax.losses.uniformity import uniformity_term
from cyclip_jax.models.clip import MAX_LOGIT_SCALE
from cyclip_jax.models.presets import sizes_in
from cyclip_jax.training.classes import classes_term
from cyclip_jax.training.sentences import sentences_term

# {name: the function of settings that makes the term}, in the order in which terms are added up.
# The settings are keys of config.loss, or the keys of a section of the config that has the term's
# name: a config without the section, as an older one, leaves such a term out. What config.data
# says of second views stands in for a section of that name.
TERMS: Mapping[str, Callable[..., Term]] = {
    "contrastive": contrastive_term,
    "second_views": second_view_term,
    "primary_components": primary_components_term,
    "cyclic": cyclic_term,
    "uniformity": uniformity_term,
    "sentences": sentences_term,
    "classes": classes_term,
}

_SECOND_VIEWS = {"image": "second_image", "text": "second_caption"}


class Objective:
    """The sum of the table's terms, as the section `config.loss` and the terms' own sections say.

    A term whose weights are all the number 0 is left out before anything is traced: it costs no
    pass through a tower, no collective and no operation. The two cyclic consistencies alone are
    measured at any weight.

    Args:
      contrastive: "softmax" or "sigmoid" (see `contrastive_term`).
      initial_logit_scale: where the model's scale starts; None is where the kind of the contrastive
        term wants it.
      initial_logit_bias: where its bias starts, if it has one.
      label_smoothing: of the softmax (see `info_nce`).
      inmodal_weight: λ1 of the paper, a factor of the in-modal consistency.
      crossmodal_weight: λ2 of the paper, a factor of the cross-modal consistency.
      cyclic_normalization: "reference" divides the cyclic double sums by N, as published;
        "batch_size_free" divides them by N²/128 (see `cyclip_loss`).
      cyclic_warmup_steps: over so many steps from the beginning λ1 and λ2 grow linearly from 0.
      second_view_weight: share of the contrastive part that second views have, where there are
        any (see `second_view_term`).
      second_view_warmup_steps: over so many steps it grows linearly from 0.
      primary_components_weight, primary_components_kept, primary_components_warmup_steps: see
        `primary_components_term`.
      uniformity_weight, cross_uniformity_weight, alignment_weight, uniformity_warmup_steps: see
        `uniformity_term`.
      nested_dims: sizes of the embeddings over which the terms of pairs are averaged (see
        `nested`); () is their own size alone.
      chunk_size: rows of each device in a tile of the similarities; it changes only memory and
        speed.
      detached_gather_devices: W, by which the gradients of the towers are divided, as in the
        official code; 1 is the true gradient (see `cyclip_loss`).
      **sections: settings of the terms that have a section of their own, by the terms' names; and
        what examples have of "negatives" (see `contrastive_term`).

    Attributes:
      first_step: the first step of the run that sees pairs, from which on weights grow.
      warmups: {name of a setting of the loss: steps over which weights grow}.
      wants_short_captions: whether there is a term of them, which an objective without second
        captions leaves out.
      detached_gather_devices: as given.
      nested_dims: as given.
      initial_scalars: {name of a scalar parameter: its value in a new model}, where that is not
        the model's own.
      terms: {name: Term}, the terms that are computed.

    Raises:
      UserError: a setting is unknown, or has a value that it cannot have.
    """

    def __init__(
        self,
        *,
        contrastive: str = "softmax",
        initial_logit_scale: float | None = None,
        initial_logit_bias: float = -10.0,
        label_smoothing: float = 0.0,
        inmodal_weight: Weight = 0.25,
        crossmodal_weight: Weight = 0.25,
        cyclic_normalization: str = "reference",
        cyclic_warmup_steps: int = 0,
        second_view_weight: Weight = 0.5,
        second_view_warmup_steps: int = 0,
        primary_components_weight: Weight = 0.0,
        primary_components_kept: int = 32,
        primary_components_warmup_steps: int = 0,
        uniformity_weight: Weight = 0.0,
        cross_uniformity_weight: Weight = 0.0,
        alignment_weight: Weight = 0.0,
        uniformity_warmup_steps: int = 0,
        nested_dims: tuple[int, ...] = (),
        chunk_size: int = CHUNK_SIZE,
        detached_gather_devices: int = 1,
        **sections: Any,
    ) -> None:
        check_detached_gather(detached_gather_devices)
        check_nested_dims(nested_dims)
        loss = {
            "contrastive": contrastive,
            "label_smoothing": label_smoothing,
            "inmodal_weight": inmodal_weight,
            "crossmodal_weight": crossmodal_weight,
            "cyclic_normalization": cyclic_normalization,
            "cyclic_warmup_steps": cyclic_warmup_steps,
            "second_view_weight": second_view_weight,
            "second_view_warmup_steps": second_view_warmup_steps,
            "primary_components_weight": primary_components_weight,
            "primary_components_kept": primary_components_kept,
            "primary_components_warmup_steps": primary_components_warmup_steps,
            "uniformity_weight": uniformity_weight,
            "cross_uniformity_weight": cross_uniformity_weight,
            "alignment_weight": alignment_weight,
            "uniformity_warmup_steps": uniformity_warmup_steps,
            "chunk_size": chunk_size,
            "negatives": sections.pop("negatives", ()),
        }
        _check_sections(sections)
        # What the second views leave of the contrastive loss between images and texts.
        loss["contrastive_weight"] = 1 - second_view_weight if "second_views" in sections else None
        sentences = sections.get("sentences")
        self.first_step = sentences["only_steps"] if sentences else 0  # none has pairs before
        self.warmups = {n: steps for n, steps in loss.items() if n.endswith("_warmup_steps")}
        self.wants_short_captions = not is_zero(primary_components_weight)
        self.detached_gather_devices = detached_gather_devices
        self.nested_dims = nested_dims
        self.initial_scalars = _initial_scalars(
            contrastive, initial_logit_scale, initial_logit_bias
        )
        self.terms: dict[str, Term] = _terms(loss, sections, nested_dims)

    def only(self, *names: str) -> Self:
        """The same objective with the named terms alone, for a phase in which no other runs.

        Raises:
          KeyError: this objective lacks one of the terms.
        """
        part = copy.copy(self)
        part.terms = {name: self.terms[name] for name in names}
        return part

    @property
    def rows(self) -> dict[str, Row]:
        """The embeddings that the terms take, by their names."""
        return {name: row for term in self.terms.values() for name, row in term.rows.items()}

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Keys of the batch that the terms read themselves."""
        return tuple(dict.fromkeys(key for term in self.terms.values() for key in term.batch_keys))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Keys of the batch that data have to fill: nothing is drawn for them."""
        keys = (*(Row(*row).key for row in self.rows.values()), *self.batch_keys)
        return tuple(dict.fromkeys(keys))

    def with_drawn(self, key: Array, batch: Rows) -> Rows:
        """A step's batch with what the terms add to it at random.

        Args:
          key: the step's.
          batch: holds `inputs`, [n, ...].
        """
        for term in self.terms.values():
            if term.draw is not None:
                batch = {**batch, **term.draw(key, batch)}
        return batch

    @property
    def scales(self) -> tuple[str, ...]:
        """Names of the model's scalar parameters whose exponentials the terms take."""
        return tuple(dict.fromkeys(name for term in self.terms.values() for name in term.scales))

    @property
    def biases(self) -> tuple[str, ...]:
        """Names of the model's other parameters that the terms take as they are."""
        return tuple(dict.fromkeys(name for term in self.terms.values() for name in term.biases))

    def exponentiated(self, scalars: Scales) -> Scales:
        """The model's scalar parameters by name as the terms take them: scales exponentiated."""
        return {name: jnp.exp(x) if name in self.scales else x for name, x in scalars.items()}

    def check_model(self, settings: Mapping[str, Any]) -> None:
        """Raises UserError where the terms ask for what a model lacks.

        Args:
          settings: of the model, complete.
        """
        if "logit_bias" in self.biases and not settings["logit_bias"]:
            raise UserError(
                "config.loss.contrastive 'sigmoid' learns a bias, and the model has none; set "
                "config.model.logit_bias to True"
            )
        if HEAD in self.biases and settings["num_classes"] is None:
            raise UserError(
                "config.classes.loss 'head' trains a head, and the model has none; set "
                "config.model.num_classes to the number of classes"
            )
        check_nested_dims(self.nested_dims, sizes_in(settings)["embed_dim"])

    @property
    def reports(self) -> dict[str, Reported]:
        """What the terms say of their metrics, in the order in which they are shown."""
        return {name: told for term in self.terms.values() for name, told in term.reports.items()}

    @property
    def of_equal_embeds(self) -> dict[str, Callable[[int], float]]:
        """What the terms' metrics are where all embeddings are equal, as `Term` says it."""
        return {
            name: value
            for term in self.terms.values()
            for name, value in term.of_equal_embeds.items()
        }

    def __call__(
        self,
        embeds: Embeds,
        batch: Rows,
        scales: Scales,
        *,
        step: Int[Array, ""] | int | None = None,
        mesh: Mesh | None = None,
    ) -> tuple[Float[Array, ""], Scalars]:
        """Adds up the terms with their weights.

        Args:
          embeds: unit-norm embeddings of the global batch by the names of `rows`, float [N, D].
          batch: holds `batch_keys`, [N, ...].
          scales: scalars by the names of `scales`, already exponentiated, and of `biases`.
          step: of the run, by which weights grow; None stands for any after the warm-up.
          mesh: a jax.sharding.Mesh, all of whose axes the rows are split over; None is one device.

        Returns:
          (loss, metrics): a scalar of at least float32, and a dict of scalars.
        """
        return weighted_sum(
            tuple(self.terms.values()),
            {name: embeds[name] for name in self.rows},
            {key: batch[key] for key in self.batch_keys},
            {name: scales[name] for name in (*self.scales, *self.biases)},
            step=None if step is None else step - self.first_step,
            detached_gather_devices=self.detached_gather_devices,
            mesh=mesh,
        )


def _check_sections(sections):
    """Raises UserError where a section is that of no term."""
    unknown = sorted(sections.keys() - TERMS.keys())
    if unknown:
        *settings, _ = inspect.signature(Objective).parameters
        raise UserError(
            f"config.loss.{unknown[0]} is not a setting of the loss; the settings are "
            f"{', '.join(settings)}"
        )


def _terms(loss, sections, nested_dims):
    """{name: Term}, the terms that are computed.

    Args:
      loss: settings of config.loss, and what follows from them.
      sections: those of the terms with a section of their own.
      nested_dims: sizes over which the terms of pairs are averaged.
    """
    views = sections.get("second_views", {}).get("views", ())
    absent = {second for view, (_, second, _) in VIEWS.items() if view not in views}
    terms = {}
    for name, make in TERMS.items():
        keys = inspect.signature(make).parameters.keys()
        if name not in sections and not keys <= loss.keys():
            continue  # a term whose section is missing
        settings = {key: loss[key] for key in keys if key in loss}
        term = make(**settings | dict(sections.get(name, {})))
        if nested_dims and all(row.tower != "sentences" for row in term.rows.values()):
            term = nested(term, nested_dims)
        if name not in sections and absent & term.rows.keys():
            continue  # it takes second views that there are not; its settings are checked
        if term.is_computed:
            terms[name] = term
    if "classes" in terms:  # in place of pairs
        return {"classes": terms["classes"]}
    return terms


def _initial_scalars(contrastive, scale, bias):
    """The values of `Objective.initial_scalars`."""
    if scale is not None and not 1 <= scale <= math.exp(MAX_LOGIT_SCALE):
        raise UserError(
            f"config.loss.initial_logit_scale {scale} must be at least 1 and at most "
            f"{math.exp(MAX_LOGIT_SCALE):.0f}, between which the scale is kept"
        )
    if scale is None and contrastive == "sigmoid":
        scale = INITIAL_LOGIT_SCALE
    return {"logit_bias": bias} | ({} if scale is None else {"logit_scale": math.log(scale)})


def configured_objective(config: Any) -> Objective:
    """The objective that `config.loss` and the terms' own sections describe.

    Args:
      config: a ConfigDict as defaults.py makes it.

    Raises:
      UserError: as in `Objective`.
    """
    sections = {name: config[name] for name in TERMS if name in config}
    views = [view for view, key in _SECOND_VIEWS.items() if config.data[key] != "none"]
    if views:
        sections["second_views"] = {"views": views}
    if config.data.negative_caption != "none":
        has_images = config.data.negative_image_key is not None
        sections["negatives"] = ("texts", "images") if has_images else ("texts",)
    return Objective(**config.loss, **sections)
