"""Ranks of the right answers among many, without the matrix of all similarities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from cyclip_jax.losses.tiles import similarity

# Similarities that this process's devices hold at a time, 256 MB of float32 in all.
TILE_SIZE = 1 << 26

_NO_PARTNER = -1
_ROWS_AXIS = "rows"
_ROWS = PartitionSpec(_ROWS_AXIS)


def ranks_of_best_partner(
    query_embeds: Float[np.ndarray, "q d"],
    target_embeds: Float[np.ndarray, "t d"],
    query_ids: Int[np.ndarray, "p"],
    target_ids: Int[np.ndarray, "p"],
    *,
    tile_size: int = TILE_SIZE,
) -> Int[np.ndarray, "q"]:
    """How many wrong targets are at least as similar to each query as its best partner.

    Ties are misses: the best partner's similarity is taken from the same product as the others', so
    that targets with equal embeddings are equally similar to the last bit. A query with a partner
    that is NaN, or without any partner, comes after all targets. A query's other partners are no
    competition.

    The devices of this process share the queries; each holds all targets.

    Args:
      query_embeds, target_embeds: [Q, D] and [T, D], float32 or float64.
      query_ids, target_ids: int [P], the partners as pairs of row numbers, in any order.
      tile_size: similarities that are in memory at a time, at least those of one query a device.

    Returns:
      int [Q], 0 is first.
    """
    devices = jax.local_devices()
    queries, targets = len(query_embeds), len(target_embeds)
    tiles = -(-queries // max(tile_size // targets, 1))
    rows = -(-queries // (tiles * len(devices))) * len(devices)  # of a tile, the same in each
    partners_of = _partners_by_query(query_ids, target_ids, queries, targets)
    split, whole = _shardings(tuple(devices))
    ranks = []
    with jax.enable_x64(True):  # float64 stays what it is
        target_embeds = jax.device_put(np.asarray(target_embeds), whole)
        for first in range(0, queries, rows):
            tile = np.asarray(query_embeds[first : first + rows])
            tile = np.pad(tile, ((0, rows - len(tile)), (0, 0)))
            tile, partners = jax.device_put((tile, partners_of(first, rows)), split)
            ranks.append(np.asarray(_ranks_of_tile(split)(tile, target_embeds, partners)))
    return np.concatenate(ranks)[:queries]


def _partners_by_query(query_ids, target_ids, queries, targets):
    """A function (first, rows) -> int32 [rows, K]: these queries' partners, each one once.

    K is the most that any query has; those of fewer are filled up with _NO_PARTNER.
    """
    pairs = np.unique(np.asarray(query_ids, np.int64) * targets + np.asarray(target_ids, np.int64))
    query_ids, target_ids = pairs // targets, pairs % targets
    starts = np.searchsorted(query_ids, np.arange(queries))
    places = np.arange(len(pairs)) - starts[query_ids]
    width = places.max(initial=0) + 1

    def partners_of(first, rows):
        own = slice(*np.searchsorted(query_ids, [first, first + rows]))
        table = np.full((rows, width), _NO_PARTNER, np.int32)
        table[query_ids[own] - first, places[own]] = target_ids[own]
        return table

    return partners_of


@functools.cache
def _shardings(devices):
    """(rows split over the devices, everything on each of them)."""
    mesh = jax.sharding.Mesh(np.asarray(devices), (_ROWS_AXIS,), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, _ROWS), NamedSharding(mesh, PartitionSpec())


@functools.cache
def _ranks_of_tile(split):
    """The jitted function (queries [R, D], targets [T, D], partners [R, K]) -> int32 [R]."""

    def ranks(queries, targets, partners):
        # One product for all that is compared: computed anew, a sum of the same numbers may differ.
        similarities = jax.lax.optimization_barrier(similarity(queries, targets))  # [R, T]
        is_partner = partners != _NO_PARTNER
        columns = jnp.where(is_partner, partners, 0)
        own = jnp.take_along_axis(similarities, columns, axis=1)  # [R, K]
        best = jnp.max(jnp.where(is_partner, own, -jnp.inf), axis=1, keepdims=True)
        # Not ">=": with this a model of NaN embeddings misses everything.
        at_least_as_similar = jnp.sum(~(similarities < best), axis=1, dtype=jnp.int32)
        own_among_them = jnp.sum(is_partner & ~(own < best), axis=1, dtype=jnp.int32)
        wrong = at_least_as_similar - own_among_them
        return jnp.where(jnp.isnan(best[:, 0]), len(targets), wrong)

    in_parts = jax.shard_map(
        ranks,
        mesh=split.mesh,
        in_specs=(split.spec, PartitionSpec(), split.spec),
        out_specs=split.spec,
    )
    return jax.jit(in_parts)
