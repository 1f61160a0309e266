"""The CyCLIP objective: contrastive term plus the two weighted cyclic terms."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from cyclip_jax.errors import UserError
from cyclip_jax.losses.contrastive import CHUNK_SIZE, contrastive_loss
from cyclip_jax.losses.cyclic import cyclic_consistency

# The batch size at which the paper chose its weights λ1 = λ2 = 0.25.
REFERENCE_BATCH_SIZE = 128

CYCLIC_NORMALIZATIONS = ("reference", "batch_size_free")


def cyclip_loss(
    image_embeds: Float[Array, "n d"],
    text_embeds: Float[Array, "n d"],
    logit_scale: Float[Array, ""] | float,
    *,
    inmodal_weight: Float[Array, ""] | float = 0.25,
    crossmodal_weight: Float[Array, ""] | float = 0.25,
    cyclic_normalization: str = "reference",
    detached_gather_devices: int = 1,
    chunk_size: int = CHUNK_SIZE,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Contrastive loss + λ1 · in-modal + λ2 · cross-modal consistency (Goel et al. 2022).

    Args:
      image_embeds: unit-norm image embeddings of the global batch, float [N, D].
      text_embeds: unit-norm text embeddings, float [N, D], row j paired with image j.
      logit_scale: 1/temperature, a scalar, already exponentiated.
      inmodal_weight: λ1.
      crossmodal_weight: λ2. Both 0 is CLIP; λ1 = 0 is C-CyCLIP, λ2 = 0 I-CyCLIP.
      cyclic_normalization: "reference" divides the double sums by N, as published, so that the
        terms grow with the batch; "batch_size_free" multiplies that by 128/N: the weights then
        mean at any batch size what they mean at the paper's 128.
      detached_gather_devices: W, over which the official run gathered its embeddings without their
        gradient. Each device then has the gradient of its own rows alone, and their mean over the
        devices is 1/W of the true gradient in both towers, but the true one in the logit scale. 1
        is the true gradient; values are the same for any W.
      chunk_size: rows of each device in a tile of the similarities (see `contrastive_loss`): more
        take more memory, fewer more and smaller products. Values do not depend on it.
      mesh: a jax.sharding.Mesh, all of whose axes the rows are split over; N must be a multiple of
        its size. Each device then works on its own rows (see `contrastive_loss` and
        `cyclic_consistency_closed_form` for what is sent). None is one device.

    Returns:
      (loss, metrics): a scalar of at least float32, and a dict of scalars. `inmodal_cyclic_loss`
      and `crossmodal_cyclic_loss` are the normalised terms before their weights;
      `inmodal_consistency` and `crossmodal_consistency` are means over all N² pairs of the squared
      difference of cosines (lower is more consistent, comparable across batch sizes).

    Raises:
      ValueError: unequal shapes.
      UserError: an unknown normalisation, no device to gather over, or an empty chunk.
    """
    if image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"image_embeds {image_embeds.shape} and text_embeds {text_embeds.shape} must have "
            "one shape [N, D]"
        )
    check_loss(cyclic_normalization, detached_gather_devices, chunk_size)
    image_embeds = scale_gradient(image_embeds, 1 / detached_gather_devices)
    text_embeds = scale_gradient(text_embeds, 1 / detached_gather_devices)
    n = image_embeds.shape[0]
    normalizer = 1.0 if cyclic_normalization == "reference" else REFERENCE_BATCH_SIZE / n
    terms = functools.partial(_terms, chunk_size=chunk_size)
    if mesh is not None and mesh.size > 1:
        rows = PartitionSpec(mesh.axis_names)
        terms = jax.shard_map(
            functools.partial(terms, axis_names=mesh.axis_names),
            mesh=mesh,
            in_specs=(rows, rows, PartitionSpec()),
            out_specs=PartitionSpec(),
        )
    contrastive, (image_to_text, text_to_image), (inmodal, crossmodal) = terms(
        image_embeds, text_embeds, logit_scale
    )
    loss = contrastive
    for weight, term in ((inmodal_weight, inmodal), (crossmodal_weight, crossmodal)):
        # Left out, a term costs no gradient; a traced weight is a number like any other.
        if not (isinstance(weight, int | float) and weight == 0):
            loss += normalizer * weight * term
    # Rounding can push the smaller consistency below zero: clip what is shown, never what is
    # differentiated.
    shown_inmodal, shown_crossmodal = jnp.maximum(inmodal, 0), jnp.maximum(crossmodal, 0)
    metrics = {
        "loss": loss,
        "contrastive_loss": contrastive,
        "inmodal_cyclic_loss": normalizer * shown_inmodal,
        "crossmodal_cyclic_loss": normalizer * shown_crossmodal,
        "inmodal_consistency": shown_inmodal / n,
        "crossmodal_consistency": shown_crossmodal / n,
        "temperature": 1 / jnp.asarray(logit_scale, contrastive.dtype),
        "image_to_text_accuracy": image_to_text,
        "text_to_image_accuracy": text_to_image,
    }
    return loss, metrics


def _terms(image_embeds, text_embeds, logit_scale, *, chunk_size, axis_names=()):
    contrastive, accuracies = contrastive_loss(
        image_embeds, text_embeds, logit_scale, chunk_size=chunk_size, axis_names=axis_names
    )
    cyclic = cyclic_consistency(image_embeds, text_embeds, axis_names=axis_names)
    return contrastive, accuracies, cyclic


def scale_gradient(x: Float[Array, "..."], factor: float) -> Float[Array, "..."]:
    """Returns x itself, with `factor` times its gradient."""
    constant = jax.lax.stop_gradient(x)
    return constant + factor * (x - constant)


def check_loss(
    cyclic_normalization: str, detached_gather_devices: int, chunk_size: int, **weights: float
) -> None:
    """Raises UserError for settings of `cyclip_loss` that there are not; any weight will do."""
    del weights
    if cyclic_normalization not in CYCLIC_NORMALIZATIONS:
        raise UserError(
            f"unknown cyclic_normalization {cyclic_normalization!r}; set "
            f"config.loss.cyclic_normalization to one of {', '.join(CYCLIC_NORMALIZATIONS)}"
        )
    if detached_gather_devices < 1:
        raise UserError(
            f"config.loss.detached_gather_devices {detached_gather_devices} must be at least 1, "
            "which is the true gradient"
        )
    if chunk_size < 1:
        raise UserError(f"config.loss.chunk_size {chunk_size} must be at least 1")
