"""WordNet as sentences: each word with its definition, and that of another word as a hard negative.

It is a stand-in of natural language inference for whoever has no such data, after the pairs of a
dictionary that sentence embeddings have been trained on before them.
"""

import os

from cyclip_jax.data.sentences import Rows
from cyclip_jax.data.wordnet import Synset, synsets

# Symbols of WordNet's relations.
_ANTONYM, _HYPERNYMS, _HYPONYMS, _SIMILAR = ("!",), ("@", "@i"), ("~", "~i"), ("&",)


def glosses(folder: str | os.PathLike[str] | None = None) -> Rows:
    """Yields (name, (word, its gloss, the gloss of a hard negative)) of every word of every synset.

    The hard negative is the word's antonym, or that of the adjective to which its own is similar,
    else a sister: another synset under the same hypernym; else the synset before it in the file.

    Args:
      folder: see `wordnet_folder`.

    Raises:
      UserError: there are no such files, or a line of one is damaged.
    """
    found = {_key(one.part, one.offset): one for one in synsets(folder)}
    *_, earlier, before = found.values()
    for one in found.values():
        neighbour = earlier if before.gloss == one.gloss else before
        other = _indirect_antonym(one, found) or _sister(one, found) or neighbour
        for number, lemma in enumerate(one.lemmas, start=1):
            against = _antonym(one, number, found) or other
            yield f"{lemma} ({one.part} {one.offset})", (lemma, one.gloss, against.gloss)
        if before.gloss != one.gloss:
            earlier, before = before, one


def _key(part, offset):
    return "a" if part == "s" else part, offset  # satellites stand among adjectives


def _linked(one, symbols, found):
    return [
        found[key]
        for pointer in one.pointers
        if pointer.symbol in symbols and (key := _key(pointer.part, pointer.offset)) in found
    ]


def _antonym(one: Synset, number: int, found) -> Synset | None:
    """The antonym of the synset's lemma of this number."""
    for pointer in one.pointers:
        if pointer.symbol in _ANTONYM and pointer.source in (0, number):
            antonym = found.get(_key(pointer.part, pointer.offset))
            if antonym is not None and antonym.gloss != one.gloss:
                return antonym
    return None


def _indirect_antonym(one: Synset, found) -> Synset | None:
    """The antonym of an adjective to which this one is similar."""
    for similar in _linked(one, _SIMILAR, found):
        for antonym in _linked(similar, _ANTONYM, found):
            return antonym
    return None


def _sister(one: Synset, found) -> Synset | None:
    """The first other synset under a hypernym of this one."""
    for parent in _linked(one, _HYPERNYMS, found):
        for sister in _linked(parent, _HYPONYMS, found):
            if sister.gloss != one.gloss:  # a few synsets share theirs
                return sister
    return None
