"""How evenly embeddings cover the sphere (Wang and Isola 2020, eq. 2)."""

import numpy as np
from jaxtyping import Float

_TILE_ROWS = 256
_T = 2  # theirs


def gaussian_uniformity(embeds: Float[np.ndarray, "n d"], tile_rows: int = _TILE_ROWS) -> float:
    """Log of the mean over all pairs j < k of exp(−2‖e_j − e_k‖²), in tiles; less is more even.

    It is 0 where all embeddings are equal, −4 where they are orthogonal to each other, and
    −4N/(N−1) at the corners of a simplex.

    Args:
      embeds: unit-norm float64 [N, D], at least two.
      tile_rows: rows of a tile of similarities.
    """
    n, total = len(embeds), 0.0
    for first in range(0, n, tile_rows):
        cosines = embeds[first : first + tile_rows] @ embeds[first:].T  # [tile, those from it on]
        # ‖e_j − e_k‖² = 2 − 2⟨e_j,e_k⟩
        total += np.triu(np.exp(2 * _T * (cosines - 1)), k=1).sum()
    return float(np.log(total / (n * (n - 1) / 2)))
