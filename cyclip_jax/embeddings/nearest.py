"""The rows of a matrix that are most like a query: by all cosines, or by an index of faiss."""

import importlib.util
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from cyclip_jax.errors import UserError

MOST_ROWS = 1_000_000  # that are compared one by one
_BEYOND = 50  # times as many as are wanted, where some of what faiss finds is left out

# (query [D], how many, rows that may be found [N] or None) → (numbers, cosines), the best first.
Nearest: TypeAlias = Callable[
    [Float[np.ndarray, "d"], int, Bool[np.ndarray, "n"] | None],
    tuple[Int[np.ndarray, "k"], Float[np.ndarray, "k"]],
]


def exact(rows: Float[np.ndarray, "n d"]) -> Nearest:
    """Compares a query with every row.

    Args:
      rows: unit-norm embeddings, float32 [N, D].

    Returns:
      The function. Of equal cosines the first row's comes first.

    Raises:
      UserError: there are too many rows.
    """
    if len(rows) > MOST_ROWS:
        raise UserError(
            f"there are {len(rows):,} rows, more than the {MOST_ROWS:,} that are compared one by "
            "one; an index of faiss is faster: --faiss=IVF4096,SQ8, say"
        )

    def nearest(query, count, among):
        scores = rows @ query
        if among is not None:
            scores[~among] = -np.inf
        count = min(count, len(scores))
        # Not argpartition alone: which of several equal ones it takes is left open.
        least = np.partition(scores, len(scores) - count)[len(scores) - count] if count else 0
        found = np.flatnonzero((scores >= least) & (scores > -np.inf))
        found = found[np.argsort(-scores[found], kind="stable")][:count]
        return found, scores[found]

    return nearest


def by_faiss(rows: Float[np.ndarray, "n d"], factory: str) -> Nearest:
    """Asks an index of faiss, which is made here.

    Args:
      rows: unit-norm embeddings, float32 [N, D].
      factory: what faiss's `index_factory` makes, such as "HNSW32" or "IVF4096,SQ8".

    Raises:
      UserError: faiss is not installed, or makes no such index of these rows.
    """
    if importlib.util.find_spec("faiss") is None:
        raise UserError("--faiss needs faiss; run pip install faiss-cpu")
    faiss: Any = __import__("faiss")  # it has no types
    try:
        index = faiss.index_factory(rows.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
        index.add(rows)
    except RuntimeError as error:
        told = str(error).splitlines()[-1].rpartition(": ")[2]
        raise UserError(f"--faiss={factory} makes no index of these rows: {told}") from error

    def nearest(query, count, among):
        wanted = min(len(rows), count if among is None else count * _BEYOND)
        scores, found = index.search(query[np.newaxis].astype(np.float32), wanted)
        scores, found = scores[0], found[0]
        is_hit = found >= 0  # -1 where the index came upon fewer
        if among is not None:
            is_hit &= among[found]
        return found[is_hit][:count], scores[is_hit][:count]

    return nearest
