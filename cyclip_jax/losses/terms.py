"""A term of an objective, and the weighted sum of several."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from cyclip_jax.errors import UserError

Weight = Float[Array, ""] | float
Scalars = dict[str, Float[Array, ""]]
# What a term takes of the model's parameters by name: numbers, or what a head has.
Scales = Mapping[str, Any]
Embeds = Mapping[str, Float[Array, "n d"]]
Rows = Mapping[str, Shaped[Array, "n ..."]]
# What a term measures: its values in the order of their weights, and other metrics.
Measured = tuple[Sequence[Float[Array, ""]], Scalars]


class Row(NamedTuple):
    """Which rows of a batch are embedded, and how.

    Attributes:
      tower: "visual", "text", or "sentences", which is the text tower in training on sentences.
      key: of the batch.
      masks: key of the batch that holds the rows' keys of dropout; None where nothing is dropped.
      dropout: share of the numbers that is dropped.
    """

    tower: str
    key: str
    masks: str | None = None
    dropout: float = 0.0


# The embeddings of pairs.
PAIRS: Mapping[str, Row] = {"images": Row("visual", "images"), "texts": Row("text", "tokens")}


def times(weight: Weight, share: Weight) -> Weight:
    """How most weights grow: in proportion."""
    return share * weight


def one(rows: int) -> float:
    """The factor of weights that mean the same for any number of rows: 1."""
    del rows
    return 1.0


def as_losses(values: Mapping[str, Float[Array, ""]], rows: int) -> Scalars:
    """Reports each value as it is, under the name `<value>_loss`."""
    del rows
    return {f"{name}_loss": value for name, value in values.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reported:
    """What a term says of one of its metrics, for whoever shows it.

    Attributes:
      meaning: what it is, as the caption of its curve begins: "The contrastive term".
      unit: in what it counts, by a name of `evals.metric.Unit`. The table at the end of a run has a
        row for what is no share, and the report has a curve of each loss.
      better: whether more or less of it is better; None where neither is.
    """

    meaning: str
    unit: Literal["loss", "share", "number"] = "loss"
    better: Literal["more", "less"] | None = "less"

    def __post_init__(self) -> None:
        if self.unit not in ("loss", "share", "number") or self.better not in (
            "more",
            "less",
            None,
        ):
            raise ValueError(
                f"a metric has the unit {self.unit!r}, of which {self.better!r} is better"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """A part of an objective: one function of embeddings, which gives one or several values.

    Attributes:
      measure: function (embeds, batch, scales, axis_names) -> (values, metrics). It sees the rows
        that one device holds: `embeds` by the names of `rows`, unit norm, float [n, D], and `batch`
        by `batch_keys`, [n, ...]. `scales` are scalars by the names of the attributes `scales`,
        already exponentiated, and `biases`. `axis_names` are the mesh axes that the rows are split
        over, for its collectives; () is one device. Values and metrics are scalars of the global
        batch, the same on every device: the values in the order of `weights`, the metrics by name.
      weights: {name of a value: its weight}. None stands for a value that is added as it is.
      normalizer: function N -> factor of the weights, for a global batch of N rows.
      report: function ({name: value}, N) -> {metric: scalar}: the values as metrics.
      reports: {metric: what it is}, all metrics that the term adds to those of a step, in the order
        in which they are shown.
      of_equal_embeds: {metric: function N -> the value that it has where all N rows have equal
        embeddings}, for values that show by this that nothing is learned.
      warmup_steps: over so many steps from the first that sees pairs the weights grow linearly from
        0. The weights of each step are then metrics of it, `<value>_weight`.
      grown: function (weight, share of the warm-up that is done, 0 to 1) -> the weight then.
      rows: the embeddings that the term takes by their names, of which each means the same in every
        term. They need not be as many as those of other terms.
      batch_keys: keys of the batch that `measure` reads itself.
      draw: function (key, batch) -> {key of the batch: array [n, ...]}: what the term adds to each
        step's batch at random. It follows from the step's key and the number of the row alone.
      is_of_published_code: whether `detached_gather_devices` divides the gradient of the term's
        embeddings.
      scales: names of the model's scalar parameters whose exponentials the term takes.
      biases: names of those parameters that it takes as they are.
      is_always_measured: whether the term is measured, without a gradient, where its weights are 0.
    """

    measure: Callable[[Embeds, Rows, Scales, tuple[str, ...]], Measured]
    weights: Mapping[str, Weight | None]
    normalizer: Callable[[int], float] = one
    report: Callable[[Mapping[str, Float[Array, ""]], int], Scalars] = as_losses
    reports: Mapping[str, Reported]
    of_equal_embeds: Mapping[str, Callable[[int], float]] = dataclasses.field(default_factory=dict)
    warmup_steps: int = 0
    grown: Callable[[Weight, Weight], Weight] = times
    rows: Mapping[str, Row] = dataclasses.field(default_factory=lambda: PAIRS)
    batch_keys: tuple[str, ...] = ()
    draw: Callable[[Array, Rows], dict[str, Array]] | None = None
    is_of_published_code: bool = True
    scales: tuple[str, ...] = ("logit_scale",)
    biases: tuple[str, ...] = ()
    is_always_measured: bool = False

    @property
    def is_computed(self) -> bool:
        """Whether the term is computed, which it is not where each weight is the number 0."""
        return self.is_always_measured or not all(map(is_zero, self.weights.values()))


def is_zero(weight: Weight | None) -> bool:
    """Whether a weight is the number 0; a traced weight never counts as that."""
    return isinstance(weight, int | float) and weight == 0


def weighted_sum(
    terms: Sequence[Term],
    embeds: Embeds,
    batch: Rows,
    scales: Scales,
    *,
    step: Int[Array, ""] | int | None = None,
    detached_gather_devices: int = 1,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], Scalars]:
    """Adds up terms with their weights; each device measures its own rows, in one `shard_map`.

    Args:
      terms: the terms that are added up, in this order.
      embeds: unit-norm embeddings of the global batch by the names of the terms' `rows`, float
        [N, D].
      batch: what the terms' `batch_keys` name, [N, ...].
      scales: {name: scalar}: scales, already exponentiated, and biases.
      step: counted from the first that sees pairs, by which weights grow; before it, and for None,
        they are whole.
      detached_gather_devices: W, by which the gradient of the embeddings is divided (see
        `cyclip_loss`).
      mesh: a jax.sharding.Mesh, all of whose axes the rows are split over; None is one device.

    Returns:
      (loss, metrics): a scalar of at least float32, and a dict of scalars: `loss`, what the terms
      report of their values, `temperature` where there is a "logit_scale", the terms' other
      metrics.

    Raises:
      ValueError: no term has a weight other than 0.
      UserError: there is no device to gather over.
    """
    check_detached_gather(detached_gather_devices)
    detached = {name for term in terms if term.is_of_published_code for name in term.rows}
    embeds = {
        name: scale_gradient(rows, 1 / detached_gather_devices) if name in detached else rows
        for name, rows in embeds.items()
    }
    measured = _measured(terms, embeds, batch, scales, mesh)
    counts = [embeds[next(iter(term.rows))].shape[0] for term in terms]
    weights = [_weights_at(term, step) for term in terms]
    loss = None
    for term, n, (values, _), own in zip(terms, counts, measured, weights, strict=True):
        for weight, value in zip(own.values(), values, strict=True):
            # Left out, a value costs no gradient.
            if not is_zero(weight):
                part = value if weight is None else term.normalizer(n) * weight * value
                loss = part if loss is None else loss + part
    if loss is None:
        raise ValueError("no term of the objective has a weight other than 0")
    metrics = {"loss": loss}
    for term, n, (values, _) in zip(terms, counts, measured, strict=True):
        metrics |= term.report(dict(zip(term.weights, values, strict=True)), n)
    if "logit_scale" in scales:
        metrics["temperature"] = 1 / jnp.asarray(scales["logit_scale"], loss.dtype)
    for _, others in measured:
        metrics |= others
    for term, own in zip(terms, weights, strict=True):
        if own is not term.weights:
            metrics |= {
                f"{name}_weight": jnp.asarray(w, loss.dtype)
                for name, w in own.items()
                if w is not None
            }
    return loss, metrics


def _weights_at(term: Term, step: Int[Array, ""] | int | None) -> Mapping[str, Weight | None]:
    """The weights of a term at a step; those that are 0 or None stay what they are."""
    if step is None or term.warmup_steps == 0:
        return term.weights
    share = jnp.minimum(step / term.warmup_steps, 1)
    share = jnp.where(step < 0, 1, share)
    return {
        name: weight if weight is None or is_zero(weight) else term.grown(weight, share)
        for name, weight in term.weights.items()
    }


def _measured(
    terms: Sequence[Term], embeds: Embeds, batch: Rows, scales: Scales, mesh: Mesh | None
) -> list[Measured]:
    """What every term measures, in their order."""

    def measure(embeds, batch, scales, *, axis_names=()):
        return [term.measure(embeds, batch, scales, axis_names) for term in terms]

    if mesh is None or mesh.size == 1:
        return measure(embeds, batch, scales)
    rows = PartitionSpec(mesh.axis_names)
    return jax.shard_map(
        functools.partial(measure, axis_names=mesh.axis_names),
        mesh=mesh,
        in_specs=(rows, rows, PartitionSpec()),
        out_specs=PartitionSpec(),
    )(embeds, batch, scales)


def check_weight_warmup(term: str, steps: int, section: str = "loss") -> None:
    """Raises UserError where the warm-up of a term's weights is negative."""
    if steps < 0:
        raise UserError(f"config.{section}.{term}_warmup_steps {steps} must be at least 0")


def weight_reports(values: Iterable[str], warmup_steps: int) -> dict[str, Reported]:
    """What a term says of its weights, which are metrics while they grow.

    Args:
      values: names of the weighted values.
      warmup_steps: of the term; 0 is a term whose weights stay the same.
    """
    if not warmup_steps:
        return {}
    return {
        f"{name}_weight": Reported(
            meaning=f"The weight of {name} at the step", unit="number", better=None
        )
        for name in values
    }


def check_detached_gather(devices: int) -> None:
    """Raises UserError where there is no device to gather over."""
    if devices < 1:
        raise UserError(
            f"config.loss.detached_gather_devices {devices} must be at least 1, which is the true "
            "gradient"
        )


def scale_gradient(x: Float[Array, "..."], factor: float) -> Float[Array, "..."]:
    """Returns x itself, with `factor` times its gradient."""
    constant = jax.lax.stop_gradient(x)
    return constant + factor * (x - constant)
