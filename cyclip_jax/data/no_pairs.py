"""What stands in place of pairs in a run that sees sentences alone."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from cyclip_jax.data.record import Record, Unreadable
from cyclip_jax.data.sentences import SentenceSet


class NoPairs:
    """A Source without any example, whose captions are sentences: a vocabulary is made of them.

    Args:
      sentences: the sentences; None is none.
    """

    faults: Sequence[tuple[str, str, str]] = ()
    mean_bytes: float = 0.0

    def __init__(self, sentences: SentenceSet | None = None) -> None:
        self._sentences = sentences
        self.boundaries: Int[np.ndarray, "1"] = np.zeros(1, np.int64)

    def __len__(self) -> int:
        return 0

    def keys(self, indices: Iterable[int]) -> list[str]:
        """Names of examples: of none."""
        return [str(index) for index in indices]

    def captions(self, first: int = 0, end: int | None = None) -> list[str]:
        """All sentences, without positives and negatives."""
        columns = () if self._sentences is None else self._sentences.columns[:1]
        return [column[row] for column in columns for row in range(len(column))[first:end]]

    def read(self, index: int) -> Record:
        """Raises Unreadable."""
        raise Unreadable("there are no pairs", str(index))
