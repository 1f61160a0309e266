"""Rows of length 1."""

import numpy as np
from jaxtyping import Float


def unit_rows(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """The rows of [N, D] with length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
