"""Some examples of a source; labelled pictures as pairs with words for their classes."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from cyclip_jax.data.record import Record, Source


class Subset:
    """Some examples of a source, under numbers of their own.

    Args:
      source: whose they are.
      rows: their numbers there, int [n]. Where they rise, runs of neighbours are those of the
        source, as far as they are left.

    Attributes:
      source, rows: as given.
    """

    def __init__(self, source: Source, rows: Int[np.ndarray, "n"]) -> None:
        self.source, self.rows = source, np.asarray(rows)
        self.boundaries: Int[np.ndarray, "runs+1"] = np.array([0, len(self.rows)], np.int64)
        if (np.diff(self.rows) > 0).all():
            self.boundaries = np.unique(np.searchsorted(self.rows, source.boundaries))
        self.mean_bytes: float = source.mean_bytes
        self.faults: Sequence[tuple[str, str, str]] = source.faults

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self, indices: Iterable[int]) -> list[str]:
        """The names of these examples in the source, list[str]."""
        return self.source.keys([int(self.rows[index]) for index in indices])

    def captions(self, first: int = 0, end: int | None = None) -> list[str]:
        """The first caption of these examples, list[str]."""
        rows = self.rows[first:end]
        if not len(rows):
            return []
        start = int(rows.min())
        captions = self.source.captions(start, int(rows.max()) + 1)
        return [captions[row - start] for row in rows]

    def read(self, index: int) -> Record:
        """The Record of an example; raises Unreadable."""
        return self.source.read(int(self.rows[index]))


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

    def captions(self, first: int = 0, end: int | None = None) -> list[str]:
        """The first thing that may be said of each example's class, list[str]."""
        return [self._prompts[label][0] for label in self._labels[first:end]]

    def read(self, index: int) -> Record:
        """The Record of a picture with what may be said of its class; raises Unreadable."""
        texts = self._prompts[self._labels[index]]
        return Record(self._source.read(index).image, texts, [1.0] * len(texts))
