"""Sums over all pairs of a function of their similarity: value and gradient in one pass of tiles.

The sum of a function over all pairs has a gradient that needs no other pair, as a softmax's has. So
a tile's similarities give its part of the value and of the gradient at once.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cyclip_jax.losses.tiles import (
    CHUNK_SIZE,
    at_least_float32,
    device_index,
    gather,
    over_chunks,
    product,
    sum_over,
    sum_scattered,
    tile_of,
    tile_rows,
)

# (similarities, whether a pair is an own one, scalars) -> a number for each pair.
OfPairs = Callable[..., Float[Array, "r n"]]


@functools.partial(jax.jit, static_argnames=("function", "chunk_size", "axis_names"), inline=True)
def pairwise_sum(
    function: OfPairs,
    queries: Float[Array, "n d"],
    keys: Float[Array, "n d"] | None,
    *scalars: Float[Array, ""] | float,
    chunk_size: int = CHUNK_SIZE,
    axis_names: tuple[str, ...] = (),
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Σ_ij function(⟨Q_i,K_j⟩, i = j, *scalars), on one device or inside `shard_map`.

    Each of W devices holds n = N/W rows. The keys are gathered once, and a tile is `chunk_size` of
    every device's keys against the local queries. A pass with gradients multiplies a tile three
    times: for the similarities, and for the gradients of queries and of keys. The latter's sums
    are scattered back to their devices tile by tile. Memory is O(N·D + c·N) per device.

    Args:
      function: takes similarities [r, n], booleans [r, n], and the scalars, and works number by
        number. It has to be the same object in each call, or it is compiled again.
      queries: unit-norm embeddings Q, float [N, D]; inside shard_map the device's rows, [n, D].
      keys: unit-norm embeddings K as queries; None are the queries themselves, and a pass with
        gradients then multiplies a tile twice, as the matrix is its own transpose.
      *scalars: what else the function takes. They have gradients, too.
      chunk_size: c, rows of each device in a tile, at least 1; it need not divide n.
      axis_names: the mesh axes that the rows are split over, inside shard_map; () is one device.

    Returns:
      (sum, hits): two scalars of at least float32 for the global batch. `hits` counts the queries
      that are more similar to their own key than to any other; it has no gradient.
    """
    given = (queries,) if keys is None else (queries, keys)
    dtype = at_least_float32(*given)[0].dtype
    options = (function, chunk_size, axis_names)
    return _pairwise_sum(options, given, tuple(jnp.asarray(s, dtype) for s in scalars))


def _value(options, given, scalars):
    return _passed(options, given, scalars, has_gradient=False)[0]


def _passed(options, given, scalars, *, has_gradient=True):
    function, chunk_size, axis_names = options
    rows = at_least_float32(*given)[0]
    gathered, device = gather(given[-1], axis_names), device_index(axis_names)  # [W, n, D]
    devices, (n, width) = gathered.shape[0], rows.shape
    if axis_names:  # each device has its own slopes, which are added up once, not tile by tile
        scalars = tuple(jax.lax.pcast(s, axis_names, to="varying") for s in scalars)

    def tile(carry, start, size):
        total, own, others, pull, slopes = carry
        similarities, _, position = tile_of(gathered, rows, start, size, device)  # [W·c, n]
        is_own = position[:, None] == jnp.arange(n)
        own = jnp.maximum(own, jnp.where(is_own, similarities, -jnp.inf).max(axis=0))
        others = jnp.maximum(others, jnp.where(is_own, -jnp.inf, similarities).max(axis=0))
        if not has_gradient:
            values = function(similarities, is_own, *scalars)
            return (total + values.sum(axis=0), own, others, pull, slopes), ()
        values, pullback = jax.vjp(lambda x, *s: function(x, is_own, *s), similarities, *scalars)
        weights, *slope = pullback(jnp.ones_like(values))  # [W·c, n], and a number per scalar
        pull += product(weights.T, tile_rows(gathered, start, size, rows))  # [n, D]
        slopes = tuple(a + b for a, b in zip(slopes, slope, strict=True))
        push = ()
        if len(given) == 2:
            push = product(weights, rows).reshape(devices, size, width)
            push = sum_scattered(push, axis_names)  # [c, D]
        return (total + values.sum(axis=0), own, others, pull, slopes), push

    zeros, least = jnp.zeros_like(rows[:, 0]), jnp.full_like(rows[:, 0], -jnp.inf)
    carry = zeros, least, least, jnp.zeros_like(rows), tuple(jnp.zeros_like(s) for s in scalars)
    (total, own, others, pull, slopes), push = over_chunks(tile, carry, n, chunk_size)
    hits = jnp.sum(own > others, dtype=total.dtype)
    value, hits = sum_over(jnp.stack([total.sum(), hits]), axis_names)
    gradients = (pull, push) if len(given) == 2 else (2 * pull,)
    return (value, hits), (given, gradients, slopes)


def _pulled(options, saved, cotangents):
    _, _, axis_names = options
    given, gradients, slopes = saved
    cotangent, _ = cotangents  # hits have no gradient
    return (
        tuple(
            (cotangent * gradient).astype(rows.dtype)
            for rows, gradient in zip(given, gradients, strict=True)
        ),
        tuple(cotangent * slope for slope in sum_over(slopes, axis_names)),
    )


_pairwise_sum: Any = jax.custom_vjp(_value, nondiff_argnums=(0,))
_pairwise_sum.defvjp(_passed, _pulled)
