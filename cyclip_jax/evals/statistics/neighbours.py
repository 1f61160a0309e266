"""Nearest neighbours among many embeddings, in tiles."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

_QUERY_ROWS, _KEY_ROWS = 2048, 32_768  # of a tile: 256 MiB of similarities in float32


def nearest(
    queries: Float[np.ndarray, "q d"],
    keys: Float[np.ndarray, "n d"],
    k: int,
    *,
    query_rows: int = _QUERY_ROWS,
    key_rows: int = _KEY_ROWS,
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """The k keys most similar to each query by inner product.

    Args:
      queries: float [Q, D].
      keys: float [N, D].
      k: at most N.
      query_rows, key_rows: of a tile of similarities.

    Returns:
      (similarities float [Q, k], row numbers int [Q, k]), the most similar first; of equals the
      first in `keys`. NaN counts as −inf.
    """
    count = len(queries)
    query_rows, key_rows = min(query_rows, count), min(key_rows, len(keys))
    # All tiles have one shape, so that one program serves.
    queries = np.pad(queries, ((0, -count % query_rows), (0, 0)))
    similarities = np.full((len(queries), k), -np.inf, queries.dtype)
    places = np.zeros((len(queries), k), np.int32)
    for first_key in range(0, len(keys), key_rows):
        tile = keys[first_key : first_key + key_rows]
        rows_left = len(tile)
        tile = jnp.asarray(np.pad(tile, ((0, key_rows - rows_left), (0, 0))))
        for first in range(0, len(queries), query_rows):
            rows = slice(first, first + query_rows)
            best = _merged(
                queries[rows], tile, first_key, rows_left, similarities[rows], places[rows]
            )
            similarities[rows], places[rows] = jax.device_get(best)
    return similarities[:count], places[:count]


@jax.jit
def _merged(queries, keys, first_key, rows_left, similarities, places):
    """The best of those found so far and of a tile's: (similarities, places), each [q, k]."""
    products = jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)  # [q, tile]
    columns = jnp.arange(keys.shape[0], dtype=places.dtype)
    products = jnp.where((columns < rows_left) & ~jnp.isnan(products), products, -jnp.inf)
    key_places = jnp.broadcast_to(first_key + columns, products.shape)
    candidates = jnp.concatenate([similarities, products], axis=1)
    # Of equals top_k takes the first: those of earlier tiles.
    values, chosen = jax.lax.top_k(candidates, similarities.shape[1])
    all_places = jnp.concatenate([places, key_places], axis=1)
    return values, jnp.take_along_axis(all_places, chosen, axis=1)
