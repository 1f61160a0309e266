"""Some examples of a source; labelled pictures as pairs with words for their classes."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from cyclip_jax.data.record import Record, Source


class Subset:
    """Some examples of a source, under numbers of their own.

    Args:
      source: whose they are.
      rows: their numbers there, int [n].
    """

    faults: Sequence[tuple[str, str, str]] = ()

    def __init__(self, source: Source, rows: Int[np.ndarray, "n"]) -> None:
        self._source, self._rows = source, rows
        self.boundaries: Int[np.ndarray, "2"] = np.array([0, len(rows)], np.int64)
        self.mean_bytes: float = source.mean_bytes

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self, indices: Iterable[int]) -> list[str]:
        """The names of these examples in the source, list[str]."""
        return self._source.keys([int(self._rows[index]) for index in indices])

    def captions(self) -> list[str]:
        """The first caption of every example, list[str]."""
        captions = self._source.captions()
        return [captions[row] for row in self._rows]

    def read(self, index: int) -> Record:
        """The Record of an example; raises Unreadable."""
        return self._source.read(int(self._rows[index]))


class ClassPairs:
    """Labelled pictures as pairs with what is said of their classes.

    Args:
      source: the pictures.
      labels: each one's class, int [n].
      prompts: what may be said of each class, of which one is drawn in each epoch.
    """

    def __init__(
        self,
        source: Source,
        labels: Int[np.ndarray, "n"],
        prompts: Sequence[Sequence[str]],
    ) -> None:
        self._source, self._prompts = source, [list(texts) for texts in prompts]
        self._labels = labels
        self.boundaries: Int[np.ndarray, "runs+1"] = source.boundaries
        self.mean_bytes: float = source.mean_bytes
        self.faults: Sequence[tuple[str, str, str]] = source.faults

    def __len__(self) -> int:
        return len(self._source)

    def keys(self, indices: Iterable[int]) -> list[str]:
        """The names of these examples in the source, list[str]."""
        return self._source.keys(indices)

    def captions(self) -> list[str]:
        """The first thing that may be said of each example's class, list[str]."""
        return [self._prompts[label][0] for label in self._labels]

    def read(self, index: int) -> Record:
        """The Record of a picture with what may be said of its class; raises Unreadable."""
        texts = self._prompts[self._labels[index]]
        return Record(self._source.read(index).image, texts, [1.0] * len(texts))
