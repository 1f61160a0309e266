"""The symmetric contrastive term."""

import jax
import jax.numpy as jnp


def at_least_float32(*arrays):
    """Returns the arrays in their common type, float32 or wider.

    Losses over many pairs are sums of near-equal numbers: bfloat16 towers are welcome, bfloat16
    similarities are not. float64 stays float64, so that equality can be tested sharply.
    """
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return tuple(jnp.asarray(array, dtype) for array in arrays)


def similarity(left_embeds, right_embeds):
    """All inner products at full precision, [N, D], [M, D] -> [N, M]."""
    return jnp.matmul(left_embeds, right_embeds.T, precision=jax.lax.Precision.HIGHEST)


def contrastive_loss(image_embeds, text_embeds, logit_scale):
    """Mean of the image-to-text and the text-to-image cross-entropy.

    ½ (CE(s·I Tᵀ) + CE(s·T Iᵀ)) with row j's target column j (Radford et al. 2021, figure 3; Goel et
    al. 2022, section 2).

    Args:
      image_embeds: unit-norm image embeddings, float [N, D].
      text_embeds: unit-norm text embeddings, float [N, D], row j paired with image j.
      logit_scale: the scale s = 1/temperature, a scalar, already exponentiated.

    Returns:
      (loss, accuracies): a scalar of at least float32, and (image_to_text, text_to_image), the
      shares of rows in the batch whose largest similarity is their own pair's.
    """
    image_embeds, text_embeds, logit_scale = at_least_float32(
        image_embeds, text_embeds, logit_scale
    )
    logits = logit_scale * similarity(image_embeds, text_embeds)  # [N, N]
    own = jnp.diagonal(logits)  # [N]
    image_to_text = jnp.mean(jax.nn.logsumexp(logits, axis=1) - own)
    text_to_image = jnp.mean(jax.nn.logsumexp(logits, axis=0) - own)
    pairs = jnp.arange(logits.shape[0])
    accuracies = tuple(
        jnp.mean((jnp.argmax(logits, axis=axis) == pairs).astype(logits.dtype)) for axis in (1, 0)
    )
    return (image_to_text + text_to_image) / 2, accuracies
