"""The contrastive loss between embeddings and those of a second view, CyCLIP's in-modal option."""

import math
from collections.abc import Collection

from cyclip_jax.errors import UserError
from cyclip_jax.losses.contrastive import FORWARD, info_nce
from cyclip_jax.losses.terms import (
    PAIRS,
    Reported,
    Row,
    Term,
    Weight,
    check_weight_warmup,
    weight_reports,
)
from cyclip_jax.losses.tiles import CHUNK_SIZE

# {view: (name of the embeddings, name of those of the view, the view's rows)}
VIEWS: dict[str, tuple[str, str, Row]] = {
    "image": ("images", "second_images", Row("visual", "second_images")),
    "text": ("texts", "second_texts", Row("text", "second_tokens")),
}


def second_view_term(
    *,
    second_view_weight: Weight,
    views: Collection[str],
    second_view_warmup_steps: int = 0,
    chunk_size: int = CHUNK_SIZE,
) -> Term:
    """CE(s·I I′ᵀ) and CE(s·T T′ᵀ) as a term: each row finds its own second view in the batch.

    With the share w the contrastive part of the published objective is (1−w)·½[CE(s·I Tᵀ) + CE(s·T
    Iᵀ)] + w·½[CE(s·I I′ᵀ) + CE(s·T T′ᵀ)], with w = ½ and the one learned scale s. It is that of the
    option `--inmodal` of the official code (Goel et al. 2022); no published table is of a run that
    had it. Both terms go in one direction, from the original to the view. The cyclic terms do not
    see the views.

    Args:
      second_view_weight: w. Where there is one kind of view, it has all of it.
      views: "image", "text" or both.
      second_view_warmup_steps: over so many steps w grows linearly from 0.
      chunk_size: rows of each device in a tile of the similarities (see `info_nce`).

    Raises:
      UserError: the weight is no share, or the warm-up is negative.
    """
    if isinstance(second_view_weight, int | float) and not 0 <= second_view_weight < 1:
        raise UserError(
            f"config.loss.second_view_weight {second_view_weight} must be at least 0 and less than "
            "1: it is the share of the contrastive loss that second views have"
        )
    check_weight_warmup("second_view", second_view_warmup_steps)
    kinds = [kind for kind in VIEWS if kind in views]

    def measure(embeds, batch, scales, axis_names):
        del batch
        values = [
            info_nce(
                *(embeds[name] for name in VIEWS[kind][:2]),
                scales["logit_scale"],
                directions=FORWARD,
                chunk_size=chunk_size,
                axis_names=axis_names,
            )[0]
            for kind in kinds
        ]
        return values, {}

    return Term(
        measure=measure,
        weights={f"{kind}_view": second_view_weight / len(kinds) for kind in kinds},
        warmup_steps=second_view_warmup_steps,
        reports={
            f"{kind}_view_loss": Reported(
                meaning=f"The contrastive loss between {kind}s and their second views"
            )
            for kind in kinds
        }
        | weight_reports([f"{kind}_view" for kind in kinds], second_view_warmup_steps),
        of_equal_embeds={f"{kind}_view_loss": math.log for kind in kinds},
        rows={
            name: row
            for kind in kinds
            for own, second, second_row in (VIEWS[kind],)
            for name, row in ((own, PAIRS[own]), (second, second_row))
        },
    )
