"""The contrastive loss of queries among keys: its definition, and the same value in tiles.

CLIP's symmetric loss of images and texts is its first caller. With one direction alone, and with
further keys, it is the loss of sentence embeddings (Gao et al. 2021) and of second views.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cyclip_jax.losses.tiles import (
    CHUNK_SIZE,
    at_least_float32,
    chunk_of,
    device_count,
    device_index,
    gather,
    max_over,
    over_chunks,
    product,
    rows_of_device,
    similarity,
    sum_over,
    sum_scattered,
    tile_of,
    tile_rows,
)

# A logit that no exponential sees beside any other.
_LEAST = -1e30
# Of CLIP's loss: queries choose among keys, and keys among queries.
BOTH = (0.5, 0.5)
# Queries alone choose among keys.
FORWARD = (1.0, 0.0)


def info_nce_dense(
    queries: Float[Array, "n d"],
    keys: Float[Array, "n d"],
    scale: Float[Array, ""] | float,
    further_keys: Float[Array, "e d"] | None = None,
    further_mask: Bool[Array, " e"] | None = None,
    pair_mask: Bool[Array, " n"] | None = None,
    *,
    directions: tuple[float, float] = BOTH,
    own_further_weight: float = 1.0,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], ...]]:
    """Cross-entropies of the right key of each query, and of the right query of each key.

    a/N Σ_i [log(Σ_j e^{s⟨Q_i,K_j⟩} + Σ_e α_ie e^{s⟨Q_i,X_e⟩}) − s⟨Q_i,K_i⟩] for queries that choose
    among keys (van den Oord et al. 2018, eq. 4), and b/N Σ_j [log Σ_i e^{s⟨Q_i,K_j⟩} − s⟨Q_j,K_j⟩]
    for keys that choose among queries, straight from the definition. With further keys X this is
    eq. 5 of Gao et al. 2021.

    Args:
      queries: unit-norm embeddings Q, float [N, D].
      keys: unit-norm embeddings K, float [N, D]; key j belongs to query j.
      scale: s = 1/temperature, a scalar, already exponentiated.
      further_keys: unit-norm embeddings X that belong to no query, float [E, D]; None is none.
      further_mask: whether each of them is there to be chosen, [E]; None is all of them.
      pair_mask: whether each pair is there, [N]; None is all of them. One that is not there chooses
        nothing and is chosen by nothing: it adds 0 to the sums, which N still divides.
      directions: the weights (a, b).
      own_further_weight: α_ie where E = N and e = i; every other α_ie is 1.
      label_smoothing: ε. The target −s⟨Q_i,K_i⟩ becomes (1−ε) of that and ε of the mean over all
        keys, or all queries, that are chosen among.

    Returns:
      (loss, accuracies): a scalar of at least float32, and for each direction whose weight is not
      0 the share of rows whose own pair is more similar than all else that they choose among.
    """
    given = (queries, keys) if further_keys is None else (queries, keys, further_keys)
    queries, keys, *further, scale = at_least_float32(*given, scale)
    logits = scale * similarity(queries, keys)  # [N, N]
    own = jnp.diagonal(logits)  # [N]
    is_own = jnp.eye(len(own), dtype=bool)
    there = jnp.ones(len(own), bool) if pair_mask is None else pair_mask
    logits = jnp.where(is_own | (there[:, None] & there), logits, -jnp.inf)
    others = jnp.where(is_own, -jnp.inf, logits)  # [N, N]
    loss, accuracies = jnp.zeros((), logits.dtype), []
    for axis, weight in zip((1, 0), directions, strict=True):
        if weight == 0:
            continue
        chosen_among, rivals, weights = logits, others, jnp.ones_like(logits)
        if axis == 1:
            for rows in further:
                beyond = scale * similarity(queries, rows)  # [N, E]
                if further_mask is not None:
                    beyond = jnp.where(further_mask, beyond, -jnp.inf)
                beyond = jnp.where(there[:, None], beyond, -jnp.inf)
                weights = jnp.concatenate(
                    [weights, _further_weights(beyond, own_further_weight)], 1
                )
                chosen_among = jnp.concatenate([logits, beyond], axis=1)
                rivals = jnp.concatenate([others, beyond], axis=1)
        lse = jax.nn.logsumexp(chosen_among, axis=axis, b=weights)
        mean = jnp.mean(chosen_among, axis, where=chosen_among > -jnp.inf)
        target = (1 - label_smoothing) * own + label_smoothing * mean
        loss += weight * jnp.mean(lse - target)
        accuracies.append(jnp.mean((own > rivals.max(axis)) & there, dtype=own.dtype))
    return loss, tuple(accuracies)


def _further_weights(logits, own):
    """α_ie for logits [N, E] of further keys."""
    is_own = jnp.eye(*logits.shape, dtype=bool) & (logits.shape[0] == logits.shape[1])
    return jnp.where(is_own, own, 1.0).astype(logits.dtype)


# Compiled as one where it is called outside jit, not operation by operation.
@functools.partial(
    jax.jit,
    static_argnames=(
        *("directions", "own_further_weight", "label_smoothing"),
        *("chunk_size", "axis_names"),
    ),
    inline=True,
)
def info_nce(
    queries: Float[Array, "n d"],
    keys: Float[Array, "n d"],
    scale: Float[Array, ""] | float,
    further_keys: Float[Array, "e d"] | None = None,
    further_mask: Bool[Array, " e"] | None = None,
    pair_mask: Bool[Array, " n"] | None = None,
    *,
    directions: tuple[float, float] = BOTH,
    own_further_weight: float = 1.0,
    label_smoothing: float = 0.0,
    chunk_size: int = CHUNK_SIZE,
    axis_names: tuple[str, ...] = (),
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], ...]]:
    """The same loss in tiles, on one device or inside `shard_map`; all inputs have gradients.

    Each of W devices holds n = N/W rows of queries and of keys, and E/W further keys. The keys are
    gathered once. A tile is `chunk_size` of every device's keys against the local queries, [W·c,
    n]: from it come the log-sum-exp of the queries, complete after the last tile, and the devices'
    shares of the keys', which are combined from vectors of maxima and sums. The backward pass
    computes the tiles again and scatters each one's sum of key gradients back to their devices.
    Memory is O((N + E)·D + c·N) per device, and no exponent is larger than 0 whatever the scale. A
    direction of weight 0 costs nothing.

    Args:
      queries: as in `info_nce_dense`; inside shard_map the device's rows, [n, D].
      keys: as queries.
      scale: a scalar, already exponentiated.
      further_keys: inside shard_map the device's rows, [E/W, D].
      further_mask: inside shard_map the device's rows, [E/W].
      pair_mask: inside shard_map the device's rows, [n].
      directions, own_further_weight, label_smoothing: as in `info_nce_dense`.
      chunk_size: c, rows of each device in a tile, at least 1; it need not divide n.
      axis_names: the mesh axes that the rows are split over, inside shard_map; () is one device.

    Returns:
      As `info_nce_dense`, for the global batch.

    Raises:
      ValueError: there are further keys, and queries do not choose.
    """
    if directions[0] == 0:
        if further_keys is not None:
            raise ValueError("further keys are chosen among by queries, whose direction is 0")
        queries, keys, directions = keys, queries, (directions[1], 0.0)
    given = (queries, keys) if further_keys is None else (queries, keys, further_keys)
    dtype = jnp.promote_types(jnp.result_type(*given), jnp.float32)
    scale = jnp.asarray(scale, dtype)
    options = (directions, own_further_weight, chunk_size, axis_names)
    loss, accuracies = _tiled(options, given, (further_mask, pair_mask), scale)
    if label_smoothing:
        loss += label_smoothing * smoothing(
            *(queries, keys, scale, further_keys, further_mask, pair_mask),
            directions=directions,
            axis_names=axis_names,
        )
    return loss, tuple(accuracies)


def smoothing(
    queries: Float[Array, "n d"],
    keys: Float[Array, "n d"],
    scale: Float[Array, ""] | float,
    further_keys: Float[Array, "e d"] | None = None,
    further_mask: Bool[Array, " e"] | None = None,
    pair_mask: Bool[Array, " n"] | None = None,
    *,
    directions: tuple[float, float] = BOTH,
    axis_names: tuple[str, ...] = (),
) -> Float[Array, ""]:
    """What label smoothing ε adds to the loss, divided by ε, on one device or inside `shard_map`.

    It is the mean of a row's own logit less the mean of all its logits, weighted over the
    directions. The mean of a row of logits is the logit of the mean key: no row is computed.

    Args:
      queries, keys, scale, further_keys, further_mask, pair_mask, directions, axis_names: as in
        `info_nce`.
    """
    given = (queries, keys) if further_keys is None else (queries, keys, further_keys)
    queries, keys, *further = at_least_float32(*given)
    (a, b), devices = directions, device_count(axis_names)
    n = there = len(queries) * devices
    if pair_mask is not None:
        queries, keys = (jnp.where(pair_mask[:, None], part, 0) for part in (queries, keys))
        there = jnp.maximum(sum_over(pair_mask.sum(dtype=queries.dtype), axis_names), 1)
    own = sum_over(jnp.sum(queries * keys), axis_names)
    chosen_among = there + sum(len(part) for part in further) * devices
    if further_mask is not None:
        further = [jnp.where(further_mask[:, None], part, 0) for part in further]
        chosen_among = there + sum_over(further_mask.sum(dtype=queries.dtype), axis_names)
    parts = (queries, keys, *further)
    rows = [sum_over(part.sum(axis=0), axis_names) for part in parts]  # [D] each
    mean_query, mean_key = rows[0] / n, rows[1] / there
    mean_of_all = sum(rows[1:]) / chosen_among
    means = jnp.dot(mean_query, a * mean_of_all + b * mean_key, precision="highest")
    return scale * ((a + b) * own / n - means)


def contrastive_loss_dense(
    image_embeds: Float[Array, "n d"],
    text_embeds: Float[Array, "n d"],
    logit_scale: Float[Array, ""] | float,
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], ...]]:
    """Mean of the image-to-text and the text-to-image cross-entropy, straight from the definition.

    ½ (CE(s·I Tᵀ) + CE(s·T Iᵀ)) with row j's target column j (Radford et al. 2021, figure 3; Goel et
    al. 2022, section 2).

    Args:
      image_embeds: unit-norm image embeddings, float [N, D].
      text_embeds: unit-norm text embeddings, float [N, D], row j paired with image j.
      logit_scale: the scale s = 1/temperature, a scalar, already exponentiated.

    Returns:
      (loss, accuracies): a scalar of at least float32, and (image_to_text, text_to_image), the
      shares of rows in the batch that are more similar to their own pair than to any other.
    """
    return info_nce_dense(image_embeds, text_embeds, logit_scale)


def contrastive_loss(
    image_embeds: Float[Array, "n d"],
    text_embeds: Float[Array, "n d"],
    logit_scale: Float[Array, ""] | float,
    *,
    chunk_size: int = CHUNK_SIZE,
    axis_names: tuple[str, ...] = (),
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], ...]]:
    """The same loss in tiles (see `info_nce`), on one device or inside `shard_map`.

    Args:
      image_embeds: as in `contrastive_loss_dense`; inside shard_map the device's rows, [n, D].
      text_embeds: as image_embeds.
      logit_scale: a scalar, already exponentiated.
      chunk_size: c, rows of each device in a tile, at least 1; it need not divide n.
      axis_names: the mesh axes that the rows are split over, inside shard_map; () is one device.

    Returns:
      As `contrastive_loss_dense`, for the global batch.
    """
    return info_nce(
        image_embeds, text_embeds, logit_scale, chunk_size=chunk_size, axis_names=axis_names
    )


def _tiled_value(options, given, masks, scale):
    return _tiled_forward(options, given, masks, scale)[0]


def _tiled_forward(options, given, masks, scale):
    (a, b), own_further_weight, chunk_size, axis_names = options
    queries, keys, *further = given
    query_rows, key_rows = at_least_float32(queries, keys)
    n, _ = query_rows.shape
    scaled = scale * query_rows
    own = jnp.sum(scaled * key_rows, axis=1)  # [n]
    gathered = gather(keys, axis_names)  # [W, n, D], in the embeddings' own type
    devices, device = gathered.shape[0], device_index(axis_names)
    masks = _, there = tuple(_gathered_mask(mask, axis_names) for mask in masks)

    def tile(carry, start, size):
        query_others, query_sum = carry  # [n]: largest logit of another; Σ exp(logit − max)
        logits, is_local, position = tile_of(gathered, scaled, start, size, device)
        is_own = position[:, None] == jnp.arange(n)
        logits = _of_pairs(logits, there, is_own, start, size, device)
        others = jnp.where(is_own, -jnp.inf, logits)
        query_others, query_sum = _joined(query_others, query_sum, own, others, logits)
        # A hit is decided between numbers of one matrix product: the dot products above round
        # otherwise, and would make hits of the ties of collapsed embeddings.
        local = jax.lax.dynamic_index_in_dim(
            logits.reshape(devices, size, n), device, keepdims=False
        )
        own_here = jnp.diagonal(jax.lax.dynamic_slice_in_dim(local, start, size, axis=1))  # [c]
        if not b:
            return (query_others, query_sum), (own_here,)
        own_chunk = jnp.where(is_local, chunk_of(own[None], start, size), -jnp.inf).reshape(-1)
        key_others = others.max(axis=1)  # [W·c]
        key_max = jnp.maximum(key_others, own_chunk)
        key_sum = jnp.exp(logits - key_max[:, None]).sum(axis=1)
        by_key = jnp.stack([key_others, key_max, key_sum]).reshape(3, devices, size)
        # [c], [c, 3, W]
        return (query_others, query_sum), (own_here, jnp.moveaxis(by_key, 2, 0))

    start = jnp.full_like(own, -jnp.inf), jnp.zeros_like(own)
    (query_others, query_sum), (own_here, *by_key) = over_chunks(tile, start, n, chunk_size)
    beyond = [gather(rows, axis_names) for rows in further]  # [W, E/W, D]
    for rows in beyond:

        def further_tile(carry, start, size, rows=rows):
            logits, _, position = tile_of(rows, scaled, start, size, device)
            logits = _of_further(logits, masks, start, size, device)
            factors = _further_factors(own_further_weight, n, rows, position)
            return _joined(carry[0], carry[1], own, logits, logits, factors), ()

        carry = query_others, query_sum
        (query_others, query_sum), _ = over_chunks(further_tile, carry, rows.shape[1], chunk_size)
    query_lse = jnp.maximum(query_others, own) + jnp.log(query_sum)  # [n]

    losses, hits, key_lse = a * query_lse, [own_here > query_others], []
    if b:
        all_others, lse = _over_all_queries(by_key[0], axis_names)  # [W, n]
        losses += b * rows_of_device(lse, device)
        hits.append(own_here > rows_of_device(all_others, device))
        key_lse.append(lse)
    losses -= (a + b) * own  # [n]
    rows = _of_those_there([losses, *(hit.astype(own.dtype) for hit in hits)], there, device)
    loss, *accuracies = sum_over(jnp.stack([x.sum() for x in rows]), axis_names) / (n * devices)
    saved = given, scale, (gathered, *beyond), masks, query_lse, key_lse
    return (loss, accuracies), saved


def _over_all_queries(by_key, axis_names):
    """Of each key, from what the devices' queries say: the largest other logit, the log-sum-exp."""
    key_others, key_max, key_sum = jnp.moveaxis(by_key, 0, 2)  # [W, n], over local queries
    all_others, all_max = max_over(jnp.stack([key_others, key_max]), axis_names)
    lse = all_max + jnp.log(sum_over(key_sum * jnp.exp(key_max - all_max), axis_names))
    return all_others, lse


def _tiled_backward(options, saved, cotangents):
    (a, b), own_further_weight, chunk_size, axis_names = options
    (queries, keys, *further), scale, (gathered, *beyond), masks, query_lse, key_lse = saved
    cotangent, _ = cotangents  # an accuracy has no gradient
    query_rows, key_rows = at_least_float32(queries, keys)
    devices, (n, width), device = gathered.shape[0], query_rows.shape, device_index(axis_names)
    scaled = scale * query_rows
    greater = max(a, b)
    a, b = a / greater, b / greater  # a weight of 1 costs no operation

    def tile(pull, start, size, rows=gathered, key_lse=tuple(key_lse)):
        logits, _, position = tile_of(rows, scaled, start, size, device)
        if rows is gathered:
            is_own = position[:, None] == jnp.arange(n)
            logits = _of_pairs(logits, masks[1], is_own, start, size, device)
        else:
            logits = _of_further(logits, masks, start, size, device)
        weights = _times(a, jnp.exp(logits - query_lse))  # [W·c, n]
        if rows is not gathered:
            factors = _further_factors(own_further_weight, n, rows, position)
            weights *= 1.0 if factors is None else factors
        for lse in key_lse:
            weights += _times(b, jnp.exp(logits - chunk_of(lse, start, size).reshape(-1, 1)))
        pull += product(weights.T, tile_rows(rows, start, size, scaled))  # [n, D]
        push = product(weights, query_rows).reshape(devices, size, width)
        return pull, sum_scattered(push, axis_names)  # [c, D]

    pull, push = over_chunks(tile, jnp.zeros_like(query_rows), n, chunk_size)
    # The own pair's −1, once per direction.
    pull, push = pull - (a + b) * key_rows, push - (a + b) * query_rows
    pull, push = _of_those_there((pull, push), masks[1], device)
    pushes = [push]
    for rows in beyond:
        further_tile = functools.partial(tile, rows=rows, key_lse=())
        pull, push = over_chunks(further_tile, pull, rows.shape[1], chunk_size)
        pushes.append(push)
    factor = cotangent * greater / (n * devices)
    given = zip((queries, keys, *further), (pull, *pushes), strict=True)
    return (
        tuple((factor * scale * gradient).astype(rows.dtype) for rows, gradient in given),
        None,  # of the masks
        factor * sum_over(jnp.sum(query_rows * pull), axis_names),
    )


_tiled: Any = jax.custom_vjp(_tiled_value, nondiff_argnums=(0,))
_tiled.defvjp(_tiled_forward, _tiled_backward)


def _gathered_mask(mask, axis_names):
    """[n] of each device -> [W, n]; None stays None."""
    return None if mask is None else gather(mask, axis_names)


def _of_pairs(logits, there, is_own, start, size, device):
    """Logits [r, n] of some of the keys, least between different pairs of which one is not there.

    The own logit alone is left of such a pair, which makes its cross-entropy 0. The least is no
    −inf: a device that holds no other logit of a key takes the difference of two.
    """
    if there is None:
        return logits
    both = chunk_of(there, start, size).reshape(-1, 1) & rows_of_device(there, device)
    return jnp.where(both | is_own, logits, _LEAST)


def _of_further(logits, masks, start, size, device):
    """Logits [r, n] of some of the further keys, −inf where one, or the query, is not there.

    Whatever its logit is, it neither overflows an exponential nor is the largest.
    """
    further_mask, there = masks
    if further_mask is not None:
        logits = jnp.where(chunk_of(further_mask, start, size).reshape(-1, 1), logits, -jnp.inf)
    return logits if there is None else jnp.where(rows_of_device(there, device), logits, -jnp.inf)


def _of_those_there(arrays, there, device):
    """Arrays [n, ...], 0 where a pair of this device is not there."""
    if there is None:
        return arrays
    mask = rows_of_device(there, device)
    return [jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, 0) for x in arrays]


def _joined(most, total, own, others, logits, factors=None):
    """The largest logit of others, and Σ exp(logit − max) with the own, after a further tile.

    Args:
      most: largest logit of others before, [n].
      total: the sum before, [n].
      own: logits of the own pairs, [n].
      others: logits [r, n] of the tile without own pairs.
      logits: with them.
      factors: of the exponentials, [r, n]; None is 1.
    """
    old = jnp.maximum(most, own)
    most = jnp.maximum(most, others.max(axis=0))
    new = jnp.maximum(most, own)
    terms = jnp.exp(logits - new)
    if factors is not None:
        terms *= factors
    total *= jnp.exp(old - new)
    return most, total + terms.sum(axis=0)


def _further_factors(own_weight, n, rows, position):
    """α of some of the further keys [W, E/W, D], [r, n]; None where all are 1."""
    if own_weight == 1 or rows.shape[1] != n:
        return None
    return jnp.where(position[:, None] == jnp.arange(n), own_weight, 1.0)


def _times(weight, x):
    """weight · x, and x itself for a weight of 1."""
    return x if weight == 1 else weight * x
