"""Micro-batches with the gradient of the whole batch.

A contrastive loss needs every row's embedding at once, but not every row's activations: embed all
micro-batches and forget the activations, take the loss and its gradient at the embeddings, then
embed each micro-batch once more and pull its share back to the parameters (Gao et al. 2021,
"Scaling deep contrastive learning batch size under memory limited setup", section 3.2). It costs a
second forward pass; what stays in memory is one micro-batch's activations and [N, D] embeddings.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any  # of arrays


def embed_with_pullback(
    embed: Callable[[Tree, Tree], tuple[Tree, Tree]],
    params: Tree,
    batch: Tree,
    micro_batches: int = 1,
) -> tuple[Tree, Tree, Callable[[Tree], Tree]]:
    """Embeds a batch, and returns the function that pulls a gradient back to the parameters.

    Everything random must be in the batch, so that both passes over a micro-batch see the same.

    Args:
      embed: function (params, rows) -> (embeds, statistics). The embeds are a tree of [n, ...],
        whose rows depend on one another only through the statistics, as with BatchNorm.
      params: tree of arrays.
      batch: tree of arrays [N, ...].
      micro_batches: k, which divides N. Micro-batch i has rows i, i + k, …, the same number of each
        device's rows, and the same rows for any number of devices.

    Returns:
      (embeds, statistics, pull): embeds of [N, ...] in the batch's order, the mean of the
      micro-batches' statistics, and the function from the loss's gradient with respect to embeds
      to that with respect to params.
    """
    if micro_batches == 1:
        embeds, pull, statistics = jax.vjp(lambda p: embed(p, batch), params, has_aux=True)
        return embeds, statistics, lambda cotangents: pull(cotangents)[0]

    parts = split_rows(batch, micro_batches)
    _, (embeds, statistics) = jax.lax.scan(lambda _, rows: (None, embed(params, rows)), None, parts)

    def pull(cotangents):
        def add(gradient, part):
            rows, cotangent = part
            _, pull_part, _ = jax.vjp(lambda p: embed(p, rows), params, has_aux=True)
            return jax.tree.map(jnp.add, gradient, pull_part(cotangent)[0]), None

        start = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(add, start, (parts, split_rows(cotangents, micro_batches)))[0]

    mean = jax.tree.map(lambda values: values.mean(axis=0), statistics)
    return _merge(embeds), mean, pull


def split_rows(tree: Tree, parts: int) -> Tree:
    """[N, ...] -> [parts, N / parts, ...]; rows that a device holds stay on it."""
    return jax.tree.map(
        lambda rows: jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0), tree
    )


def _merge(tree: Tree) -> Tree:
    """The inverse of `split_rows`."""
    return jax.tree.map(lambda rows: jnp.moveaxis(rows, 0, 1).reshape(-1, *rows.shape[2:]), tree)
