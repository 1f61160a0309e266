"""EDA, "easy data augmentation" of a text (Wei and Zou 2019), as CyCLIP's code calls it.

A text loses all but its letters, and then one of four things happens to it: words are replaced by
synonyms, synonyms are inserted, words are swapped, or words are deleted.
"""

import re
from collections.abc import Callable

from cyclip_jax.data.draws import Draws

Synonyms = Callable[[str], tuple[str, ...]]

_STOP_WORDS = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her
hers herself it its itself they them their theirs themselves what which who whom this that these
those am is are was were be been being have has had having do does did doing a an the and but if or
because as until while of at by for with about against between into through during before after
above below to from up down in out on off over under again further then once here there when where
why how all any both each few more most other some such no nor not only own same so than too very s
t can will just don should now
"""
# Words that are never replaced; "s" and "t" are what cleaning may leave of contractions.
STOP_WORDS = frozenset(_STOP_WORDS.split()) | {""}

TRIES_OF_A_SYNONYM = 10  # so many words are drawn until one has synonyms
TRIES_OF_A_SWAP = 4  # so many words are drawn until one is another than the first

_APOSTROPHES = re.compile("['’]")
_NO_LETTERS = re.compile("[^a-z]+")


def eda(
    text: str,
    synonyms: Synonyms,
    draws: Draws,
    *,
    replaced: float = 0.1,
    inserted: float = 0.1,
    swapped: float = 0.1,
    deleted: float = 0.1,
) -> str:
    """A text, cleaned and changed in one of four ways, each as likely as the others.

    A share times the number of words, rounded down, and at least 1, says how many words a way
    changes. A way whose share is 0 is left out, and without any the text is only cleaned.

    Args:
      text: anything; without a letter of a to z it stays as it is.
      synonyms: function of a word, such as that of `wordnet.open_synonyms`.
      draws: the random numbers.
      replaced: share of the words that `replace_by_synonyms` changes.
      inserted: share of the words that `insert_synonyms` adds.
      swapped: share of the words that `swap` changes places of.
      deleted: chance of each word to be left out by `delete`.

    Returns:
      Words of the letters a to z with single spaces between them.
    """
    words = cleaned(text).split()
    if not words:
        return text
    ways: list[Callable[[], list[str]]] = []
    if replaced:
        ways.append(
            lambda: replace_by_synonyms(words, synonyms, draws, count_of(replaced, len(words)))
        )
    if inserted:
        ways.append(lambda: insert_synonyms(words, synonyms, draws, count_of(inserted, len(words))))
    if swapped:
        ways.append(lambda: swap(words, draws, count_of(swapped, len(words))))
    if deleted:
        ways.append(lambda: delete(words, draws, deleted))
    return " ".join(draws.one_of(ways)() if ways else words)


def cleaned(text: str) -> str:
    """The text in lower case, without apostrophes, and with a space for whatever is no letter."""
    return _NO_LETTERS.sub(" ", _APOSTROPHES.sub("", text).lower()).strip()


def count_of(share: float, words: int) -> int:
    """How many of so many words a share of them is: at least one."""
    return max(1, int(share * words))


def replace_by_synonyms(words: list[str], synonyms: Synonyms, draws: Draws, n: int) -> list[str]:
    """The words with n of them, no stop words, replaced by a synonym wherever they stand.

    Fewer are replaced where fewer have synonyms.
    """
    chosen: dict[str, str] = {}
    candidates = [word for word in dict.fromkeys(words) if word not in STOP_WORDS]
    while candidates and len(chosen) < n:
        word = candidates.pop(draws.below(len(candidates)))
        if found := synonyms(word):
            chosen[word] = draws.one_of(found)
    return [chosen.get(word, word) for word in words]


def insert_synonyms(words: list[str], synonyms: Synonyms, draws: Draws, n: int) -> list[str]:
    """The words with n synonyms of words among them, none of which stands last."""
    words = list(words)
    for _ in range(n):
        for _ in range(TRIES_OF_A_SYNONYM):
            if found := synonyms(draws.one_of(words)):
                words.insert(draws.below(len(words)), draws.one_of(found))
                break
    return words


def swap(words: list[str], draws: Draws, n: int) -> list[str]:
    """The words after n times two of them, drawn at random, have changed places."""
    words = list(words)
    for _ in range(n):
        first = draws.below(len(words))
        for _ in range(TRIES_OF_A_SWAP):
            second = draws.below(len(words))
            if second != first:
                words[first], words[second] = words[second], words[first]
                break
    return words


def delete(words: list[str], draws: Draws, chance: float) -> list[str]:
    """The words without those that chance leaves out; one at random where it would leave none."""
    if len(words) == 1:
        return words
    return [word for word in words if draws.uniform() >= chance] or [draws.one_of(words)]
