"""The pre-norm transformer that both CLIP towers are made of."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cyclip_jax.models.attention import (
    Implementation,
    choose_attention,
    fast_attention,
    multi_head_attention,
)
from cyclip_jax.models.attention_kernel import attention_kernel
from cyclip_jax.models.dropout import Dropout
from cyclip_jax.models.initializers import normal, torch_bias, torch_kernel, xavier_uniform
from cyclip_jax.models.linear import Linear
from cyclip_jax.models.rematerialisation import run_block, scan_blocks

# PyTorch's LayerNorm; Flax's own default is 1e-6.
LAYER_NORM_EPSILON = 1e-5


def layer_norm(features: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with PyTorch's epsilon and a variance computed in two passes."""
    return nnx.LayerNorm(
        features, epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, dtype=dtype, rngs=rngs
    )


def activation(quick_gelu: bool) -> Callable[[Float[Array, "..."]], Float[Array, "..."]]:
    """Returns x·σ(1.702 x), as OpenAI trained CLIP, or the exact GELU."""
    if quick_gelu:
        return lambda x: x * jax.nn.sigmoid(1.702 * x)
    return lambda x: jax.nn.gelu(x, approximate=False)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one kernel for query, key and value."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        is_causal: bool,
        attention: str,
        in_init: Initializer,
        out_init: Initializer,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.heads: int = heads
        self.is_causal: bool = is_causal
        self.implementation: Implementation = choose_attention(
            attention, dtype=dtype, channels=width // heads
        )
        self.in_proj: Linear = Linear(width, 3 * width, kernel_init=in_init, dtype=dtype, rngs=rngs)
        self.out_proj: Linear = Linear(width, width, kernel_init=out_init, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "n l w"], drop: Callable[..., Array] | None = None
    ) -> Float[Array, "n l w"]:
        if drop is not None:  # no kernel draws these masks
            parts = self.in_proj.split(x, 3)
            out = multi_head_attention(
                *parts, heads=self.heads, is_causal=self.is_causal, drop=drop
            )
            return self.out_proj(out)
        if self.implementation == "pallas":
            return self.out_proj(attention_kernel(self.in_proj(x), self.heads, self.is_causal))
        out = fast_attention(
            *self.in_proj.split(x, 3),
            heads=self.heads,
            is_causal=self.is_causal,
            implementation=self.implementation,
        )
        return self.out_proj(out)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        is_causal: bool,
        attention: str,
        quick_gelu: bool,
        inits: Mapping[str, Initializer],
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.quick_gelu = quick_gelu
        self.ln_1: nnx.LayerNorm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.attn: SelfAttention = SelfAttention(
            width,
            heads,
            is_causal=is_causal,
            attention=attention,
            in_init=inits["in_proj"],
            out_init=inits["out_proj"],
            dtype=dtype,
            rngs=rngs,
        )
        self.ln_2: nnx.LayerNorm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.c_fc: Linear = Linear(
            width,
            4 * width,
            kernel_init=inits["c_fc"],
            bias_init=torch_bias(width),
            dtype=dtype,
            rngs=rngs,
        )
        self.c_proj: Linear = Linear(
            4 * width,
            width,
            kernel_init=inits["c_proj"],
            bias_init=torch_bias(4 * width),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Float[Array, "n l w"],
        dropout: Dropout | None = None,
        number: Int[Array, ""] | int = 0,
    ) -> Float[Array, "n l w"]:
        """The block's output, [N, L, W] -> [N, L, W].

        Args:
          x: its input.
          dropout: of the attention's weights and of both branches; None drops nothing.
          number: of the block, by which its masks differ from other blocks'.
        """
        # Place 0 is before the blocks.
        drops = [
            None if dropout is None else functools.partial(dropout, place=3 * number + place)
            for place in (1, 2, 3)
        ]
        x = x + _dropped(self.attn(self.ln_1(x), drops[0]), drops[1])
        out = self.c_proj(activation(self.quick_gelu)(self.c_fc(self.ln_2(x))))
        return x + _dropped(out, drops[2])


def _dropped(x, drop):
    return x if drop is None else drop(x)


def text_inits(width: int, layers: int) -> dict[str, Initializer]:
    """OpenAI's initialisation of the text blocks: residual branches shrink with depth."""
    residual = width**-0.5 * (2 * layers) ** -0.5
    return {
        "in_proj": normal(width**-0.5),
        "out_proj": normal(residual),
        "c_fc": normal((2 * width) ** -0.5),
        "c_proj": normal(residual),
    }


def vision_inits() -> dict[str, Initializer]:
    """PyTorch's defaults, which OpenAI leaves in place for the vision transformer's blocks."""
    return {
        "in_proj": xavier_uniform,
        "out_proj": torch_kernel,
        "c_fc": torch_kernel,
        "c_proj": torch_kernel,
    }


class Transformer(nnx.Module):
    """A stack of `layers` blocks, [N, L, width] -> [N, L, width].

    Args:
      attention: one of ATTENTIONS.
      remat: what the blocks keep for their gradient, one of POLICIES.
      scan_blocks: run them as one loop rather than one after the other.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        *,
        is_causal: bool,
        quick_gelu: bool,
        inits: Mapping[str, Initializer],
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        attention: str = "auto",
        remat: str = "none",
        scan_blocks: bool = False,
    ) -> None:
        self.remat: str = remat
        self.scan_blocks: bool = scan_blocks
        self.resblocks: nnx.List[Block] = nnx.List(
            Block(
                width,
                heads,
                is_causal=is_causal,
                attention=attention,
                quick_gelu=quick_gelu,
                inits=inits,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(layers)
        )

    def __call__(
        self, x: Float[Array, "n l w"], dropout: Dropout | None = None
    ) -> Float[Array, "n l w"]:
        if self.scan_blocks:
            if dropout is None:
                return scan_blocks(self.resblocks, x, policy=self.remat)
            blocks = len(self.resblocks)
            each = jax.tree.map(lambda keys: jnp.broadcast_to(keys, (blocks, *keys.shape)), dropout)
            return scan_blocks(self.resblocks, x, each, jnp.arange(blocks), policy=self.remat)
        for number, block in enumerate(self.resblocks):
            further = () if dropout is None else (dropout, number)
            x = run_block(block, x, *further, policy=self.remat)
        return x
