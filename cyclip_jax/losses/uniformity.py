"""Uniformity and alignment as terms: Wang and Isola's, and that of images against texts."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from cyclip_jax.losses.pairwise import pairwise_sum
from cyclip_jax.losses.terms import (
    Reported,
    Term,
    Weight,
    check_weight_warmup,
    is_zero,
    weight_reports,
)
from cyclip_jax.losses.tiles import CHUNK_SIZE, at_least_float32, device_count, similarity, sum_over


def uniformity_dense(
    left_embeds: Float[Array, "n d"], right_embeds: Float[Array, "n d"]
) -> Float[Array, ""]:
    """log mean_{j≠k} e^{−2‖X_j−Y_k‖²}, straight from the definition.

    With Y = X it is the uniformity of Wang and Isola (2020, section 4.1.2, t = 2); with images and
    texts the cross-modal one of Fahim et al. (2024).

    Args:
      left_embeds: unit-norm embeddings X, float [N, D].
      right_embeds: unit-norm embeddings Y, float [N, D], or X again.

    Returns:
      A scalar of at least float32: 0 where all are equal, and less the more they spread.
    """
    left_embeds, right_embeds = at_least_float32(left_embeds, right_embeds)
    squares = 2 - 2 * similarity(left_embeds, right_embeds)  # [N, N]
    n = len(squares)
    others = jnp.where(jnp.eye(n, dtype=bool), 0.0, jnp.exp(-2 * squares))
    return jnp.log(others.sum() / (n * (n - 1)))


def uniformity(
    left_embeds: Float[Array, "n d"],
    right_embeds: Float[Array, "n d"] | None = None,
    *,
    chunk_size: int = CHUNK_SIZE,
    axis_names: tuple[str, ...] = (),
) -> Float[Array, ""]:
    """The same value in tiles (see `pairwise_sum`), on one device or inside `shard_map`.

    Args:
      left_embeds: as in `uniformity_dense`; inside shard_map the device's rows, [n, D].
      right_embeds: as left_embeds; None are these themselves.
      chunk_size: rows of each device in a tile, at least 1; it need not divide n.
      axis_names: the mesh axes that the rows are split over, inside shard_map; () is one device.
    """
    total, _ = pairwise_sum(
        _kernel, left_embeds, right_embeds, chunk_size=chunk_size, axis_names=axis_names
    )
    n = len(left_embeds) * device_count(axis_names)
    return jnp.log(total / (n * (n - 1)))


def _kernel(similarities, is_own):
    """e^{−2‖x−y‖²} = e^{4⟨x,y⟩−4} of unit vectors, without the own pairs."""
    return jnp.where(is_own, 0.0, jnp.exp(4 * similarities - 4))


def uniformity_term(
    *,
    uniformity_weight: Weight,
    cross_uniformity_weight: Weight,
    alignment_weight: Weight,
    uniformity_warmup_steps: int,
    chunk_size: int = CHUNK_SIZE,
) -> Term:
    """Uniformity and alignment of the pairs as a term with three values (Fahim et al. 2024).

    They are ½(U(I) + U(T)), U(I,T) and the mean of ‖I_j−T_j‖². The paper adds all three with the
    weight 1 to CLIP's loss at a fixed temperature of 0.01; beside a learned one their share is
    smaller as that falls.

    Args:
      uniformity_weight: of the uniformities of images and of texts.
      cross_uniformity_weight: of that of images against texts.
      alignment_weight: of the alignment.
      uniformity_warmup_steps: over so many steps the weights grow linearly from 0.
      chunk_size: rows of each device in a tile of the similarities.

    Raises:
      UserError: the warm-up is negative.
    """
    check_weight_warmup("uniformity", uniformity_warmup_steps)

    def within(images, texts, options):
        return (uniformity(images, **options) + uniformity(texts, **options)) / 2

    def across(images, texts, options):
        return uniformity(images, texts, **options)

    def alignment(images, texts, options):
        images, texts = at_least_float32(images, texts)
        axis_names = options["axis_names"]
        total = sum_over(jnp.sum((images - texts) ** 2), axis_names)
        return total / (len(images) * device_count(axis_names))

    values = {
        "uniformity": (uniformity_weight, within, "The uniformity of images and of texts"),
        "cross_uniformity": (
            cross_uniformity_weight,
            across,
            "The uniformity of images against texts",
        ),
        "alignment": (alignment_weight, alignment, "The squared distance of pairs"),
    }
    values = {name: value for name, value in values.items() if not is_zero(value[0])}

    def measure(embeds, batch, scales, axis_names):
        del batch, scales
        options = {"axis_names": axis_names}
        tiled = options | {"chunk_size": chunk_size}
        pairs = embeds["images"], embeds["texts"]
        return [function(*pairs, tiled) for _, function, _ in values.values()], {}

    return Term(
        measure=measure,
        weights={name: weight for name, (weight, _, _) in values.items()},
        reports={
            f"{name}_loss": Reported(meaning=f"{meaning}, without its weight")
            for name, (_, _, meaning) in values.items()
        }
        | weight_reports(values, uniformity_warmup_steps),
        warmup_steps=uniformity_warmup_steps,
        scales=(),
    )
