"""SigLIP's sigmoid loss: its definition, and the same value and gradient in one pass of tiles."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cyclip_jax.losses.pairwise import pairwise_sum
from cyclip_jax.losses.terms import Reported, Term
from cyclip_jax.losses.tiles import CHUNK_SIZE, at_least_float32, device_count, similarity

INITIAL_LOGIT_SCALE = 10.0  # Zhai et al. 2023, section 3.2


def sigmoid_loss_dense(
    image_embeds: Float[Array, "n d"],
    text_embeds: Float[Array, "n d"],
    logit_scale: Float[Array, ""] | float,
    logit_bias: Float[Array, ""] | float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """−(1/N) Σ_ij log σ(y_ij (s⟨I_i,T_j⟩ + b)), straight from the definition.

    y_ij is 1 where i = j and −1 elsewhere (Zhai et al. 2023, equation in section 3.2). The sum over
    N² pairs is divided by N.

    Args:
      image_embeds: unit-norm image embeddings, float [N, D].
      text_embeds: unit-norm text embeddings, float [N, D], row j paired with image j.
      logit_scale: s, a scalar, already exponentiated.
      logit_bias: b, a scalar.

    Returns:
      (loss, accuracy): two scalars of at least float32. The accuracy is the share of images that
      are more similar to their own text than to any other.
    """
    image_embeds, text_embeds, logit_scale, logit_bias = at_least_float32(
        image_embeds, text_embeds, logit_scale, logit_bias
    )
    similarities = similarity(image_embeds, text_embeds)  # [N, N]
    is_own = jnp.eye(len(similarities), dtype=bool)
    signs = jnp.where(is_own, 1.0, -1.0).astype(similarities.dtype)
    log_shares = jax.nn.log_sigmoid(signs * (logit_scale * similarities + logit_bias))
    others = jnp.where(is_own, -jnp.inf, similarities).max(axis=1)
    accuracy = jnp.mean(jnp.diagonal(similarities) > others, dtype=similarities.dtype)
    return -log_shares.sum() / len(similarities), accuracy


def sigmoid_loss(
    image_embeds: Float[Array, "n d"],
    text_embeds: Float[Array, "n d"],
    logit_scale: Float[Array, ""] | float,
    logit_bias: Float[Array, ""] | float,
    *,
    chunk_size: int = CHUNK_SIZE,
    axis_names: tuple[str, ...] = (),
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The same loss in tiles (see `pairwise_sum`), on one device or inside `shard_map`.

    Args:
      image_embeds: as in `sigmoid_loss_dense`; inside shard_map the device's rows, [n, D].
      text_embeds: as image_embeds.
      logit_scale: a scalar, already exponentiated.
      logit_bias: a scalar.
      chunk_size: rows of each device in a tile, at least 1; it need not divide n.
      axis_names: the mesh axes that the rows are split over, inside shard_map; () is one device.

    Returns:
      As `sigmoid_loss_dense`, for the global batch.
    """
    total, hits = pairwise_sum(
        _cost,
        image_embeds,
        text_embeds,
        logit_scale,
        logit_bias,
        chunk_size=chunk_size,
        axis_names=axis_names,
    )
    n = len(image_embeds) * device_count(axis_names)
    return total / n, hits / n


def _cost(similarities, is_own, scale, bias):
    """−log σ(y (s x + b))."""
    logits = scale * similarities + bias
    return _softplus(jnp.where(is_own, -logits, logits))


@jax.custom_jvp
def _softplus(x):
    """log(1 + e^x), whose slope comes from the same exponential: there are N² of them."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@_softplus.defjvp
def _softplus_slope(primals, tangents):
    (x,), (change,) = primals, tangents
    exponential = jnp.exp(-jnp.abs(x))
    slope = jnp.where(x >= 0, 1, exponential) / (1 + exponential)
    return _softplus(x), slope * change


def sigmoid_term(*, chunk_size: int = CHUNK_SIZE) -> Term:
    """The sigmoid loss as a term, which learns a bias besides the scale.

    Args:
      chunk_size: rows of each device in a tile of the similarities.
    """

    def measure(embeds, batch, scales, axis_names):
        del batch
        bias = scales["logit_bias"]
        loss, accuracy = sigmoid_loss(
            embeds["images"],
            embeds["texts"],
            scales["logit_scale"],
            bias,
            chunk_size=chunk_size,
            axis_names=axis_names,
        )
        bias = jax.lax.stop_gradient(jnp.asarray(bias, loss.dtype))
        return (loss,), {"image_to_text_accuracy": accuracy, "logit_bias": bias}

    return Term(
        measure=measure,
        weights={"contrastive": None},
        reports={
            "contrastive_loss": Reported(meaning="The sigmoid loss of images and texts"),
            "image_to_text_accuracy": Reported(
                meaning="The share of images that are nearest to their own text in the batch",
                unit="share",
                better="more",
            ),
            "logit_bias": Reported(
                meaning="The learned bias of the similarities", unit="number", better=None
            ),
        },
        biases=("logit_bias",),
    )
