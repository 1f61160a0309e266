"""Both cyclic consistencies of held-out pairs, row by row."""

import numpy as np

from cyclip_jax.evals.statistics.intervals import mean_over_pairs_with_interval


def cyclic_rows(image_embeds, text_embeds):
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
    return tuple(np.sum(rows @ gram * rows, axis=1) for rows in (signed, turned))


def cyclic_consistencies(image_embeds, text_embeds, clusters=None):
    """Both cyclic consistencies of held-out pairs, with intervals.

    Args:
      image_embeds, text_embeds: as `cyclic_rows`.
      clusters: int [N], the image of each pair, where one has several captions.
    """
    results = {}
    names = ("inmodal_consistency", "crossmodal_consistency")
    for name, rows in zip(names, cyclic_rows(image_embeds, text_embeds), strict=True):
        found = mean_over_pairs_with_interval(name, rows, clusters=clusters)
        # Rounding may put them below 0 where the terms are 0; NaN stays NaN.
        results |= {
            key: value if np.isnan(value) else max(value, 0.0) for key, value in found.items()
        }
    return results
