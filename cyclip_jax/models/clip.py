"""Two towers and a learned scale."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from cyclip_jax.models.class_head import ClassHead
from cyclip_jax.models.dropout import Dropout
from cyclip_jax.models.rows import by_rows
from cyclip_jax.parallel import Tree

# The pixel statistics of OpenAI's preprocessing, for RGB in [0, 1].
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # Radford et al. 2021, section 2.5
INITIAL_LOGIT_BIAS = -10.0  # Zhai et al. 2023, section 3.2
MAX_LOGIT_SCALE = math.log(100.0)


def normalise_images(
    images: UInt8[Array, "n h w 3"],
    dtype: DTypeLike = jnp.float32,
    mean: Sequence[float] = IMAGE_MEAN,
    std: Sequence[float] = IMAGE_STD,
) -> Float[Array, "n h w 3"]:
    """uint8 RGB [N, H, W, 3] -> what the image towers take: (images / 255 − mean) / std."""
    wide = jnp.promote_types(dtype, jnp.float32)
    centre, spread = np.asarray(mean, wide), np.asarray(std, wide)  # [3]
    return ((images.astype(wide) / 255 - centre) / spread).astype(dtype)


def unit_norm(embeds: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Scales the rows of [N, D] to length 1, in float32 or wider."""
    embeds = embeds.astype(jnp.promote_types(embeds.dtype, jnp.float32))
    return embeds / jnp.linalg.norm(embeds, axis=-1, keepdims=True)


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef[Any], Tree, Tree]:
    """Splits a module into (graphdef, params, batch_stats), the latter two nested dicts."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def _in_turn(function, rows):
    return jnp.stack([function(row) for row in rows])


def over_windows(
    encode: Callable[[Int[Array, "n l"]], Float[Array, "n d"]],
    tokens: Int[Array, "n l"] | Int[Array, "n w l"],
    each: Callable[..., Float[Array, "w n d"]] = _in_turn,
) -> Float[Array, "n d"]:
    """Embeddings of texts, or means over the windows of each (ClipMD, Glassberg and Hope 2023).

    Args:
      encode: function from token ids [N, L] to un-normalised embeddings [N, D].
      tokens: ids of texts, int [N, L], or of windows, [N, W, L]; one of zeros alone counts as none.
      each: maps a function over the windows [W, N, L]. `jax.lax.map` compiles it once; by default
        it is called for one after the other, which rounds as a call without windows does.
    """
    if tokens.ndim == 2:
        return encode(tokens)
    is_there = (tokens != 0).any(axis=-1, keepdims=True)  # [N, W, 1]
    embeds = jnp.swapaxes(each(encode, jnp.swapaxes(tokens, 0, 1)), 0, 1)
    embeds = jnp.where(is_there, embeds, 0)  # [N, W, D]
    return embeds.sum(axis=1) / is_there.sum(axis=1).astype(embeds.dtype)


def _features(text, tokens, dropout):
    return text(tokens, dropout, is_projected=False)


class CLIP(nnx.Module):
    """An image tower and a text tower with one embedding space (Radford et al. 2021).

    Args:
      visual: module from normalised images [N, H, W, 3], and the patches kept of them, to [N, D].
      text: module from token ids [N, L] to [N, D].
      sentence_head: module through which a sentence's features go in training on sentences, [N,
        width] to [N, width]; None where they are projected as captions are.
      has_logit_bias: whether there is a scalar parameter `logit_bias`, which the sigmoid loss adds
        to the scaled similarities.
      class_head: what scores classes, in fine-tuning; None where nothing does.
    """

    def __init__(
        self,
        visual: Callable[..., Float[Array, "n d"]],
        text: Callable[..., Float[Array, "n d"]],
        sentence_head: Callable[[Float[Array, "n w"]], Float[Array, "n w"]] | None = None,
        *,
        has_logit_bias: bool = False,
        class_head: ClassHead | None = None,
    ) -> None:
        self.visual: Callable[..., Float[Array, "n d"]] = visual
        self.text: Callable[..., Float[Array, "n d"]] = text
        self.sentence_head: Any = nnx.data(sentence_head)
        self.logit_scale: nnx.Param[Array] = nnx.Param(
            jnp.asarray(INITIAL_LOGIT_SCALE, jnp.float32)
        )
        bias = nnx.Param(jnp.asarray(INITIAL_LOGIT_BIAS, jnp.float32)) if has_logit_bias else None
        self.logit_bias: Any = nnx.data(bias)
        self.class_head: Any = nnx.data(class_head)

    def encode_image(
        self, images: Float[Array, "n h w 3"], kept_patches: Int[Array, "n k"] | None = None
    ) -> Float[Array, "n d"]:
        """Un-normalised image embeddings [N, D] of normalised images [N, H, W, 3].

        Args:
          images: float [N, H, W, 3].
          kept_patches: indices [N, K] of the patches that a ViT sees of each image; None is all.
        """
        return by_rows(self.visual, images, kept_patches)

    def encode_text(self, tokens: Int[Array, "n l"] | Int[Array, "n w l"]) -> Float[Array, "n d"]:
        """Un-normalised text embeddings [N, D] of token ids int [N, L].

        Those of windows, [N, W, L], are as `over_windows` has them.
        """
        return over_windows(lambda rows: by_rows(self.text, rows), tokens)

    def encode_sentences(
        self, tokens: Int[Array, "n l"], dropout: Dropout | None = None
    ) -> Float[Array, "n d"]:
        """Un-normalised embeddings of sentences in training on them, int [N, L] -> [N, D].

        Without a sentence head they are those of `encode_text`, but for the dropout; with one they
        are what it gives, [N, width].

        Args:
          tokens: their ids.
          dropout: what is dropped within the text tower; None is nothing.
        """
        if self.sentence_head is None:
            return by_rows(self.text, tokens, dropout)
        features = by_rows(self.text, tokens, dropout, call=_features)
        return by_rows(self.sentence_head, features)

    def __call__(
        self,
        images: Float[Array, "n h w 3"],
        tokens: Int[Array, "n l"],
        kept_patches: Int[Array, "n k"] | None = None,
    ) -> tuple[Float[Array, "n d"], Float[Array, "n d"], Float[Array, ""]]:
        """Returns unit-norm image and text embeddings [N, D], and exp(logit_scale)."""
        return (
            unit_norm(self.encode_image(images, kept_patches)),
            unit_norm(self.encode_text(tokens)),
            jnp.exp(self.logit_scale[...]),
        )
