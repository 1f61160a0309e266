"""CLIP's vision transformer."""

import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cyclip_jax.errors import UserError
from cyclip_jax.models.attention import multi_head_attention
from cyclip_jax.models.initializers import normal, torch_kernel, xavier_uniform
from cyclip_jax.models.transformer import Transformer, layer_norm, vision_inits

# How a tower makes one vector of an image's tokens: the first of them, the mean of the others, or
# what a learned query sees (Yu et al. 2022).
POOLS = ("class_token", "mean", "attention")
# The position embeddings: parameters, or sines and cosines, which do not train.
POSITIONS = ("learned", "sin_cos")
# Heads of the pool "attention", as open_clip's CoCa has them.
POOL_HEADS = 8


def sin_cos_positions(width: int, side: int) -> Float[np.ndarray, "1+side**2 width"]:
    """Position embeddings of sines and cosines of an image's patches (Chen et al. 2021, MoCo v3).

    A quarter of the channels each are the sine and the cosine of the column and of the row, with
    frequencies from 1 down to nearly 1/10,000. The class token's are 0.

    Args:
      width: channels, a multiple of 4.
      side: patches of an image in each direction.

    Returns:
      float32 [1 + side², width].
    """
    frequencies = 1 / 10_000 ** (np.arange(width // 4) / (width / 4))
    row, column = (x.reshape(-1, 1) * frequencies for x in np.indices((side, side)))
    channels = [np.sin(column), np.cos(column), np.sin(row), np.cos(row)]
    patches = np.concatenate(channels, axis=1)
    return np.concatenate([np.zeros((1, width)), patches]).astype(np.float32)


def patch_embedding(size: int, width: int, **arguments: Any) -> nnx.Conv:
    """The convolution that makes tokens of patches; `embed_patches` computes it.

    Args:
      size: pixels of a patch's side.
      width: channels of a token.
      **arguments: of nnx.Conv.
    """
    return nnx.Conv(
        3,
        width,
        (size, size),
        strides=size,
        padding="VALID",
        kernel_init=torch_kernel,
        **arguments,
    )


def embed_patches(
    conv: nnx.Conv, images: Float[Array, "n h w 3"], grid: tuple[int, int], dtype: DTypeLike
) -> Float[Array, "n l w"]:
    """The kernel of a `patch_embedding` applied, [N, H, W, 3] -> [N, h·w, W], without its bias.

    It is one product of all patches: they do not overlap, and CPUs are faster so.

    Args:
      conv: the convolution.
      images: float [N, H, W, 3].
      grid: (h, w) patches of an image.
      dtype: the type in which this is computed.
    """
    kernel = conv.kernel[...].astype(dtype)  # [p, p, 3, W]
    (h, w), n, p = grid, images.shape[0], kernel.shape[0]
    x = images.astype(dtype).reshape(n, h, p, w, p, -1)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n * h * w, -1)  # [N·h·w, p·p·3]
    x = x @ kernel.reshape(-1, kernel.shape[-1])  # [N·h·w, W]
    return x.reshape(n, h * w, -1)


def grid_of(conv: nnx.Conv, images: Float[Array, "n h w 3"]) -> tuple[int, int]:
    """(h, w) patches of images, [N, H, W, 3], under the kernel of a `patch_embedding`."""
    size = conv.kernel[...].shape[0]
    return images.shape[1] // size, images.shape[2] // size


def resized_positions(
    positions: Float[Array, "l w"], whole: tuple[int, int], grid: tuple[int, int]
) -> Float[Array, "k w"]:
    """Position embeddings of the patches of smaller images, interpolated (CLIPA, Li et al. 2023).

    A patch of a smaller image covers several of the whole one, and has the position of their
    centre, linearly between the patches there. What rises linearly along the rows and columns
    stays exact.

    Args:
      positions: those of the whole grid, row by row, [h·w, W].
      whole: (h, w) of that grid.
      grid: (h, w) patches of the images, none more than in the whole one.
    """
    squares = positions.reshape(*whole, -1)
    resized = jax.image.resize(squares, (*grid, squares.shape[-1]), "linear", antialias=False)
    return resized.reshape(-1, squares.shape[-1])


class _Query(nnx.Module):
    """Attention of one query to tokens of another width, as torch.nn.MultiheadAttention has it."""

    def __init__(self, width: int, tokens: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        linear = functools.partial(
            nnx.Linear, kernel_init=xavier_uniform, dtype=dtype, rngs=rngs, use_bias=False
        )
        # PyTorch keeps the three in one matrix where all widths are equal.
        is_joined = width == tokens
        self.in_proj: Any = nnx.data(linear(width, 3 * width, use_bias=True) if is_joined else None)
        self.q_proj: Any = nnx.data(None if is_joined else linear(width, width))
        self.k_proj: Any = nnx.data(None if is_joined else linear(tokens, width))
        self.v_proj: Any = nnx.data(None if is_joined else linear(tokens, width))
        bias = None if is_joined else nnx.Param(jnp.zeros(3 * width))
        self.in_proj_bias: Any = nnx.data(bias)
        self.out_proj: nnx.Linear = linear(width, width, kernel_init=torch_kernel, use_bias=True)

    def __call__(self, query, tokens):
        """What the queries see of tokens, [N, Q, D], [N, L, W] -> [N, Q, D]."""
        if self.in_proj is not None:
            kernels = jnp.split(self.in_proj.kernel[...], 3, axis=1)
            bias = self.in_proj.bias[...]
        else:
            kernels = [x.kernel[...] for x in (self.q_proj, self.k_proj, self.v_proj)]
            bias = self.in_proj_bias[...]
        given = zip((query, tokens, tokens), kernels, jnp.split(bias, 3), strict=True)
        parts = [x @ kernel.astype(x.dtype) + b.astype(x.dtype) for x, kernel, b in given]
        return self.out_proj(multi_head_attention(*parts, heads=POOL_HEADS))


class AttentionPool(nnx.Module):
    """What one learned query sees of an image's tokens, [N, L, W] -> [N, embed_dim]."""

    def __init__(self, width: int, embed_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        if embed_dim % POOL_HEADS:
            raise UserError(
                f"config.model.pool 'attention' has {POOL_HEADS} heads, into which "
                f"config.model.embed_dim {embed_dim} does not divide; set it to a multiple"
            )
        self.query: nnx.Param[Array] = nnx.Param(normal(1.0)(rngs.params(), (1, embed_dim)))
        self.attn: _Query = _Query(embed_dim, width, dtype=dtype, rngs=rngs)
        self.ln_q: nnx.LayerNorm = layer_norm(embed_dim, dtype=dtype, rngs=rngs)
        self.ln_k: nnx.LayerNorm = layer_norm(width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n l w"]) -> Float[Array, "n d"]:
        query = self.ln_q(self.query[...])[None]  # [1, 1, D]
        query = jnp.broadcast_to(query, (len(x), *query.shape[1:]))
        return self.attn(query, self.ln_k(x))[:, 0]


class VisionTransformer(nnx.Module):
    """Patches, class token, `ln_pre`, blocks, pool, projection (Radford et al. 2021).

    Images [N, image_size, image_size, 3] -> embeddings [N, embed_dim].

    Args:
      pool: one of POOLS.
      positions: one of POSITIONS.
      switches: which of SWITCHES the blocks have.
      **execution: `attention`, `remat` and `scan_blocks` of the Transformer.

    Attributes:
      grid: (h, w) patches of an image of the tower's size.
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
        positions: str = "learned",
        switches: Collection[str] = (),
        **execution: Any,
    ) -> None:
        side = side_of(image_size, patch_size)
        self.grid: tuple[int, int] = (side, side)
        scale = width**-0.5
        self.heads: int = heads
        self.pool: str = pool
        self.dtype: DTypeLike = dtype
        self.conv1: nnx.Conv = patch_embedding(
            image_size // side, width, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.class_embedding: nnx.Param[Array] = nnx.Param(normal(scale)(rngs.params(), (width,)))
        learned = None
        if positions == "learned":
            learned = nnx.Param(normal(scale)(rngs.params(), (side**2 + 1, width)))
        elif width % 4:
            raise UserError(
                "config.model.vision_positions 'sin_cos' needs a multiple of 4 channels, and "
                f"config.model.vision_width is {width}"
            )
        self.positional_embedding: Any = nnx.data(learned)
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
            switches=switches,
            **execution,
        )
        attn_pool, pooled = None, width
        if pool == "attention":
            attn_pool, pooled = AttentionPool(width, embed_dim, dtype=dtype, rngs=rngs), embed_dim
        self.attn_pool: Any = nnx.data(attn_pool)
        self.ln_post: nnx.LayerNorm = layer_norm(pooled, dtype=dtype, rngs=rngs)
        self.proj: nnx.Param[Array] = nnx.Param(normal(scale)(rngs.params(), (pooled, embed_dim)))

    def __call__(
        self, images: Float[Array, "n h w 3"], kept_patches: Int[Array, "n k"] | None = None
    ) -> Float[Array, "n d"]:
        """Embeds images, from the patches of which the indices [N, K] are given, or from all.

        Images may be smaller than the tower's, by whole patches (see `resized_positions`).
        """
        grid = grid_of(self.conv1, images)
        x = embed_patches(self.conv1, images, grid, self.dtype)  # [N, h·w, W]
        n, _, width = x.shape
        positions = self._positions(width)  # [1 + h·w, W]
        if grid != self.grid:
            smaller = resized_positions(positions[1:], self.grid, grid)
            positions = jnp.concatenate([positions[:1], smaller])
        positions = positions.astype(x.dtype)
        x = x + positions[1:]
        if kept_patches is not None:
            # Where a patch is belongs to it, so its position is added before others go.
            x = jnp.take_along_axis(x, kept_patches[:, :, None], axis=1)  # [N, K, W]
        class_token = self.class_embedding[...].astype(x.dtype) + positions[0]
        class_token = jnp.broadcast_to(class_token, (n, 1, width))
        x = jnp.concatenate([class_token, x], axis=1)  # [N, 1 + K, W]
        x = self.transformer(self.ln_pre(x))
        x = self._pooled(x)  # [N, W]
        return x @ self.proj[...].astype(x.dtype)

    def _positions(self, width):
        if self.positional_embedding is not None:
            return self.positional_embedding[...]
        return jnp.asarray(sin_cos_positions(width, self.grid[0]))

    def _pooled(self, x):
        """One vector of an image's tokens, [N, 1 + K, W] -> [N, W]."""
        if self.attn_pool is not None:
            return self.ln_post(self.attn_pool(x))
        if self.pool == "mean":
            return self.ln_post(x[:, 1:]).mean(axis=1)
        return self.ln_post(x[:, 0])


def side_of(image_size: int, patch_size: int | None) -> int:
    """Patches of an image in each direction; raises UserError where they do not fill it."""
    if patch_size is None or image_size % patch_size:
        raise UserError(
            f"config.model.image_size {image_size} is not a multiple of "
            f"config.model.patch_size {patch_size}"
        )
    return image_size // patch_size
