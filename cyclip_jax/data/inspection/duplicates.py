"""Pictures that are there twice: the same file, a changed copy, or alike to a model.

A copy is told of the first picture that it is a copy of, and no copy has copies of its own: of what
is left out an original stays.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from cyclip_jax.data.inspection.alignment import are_copies
from cyclip_jax.data.inspection.neighbours import Cells, Pairs
from cyclip_jax.data.inspection.thumbnails import PARTS, Thumbnails, descriptors, is_flat

_BLOCK = 1024  # pictures that are looked for at once
_LEAST_PRODUCT = 0.85  # of descriptors of copies
# Of the pictures that may be a picture's original, the first and the nearest are looked at: in a
# crowd of copies the first is the original, elsewhere the nearest.
_FIRST, _NEAREST = 16, 16

Originals = Int[np.ndarray, "n"]
Progress = Callable[[int], object]


def same_bytes(
    digests: UInt8[np.ndarray, "n d"], others: UInt8[np.ndarray, "m d"] | None = None
) -> Originals:
    """The original of each picture by its file: the first one with the same digest.

    Args:
      digests: of the pictures' files.
      others: of other pictures, among which the originals are; None looks among the pictures.

    Returns:
      int64 [n], -1 where a picture is an original itself, or has none among the others.
    """
    first: dict[bytes, int] = {}
    for number, digest in enumerate(digests if others is None else others):
        first.setdefault(digest.tobytes(), number)
    found = np.array([first.get(digest.tobytes(), -1) for digest in digests], np.int64)
    if others is None:
        found[found == np.arange(len(digests))] = -1
    return found


def changed_copies(thumbnails: Thumbnails, progress: Progress) -> Originals:
    """The original of each picture that is a changed copy of an earlier one (see `alignment.py`).

    Pictures that show nothing are copies where their thumbnails are equal.

    Args:
      thumbnails: of n pictures.
      progress: function that is called with how many more are done.

    Returns:
      int64 [n], -1 where a picture is an original itself.
    """
    flat = is_flat(thumbnails.luma)
    originals = np.full(len(flat), -1, np.int64)
    rows = np.flatnonzero(flat)
    _enter(originals, rows, same_bytes(_as_bytes(thumbnails.at(rows))), rows)
    progress(len(rows))
    rows = np.flatnonzero(~flat)
    shown = thumbnails.at(rows)
    copies = _Copies(shown)

    def search(numbers, is_original):
        queries = shown.at(numbers)
        return copies.confirmed(queries, copies.near(queries, numbers, is_original))

    _enter(originals, rows, _originals(len(rows), search, progress), rows)
    return originals


def copies_of_others(thumbnails: Thumbnails, others: Thumbnails, progress: Progress) -> Originals:
    """As `changed_copies`, but of m other pictures: the number of the first original among them."""
    flat, flat_others = is_flat(thumbnails.luma), is_flat(others.luma)
    found = np.full(len(flat), -1, np.int64)
    rows, other_rows = np.flatnonzero(flat), np.flatnonzero(flat_others)
    same = same_bytes(_as_bytes(thumbnails.at(rows)), _as_bytes(others.at(other_rows)))
    _enter(found, rows, same, other_rows)
    progress(len(rows))
    rows, other_rows = np.flatnonzero(~flat), np.flatnonzero(~flat_others)
    if len(other_rows):
        copies = _Copies(others.at(other_rows))
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            queries = thumbnails.at(block)
            pairs = copies.confirmed(queries, copies.near(queries))
            _enter(found, block, _first_owner(len(block), pairs), other_rows)
            progress(len(block))
    return found


def alike(embeds: Float[np.ndarray, "n d"], least: float, progress: Progress) -> Originals:
    """The original of each picture whose embedding is near to that of an earlier one.

    Args:
      embeds: unit-norm embeddings.
      least: cosine from which on pictures count as alike.
      progress: function that is called with how many more are done.

    Returns:
      int64 [n], -1 where a picture is an original itself.
    """
    cells = Cells(embeds, np.arange(len(embeds)))

    def search(numbers, is_original):
        return _chosen(cells.near(embeds[numbers], least, before=numbers, allowed=is_original))

    return _originals(len(embeds), search, progress)


def alike_others(
    embeds: Float[np.ndarray, "n d"],
    others: Float[np.ndarray, "m d"],
    least: float,
    progress: Progress,
) -> Originals:
    """As `alike`, but of m other pictures: the number of the first original among them."""
    cells = Cells(others, np.arange(len(others)))
    found = np.full(len(embeds), -1, np.int64)
    for start in range(0, len(embeds), _BLOCK):
        queries = embeds[start : start + _BLOCK]
        pairs = cells.near(queries, least)
        found[start : start + _BLOCK] = _first_owner(len(queries), pairs)
        progress(len(queries))
    return found


class _Copies:
    """Pictures among which originals are looked for.

    A copy is all of its original, or a part of it, or the other way round. So all of a picture is
    compared with the parts of the others, and its parts with all of the others.
    """

    def __init__(self, thumbnails):
        self._thumbnails = thumbnails
        numbers = np.arange(len(thumbnails.luma))
        parts = [_described(thumbnails.luma, part) for part in range(len(PARTS))]
        self._whole = Cells(parts[0], numbers)
        self._parts = Cells(np.concatenate(parts), np.tile(numbers, len(PARTS)))

    def near(self, queries: Thumbnails, before=None, allowed=None) -> Pairs:
        """Pictures that may be the originals of others, as of `Cells.near`."""

        def found(cells, part):
            vectors = descriptors(queries.luma, part)
            return cells.near(vectors, _LEAST_PRODUCT, before=before, allowed=allowed)

        of_whole = found(self._parts, 0)
        of_parts = [found(self._whole, part) for part in range(1, len(PARTS))]
        return _chosen(Pairs(*map(np.concatenate, zip(of_whole, *of_parts, strict=True))))

    def confirmed(self, queries: Thumbnails, pairs: Pairs) -> Pairs:
        """Those of the pairs that are copies."""
        is_copy = are_copies(self._thumbnails.at(pairs.owner), queries.at(pairs.query))
        return Pairs(*(part[is_copy] for part in pairs))


def _described(luma, part):
    blocks = range(0, max(len(luma), 1), 1 << 14)
    return np.concatenate([descriptors(luma[first : first + (1 << 14)], part) for first in blocks])


def _originals(
    n: int,
    search: Callable[[Int[np.ndarray, "q"], Bool[np.ndarray, "n"]], Pairs],
    progress: Progress,
) -> Originals:
    """The first original of each of n pictures, -1 where it is one itself.

    Args:
      n: how many there are.
      search: function (numbers of pictures, whether each of all pictures may be an original) ->
        Pairs of their places and of earlier pictures that they are copies of.
      progress: function that is called with how many more are done.
    """
    originals, is_original = np.full(n, -1, np.int64), np.ones(n, bool)
    for start in range(0, n, _BLOCK):
        numbers = np.arange(start, min(start + _BLOCK, n))
        pairs = search(numbers, is_original)
        for place in np.lexsort((pairs.owner, pairs.query)).tolist():
            number, owner = start + pairs.query[place], pairs.owner[place]
            # Its own block may have found by now that the owner is a copy, too.
            if is_original[number] and is_original[owner]:
                originals[number], is_original[number] = owner, False
        progress(len(numbers))
    return originals


def _chosen(pairs):
    """Each pair once, and of each query the first and the nearest owners."""
    order = np.lexsort((-pairs.product, pairs.owner, pairs.query))
    query, owner, product = (part[order] for part in pairs)
    is_new = np.ones(len(query), bool)
    is_new[1:] = (query[1:] != query[:-1]) | (owner[1:] != owner[:-1])
    query, owner, product = query[is_new], owner[is_new], product[is_new]
    is_first = _rank(query) < _FIRST
    nearest = np.lexsort((owner, -product, query))
    is_nearest = np.zeros(len(query), bool)
    is_nearest[nearest] = _rank(query[nearest]) < _NEAREST
    taken = is_first | is_nearest
    return Pairs(query[taken], owner[taken], product[taken])


def _rank(query):
    """The place of each pair among those of its query, of pairs sorted by their queries."""
    starts = np.searchsorted(query, query)
    return np.arange(len(query)) - starts


def _first_owner(queries, pairs):
    """The first owner of each query, -1 without any."""
    found = np.full(queries, np.iinfo(np.int64).max)
    np.minimum.at(found, pairs.query, pairs.owner)
    return np.where(found == np.iinfo(np.int64).max, -1, found)


def _enter(originals, rows, found, numbers):
    """Enters what was found of some rows, whose originals are places in `numbers`."""
    has_one = found >= 0
    originals[rows[has_one]] = numbers[found[has_one]]


def _as_bytes(thumbnails):
    """All bytes of each thumbnail, uint8 [n, …]."""
    planes = [plane.reshape(len(plane), math.prod(plane.shape[1:])) for plane in thumbnails]
    return np.concatenate(planes, axis=1)
