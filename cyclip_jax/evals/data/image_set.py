"""Pictures in a fixed order."""

import dataclasses
from collections.abc import Hashable

import numpy as np
from jaxtyping import Int

from cyclip_jax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Pictures in a fixed order.

    Attributes:
      source: whose examples they are.
      identity: equal for equal data, which are embedded once.
      path: what names it in a message.
    """

    source: Source
    identity: tuple[Hashable, ...]
    path: str


def first_places(pairs: ImageSet, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
    """Where each picture stands first, rising.

    Args:
      pairs: whose examples may have a picture in common.
      indices: the N examples that count.

    Returns:
      int [M], places in `indices`.
    """
    keys = np.asarray(pairs.source.keys(indices), object)
    return np.sort(np.unique(keys, return_index=True)[1])


def first_captions(pairs: ImageSet) -> list[str]:
    """The first caption of each picture, list[str] [M]."""
    captions = pairs.source.captions()
    return [captions[place] for place in first_places(pairs, np.arange(len(captions)))]
