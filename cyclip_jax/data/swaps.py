"""Captions in which two words have changed places, as wrong ones that are hard to tell.

Yuksekgonul et al. (2023, section 4.1) exchange words of one part of speech, by a tagger. Here
WordNet says what part of speech a word is of, without looking at the sentence.
"""

import itertools
import re
from collections.abc import Callable

from cyclip_jax.data.draws import Draws
from cyclip_jax.data.eda import STOP_WORDS

_WORD = re.compile(r"[^\W\d_]+")


def swapped(text: str, part_of_speech: Callable[[str], str | None], draws: Draws) -> str:
    """The text with two different words of one part of speech exchanged; "" where it has none.

    Args:
      text: a caption.
      part_of_speech: function of a word in lower case, None for a word that has none.
      draws: the random numbers, by which one of all pairs of such words is drawn.
    """
    found = [match for match in _WORD.finditer(text) if match[0].lower() not in STOP_WORDS]
    parts = [part_of_speech(match[0].lower()) for match in found]
    pairs = [
        (first, second)
        for (first, part), (second, other) in itertools.combinations(
            zip(found, parts, strict=True), 2
        )
        if part is not None and part == other and first[0].lower() != second[0].lower()
    ]
    if not pairs:
        return ""
    first, second = draws.one_of(pairs)
    between = text[first.end() : second.start()]
    return text[: first.start()] + second[0] + between + first[0] + text[second.end() :]
