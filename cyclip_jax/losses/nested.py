"""Nested dimensions: a term that the first numbers of an embedding are to serve by themselves."""

import dataclasses
from collections.abc import Sequence

from cyclip_jax.errors import UserError
from cyclip_jax.losses.terms import Embeds, Term
from cyclip_jax.losses.tiles import at_least_float32


def shortened(embeds: Embeds, dims: int) -> Embeds:
    """The first numbers of embeddings, scaled to length 1 again.

    Args:
      embeds: unit-norm embeddings by name, float [N, D].
      dims: how many numbers are kept; with D the embeddings are returned as they are.
    """

    def shorten(rows):
        if rows.shape[1] == dims:
            return rows
        (kept,) = at_least_float32(rows[:, :dims])
        return kept / (kept**2).sum(axis=1, keepdims=True) ** 0.5

    return {name: shorten(rows) for name, rows in embeds.items()}


def nested(term: Term, dims: Sequence[int]) -> Term:
    """A term whose values are means over several sizes of the embeddings.

    mean_m L(the first m numbers, scaled to length 1 again), as in Kusupati et al. (2022, eq. 1)
    with equal weights. What else the term measures is that of the first size.

    Args:
      term: of embeddings with D numbers.
      dims: the sizes m, the largest first.
    """
    if len(dims) == 1:
        return dataclasses.replace(
            term, measure=lambda embeds, *rest: term.measure(shortened(embeds, dims[0]), *rest)
        )

    def measure(embeds, batch, scales, axis_names):
        sizes = [term.measure(shortened(embeds, m), batch, scales, axis_names) for m in dims]
        values = [sum(of_size) / len(dims) for of_size in zip(*(v for v, _ in sizes), strict=True)]
        return values, sizes[0][1]

    return dataclasses.replace(term, measure=measure)


def check_nested_dims(dims: Sequence[int], embed_dim: int | None = None) -> None:
    """Raises UserError unless sizes fall, each at least 1, and none is larger than the embeddings.

    Args:
      dims: config.loss.nested_dims.
      embed_dim: of the model; None is not known yet.
    """
    name = f"config.loss.nested_dims {tuple(dims)}"
    if any(m < 1 for m in dims) or list(dims) != sorted(set(dims), reverse=True):
        raise UserError(f"{name} must be whole numbers of at least 1, the largest first")
    if embed_dim is not None and dims and dims[0] != embed_dim:
        raise UserError(f"{name} must begin with the model's {embed_dim} dimensions")
