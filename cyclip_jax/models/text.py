"""CLIP's text transformer."""

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cyclip_jax.errors import UserError
from cyclip_jax.models.dropout import Dropout
from cyclip_jax.models.initializers import normal
from cyclip_jax.models.linear import Linear
from cyclip_jax.models.transformer import (
    LAYER_NORM_EPSILON,
    Transformer,
    layer_norm,
    text_inits,
)

# Whether a token sees those before it alone, or all of its row.
TEXT_ATTENTIONS = ("causal", "full")
# Where a text's embedding is read: at the largest id of the row, at the first `eos_id`, or at an
# end of the row.
TEXT_POOLS = ("argmax", "eos", "first", "last")


class TextTransformer(nnx.Module):
    """Transformer whose embedding is read at one token, at the end-of-text in CLIP's.

    Token ids int [N, L] -> embeddings [N, embed_dim], for any L up to context_length. In CLIP's
    (Radford et al. 2021) attention is causal and the end-of-text token is the largest id of its
    row, so that what stands behind it is never seen.

    Args:
      is_causal: whether a token sees only those before it.
      pool: one of TEXT_POOLS.
      eos_id: the id at which the pool "eos" reads; in a row without it, at the first token.
      has_projection_bias: whether the projection is a linear layer with a bias.
      switches: which of SWITCHES the blocks have.
      epsilon: of all LayerNorms.
      **execution: `attention`, `remat` and `scan_blocks` of the Transformer.
    """

    def __init__(
        self,
        *,
        context_length: int,
        vocab_size: int,
        width: int,
        layers: int,
        heads: int,
        embed_dim: int,
        quick_gelu: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        is_causal: bool = True,
        pool: str = "argmax",
        eos_id: int = 0,
        has_projection_bias: bool = False,
        switches: Collection[str] = (),
        epsilon: float = LAYER_NORM_EPSILON,
        **execution: Any,
    ) -> None:
        self.dtype: DTypeLike = dtype
        self.heads: int = heads
        self.pool: str = pool
        self.eos_id: int = eos_id
        self.token_embedding: nnx.Param[Array] = nnx.Param(
            normal(0.02)(rngs.params(), (vocab_size, width))
        )
        self.positional_embedding: nnx.Param[Array] = nnx.Param(
            normal(0.01)(rngs.params(), (context_length, width))
        )
        self.transformer: Transformer = Transformer(
            width,
            layers,
            heads,
            is_causal=is_causal,
            quick_gelu=quick_gelu,
            inits=text_inits(width, layers),
            dtype=dtype,
            rngs=rngs,
            switches=switches,
            epsilon=epsilon,
            **execution,
        )
        self.ln_final: nnx.LayerNorm = layer_norm(width, dtype=dtype, rngs=rngs, epsilon=epsilon)
        init = normal(width**-0.5)
        self.text_projection: Any = (
            Linear(width, embed_dim, kernel_init=init, dtype=dtype, rngs=rngs)
            if has_projection_bias
            else nnx.Param(init(rngs.params(), (width, embed_dim)))
        )

    def __call__(
        self,
        tokens: Int[Array, "n l"],
        dropout: Dropout | None = None,
        *,
        is_projected: bool = True,
    ) -> Float[Array, "n d"]:
        """Embeddings [N, embed_dim] of token ids int [N, L].

        Args:
          tokens: the ids.
          dropout: of embeddings, attention and both branches of each block; None drops nothing.
          is_projected: whether to project into the embedding space; else the features at the token
            where the embedding is read are returned, [N, width].
        """
        length, context_length = tokens.shape[1], self.positional_embedding.shape[0]
        if length > context_length:
            raise UserError(
                f"texts of {length} tokens do not fit into config.model.context_length "
                f"{context_length}"
            )
        # Looked up before it is cast: start- and end-of-text occur in every row, and their
        # gradient, a sum over the batch, must not be added up in bfloat16.
        x = self.token_embedding[...][tokens].astype(self.dtype)  # [N, L, W]
        x = x + self.positional_embedding[:length].astype(self.dtype)
        if dropout is not None:
            x = dropout(x, 0)
        x = self._pooled(self.ln_final(self.transformer(x, dropout)), tokens)  # [N, W]
        if not is_projected:
            return x
        if isinstance(self.text_projection, Linear):
            return self.text_projection(x)
        return x @ self.text_projection[...].astype(x.dtype)

    def _pooled(self, x, tokens):
        """The features of one token of each row, [N, L, W], [N, L] -> [N, W]."""
        if self.pool in ("first", "last"):
            return x[:, 0 if self.pool == "first" else -1]
        place = jnp.argmax(tokens if self.pool == "argmax" else tokens == self.eos_id, axis=-1)
        return jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0]
