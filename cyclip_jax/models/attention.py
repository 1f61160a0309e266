"""Attention: its definition, and the fast forms of the same value."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.extend.backend
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cyclip_jax.errors import UserError, check_known

ATTENTIONS = ("auto", "xla", "cudnn", "pallas")
# What cuDNN's flash attention takes on every GPU that has it, Ampere and later.
_CUDNN_CAPABILITY = 8.0
_CUDNN_CHANNELS, _CUDNN_MULTIPLE = 128, 8

Implementation: TypeAlias = Literal["xla", "cudnn", "pallas"]


def multi_head_attention(
    query: Float[Array, "n q w"],
    key: Float[Array, "n l w"],
    value: Float[Array, "n l w"],
    *,
    heads: int,
    is_causal: bool = False,
    drop: Callable[[Float[Array, "n h q l"]], Float[Array, "n h q l"]] | None = None,
) -> Float[Array, "n q w"]:
    """softmax(Q Kᵀ / √d) V per head, [N, Q, W], [N, L, W], [N, L, W] -> [N, Q, W].

    Args:
      query, key, value: of all heads side by side.
      heads: their number.
      is_causal: whether a query sees only keys that do not stand behind it.
      drop: what happens to the weights of the values; None is nothing.
    """
    query, key, value = (split_heads(x, heads) for x in (query, key, value))
    logits_dtype = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("nqhd,nkhd->nhqk", query, key, preferred_element_type=logits_dtype)
    logits = logits * query.shape[-1] ** -0.5
    if is_causal:
        is_seen = jnp.tril(jnp.ones(logits.shape[-2:], bool))  # [Q, L]
        logits = jnp.where(is_seen, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    if drop is not None:
        weights = drop(weights)
    out = jnp.einsum("nhqk,nkhd->nqhd", weights, value)
    return out.reshape(*out.shape[:2], -1)


def fast_attention(
    query: Float[Array, "n l w"],
    key: Float[Array, "n l w"],
    value: Float[Array, "n l w"],
    *,
    heads: int,
    is_causal: bool,
    implementation: Literal["xla", "cudnn"],
) -> Float[Array, "n l w"]:
    """`multi_head_attention`, in 16 bits by jax.nn.dot_product_attention's "xla" or "cudnn".

    JAX's function computes the products of the gradient, too, in 16 bits, while those of the
    definition are float32. In wider types this function is the definition: JAX's gives the same
    value there, but is slower on CPUs, and computes the softmax in float32 even for float64.
    """
    if query.dtype.itemsize > 2:
        return multi_head_attention(query, key, value, heads=heads, is_causal=is_causal)
    count, length = query.shape[:2]
    lengths = None
    if implementation == "cudnn" and length % 2:
        # JAX refuses cuDNN's gradient of odd lengths: one position more, which no other sees.
        query, key, value = (jnp.pad(x, ((0, 0), (0, 1), (0, 0))) for x in (query, key, value))
        lengths = jnp.full(count, length, jnp.int32)
    out = jax.nn.dot_product_attention(
        *(split_heads(x, heads) for x in (query, key, value)),
        is_causal=is_causal,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return out[:, :length].reshape(count, length, -1)


def split_heads(x: Float[Array, "n l w"], heads: int) -> Float[Array, "n l h c"]:
    """[N, L, W] -> [N, L, heads, W / heads]."""
    return x.reshape(*x.shape[:-1], heads, -1)


def choose_attention(attention: str, *, dtype: DTypeLike, channels: int) -> Implementation:
    """Returns the implementation for this process's devices.

    Args:
      attention: one of ATTENTIONS; "auto" is "cudnn" wherever that can compute it.
      dtype: the type in which the tower computes.
      channels: channels of a head.

    Raises:
      UserError: the name is unknown, or one that cannot compute this attention here.
    """
    check_known("config.model.attention", attention, ATTENTIONS)
    if attention == "pallas" and jax.default_backend() == "gpu":
        raise UserError(
            "config.model.attention 'pallas' is written for TPUs, and this process computes on a "
            "GPU; set it to 'auto'"
        )
    if attention in ("xla", "pallas"):
        return attention
    obstacle = _cudnn_obstacle(jnp.dtype(dtype), channels)
    if attention == "cudnn" and obstacle:
        raise UserError(
            f"config.model.attention 'cudnn' {obstacle}; set it to 'auto', which is 'cudnn' "
            "wherever that is possible"
        )
    return "xla" if obstacle else "cudnn"


def _cudnn_obstacle(dtype, channels):
    """Why cuDNN cannot compute an attention here, in words; None if it can."""
    if dtype.itemsize != 2:
        return f"computes in 16 bits, not in {dtype}: set config.model.dtype to 'bfloat16'"
    if channels > _CUDNN_CHANNELS or channels % _CUDNN_MULTIPLE:
        return (
            f"needs heads of at most {_CUDNN_CHANNELS} channels, a multiple of {_CUDNN_MULTIPLE}; "
            f"here they have {channels}"
        )
    # ROCm's devices, too, call themselves "gpu".
    if "cuda" not in jax.extend.backend.get_backend().platform_version:
        return f"needs an NVIDIA GPU, and this process computes on {jax.default_backend()}"
    capability = float(jax.local_devices()[0].compute_capability)
    if capability < _CUDNN_CAPABILITY:
        return f"needs compute capability {_CUDNN_CAPABILITY}; this GPU has {capability}"
    return None
