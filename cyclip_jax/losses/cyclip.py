"""CyCLIP's terms, and their sum: the contrastive loss and the two weighted cyclic ones."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from cyclip_jax.errors import UserError, check_known
from cyclip_jax.losses.contrastive import info_nce, smoothing
from cyclip_jax.losses.cyclic import cyclic_consistency
from cyclip_jax.losses.sigmoid import sigmoid_term
from cyclip_jax.losses.terms import (
    PAIRS,
    Reported,
    Row,
    Term,
    Weight,
    check_weight_warmup,
    weighted_sum,
)
from cyclip_jax.losses.tiles import CHUNK_SIZE, device_count, sum_over

# The batch size at which the paper chose its weights λ1 = λ2 = 0.25.
REFERENCE_BATCH_SIZE = 128


class _Negative(NamedTuple):
    """A kind of negatives: its embeddings, the key of which examples have one, their share."""

    embeds: str
    row: Row
    mask: str
    share: str


# Negative texts, and the images that they describe.
_NEGATIVES = {
    "texts": _Negative(
        "negative_texts", Row("text", "negative_tokens"), "has_negative", "negative_share"
    ),
    "images": _Negative(
        *("negative_images", Row("visual", "negative_images")),
        *("has_negative_image", "negative_image_share"),
    ),
}

# Kinds of the contrastive term.
CONTRASTIVE = ("softmax", "sigmoid")

CYCLIC_NORMALIZATIONS = ("reference", "batch_size_free")

_GROWING_WEIGHTS = {
    f"{value}_weight": Reported(
        meaning=f"The weight {symbol} at the step", unit="number", better=None
    )
    for value, symbol in (("inmodal", "λ1"), ("crossmodal", "λ2"))
}


def contrastive_term(
    *,
    chunk_size: int = CHUNK_SIZE,
    contrastive: str = "softmax",
    contrastive_weight: Weight | None = None,
    second_view_warmup_steps: int = 0,
    label_smoothing: float = 0.0,
    negatives: tuple[str, ...] = (),
) -> Term:
    """The contrastive loss of images and texts as a term, with its accuracies.

    With negatives it is that of NegCLIP (Yuksekgonul et al. 2023): images choose among texts and
    negative texts, and texts among images, ½[−1/N Σ log e^{s⟨I_i,T_i⟩}/(Σ_j e^{s⟨I_i,T_j⟩} + Σ_j
    e^{s⟨I_i,T⁻_j⟩}) − 1/N Σ log e^{s⟨I_i,T_i⟩}/Σ_j e^{s⟨I_j,T_i⟩}]. An example without a negative
    adds none.

    With negative images I⁻, which negative texts describe, it is the sum of that and of the same
    with the negatives as the pairs and the texts as the negatives (Patel et al. 2024). An example
    without a negative image or text is in neither direction of the second part, and N divides it.

    Args:
      chunk_size: rows of each device in a tile of the similarities (see `contrastive_loss`).
      contrastive: one of CONTRASTIVE: "softmax" is CLIP's loss, "sigmoid" SigLIP's.
      contrastive_weight: what second views leave of it; None adds the loss as it is.
      second_view_warmup_steps: over so many steps that share falls from 1.
      label_smoothing: ε of `info_nce`, for the softmax.
      negatives: what the batch holds of them: nothing, ("texts",), or ("texts", "images").

    Raises:
      UserError: the tiles would be empty, the kind is unknown, or a setting does not go with it.
    """
    if chunk_size < 1:
        raise UserError(f"config.loss.chunk_size {chunk_size} must be at least 1")
    check_known("config.loss.contrastive", contrastive, CONTRASTIVE)
    if not 0 <= label_smoothing < 1:
        raise UserError(
            f"config.loss.label_smoothing {label_smoothing} must be at least 0 and less than 1"
        )
    if contrastive == "sigmoid":
        _check_sigmoid(label_smoothing, contrastive_weight, negatives)
        return sigmoid_term(chunk_size=chunk_size)

    kinds = [_NEGATIVES[kind] for kind in negatives]

    def measure(embeds, batch, scales, axis_names):
        parts = _parts(embeds, batch, scales["logit_scale"], negatives)
        of_tiles = functools.partial(info_nce, chunk_size=chunk_size, axis_names=axis_names)
        loss, (image_to_text, text_to_image) = of_tiles(*parts[0])
        metrics = {
            "image_to_text_accuracy": image_to_text,
            "text_to_image_accuracy": text_to_image,
        }
        for kind in kinds:
            mask = batch[kind.mask]
            found, count = mask.sum(dtype=loss.dtype), len(mask) * device_count(axis_names)
            metrics[kind.share] = sum_over(found, axis_names) / count
        for part in parts[1:]:
            of_negatives, _ = of_tiles(*part)
            metrics["negative_contrastive_loss"] = jax.lax.stop_gradient(of_negatives)
            loss += of_negatives
        if label_smoothing:
            metrics["unsmoothed_contrastive_loss"] = jax.lax.stop_gradient(loss)
            for part in parts:
                loss += label_smoothing * smoothing(*part, axis_names=axis_names)
        return (loss,), metrics

    is_growing = contrastive_weight is not None and second_view_warmup_steps > 0
    return Term(
        measure=measure,
        weights={"contrastive": contrastive_weight},
        warmup_steps=second_view_warmup_steps if is_growing else 0,
        grown=lambda weight, share: 1 - share * (1 - weight),
        reports=_softmax_reports(label_smoothing, negatives, is_growing),
        # Each of N rows is as likely as another, with any label smoothing. How many negatives there
        # are is not known.
        of_equal_embeds={} if negatives else {"contrastive_loss": math.log},
        rows={**PAIRS, **{kind.embeds: kind.row for kind in kinds}},
        batch_keys=tuple(kind.mask for kind in kinds),
    )


def _parts(embeds, batch, scale, negatives):
    """What `info_nce` takes of the pairs, and perhaps of the negatives as pairs."""
    images, texts = embeds["images"], embeds["texts"]
    if not negatives:
        return [(images, texts, scale, None, None, None)]
    wrong = embeds["negative_texts"]
    parts = [(images, texts, scale, wrong, batch["has_negative"], None)]
    if "images" in negatives:
        of_wrong = embeds["negative_images"]
        parts.append((of_wrong, wrong, scale, texts, None, batch["has_negative_image"]))
    return parts


def _softmax_reports(label_smoothing, negatives, is_growing):
    """What the term says of its metrics."""
    smoothed, of_negatives, growing = {}, {}, {}
    with_smoothing = ""
    if label_smoothing:
        with_smoothing = f" with label smoothing {label_smoothing}"
        smoothed["unsmoothed_contrastive_loss"] = Reported(
            meaning="The contrastive term without label smoothing"
        )
    for kind in negatives:
        of_negatives[_NEGATIVES[kind].share] = Reported(
            meaning=f"The share of examples with a negative {kind[:-1]}", unit="share", better=None
        )
    if "images" in negatives:
        of_negatives["negative_contrastive_loss"] = Reported(
            meaning="The part of the contrastive term in which the negatives are the pairs"
        )
    if is_growing:
        growing["contrastive_weight"] = Reported(
            meaning="The share of the contrastive loss at the step", unit="number", better=None
        )
    return {
        "contrastive_loss": Reported(meaning=f"The contrastive term{with_smoothing}"),
        **smoothed,
        "image_to_text_accuracy": Reported(
            meaning="The share of images that are nearest to their own text in the batch",
            unit="share",
            better="more",
        ),
        "text_to_image_accuracy": Reported(
            meaning="The share of texts that are nearest to their own image in the batch",
            unit="share",
            better="more",
        ),
        **of_negatives,
        **growing,
    }


def _check_sigmoid(label_smoothing, contrastive_weight, negatives):
    """Raises UserError where a setting goes with the softmax alone."""
    if label_smoothing:
        raise UserError(
            "config.loss.label_smoothing is for the softmax; set it to 0, or "
            "config.loss.contrastive to 'softmax'"
        )
    if contrastive_weight is not None:
        raise UserError(
            "second views choose by the softmax; set config.data.second_image and second_caption "
            "to 'none', or config.loss.contrastive to 'softmax'"
        )
    if negatives:
        raise UserError(
            "negative texts are for the softmax; set config.data.negative_caption to 'none', or "
            "config.loss.contrastive to 'softmax'"
        )


def cyclic_term(
    *,
    inmodal_weight: Weight = 0.25,
    crossmodal_weight: Weight = 0.25,
    cyclic_normalization: str = "reference",
    cyclic_warmup_steps: int = 0,
) -> Term:
    """The two cyclic consistencies as one term: one pass over the embeddings gives both values.

    It is measured at any weight, so that runs with and without it can be compared.

    Args:
      inmodal_weight: λ1.
      crossmodal_weight: λ2.
      cyclic_normalization: as in `cyclip_loss`.
      cyclic_warmup_steps: over so many steps from the beginning of a run both weights grow linearly
        from 0. The terms are least where all embeddings are equal, and at their full weight they
        may hold a young model there.

    Raises:
      UserError: the normalisation is unknown, or the warm-up is negative.
    """
    check_weight_warmup("cyclic", cyclic_warmup_steps)
    if cyclic_normalization not in CYCLIC_NORMALIZATIONS:
        raise UserError(
            f"unknown cyclic_normalization {cyclic_normalization!r}; set "
            f"config.loss.cyclic_normalization to one of {', '.join(CYCLIC_NORMALIZATIONS)}"
        )

    def normalizer(n):
        return 1.0 if cyclic_normalization == "reference" else REFERENCE_BATCH_SIZE / n

    def measure(embeds, batch, scales, axis_names):
        del batch, scales
        images, texts = embeds["images"], embeds["texts"]
        return cyclic_consistency(images, texts, axis_names=axis_names), {}

    def report(values, n):
        # Rounding can push the smaller consistency below zero: clip what is shown, never what is
        # differentiated.
        shown = {name: jnp.maximum(value, 0) for name, value in values.items()}
        losses = {f"{name}_cyclic_loss": normalizer(n) * value for name, value in shown.items()}
        return losses | {f"{name}_consistency": value / n for name, value in shown.items()}

    return Term(
        measure=measure,
        weights={"inmodal": inmodal_weight, "crossmodal": crossmodal_weight},
        normalizer=normalizer,
        reports={
            "inmodal_cyclic_loss": Reported(
                meaning="The in-modal consistency term, without its weight"
            ),
            "crossmodal_cyclic_loss": Reported(
                meaning="The cross-modal consistency term, without its weight"
            ),
            "inmodal_consistency": Reported(
                meaning="The in-modal consistency as a mean over the pairs of pairs", unit="number"
            ),
            "crossmodal_consistency": Reported(
                meaning="The cross-modal consistency as a mean over the pairs of pairs",
                unit="number",
            ),
            **(_GROWING_WEIGHTS if cyclic_warmup_steps else {}),
        },
        warmup_steps=cyclic_warmup_steps,
        report=report,
        scales=(),
        is_always_measured=True,
    )


def cyclip_loss(
    image_embeds: Float[Array, "n d"],
    text_embeds: Float[Array, "n d"],
    logit_scale: Float[Array, ""] | float,
    *,
    inmodal_weight: Weight = 0.25,
    crossmodal_weight: Weight = 0.25,
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
        terms grow with the batch. "batch_size_free" multiplies that by 128/N, so that the weights
        mean at any batch size what they mean at the paper's 128.
      detached_gather_devices: W, the number of devices over which the official run gathered its
        embeddings without their gradient. Each device then has the gradient of its own rows alone.
        The mean over the devices is 1/W of the true gradient in both towers, but the true one in
        the logit scale. With 1 it is the true gradient; values are the same for any W.
      chunk_size: rows of each device in a tile of the similarities (see `contrastive_loss`). More
        rows take more memory; fewer rows make more and smaller products. Values do not depend on
        it.
      mesh: a jax.sharding.Mesh, all of whose axes the rows are split over; N must be a multiple of
        its size. Each device then works on its own rows (see `contrastive_loss` and
        `cyclic_consistency_closed_form` for what is sent). None is one device.

    Returns:
      (loss, metrics): a scalar of at least float32, and a dict of scalars. `inmodal_cyclic_loss`
      and `crossmodal_cyclic_loss` are the normalised terms before their weights;
      `inmodal_consistency` and `crossmodal_consistency` are means over all N² pairs of the squared
      difference of cosines (lower is more consistent, comparable across batch sizes).

    Raises:
      ValueError: the shapes are not equal.
      UserError: the normalisation is unknown, or a number of devices or rows is less than 1.
    """
    if image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"image_embeds {image_embeds.shape} and text_embeds {text_embeds.shape} must have "
            "one shape [N, D]"
        )
    terms = (
        contrastive_term(chunk_size=chunk_size),
        cyclic_term(
            inmodal_weight=inmodal_weight,
            crossmodal_weight=crossmodal_weight,
            cyclic_normalization=cyclic_normalization,
        ),
    )
    return weighted_sum(
        terms,
        {"images": image_embeds, "texts": text_embeds},
        {},
        {"logit_scale": logit_scale},
        detached_gather_devices=detached_gather_devices,
        mesh=mesh,
    )
