"""The symmetric contrastive term: its definition, and the same value without the N×N matrix."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Rows of each device's texts in a tile.
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
    image_embeds, text_embeds, logit_scale = at_least_float32(
        image_embeds, text_embeds, logit_scale
    )
    logits = logit_scale * similarity(image_embeds, text_embeds)  # [N, N]
    own = jnp.diagonal(logits)  # [N]
    others = jnp.where(jnp.eye(len(own), dtype=bool), -jnp.inf, logits)  # [N, N]
    image_to_text = jnp.mean(jax.nn.logsumexp(logits, axis=1) - own)
    text_to_image = jnp.mean(jax.nn.logsumexp(logits, axis=0) - own)
    accuracies = tuple(jnp.mean(own > others.max(axis), dtype=own.dtype) for axis in (1, 0))
    return (image_to_text + text_to_image) / 2, accuracies


# Compiled as one where it is called outside jit, not operation by operation.
@functools.partial(jax.jit, static_argnames=("chunk_size", "axis_names"), inline=True)
def contrastive_loss(
    image_embeds: Float[Array, "n d"],
    text_embeds: Float[Array, "n d"],
    logit_scale: Float[Array, ""] | float,
    *,
    chunk_size: int = CHUNK_SIZE,
    axis_names: tuple[str, ...] = (),
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], ...]]:
    """The same loss in tiles, on one device or inside `shard_map`; all inputs have gradients.

    Each of W devices holds n = N/W rows. The texts are gathered once. A tile is `chunk_size` of
    every device's texts against the local images, [W·c, n]: from it come the log-sum-exp of the
    images, complete after the last tile, and the devices' shares of the texts', which are combined
    from vectors of maxima and sums. The backward pass computes the tiles again and scatters each
    one's sum of text gradients back to their devices. Memory is O(N·D + c·N) per device, and no
    exponent is larger than 0 whatever the scale.

    Args:
      image_embeds: as in `contrastive_loss_dense`; inside shard_map the device's rows, [n, D].
      text_embeds: as image_embeds.
      logit_scale: a scalar, already exponentiated.
      chunk_size: c, rows of each device in a tile, at least 1; it need not divide n.
      axis_names: the mesh axes that the rows are split over, inside shard_map; () is one device.

    Returns:
      As `contrastive_loss_dense`, for the global batch.
    """
    dtype = jnp.promote_types(jnp.result_type(image_embeds, text_embeds), jnp.float32)
    logit_scale = jnp.asarray(logit_scale, dtype)
    chunk_size = min(chunk_size, image_embeds.shape[0])
    loss, accuracies = _tiled(chunk_size, axis_names, image_embeds, text_embeds, logit_scale)
    return loss, tuple(accuracies)


def _tiled_value(
    chunk_size, axis_names, image_embeds, text_embeds, logit_scale
) -> tuple[Float[Array, ""], list[Float[Array, ""]]]:
    return _tiled_forward(chunk_size, axis_names, image_embeds, text_embeds, logit_scale)[0]


def _tiled_forward(chunk_size, axis_names, image_embeds, text_embeds, logit_scale):
    images, texts = at_least_float32(image_embeds, text_embeds)  # [n, D]
    n, _ = images.shape
    scaled_images = logit_scale * images
    own = jnp.sum(scaled_images * texts, axis=1)  # [n]
    gathered = _gather(text_embeds, axis_names)  # [W, n, D], in the embeddings' own type
    devices, device = gathered.shape[0], _axis_index(axis_names)

    def tile(carry, start, size):
        image_others, image_sum = carry  # [n]: largest logit of another pair; Σ exp(logit − max)
        rows = _chunk(gathered, start, size).astype(images.dtype).reshape(devices * size, -1)
        logits = product(rows, scaled_images.T)  # [W·c, n]
        is_local = jnp.arange(devices)[:, None] == device  # [W, 1]
        position = jnp.where(is_local, start + jnp.arange(size), -1).reshape(-1)  # [W·c]
        others = jnp.where(position[:, None] == jnp.arange(n), -jnp.inf, logits)
        own_chunk = jnp.where(is_local, _chunk(own[None], start, size), -jnp.inf).reshape(-1)

        text_others = others.max(axis=1)  # [W·c]
        text_max = jnp.maximum(text_others, own_chunk)
        text_sum = jnp.exp(logits - text_max[:, None]).sum(axis=1)

        old_max = jnp.maximum(image_others, own)
        image_others = jnp.maximum(image_others, others.max(axis=0))
        image_max = jnp.maximum(image_others, own)
        image_sum *= jnp.exp(old_max - image_max)
        image_sum += jnp.exp(logits - image_max).sum(axis=0)
        by_text = jnp.stack([text_others, text_max, text_sum]).reshape(3, devices, size)
        # A hit is decided between numbers of one matrix product: the dot products above round
        # otherwise, and would make hits of the ties of collapsed embeddings.
        local = jax.lax.dynamic_index_in_dim(
            logits.reshape(devices, size, n), device, keepdims=False
        )
        own_here = jnp.diagonal(jax.lax.dynamic_slice_in_dim(local, start, size, axis=1))  # [c]
        return (image_others, image_sum), (jnp.moveaxis(by_text, 2, 0), own_here)  # [c, 3, W], [c]

    start = jnp.full_like(own, -jnp.inf), jnp.zeros_like(own)
    (image_others, image_sum), (by_text, own_here) = _over_chunks(tile, start, n, chunk_size)
    image_lse = jnp.maximum(image_others, own) + jnp.log(image_sum)  # [n]

    text_others, text_max, text_sum = jnp.moveaxis(by_text, 0, 2)  # [W, n], over local images
    all_others, all_max = _max(jnp.stack([text_others, text_max]), axis_names)
    text_lse = all_max + jnp.log(_sum(text_sum * jnp.exp(text_max - all_max), axis_names))

    pairs = n * devices
    losses = (image_lse + _local(text_lse, device)) / 2 - own  # [n]
    hits = own_here > image_others, own_here > _local(all_others, device)
    means = _sum(jnp.stack([x.astype(own.dtype).sum() for x in (losses, *hits)]), axis_names)
    loss, *accuracies = means / pairs
    saved = image_embeds, text_embeds, logit_scale, gathered, image_lse, text_lse
    return (loss, accuracies), saved


def _tiled_backward(chunk_size, axis_names, saved, cotangents):
    image_embeds, text_embeds, logit_scale, gathered, image_lse, text_lse = saved
    cotangent, _ = cotangents  # an accuracy has no gradient
    images, texts = at_least_float32(image_embeds, text_embeds)
    devices, (n, width) = gathered.shape[0], images.shape
    scaled_images = logit_scale * images

    def tile(pull, start, size):
        rows = _chunk(gathered, start, size).astype(images.dtype).reshape(devices * size, width)
        logits = product(rows, scaled_images.T)  # [W·c, n]
        lse = _chunk(text_lse, start, size).reshape(-1, 1)
        weights = jnp.exp(logits - lse) + jnp.exp(logits - image_lse)  # [W·c, n]
        pull += product(weights.T, rows)  # [n, D]
        push = product(weights, images).reshape(devices, size, width)
        return pull, sum_scattered(push, axis_names)  # [c, D]

    pull, push = _over_chunks(tile, jnp.zeros_like(images), n, chunk_size)
    pull, push = pull - 2 * texts, push - 2 * images  # the own pair's −1, once per direction
    factor = cotangent / (2 * n * devices)
    return (
        (factor * logit_scale * pull).astype(image_embeds.dtype),
        (factor * logit_scale * push).astype(text_embeds.dtype),
        factor * _sum(jnp.sum(images * pull), axis_names),
    )


_tiled = jax.custom_vjp(_tiled_value, nondiff_argnums=(0, 1))
_tiled.defvjp(_tiled_forward, _tiled_backward)


def _over_chunks(body, carry, n, chunk_size):
    """Runs body(carry, start, size) -> (carry, tree of [size, ...]) over chunks of n rows.

    Returns:
      (carry, the trees joined into one of [n, ...]).
    """
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


def _chunk(rows, start, size):
    """[W, n, ...] -> [W, size, ...] of each device's n rows."""
    return jax.lax.dynamic_slice_in_dim(rows, start, size, axis=1)


def _local(rows, device):
    """[W, n] -> [n], those of one device."""
    return jax.lax.dynamic_index_in_dim(rows, device, keepdims=False)


# Collectives over the axes that rows are split over, and what they are on one device.


def _axis_index(axis_names):
    return jax.lax.axis_index(axis_names) if axis_names else 0


def _gather(rows, axis_names):
    return jax.lax.all_gather(rows, axis_names) if axis_names else rows[None]


def _sum(x, axis_names):
    return jax.lax.psum(x, axis_names) if axis_names else x


def _max(x, axis_names):
    return jax.lax.pmax(x, axis_names) if axis_names else x


def sum_scattered(x: jax.Array, axis_names: tuple[str, ...]) -> jax.Array:
    """This device's block of x, [devices, ...], summed over all devices."""
    return jax.lax.psum_scatter(x, axis_names) if axis_names else x[0]
