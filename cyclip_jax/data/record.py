"""One example as a source reads it, and what a source is."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int


class Unreadable(Exception):
    """An example that cannot be used.

    Attributes:
      reason: why it cannot be used, in words that many examples share: they are counted by it.
      detail: what else is known about this example.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: str = reason
        self.detail: str = detail


class Record(NamedTuple):
    """An example: the picture's file as bytes, its captions, and how often each is to be drawn."""

    image: bytes
    captions: list[str]
    weights: list[float]


class Source(Protocol):
    """Pairs of a picture and captions, read by their number (see sources/__init__.py)."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def read(self, index: int) -> Record:
        """The Record of an example; raises Unreadable. Many threads may call it."""
        ...

    def keys(self, indices: Iterable[int]) -> list[str]:
        """The names of these examples in a report."""
        ...

    def captions(self) -> list[str]:
        """The first caption of every example."""
        ...

    @property
    def boundaries(self) -> Int[np.ndarray, "runs+1"]:
        """Where runs of neighbours begin, and the end, int64 [runs + 1]."""
        ...

    @property
    def mean_bytes(self) -> float:
        """Mean size of an example."""
        ...

    @property
    def faults(self) -> Sequence[tuple[str, str, str]]:
        """(key, reason, detail) of what is lost before it has a number."""
        ...


def part_of(boundaries: Int[np.ndarray, "parts+1"], index: int) -> int:
    """The number of the part in which an example lies.

    Args:
      boundaries: where each part's examples begin, and the end, int64 [parts + 1].
      index: the example's number among all parts.
    """
    return int(np.searchsorted(boundaries, index, side="right")) - 1


def first_caption(read: Callable[..., Record], *arguments: Any) -> str:
    """The first caption of the Record read(*arguments), or "" where it cannot be read."""
    try:
        return read(*arguments).captions[0]
    except Unreadable:
        return ""
