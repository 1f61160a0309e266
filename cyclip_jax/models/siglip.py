"""The vision transformer of SigLIP's image towers, as timm builds it."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cyclip_jax.errors import UserError
from cyclip_jax.models.attention import multi_head_attention
from cyclip_jax.models.initializers import normal, torch_bias, torch_kernel, xavier_uniform
from cyclip_jax.models.linear import Linear
from cyclip_jax.models.transformer import Transformer, activation, layer_norm, vision_inits
from cyclip_jax.models.vit import (
    embed_patches,
    grid_of,
    patch_embedding,
    resized_positions,
    side_of,
)

# How the tower makes one vector of an image's tokens: what a learned query sees ("MAP", Zhai et al.
# 2022, "Scaling vision transformers"), and an MLP of that.
POOLS = ("map",)
_EPSILON = 1e-6  # of all LayerNorms


class MapPool(nnx.Module):
    """What a learned query sees of the tokens, and an MLP beside it, [N, L, W] -> [N, W]."""

    def __init__(self, width: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        def linear(inputs, outputs, kernel_init=torch_kernel):
            return Linear(
                inputs,
                outputs,
                kernel_init=kernel_init,
                bias_init=torch_bias(inputs),
                dtype=dtype,
                rngs=rngs,
            )

        self.heads: int = heads
        self.latent: nnx.Param[Array] = nnx.Param(normal(width**-0.5)(rngs.params(), (1, 1, width)))
        self.q: Linear = linear(width, width, xavier_uniform)
        self.kv: Linear = linear(width, 2 * width, xavier_uniform)
        self.proj: Linear = linear(width, width)
        self.norm: nnx.LayerNorm = layer_norm(width, dtype=dtype, rngs=rngs, epsilon=_EPSILON)
        self.fc1: Linear = linear(width, 4 * width)
        self.fc2: Linear = linear(4 * width, width)

    def __call__(self, x: Float[Array, "n l w"]) -> Float[Array, "n w"]:
        query = self.q(self.latent[...].astype(x.dtype))  # [1, 1, W]
        query = jnp.broadcast_to(query, (len(x), *query.shape[1:]))
        key, value = self.kv.split(x, 2)
        x = self.proj(multi_head_attention(query, key, value, heads=self.heads))
        out = self.fc2(activation(quick_gelu=False)(self.fc1(self.norm(x))))
        return (x + out)[:, 0]


class Trunk(nnx.Module):
    """Patches, blocks, norm and pool, [N, H, W, 3] -> [N, width]; named as timm's trunk is."""

    def __init__(
        self,
        *,
        side: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        **execution: Any,
    ) -> None:
        self.grid: tuple[int, int] = (side, side)
        self.dtype: DTypeLike = dtype
        self.patch_embed: nnx.Conv = patch_embedding(
            patch_size, width, bias_init=torch_bias(3 * patch_size**2), dtype=dtype, rngs=rngs
        )
        self.pos_embed: nnx.Param[Array] = nnx.Param(
            normal(width**-0.5)(rngs.params(), (1, side**2, width))
        )
        self.transformer: Transformer = Transformer(
            width,
            layers,
            heads,
            is_causal=False,
            quick_gelu=False,
            inits=vision_inits(),
            dtype=dtype,
            rngs=rngs,
            epsilon=_EPSILON,
            **execution,
        )
        self.norm: nnx.LayerNorm = layer_norm(width, dtype=dtype, rngs=rngs, epsilon=_EPSILON)
        self.attn_pool: MapPool = MapPool(width, heads, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Float[Array, "n h w 3"], kept_patches: Int[Array, "n k"] | None = None
    ) -> Float[Array, "n w"]:
        grid = grid_of(self.patch_embed, images)
        x = embed_patches(self.patch_embed, images, grid, self.dtype)  # [N, h·w, W]
        bias: Any = self.patch_embed.bias
        positions = self.pos_embed[...]
        if grid != self.grid:
            positions = resized_positions(positions[0], self.grid, grid)
        x = x + bias[...].astype(x.dtype) + positions.astype(x.dtype)
        if kept_patches is not None:
            x = jnp.take_along_axis(x, kept_patches[:, :, None], axis=1)  # [N, K, W]
        return self.attn_pool(self.norm(self.transformer(x)))


class SigLIPVisionTransformer(nnx.Module):
    """SigLIP's image tower (Zhai et al. 2023): no class token and no projection.

    Images [N, image_size, image_size, 3] -> embeddings [N, embed_dim], as wide as the tower. The
    activation is the exact GELU.

    Args:
      pool: one of POOLS.
      **execution: `attention`, `remat` and `scan_blocks` of the Transformer.

    Attributes:
      grid: (h, w) patches of an image.

    Raises:
      UserError: the embedding is not as wide as the tower, patches do not fill an image, or the
        activation is another one.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int | None,
        width: int,
        layers: int,
        heads: int,
        embed_dim: int,
        quick_gelu: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        pool: str = "map",
        **execution: Any,
    ) -> None:
        if embed_dim != width:
            raise UserError(
                "SigLIP's ViT has no projection, so that config.model.embed_dim must be "
                f"config.model.vision_width {width}, not {embed_dim}"
            )
        if quick_gelu:
            raise UserError("SigLIP's ViT has the exact GELU; set config.model.quick_gelu to False")
        side = side_of(image_size, patch_size)
        self.grid: tuple[int, int] = (side, side)
        self.pool: str = pool
        self.heads: int = heads
        self.dtype: DTypeLike = dtype
        self.trunk: Trunk = Trunk(
            side=side,
            patch_size=image_size // side,
            width=width,
            layers=layers,
            heads=heads,
            dtype=dtype,
            rngs=rngs,
            **execution,
        )

    def __call__(
        self, images: Float[Array, "n h w 3"], kept_patches: Int[Array, "n k"] | None = None
    ) -> Float[Array, "n d"]:
        """Embeds images, from the patches of which the indices [N, K] are given, or from all."""
        return self.trunk(images, kept_patches)
