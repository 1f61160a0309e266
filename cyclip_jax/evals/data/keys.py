"""What data sets call their classes: words, numbers, WordNet ids."""

import re
from collections.abc import Iterable, Sequence


def sorted_keys(keys: Iterable[str]) -> list[str]:
    """The classes `keys` in their order: numbers by value, everything else by name."""
    keys = list(keys)
    return sorted(keys, key=int if all(key.isdecimal() for key in keys) else str)


def first_number(numbers: Iterable[int], classes: int) -> int | None:
    """The number of the first of some classes, 0 or 1; None where these numbers do not tell.

    From 1 on they are counted only where each of them is there: in a data set without 0 the first
    class may have no picture.
    """
    present = set(numbers)
    if 0 in present and max(present) < classes:
        return 0
    return 1 if present == set(range(1, classes + 1)) else None


def are_wordnet_ids(keys: Sequence[str]) -> bool:
    """Whether all of `keys` look like ImageNet's n01440764."""
    return all(re.fullmatch(r"n\d{8}", key) for key in keys)


def plain(name: str) -> str:
    """A name without what writers of lists differ in: upper case, blanks, punctuation."""
    return re.sub(r"[\W_]+", "", name.casefold())
