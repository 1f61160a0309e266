"""CLIP's modified ResNet: three-convolution stem, anti-aliased down-sampling, attention pool."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cyclip_jax.errors import UserError
from cyclip_jax.models.attention import multi_head_attention
from cyclip_jax.models.batch_norm import BatchNorm, rectified_linear
from cyclip_jax.models.convolution import Convolution
from cyclip_jax.models.initializers import normal, torch_bias
from cyclip_jax.models.rematerialisation import run_block
from cyclip_jax.models.rows import by_rows

STAGES = 4
EXPANSION = 32  # channels of the last stage, and of the attention pool, for each after the stem


def average_pool(x: Float[Array, "n h w c"], size: int) -> Float[Array, "n h/size w/size c"]:
    """Means over size×size squares, [N, H, W, C] -> [N, H//size, W//size, C].

    Rows and columns that fill no square are dropped, as in PyTorch.
    """
    if size == 1:
        return x
    n, h, w, c = x.shape
    h, w = h // size, w // size
    x = x[:, : h * size, : w * size].reshape(n, h, size, w, size, c)
    return x.mean(axis=(2, 4))


class Bottleneck(nnx.Module):
    """1×1, 3×3, 1×1; down-sampled by average pooling, never by a strided convolution."""

    expansion = 4

    def __init__(
        self,
        inputs: int,
        planes: int,
        *,
        stride: int,
        group_size: int | None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        outputs = planes * self.expansion
        shared = {"dtype": dtype, "rngs": rngs}
        norm = {"group_size": group_size, **shared}
        self.stride = stride
        self.conv1: Convolution = Convolution(inputs, planes, 1, **shared)
        self.bn1: BatchNorm = BatchNorm(planes, **norm)
        self.conv2: Convolution = Convolution(planes, planes, 3, **shared)
        self.bn2: BatchNorm = BatchNorm(planes, **norm)
        self.conv3: Convolution = Convolution(planes, outputs, 1, **shared)
        # A block starts as the identity: OpenAI sets the scale of its last norm to 0.
        self.bn3: BatchNorm = BatchNorm(outputs, scale_init=nnx.initializers.zeros, **norm)
        self.downsample: bool = stride > 1 or inputs != outputs
        if self.downsample:
            self.downsample_conv: Convolution = Convolution(inputs, outputs, 1, **shared)
            self.downsample_bn: BatchNorm = BatchNorm(outputs, **norm)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        out = self.bn1(self.conv1(x), rectified=True)
        out = self.bn2(self.conv2(out), rectified=True)
        out = self.bn3(self.conv3(average_pool(out, self.stride)))
        if self.downsample:
            x = self.downsample_bn(self.downsample_conv(average_pool(x, self.stride)))
        return rectified_linear(out + x)


class AttentionPool(nnx.Module):
    """Attention in which the mean of all positions asks, [N, h, w, W] -> [N, embed_dim]."""

    def __init__(
        self,
        positions: int,
        width: int,
        heads: int,
        embed_dim: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.heads = heads
        self.dtype: DTypeLike = dtype
        self.positional_embedding: nnx.Param[Array] = nnx.Param(
            normal(width**-0.5)(rngs.params(), (positions + 1, width))
        )

        def linear(outputs):
            return nnx.Linear(
                width,
                outputs,
                kernel_init=normal(width**-0.5),
                bias_init=torch_bias(width),
                dtype=dtype,
                rngs=rngs,
            )

        self.q_proj: nnx.Linear = linear(width)
        self.k_proj: nnx.Linear = linear(width)
        self.v_proj: nnx.Linear = linear(width)
        self.c_proj: nnx.Linear = linear(embed_dim)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        x = x.reshape(x.shape[0], -1, x.shape[-1])  # [N, h·w, W]
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        x = x + self.positional_embedding[...].astype(x.dtype)
        # There is one query to an image: its weights are few, and a fast form would save nothing.
        pooled = multi_head_attention(
            self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x), heads=self.heads
        )
        return self.c_proj(pooled[:, 0])


# How a tower makes one embedding of an image's places, [N, h, w, W] -> [N, embed_dim].
POOLS = {"attention": AttentionPool}


class ModifiedResNet(nnx.Module):
    """CLIP's image tower RN* (Radford et al. 2021, section 2.4).

    Images [N, image_size, image_size, 3] -> embeddings [N, embed_dim].

    Args:
      layers: blocks per stage, a tuple of four.
      width: channels after the stem; the last stage has 32 times as many.
      heads: heads of the attention pool.
      pool: one of POOLS.
      batch_norm_group_size: images per group of BatchNorm statistics; None is the whole batch.
      remat: what the blocks keep for their gradient, one of POLICIES.
    """

    def __init__(
        self,
        *,
        image_size: int,
        layers: Sequence[int],
        width: int,
        heads: int,
        embed_dim: int,
        batch_norm_group_size: int | None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        remat: str = "none",
        pool: str = "attention",
    ) -> None:
        if image_size % 32:
            raise UserError(
                f"config.model.image_size {image_size} is not a multiple of 32, by which a ResNet "
                "shrinks its images"
            )
        self.remat: str = remat
        self.dtype: DTypeLike = dtype
        self.heads: int = heads
        shared = {"dtype": dtype, "rngs": rngs}
        norm = {"group_size": batch_norm_group_size, **shared}
        self.conv1: Convolution = Convolution(3, width // 2, 3, stride=2, **shared)
        self.bn1: BatchNorm = BatchNorm(width // 2, **norm)
        self.conv2: Convolution = Convolution(width // 2, width // 2, 3, **shared)
        self.bn2: BatchNorm = BatchNorm(width // 2, **norm)
        self.conv3: Convolution = Convolution(width // 2, width, 3, **shared)
        self.bn3: BatchNorm = BatchNorm(width, **norm)
        self.stages: nnx.List[nnx.List[Bottleneck]] = nnx.List()
        inputs = width
        for stage, blocks in enumerate(layers):
            planes = width * 2**stage
            stage_blocks = nnx.List()
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stage_blocks.append(Bottleneck(inputs, planes, stride=stride, **norm))
                inputs = planes * Bottleneck.expansion
            self.stages.append(stage_blocks)
        self.pool: str = pool
        self.attnpool: AttentionPool = POOLS[pool](
            (image_size // 32) ** 2, inputs, heads, embed_dim, **shared
        )

    def __call__(
        self, images: Float[Array, "n h w 3"], kept_patches: Int[Array, "n k"] | None = None
    ) -> Float[Array, "n d"]:
        if kept_patches is not None:
            raise UserError(
                "config.tokens.patch_dropping does not apply to a ResNet: it has no patches"
            )
        x = self.bn1(self.conv1(images), rectified=True)
        x = self.bn2(self.conv2(x), rectified=True)
        x = self.bn3(self.conv3(x), rectified=True)
        x = average_pool(x, 2)  # [N, image_size / 4, image_size / 4, width]
        for stage in self.stages:
            for block in stage:
                x = run_block(block, x, policy=self.remat)
        return by_rows(self.attnpool, x)
