"""CLIP's vision transformer."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cyclip_jax.errors import UserError
from cyclip_jax.models.initializers import normal, torch_kernel
from cyclip_jax.models.transformer import Transformer, layer_norm, vision_inits


def class_token(x: Float[Array, "n l w"]) -> Float[Array, "n w"]:
    """The first token of each image, [N, L, W] -> [N, W]."""
    return x[:, 0]


# How a tower makes one vector of an image's tokens, [N, L, W] -> [N, W].
POOLS = {"class_token": class_token}


class VisionTransformer(nnx.Module):
    """Patches, class token, `ln_pre`, blocks, pool, projection (Radford et al. 2021).

    Images [N, image_size, image_size, 3] -> embeddings [N, embed_dim].

    Args:
      pool: one of POOLS.
      **execution: `attention`, `remat` and `scan_blocks` of the Transformer.

    Attributes:
      grid: (h, w) patches of an image.
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
        pool: str = "class_token",
        **execution: Any,
    ) -> None:
        if patch_size is None or image_size % patch_size:
            raise UserError(
                f"config.model.image_size {image_size} is not a multiple of "
                f"config.model.patch_size {patch_size}"
            )
        side = image_size // patch_size
        self.grid: tuple[int, int] = (side, side)
        tokens = side**2 + 1
        scale = width**-0.5
        self.patch_size: int = patch_size
        self.heads: int = heads
        self.pool: str = pool
        self.dtype: DTypeLike = dtype
        self.conv1: nnx.Conv = nnx.Conv(
            3,
            width,
            (patch_size, patch_size),
            strides=patch_size,
            padding="VALID",
            use_bias=False,
            kernel_init=torch_kernel,
            dtype=dtype,
            rngs=rngs,
        )
        self.class_embedding: nnx.Param[Array] = nnx.Param(normal(scale)(rngs.params(), (width,)))
        self.positional_embedding: nnx.Param[Array] = nnx.Param(
            normal(scale)(rngs.params(), (tokens, width))
        )
        self.ln_pre: nnx.LayerNorm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.transformer: Transformer = Transformer(
            width,
            layers,
            heads,
            is_causal=False,
            quick_gelu=quick_gelu,
            inits=vision_inits(),
            dtype=dtype,
            rngs=rngs,
            **execution,
        )
        self.ln_post: nnx.LayerNorm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.proj: nnx.Param[Array] = nnx.Param(normal(scale)(rngs.params(), (width, embed_dim)))

    def __call__(
        self, images: Float[Array, "n h w 3"], kept_patches: Int[Array, "n k"] | None = None
    ) -> Float[Array, "n d"]:
        """Embeds images, from the patches of which the indices [N, K] are given, or from all."""
        x = self._embed_patches(images)  # [N, h·w, W]
        n, _, width = x.shape
        positions = self.positional_embedding[...].astype(x.dtype)  # [1 + h·w, W]
        x = x + positions[1:]
        if kept_patches is not None:
            # Where a patch is belongs to it, so its position is added before others go.
            x = jnp.take_along_axis(x, kept_patches[:, :, None], axis=1)  # [N, K, W]
        class_token = self.class_embedding[...].astype(x.dtype) + positions[0]
        class_token = jnp.broadcast_to(class_token, (n, 1, width))
        x = jnp.concatenate([class_token, x], axis=1)  # [N, 1 + K, W]
        x = self.transformer(self.ln_pre(x))
        x = self.ln_post(POOLS[self.pool](x))  # [N, W]
        return x @ self.proj[...].astype(x.dtype)

    def _embed_patches(self, images):
        """conv1 as one product, [N, h·w, W]: patches do not overlap, and CPUs are faster so."""
        n, (h, w), p = images.shape[0], self.grid, self.patch_size
        x = images.astype(self.dtype).reshape(n, h, p, w, p, -1)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n * h * w, -1)  # [N·h·w, p·p·3]
        kernel = self.conv1.kernel[...].astype(self.dtype)  # [p, p, 3, W]
        x = x @ kernel.reshape(-1, kernel.shape[-1])  # [N·h·w, W]
        return x.reshape(n, h * w, -1)
