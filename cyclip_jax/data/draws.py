"""Random numbers of one example: a pure function of the seed, the epoch and the example."""

import hashlib
import struct
from collections.abc import Sequence
from typing import TypeVar

_Item = TypeVar("_Item")

# What the random numbers are for. Each purpose has numbers of its own.
EDA, ANOTHER_CAPTION, SWAPPED = 1, 2, 3


class Draws:
    """An endless sequence of random numbers.

    NumPy's generators may change from version to version, and a run may be resumed under another.
    These numbers stay.

    Args:
      seed: the seed of the run.
      epoch: which pass over the data this is.
      index: the example's number.
      purpose: one of those above.
    """

    def __init__(self, seed: int, epoch: int, index: int, purpose: int) -> None:
        self._key = (seed, epoch, index, purpose)
        self._block = 0
        self._numbers: list[int] = []

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1, each as likely as the others."""
        return self._next() * n >> 64

    def uniform(self) -> float:
        """A number from 0 to below 1."""
        return (self._next() >> 11) * 2.0**-53

    def one_of(self, items: Sequence[_Item]) -> _Item:
        """One of the items, each as likely as the others."""
        return items[self.below(len(items))]

    def _next(self):
        """A whole number of 64 bits."""
        if not self._numbers:
            packed = struct.pack("<5q", *self._key, self._block)
            self._numbers.extend(struct.unpack("<8Q", hashlib.blake2b(packed).digest()))
            self._block += 1
        return self._numbers.pop()
