"""Texts of any length, as windows that a text tower reads one by one."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from cyclip_jax.data.tokenizers import SPECIAL_TOKENS, Tokenizer, pad_and_cut

OVERLAP = 5  # ids that neighbouring windows share: windows of 77 tokens begin 70 apart, as ClipMD's


class WindowedTokenizer:
    """A tokenizer that cuts no text: what does not fit becomes several rows (ClipMD, Glassberg and
    Hope 2023).

    Other than there each window has a start-of-text and an end-of-text of its own, as every text
    that the tower was trained on.

    Args:
      tokenizer: gives the ids and the length of a window.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, texts: str | Iterable[str]) -> Int[np.ndarray, "n w l"]:
        """Token ids, int32 [n, W, context_length], of n texts, with zeros for windows that a text
        does not need; W is what the longest one needs.
        """
        windows = [self._windows(ids) for ids in self._tokenizer.whole_ids(texts)]
        most = max(map(len, windows), default=1)
        rows = pad_and_cut([ids for own in windows for ids in own], self._tokenizer)
        tokens = np.zeros((len(windows), most, self._tokenizer.context_length), np.int32)
        is_there = np.arange(most) < np.array([len(own) for own in windows], int)[:, None]
        tokens[is_there] = rows
        return tokens

    def _windows(self, ids: Sequence[int]) -> list[Sequence[int]]:
        size = self._tokenizer.context_length - SPECIAL_TOKENS
        step = max(size - OVERLAP, 1)
        starts = range(0, max(len(ids) - size, 0) + step, step)
        return [ids[start : start + size] for start in starts]
