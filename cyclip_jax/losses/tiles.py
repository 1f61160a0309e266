"""Tiles of all similarities of two sets of rows, on one device or inside `shard_map`.

Each of W devices holds n = N/W rows of queries and of keys. The keys are gathered once. A tile is
some of every device's keys against the local queries.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Rows of each device's keys in a tile.
CHUNK_SIZE = 256


def at_least_float32(*arrays: Float[Array, "..."] | float) -> tuple[Float[Array, "..."], ...]:
    """Returns the arrays in their common type, float32 or wider.

    Losses over many pairs are sums of near-equal numbers: bfloat16 towers are welcome, bfloat16
    similarities are not. float64 stays float64, so that equality can be tested sharply.
    """
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return tuple(jnp.asarray(array, dtype) for array in arrays)


def product(left: Float[Array, "n k"], right: Float[Array, "k m"]) -> Float[Array, "n m"]:
    """The matrix product at full precision: no bfloat16 passes, no TF32."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def similarity(
    left_embeds: Float[Array, "n d"], right_embeds: Float[Array, "m d"]
) -> Float[Array, "n m"]:
    """All inner products, [N, D], [M, D] -> [N, M]."""
    return product(left_embeds, right_embeds.T)


def tile_of(
    gathered: Float[Array, "w n d"],
    scaled: Float[Array, "n d"],
    start: Array | int,
    size: int,
    device: Array | int,
) -> tuple[Float[Array, "r n"], Bool[Array, "w 1"], Int[Array, " r"]]:
    """Logits of some of every device's keys.

    Args:
      gathered: all devices' keys [W, n, D].
      scaled: the local queries times the scale, [n, D].
      start, size: which keys of each device.
      device: number of this device.

    Returns:
      (logits [W·c, n], whether a device is this one [W, 1], the place of each key among this
      device's, −1 for those of others, [W·c]).
    """
    devices = gathered.shape[0]
    logits = product(tile_rows(gathered, start, size, scaled), scaled.T)
    is_local = jnp.arange(devices)[:, None] == device
    position = jnp.where(is_local, start + jnp.arange(size), -1).reshape(-1)
    return logits, is_local, position


def tile_rows(
    gathered: Float[Array, "w n d"], start: Array | int, size: int, like: Float[Array, "n d"]
) -> Float[Array, "r d"]:
    """[W, n, D] -> [W·c, D], some of every device's rows, in the type of `like`."""
    rows = chunk_of(gathered, start, size).astype(like.dtype)
    return rows.reshape(gathered.shape[0] * size, -1)


def over_chunks(
    body: Callable[[Any, Any, int], tuple[Any, Any]], carry: Any, n: int, chunk_size: int
) -> tuple[Any, Any]:
    """Runs body(carry, start, size) -> (carry, tree of [size, ...]) over chunks of n rows.

    Returns:
      (carry, the trees joined into one of [n, ...]).
    """
    chunk_size = min(chunk_size, n)
    whole, rest = divmod(n, chunk_size)
    outs = []
    if whole == 1:
        carry, out = body(carry, 0, chunk_size)
        outs.append(out)
    elif whole > 1:
        starts = chunk_size * jnp.arange(whole)
        carry, out = jax.lax.scan(lambda c, start: body(c, start, chunk_size), carry, starts)
        outs.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out))
    if rest:
        carry, out = body(carry, n - rest, rest)
        outs.append(out)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outs)


def chunk_of(rows: Array, start: Array | int, size: int) -> Array:
    """[W, n, ...] -> [W, size, ...] of each device's n rows."""
    return jax.lax.dynamic_slice_in_dim(rows, start, size, axis=1)


def rows_of_device(rows: Array, device: Array | int) -> Array:
    """[W, n] -> [n], those of one device."""
    return jax.lax.dynamic_index_in_dim(rows, device, keepdims=False)


# Collectives over the axes that rows are split over, and what they are on one device.


def device_index(axis_names: tuple[str, ...]) -> Array | int:
    """The number of this device."""
    return jax.lax.axis_index(axis_names) if axis_names else 0


def device_count(axis_names: tuple[str, ...]) -> int:
    """How many devices share the rows."""
    return jax.lax.axis_size(axis_names) if axis_names else 1


def gather(rows: Array, axis_names: tuple[str, ...]) -> Array:
    """The rows of all devices, [n, ...] -> [W, n, ...]."""
    return jax.lax.all_gather(rows, axis_names) if axis_names else rows[None]


def sum_over(x: Any, axis_names: tuple[str, ...]) -> Any:
    """The sum of x, a tree of arrays, over the devices."""
    return jax.lax.psum(x, axis_names) if axis_names else x


def max_over(x: Array, axis_names: tuple[str, ...]) -> Array:
    """The largest x of all devices, number by number."""
    return jax.lax.pmax(x, axis_names) if axis_names else x


def sum_scattered(x: jax.Array, axis_names: tuple[str, ...]) -> jax.Array:
    """This device's block of x, [devices, ...], summed over all devices."""
    return jax.lax.psum_scatter(x, axis_names) if axis_names else x[0]
