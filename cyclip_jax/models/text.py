"""CLIP's causal text transformer."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cyclip_jax.errors import UserError
from cyclip_jax.models.dropout import Dropout
from cyclip_jax.models.initializers import normal
from cyclip_jax.models.transformer import Transformer, layer_norm, text_inits


class TextTransformer(nnx.Module):
    """Causal transformer whose embedding is read at the end-of-text token (Radford et al. 2021).

    Token ids int [N, L] -> embeddings [N, embed_dim], for any L up to context_length. The
    end-of-text token must be the largest id of its row; what stands behind it is never seen.

    Args:
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
        **execution: Any,
    ) -> None:
        self.dtype: DTypeLike = dtype
        self.heads: int = heads
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
            is_causal=True,
            quick_gelu=quick_gelu,
            inits=text_inits(width, layers),
            dtype=dtype,
            rngs=rngs,
            **execution,
        )
        self.ln_final: nnx.LayerNorm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.text_projection: nnx.Param[Array] = nnx.Param(
            normal(width**-0.5)(rngs.params(), (width, embed_dim))
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
          is_projected: whether to project into the embedding space; else the features at the
            end-of-text token are returned, [N, width].
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
        x = self.ln_final(self.transformer(x, dropout))
        end_of_text = jnp.argmax(tokens, axis=-1)  # [N]
        x = jnp.take_along_axis(x, end_of_text[:, None, None], axis=1)[:, 0]  # [N, W]
        return x @ self.text_projection[...].astype(x.dtype) if is_projected else x
