"""Images cut down to what varies most in their batch, against short texts (Long-CLIP's term)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cyclip_jax.errors import UserError
from cyclip_jax.losses.contrastive import info_nce
from cyclip_jax.losses.second_views import VIEWS
from cyclip_jax.losses.terms import (
    PAIRS,
    Reported,
    Term,
    Weight,
    check_weight_warmup,
    weight_reports,
)
from cyclip_jax.losses.tiles import (
    CHUNK_SIZE,
    at_least_float32,
    device_count,
    product,
    similarity,
    sum_over,
)

_NAME = "primary_components"
_, _SECOND_TEXTS, _SECOND_ROW = VIEWS["text"]


def primary_components_dense(embeds: Float[Array, "n d"], components: int) -> Float[Array, "n d"]:
    """m + P(x − m) of each row x: straight from the definition, by a singular value decomposition.

    m is the mean of the rows and P the projection onto the directions in which they vary most
    (Zhang et al. 2024, section 3.3). P is a constant for the gradient.

    Args:
      embeds: unit-norm embeddings of the batch, float [N, D].
      components: how many directions P keeps, at least 1. All, with D or more, give the rows back.

    Returns:
      Float [N, D], of at least float32 and no longer of unit norm.
    """
    (embeds,) = at_least_float32(embeds)
    mean = embeds.mean(axis=0)
    _, _, directions = jnp.linalg.svd(jax.lax.stop_gradient(embeds - mean), full_matrices=False)
    kept = directions[:components]  # [k, D], the largest first
    return mean + similarity(embeds - mean, kept.T @ kept)


def primary_components(
    embeds: Float[Array, "n d"], components: int, *, axis_names: tuple[str, ...] = ()
) -> Float[Array, "n d"]:
    """The same rows from the covariance of the global batch, on one device or inside `shard_map`.

    The devices' sums of x and of (x − m)(x − m)ᵀ are added up, D + D² numbers, and each device
    takes the eigenvectors of the sum. The published code has the components of each device's own
    rows, which change with the number of devices.

    Args:
      embeds: as in `primary_components_dense`; inside shard_map the device's rows, [n, D].
      components: as in `primary_components_dense`.
      axis_names: the mesh axes that the rows are split over, inside shard_map; () is one device.
    """
    (embeds,) = at_least_float32(embeds)
    if components >= embeds.shape[1]:
        return embeds
    mean = sum_over(embeds.sum(axis=0), axis_names) / (len(embeds) * device_count(axis_names))
    centred = embeds - mean
    constant = jax.lax.stop_gradient(centred)
    _, directions = jnp.linalg.eigh(sum_over(product(constant.T, constant), axis_names))
    kept = directions[:, -components:]  # [D, k]; eigh has the largest last
    return mean + product(product(centred, kept), kept.T)


def primary_components_term(
    *,
    primary_components_weight: Weight,
    primary_components_kept: int,
    primary_components_warmup_steps: int,
    label_smoothing: float = 0.0,
    chunk_size: int = CHUNK_SIZE,
) -> Term:
    """CLIP's loss between images cut down to their primary components and second captions.

    Beside the loss of long texts and whole images it keeps short texts in their place: a short
    text names what matters most in a picture. The authors keep 32 components and add the term with
    the weight 1; the images' components are not scaled to unit length again.

    Args:
      primary_components_weight: of the term.
      primary_components_kept: how many components are kept.
      primary_components_warmup_steps: over so many steps the weight grows linearly from 0.
      label_smoothing: of the softmax (see `info_nce`).
      chunk_size: rows of each device in a tile of the similarities (see `info_nce`).

    Raises:
      UserError: no component is kept, or the warm-up is negative.
    """
    check_weight_warmup(_NAME, primary_components_warmup_steps)
    if primary_components_kept < 1:
        raise UserError(f"config.loss.{_NAME}_kept {primary_components_kept} must be at least 1")

    def measure(embeds, batch, scales, axis_names):
        del batch
        value, _ = info_nce(
            primary_components(embeds["images"], primary_components_kept, axis_names=axis_names),
            embeds[_SECOND_TEXTS],
            scales["logit_scale"],
            label_smoothing=label_smoothing,
            chunk_size=chunk_size,
            axis_names=axis_names,
        )
        return [value], {}

    meaning = "The contrastive loss between images' primary components and second captions"
    return Term(
        measure=measure,
        weights={_NAME: primary_components_weight},
        warmup_steps=primary_components_warmup_steps,
        reports={f"{_NAME}_loss": Reported(meaning=meaning)}
        | weight_reports([_NAME], primary_components_warmup_steps),
        of_equal_embeds={f"{_NAME}_loss": math.log},
        rows={"images": PAIRS["images"], _SECOND_TEXTS: _SECOND_ROW},
    )
