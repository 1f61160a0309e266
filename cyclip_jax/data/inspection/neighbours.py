"""Vectors that are near to others, found without a comparison of all with all.

Vectors are sorted into about √N cells, each by its nearest centre. One that is looked for is
compared with those in the few cells whose centres are nearest to it. So N vectors cost about N·√N
products, of which each is quick: 100,000 pictures take seconds.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_PROBED = 12  # cells
_ROUNDS = 4  # of the search for centres
_SAMPLE = 64  # vectors that a centre is found from
_STEP = 1 << 14  # vectors that are sorted at once
# Multiplications of a small product. Several threads, which larger ones take, would cost more.
_SMALL = 1 << 18


class Pairs(NamedTuple):
    """Vectors that are near to one another.

    Attributes:
      query: places among those that were looked for, int [p].
      owner: whose vectors they are near to, int [p].
      product: of the two, float32 [p].
    """

    query: Int[np.ndarray, "p"]
    owner: Int[np.ndarray, "p"]
    product: Float[np.ndarray, "p"]


class Cells:
    """Unit vectors that can be searched.

    Args:
      vectors: float [n, d].
      owners: whose each vector is, int [n].
    """

    def __init__(self, vectors: Float[np.ndarray, "n d"], owners: Int[np.ndarray, "n"]) -> None:
        if not len(vectors):
            vectors, owners = np.zeros((1, vectors.shape[1]), np.float32), np.array([0])
        self._centres = _centres(vectors, round(len(vectors) ** 0.5))
        cells = _nearest(vectors, self._centres, 1)[:, 0]
        order = np.lexsort((owners, cells))
        self._vectors = vectors[order].astype(np.float16)
        self._owners = owners[order]
        self._starts = np.searchsorted(cells[order], np.arange(len(self._centres) + 1))

    def near(
        self,
        queries: Float[np.ndarray, "q d"],
        least: float,
        *,
        before: Int[np.ndarray, "q"] | None = None,
        allowed: Bool[np.ndarray, "owners"] | None = None,
    ) -> Pairs:
        """Pairs of queries and vectors whose product is at least `least`.

        Nearly all: a vector in none of the cells that are looked at is missed.

        Args:
          queries: unit vectors.
          least: product.
          before: owners have to be less than this number of the query; None takes all.
          allowed: whether each owner counts; None takes all.
        """
        probed = _nearest(queries, self._centres, _PROBED)
        places = np.repeat(np.arange(len(queries)), probed.shape[1])
        order = np.argsort(probed.ravel(), kind="stable")
        places, cells = places[order], probed.ravel()[order]
        starts = np.searchsorted(cells, np.arange(len(self._centres) + 1))
        found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))]
        for cell in np.unique(cells).tolist():
            asking = places[starts[cell] : starts[cell + 1]]
            members = slice(self._starts[cell], self._starts[cell + 1])
            owners, vectors = self._owners[members], self._vectors[members]
            if before is not None:
                count = np.searchsorted(owners, before[asking].max())
                owners, vectors = owners[:count], vectors[:count]
            if allowed is not None:
                counts = allowed[owners]
                owners, vectors = owners[counts], vectors[counts]
            wanted, size = queries[asking], max(1, _SMALL // queries[asking].size)
            for first in range(0, len(owners), size):
                products = wanted @ vectors[first : first + size].astype(np.float32).T
                query, member = np.nonzero(products >= least)
                product = products[query, member]
                found.append((asking[query], owners[first + member], product))
        query, owner, product = (np.concatenate(parts) for parts in zip(*found, strict=True))
        if before is None:
            return Pairs(query, owner, product)
        is_before = owner < before[query]
        return Pairs(query[is_before], owner[is_before], product[is_before])


def _nearest(vectors, centres, count):
    """The nearest centres of each vector, the nearest first, int [n, count or fewer]."""
    count = min(count, len(centres))
    found = []
    for start in range(0, max(len(vectors), 1), _STEP):
        products = vectors[start : start + _STEP] @ centres.T
        if count == 1:
            found.append(products.argmax(axis=1)[:, None])
        elif count == len(centres):
            found.append(np.argsort(-products, axis=1, kind="stable"))
        else:
            nearest = np.argpartition(-products, count, axis=1)[:, :count]
            found.append(np.sort(nearest, axis=1))
    return np.concatenate(found)


def _centres(vectors, count):
    """Centres of cells, float32 [count, d]: k-means on the sphere, from vectors evenly chosen."""
    sample = vectors[_evenly(len(vectors), count * _SAMPLE)].astype(np.float32)
    centres = sample[_evenly(len(sample), count)].copy()
    for _ in range(_ROUNDS):
        cells = _nearest(sample, centres, 1)[:, 0]
        order = np.argsort(cells, kind="stable")
        used, starts = np.unique(cells[order], return_index=True)
        sums = np.add.reduceat(sample[order], starts)
        centres[used] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)
    return centres


def _evenly(n, count):
    """Up to `count` of n rows, evenly over them."""
    return np.unique(np.linspace(0, max(n - 1, 0), min(n, count)).astype(np.int64))
