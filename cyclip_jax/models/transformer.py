"""The pre-norm transformer that both CLIP towers are made of."""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

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
    split_heads,
)
from cyclip_jax.models.attention_kernel import attention_kernel
from cyclip_jax.models.dropout import Dropout
from cyclip_jax.models.initializers import normal, torch_bias, torch_kernel, xavier_uniform
from cyclip_jax.models.linear import Linear
from cyclip_jax.models.rematerialisation import run_block, scan_blocks

# PyTorch's LayerNorm; Flax's own default is 1e-6.
LAYER_NORM_EPSILON = 1e-5


# What a block may have besides, by open_clip's names: LayerNorm of the queries and keys of each
# head (Dehghani et al. 2023); and of NormFormer (Shleifer et al. 2021) a factor for each head, a
# LayerNorm of what the heads give, one of what attention gives, and one within the MLP.
SWITCHES = ("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")


def layer_norm(
    features: int, *, dtype: DTypeLike, rngs: nnx.Rngs, epsilon: float = LAYER_NORM_EPSILON
) -> nnx.LayerNorm:
    """LayerNorm with PyTorch's epsilon and a variance computed in two passes."""
    return nnx.LayerNorm(features, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs)


def activation(quick_gelu: bool) -> Callable[[Float[Array, "..."]], Float[Array, "..."]]:
    """Returns x·σ(1.702 x), as OpenAI trained CLIP, or the exact GELU."""
    if quick_gelu:
        return lambda x: x * jax.nn.sigmoid(1.702 * x)
    return lambda x: jax.nn.gelu(x, approximate=False)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one kernel for query, key and value.

    Args:
      switches: which of SWITCHES it has.
      epsilon: of its LayerNorms, if it has any.
    """

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
        switches: Collection[str] = (),
        epsilon: float = LAYER_NORM_EPSILON,
    ) -> None:
        self.heads: int = heads
        self.is_causal: bool = is_causal
        self.implementation: Implementation = choose_attention(
            attention, dtype=dtype, channels=width // heads
        )
        self.in_proj: Linear = Linear(width, 3 * width, kernel_init=in_init, dtype=dtype, rngs=rngs)
        self.out_proj: Linear = Linear(width, width, kernel_init=out_init, dtype=dtype, rngs=rngs)
        norm = functools.partial(layer_norm, dtype=dtype, rngs=rngs, epsilon=epsilon)
        has_qk_norm = "qk_norm" in switches
        self.ln_q: Any = nnx.data(norm(width // heads) if has_qk_norm else None)
        self.ln_k: Any = nnx.data(norm(width // heads) if has_qk_norm else None)
        head_scale = nnx.Param(jnp.ones((heads, 1, 1))) if "scale_heads" in switches else None
        self.head_scale: Any = nnx.data(head_scale)
        self.ln_inner: Any = nnx.data(norm(width) if "scale_attn_inner" in switches else None)

    def __call__(
        self, x: Float[Array, "n l w"], drop: Callable[..., Array] | None = None
    ) -> Float[Array, "n l w"]:
        if self.implementation == "pallas" and drop is None and self.ln_q is None:
            out = attention_kernel(self.in_proj(x), self.heads, self.is_causal)
            return self.out_proj(self._scaled(out))
        query, key, value = self.in_proj.split(x, 3)
        if self.ln_q is not None:
            query, key = self._by_head(self.ln_q, query), self._by_head(self.ln_k, key)
        if drop is not None:  # no kernel draws these masks
            out = multi_head_attention(
                *(query, key, value), heads=self.heads, is_causal=self.is_causal, drop=drop
            )
        else:
            out = fast_attention(
                *(query, key, value),
                heads=self.heads,
                is_causal=self.is_causal,
                implementation="cudnn" if self.implementation == "cudnn" else "xla",
            )
        return self.out_proj(self._scaled(out))

    def _by_head(self, norm, x):
        """The norm of each head's channels, [N, L, W] -> [N, L, W]."""
        return norm(split_heads(x, self.heads)).reshape(x.shape)

    def _scaled(self, x):
        """What the heads give, [N, L, W], with each one's factor and the norm of all of them."""
        if self.head_scale is not None:
            scale = self.head_scale[...].astype(x.dtype)  # [heads, 1, 1]
            x = (split_heads(x, self.heads) * scale[:, 0]).reshape(x.shape)
        return x if self.ln_inner is None else self.ln_inner(x)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
      switches: which of SWITCHES it has.
      epsilon: of its LayerNorms.
    """

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
        switches: Collection[str] = (),
        epsilon: float = LAYER_NORM_EPSILON,
    ) -> None:
        self.quick_gelu = quick_gelu
        norm = functools.partial(layer_norm, dtype=dtype, rngs=rngs, epsilon=epsilon)
        self.ln_1: nnx.LayerNorm = norm(width)
        self.attn: SelfAttention = SelfAttention(
            width,
            heads,
            is_causal=is_causal,
            attention=attention,
            in_init=inits["in_proj"],
            out_init=inits["out_proj"],
            dtype=dtype,
            rngs=rngs,
            switches=switches,
            epsilon=epsilon,
        )
        self.ln_attn: Any = nnx.data(norm(width) if "scale_attn" in switches else None)
        self.ln_2: nnx.LayerNorm = norm(width)
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
        self.mlp_ln: Any = nnx.data(norm(4 * width) if "scale_fc" in switches else None)

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
        out = self.attn(self.ln_1(x), drops[0])
        x = x + _dropped(_normed(self.ln_attn, out), drops[1])
        out = activation(self.quick_gelu)(self.c_fc(self.ln_2(x)))
        return x + _dropped(self.c_proj(_normed(self.mlp_ln, out)), drops[2])


def _normed(norm, x):
    return x if norm is None else norm(x)


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
      switches: which of SWITCHES the blocks have.
      epsilon: of their LayerNorms.
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
        switches: Collection[str] = (),
        epsilon: float = LAYER_NORM_EPSILON,
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
                switches=switches,
                epsilon=epsilon,
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
