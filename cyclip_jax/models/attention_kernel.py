"""Self-attention as one kernel for each image or text, for TPUs; nothing but its inputs is kept."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from cyclip_jax import parallel

# What a kernel may take of a TPU core's 128 MiB of vector memory: for 1,025 tokens of width 1,280.
_VECTOR_MEMORY = 100 * 2**20


def attention_kernel(
    qkv: Float[Array, "n l w3"], heads: int, is_causal: bool
) -> Float[Array, "n l w"]:
    """`multi_head_attention` of queries, keys and values side by side, [N, L, 3·W] -> [N, L, W].

    XLA writes the logits of all heads to memory and reads them again, several times in a training
    step. Here the logits of an image live and die in the core's own memory, and the gradient
    computes them again (as FlashAttention does, Dao et al. 2022; at these lengths a row of logits
    fits in one tile, so that no running maximum is needed). Off TPUs the kernel is interpreted, for
    tests. Under `parallel.rows_over(mesh)`, each device takes its own rows.
    """
    run = functools.partial(_attention, heads=heads, is_causal=is_causal)
    return parallel.on_own_rows(lambda _, qkv: run(qkv), (), qkv)


@functools.partial(jax.custom_vjp, nondiff_argnames=("heads", "is_causal"))
def _attention(qkv, heads, is_causal):
    return _run(_forward, qkv, heads=heads, is_causal=is_causal)


def _output(qkv, heads, is_causal):
    return _attention(qkv, heads, is_causal), qkv


def _gradient(heads, is_causal, qkv, out_grad):
    return (_run(_backward, qkv, out_grad, heads=heads, is_causal=is_causal),)


_attention.defvjp(_output, _gradient)


def _forward(qkv_ref, out_ref, *, heads, is_causal):
    for columns in _columns(out_ref.shape[-1], heads):
        query, key, value = (qkv_ref[0, :, part] for part in columns)
        weights = _weights(query, key, is_causal)
        out_ref[0, :, columns[0]] = _dot(weights.astype(value.dtype), value).astype(out_ref.dtype)


def _backward(qkv_ref, out_grad_ref, grad_ref, *, heads, is_causal):
    for columns in _columns(out_grad_ref.shape[-1], heads):
        query, key, value = (qkv_ref[0, :, part] for part in columns)
        out_grad = out_grad_ref[0, :, columns[0]]
        weights = _weights(query, key, is_causal)  # [L, L]
        weights_grad = _dot(out_grad, value.T)
        mean = jnp.sum(weights * weights_grad, axis=-1, keepdims=True)
        logits_grad = weights * (weights_grad - mean) * query.shape[-1] ** -0.5
        logits_grad = logits_grad.astype(query.dtype)
        grads = (
            _dot(logits_grad, key),
            _dot(logits_grad.T, query),
            _dot(weights.astype(out_grad.dtype).T, out_grad),
        )
        for part, grad in zip(columns, grads, strict=True):
            grad_ref[0, :, part] = grad.astype(grad_ref.dtype)


def _columns(width, heads):
    """Of each head, where its query, key and value stand among the 3·W columns."""
    channels = width // heads
    starts = [[part * width + head * channels for part in range(3)] for head in range(heads)]
    return [[slice(start, start + channels) for start in parts] for parts in starts]


def _weights(query, key, is_causal):
    """softmax(Q Kᵀ / √d), [L, L] in float32, or in float64 for tests."""
    logits = _dot(query, key.T) * query.shape[-1] ** -0.5
    if is_causal:
        row, column = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1))
        logits = jnp.where(column <= row, logits, -jnp.inf)
    logits = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    return logits / jnp.sum(logits, axis=-1, keepdims=True)


def _dot(a, b):
    return jnp.dot(a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _run(kernel, *operands, heads, is_causal):
    return jax.lax.platform_dependent(
        *operands,
        tpu=_call(kernel, operands, heads, is_causal),
        default=_call(kernel, operands, heads, is_causal, interpret=True),
    )


def _call(kernel, operands, heads, is_causal, **options):
    """The pallas_call of a kernel over the rows of its operands."""
    count, length, width = operands[0].shape  # of qkv: 3·W
    out_width = width // 3 if kernel is _forward else width
    products = 2 if kernel is _forward else 5
    widths = [operand.shape[-1] for operand in operands] + [out_width]
    *sources, target = (
        pl.BlockSpec((1, length, columns), lambda row: (row, 0, 0)) for columns in widths
    )
    dtype = operands[0].dtype
    return pl.pallas_call(
        functools.partial(kernel, heads=heads, is_causal=is_causal),
        grid=(count,),
        in_specs=sources,
        out_specs=target,
        out_shape=jax.ShapeDtypeStruct((count, length, out_width), dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=_VECTOR_MEMORY
        ),
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * count * length**2 * (width // 3),
            transcendentals=count * heads * length**2,
            bytes_accessed=count * length * sum(widths) * dtype.itemsize,
        ),
        **options,
    )
