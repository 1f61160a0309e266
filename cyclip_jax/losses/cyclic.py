"""In-modal and cross-modal consistency: definition, closed form, and the choice by shape."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cyclip_jax.losses.tiles import at_least_float32, product, similarity


def cyclic_consistency_dense(
    image_embeds: Float[Array, "n d"], text_embeds: Float[Array, "n d"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """In-modal and cross-modal consistency, straight from the definition.

    Args:
      image_embeds: unit-norm image embeddings, float [N, D].
      text_embeds: unit-norm text embeddings, float [N, D], row j paired with image j.

    Returns:
      (inmodal, crossmodal), two scalars of at least float32: (1/N) Σ (⟨I_j,I_k⟩ − ⟨T_j,T_k⟩)² and
      (1/N) Σ (⟨I_j,T_k⟩ − ⟨I_k,T_j⟩)² over all j, k (Goel et al. 2022, section 2).
    """
    image_embeds, text_embeds = at_least_float32(image_embeds, text_embeds)
    n = image_embeds.shape[0]
    image_image = similarity(image_embeds, image_embeds)  # [N, N]
    text_text = similarity(text_embeds, text_embeds)  # [N, N]
    image_text = similarity(image_embeds, text_embeds)  # [N, N]
    inmodal = jnp.sum((image_image - text_text) ** 2) / n
    crossmodal = jnp.sum((image_text - image_text.T) ** 2) / n
    return inmodal, crossmodal


def cyclic_consistency_closed_form(
    image_embeds: Float[Array, "n d"],
    text_embeds: Float[Array, "n d"],
    *,
    axis_names: tuple[str, ...] = (),
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The same two values in O(N·D²) time and O(D²) memory, without an N×N matrix.

    With E = I − T and M = (I + T)/2, the matrix 2 E Mᵀ = (I − T)(I + T)ᵀ has I Iᵀ − T Tᵀ as its
    symmetric and I Tᵀ − T Iᵀ as its skew part. Their squared norms are 2(a + b) and 2(a − b), with
    a = ⟨EᵀE, MᵀM⟩ and b = ⟨EᵀM, (EᵀM)ᵀ⟩, Frobenius inner products of D×D matrices.

    Forming E first, and not the Gram matrices of I and T, keeps the digits where I ≈ T. Where
    a ≈ ±b the smaller of the two values is a difference of larger ones and may round below zero.

    Args:
      image_embeds: as `cyclic_consistency_dense`; inside shard_map the device's rows, [n, D].
      text_embeds: as image_embeds.
      axis_names: the mesh axes that the rows are split over, inside shard_map; () is one device.
        Only the three matrices are sent, to be summed over devices, and nothing for the gradient.

    Returns:
      As `cyclic_consistency_dense`, of the global batch.
    """
    image_embeds, text_embeds = at_least_float32(image_embeds, text_embeds)
    difference = image_embeds - text_embeds  # E, [n, D]
    midpoint = (image_embeds + text_embeds) / 2  # M, [n, D]
    products = jnp.stack([_gram(difference), _gram(midpoint), product(difference.T, midpoint)])
    n = image_embeds.shape[0]
    if axis_names:
        products = jax.lax.psum(products, axis_names)  # [3, D, D]
        n *= jax.lax.axis_size(axis_names)
    differences, midpoints, cross = products
    a = jnp.sum(differences * midpoints)
    b = jnp.sum(cross * cross.T)
    return 2 * (a + b) / n, 2 * (a - b) / n


@jax.custom_vjp
def _gram(rows: Float[Array, "n d"]) -> Float[Array, "d d"]:
    """RᵀR, [n, D] -> [D, D], with a gradient of one product where the general rule takes two."""
    return product(rows.T, rows)


_gram.defvjp(
    lambda rows: (_gram(rows), rows),
    lambda rows, cotangent: (product(rows, cotangent + cotangent.T),),
)


def cyclic_consistency(
    image_embeds: Float[Array, "n d"],
    text_embeds: Float[Array, "n d"],
    *,
    axis_names: tuple[str, ...] = (),
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """In-modal and cross-modal consistency by the cheaper of two equal forms.

    The definition costs three products of N×N×D, and the closed form three of D×D×N. The closed
    form is used where N ≥ D, and always over several devices, as it gathers nothing.

    Args:
      image_embeds: as in `cyclic_consistency_closed_form`.
      text_embeds: as in `cyclic_consistency_closed_form`.
      axis_names: as in `cyclic_consistency_closed_form`.

    Returns:
      As `cyclic_consistency_closed_form`.
    """
    n, d = image_embeds.shape
    if n >= d or axis_names:
        return cyclic_consistency_closed_form(image_embeds, text_embeds, axis_names=axis_names)
    return cyclic_consistency_dense(image_embeds, text_embeds)
