"""Both cyclic consistencies of held-out pairs, row by row."""

import numpy as np
from jaxtyping import Float, Int

from cyclip_jax.evals.known_metrics import KNOWN
from cyclip_jax.evals.metric import Metric
from cyclip_jax.evals.statistics.intervals import mean_over_pairs_with_interval


def cyclic_rows(
    image_embeds: Float[np.ndarray, "n d"], text_embeds: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Each pair's part in the two cyclic terms, without an N×N matrix.

    With Z = [I, T], [N, 2D], both ⟨I_j,I_k⟩ − ⟨T_j,T_k⟩ = ⟨Y_j, Z_k⟩ with Y = [I, −T], and
    ⟨I_j,T_k⟩ − ⟨T_j,I_k⟩ = ⟨X_j, Z_k⟩ with X = [−T, I]; so their squares' sums over k are quadratic
    forms of ZᵀZ.

    Args:
      image_embeds, text_embeds: unit-norm [N, D], row j of both one pair.

    Returns:
      (inmodal [N], crossmodal [N]) in float64: means over k; their means over j are the
      consistencies.
    """
    images, texts = np.float64(image_embeds), np.float64(text_embeds)
    both = np.concatenate([images, texts], axis=1)  # Z
    gram = both.T @ both / len(both)  # [2D, 2D]
    signed = np.concatenate([images, -texts], axis=1)  # Y
    turned = np.concatenate([-texts, images], axis=1)  # X
    inmodal, crossmodal = (np.sum(rows @ gram * rows, axis=1) for rows in (signed, turned))
    return inmodal, crossmodal


def cyclic_consistencies(
    image_embeds: Float[np.ndarray, "n d"],
    text_embeds: Float[np.ndarray, "n d"],
    clusters: Int[np.ndarray, "n"] | None = None,
) -> tuple[dict[str, Metric], dict[str, Float[np.ndarray, "n"]]]:
    """Both cyclic consistencies of held-out pairs, with intervals.

    Args:
      image_embeds, text_embeds: as `cyclic_rows`.
      clusters: int [N], the image of each pair, where one has several captions.

    Returns:
      ({name: Metric}, {name: each pair's part in it [N]}) of `inmodal_consistency` and
      `crossmodal_consistency`.
    """
    inmodal, crossmodal = cyclic_rows(image_embeds, text_embeds)
    parts = {"inmodal_consistency": inmodal, "crossmodal_consistency": crossmodal}
    return {name: _consistency(name, rows, clusters) for name, rows in parts.items()}, parts


def _consistency(name, rows, clusters):
    found = mean_over_pairs_with_interval(rows, KNOWN[name], clusters=clusters)
    low, high = found.interval or (np.nan, np.nan)
    return found.about.metric(_at_least_0(found.value), (_at_least_0(low), _at_least_0(high)))


def _at_least_0(value):
    """Rounding may put a value below 0 where the terms are 0; NaN stays NaN."""
    return value if np.isnan(value) else max(value, 0.0)
