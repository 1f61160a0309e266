"""List the examples whose captions balance many entries, as MetaCLIP does.

python -m cyclip_jax.data.prepare balance --input='/data/pool/*.tar' --entries=metadata.json
    --limit=20000 --output=balanced

An entry is a word or several that stand in a caption. What is rare is kept, and of what is frequent
about --limit captions of each entry. The data stay where they are: --config.data.kept=balanced
trains on what the list keeps. The command may be killed at any moment; given again, it continues.
"""

import collections
import csv
import dataclasses
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Float, Int

from cyclip_jax.data.listing import Blocks, Found, Input, define_input, input_of, pool
from cyclip_jax.data.result_folder import claimed, cores
from cyclip_jax.data.sources.kept import MANIFEST, write_kept
from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute, parse_json, read_text, write_atomically
from cyclip_jax.runtime.progress import progress_bar

WORDNET = "wordnet"  # in place of a file of entries
COUNTS = "entries.csv"
_BLOCK = 50_000  # captions
_APART = ",.;:?!`"  # marks that become words of their own
_AS_SPACE = "\t\n\r"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Balance(Input):
    """The settings that decide about the result; each has the name of its flag.

    Attributes:
      entries: file with the entries, or "wordnet"; see `read_entries`.
      limit: t, the count of an entry from which on its captions are thinned out.
      seed: of the draws.
      lower_case: whether captions are taken in lower case. The entries stay as they are.
    """

    entries: str
    limit: int
    seed: int = 0
    lower_case: bool = False


# Entries in captions


def spaced(text: str) -> str:
    """A text between spaces, with marks set apart, as entries are looked for in it.

    It is the published rule (Xu et al. 2024, "Demystifying CLIP Data"; facebookresearch/MetaCLIP).
    """
    for mark in _APART:
        text = text.replace(mark, f" {mark} ")
    for mark in _AS_SPACE:
        text = text.replace(mark, " ")
    return f" {text} "


def found_in_dense(text: str, entries: Sequence[str]) -> list[int]:
    """Numbers of the entries in a text: those that stand between spaces, straight from the rule."""
    text = spaced(text)
    return [number for number, entry in enumerate(entries) if f" {entry} " in text]


class Entries:
    """Entries that are found in a text by its words.

    As a spaced entry is one word or several between spaces, it is in a text where it is equal to as
    many of the text's words in a row. So a text is looked at word by word, however many entries
    there are.

    Args:
      entries: the entries, no two equal and none empty.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self._numbers = {entry: number for number, entry in enumerate(entries)}
        lengths = collections.defaultdict(set)
        for entry in entries:
            words = entry.split(" ")
            lengths[words[0]].add(len(words))
        # {first word: how many words the entries have that begin with it}
        self._lengths = {word: tuple(sorted(found)) for word, found in lengths.items()}

    def found_in(self, text: str) -> list[int]:
        """The numbers of the entries in a text, rising: `found_in_dense`, but faster."""
        words = spaced(text).split(" ")
        last = len(words) - 1  # the first and the last are empty: outside of the outer spaces
        found = set()
        for place in range(1, last):
            for length in self._lengths.get(words[place], ()):
                if place + length <= last:
                    entry = " ".join(words[place : place + length])
                    found.add(self._numbers.get(entry, -1))
        found.discard(-1)
        return sorted(found)


def read_entries(place: str) -> list[str]:
    """The entries of a file, each once, in their order.

    Args:
      place: a text with an entry in each line, a .json with a list of them, such as MetaCLIP's
        metadata.json; or "wordnet", the words of all synsets of an installed WordNet.

    Raises:
      UserError: there is no such file, or no entry in it.
    """
    if place == WORDNET:
        from cyclip_jax.data.wordnet import synsets

        found: Iterable[Any] = (lemma for synset in synsets() for lemma in synset.lemmas)
    elif place.lower().endswith(".json"):
        try:
            found = parse_json(read_text(absolute(place, "--entries")))
        except ValueError as error:
            raise UserError(f"--entries={place} is no JSON: {error}") from error
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise UserError(f"--entries={place} is no list of texts; give a JSON list of them")
    else:
        found = (line.strip("\r") for line in read_text(absolute(place, "--entries")).split("\n"))
    entries = list(dict.fromkeys(entry for entry in found if entry.strip()))
    if not entries:
        raise UserError(f"--entries={place} has no entry; give a file with one in each line")
    return entries


# What is kept


def probabilities(counts: Int[np.ndarray, "e"], limit: int) -> Float[np.ndarray, "e"]:
    """p_e = t / max(c_e, t): how likely an entry keeps a caption (Xu et al. 2024, algorithm 1).

    Args:
      counts: c_e, how many captions have each entry, int [E].
      limit: t.
    """
    return limit / np.maximum(counts, limit)


def drawn(seed: int, key: str, entry: str) -> float:
    """A random number from 0 to below 1, a pure function of its arguments."""
    packed = f"{seed}\0{key}\0{entry}".encode(errors="surrogatepass")
    return (int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest()) >> 11) * 2.0**-53


def key_of(name: str, caption: str) -> str:
    """What an example's draws hang on: its caption, and its name without the folders above it."""
    return "/".join(name.split("/")[-2:]) + "\0" + caption


class _Worker:
    """What a process knows of the entries; a worker keeps one."""

    def __init__(self, entries, lower_case, seed=0, chances=None):
        self.names, self.entries = entries, Entries(entries)
        self.lower_case, self.seed = lower_case, seed
        self.chances: Any = chances  # of each entry, once all are counted

    def found_in(self, caption):
        return self.entries.found_in(caption.lower() if self.lower_case else caption)

    def count(self, captions: Sequence[str]) -> Found:
        """How often each entry stands in a block: {"entries": numbers, "counts": how often, …}."""
        counts, without = collections.Counter(), 0
        for caption in captions:
            found = self.found_in(caption)
            counts.update(found)
            without += not found
        blank = sum(not caption.strip() for caption in captions)
        return {**_counted(counts), "without": np.array([without - blank, blank])}

    def keep(self, keys: Sequence[str], captions: Sequence[str]) -> Found:
        """Which captions of a block stay, and how often each entry stands in these."""
        rows, counts = [], collections.Counter()
        for row, (key, caption) in enumerate(zip(keys, captions, strict=True)):
            found = self.found_in(caption)
            if found and self.is_kept(key_of(key, caption), found):
                rows.append(row)
                counts.update(found)
        return {**_counted(counts), "rows": np.array(rows, np.int64)}

    def is_kept(self, key, found):
        """Whether one of the caption's entries draws it, each by itself."""
        chances = self.chances[found]
        return chances.max() >= 1 or any(
            drawn(self.seed, key, self.names[number]) < chance
            for number, chance in zip(found, chances.tolist(), strict=True)
        )


def _counted(counts):
    numbers = sorted(counts)
    return {
        "entries": np.array(numbers, np.int64),
        "counts": np.array([counts[number] for number in numbers], np.int64),
    }


_own: list[_Worker] = []  # of a worker process


def _begin_worker(*arguments):
    _own[:] = [_Worker(*arguments)]


def _count(captions):
    return _own[0].count(captions)


def _keep(keys, captions):
    return _own[0].keep(keys, captions)


def balance(
    settings: Balance, output: str | os.PathLike[str], *, workers: int = 1
) -> dict[str, Any]:
    """Writes the list of the examples that stay.

    An example stays if one of the entries in its first caption draws it, each by itself with the
    chance of `probabilities`; one without any entry goes. The draws are functions of the seed, the
    example's name and caption, and the entry: they do not depend on the other examples.

    Args:
      settings: the command's.
      output: folder for the list.
      workers: how many processes look for entries.

    Returns:
      The manifest.

    Raises:
      UserError: the input or the entries cannot be read, the folder holds something else, or no
        example stays.
    """
    if settings.limit < 1:
        raise UserError(f"--limit={settings.limit} must be at least 1")
    folder, entries = absolute(output, "--output"), read_entries(settings.entries)
    with claimed(folder):
        source = settings.open()
        told = dataclasses.asdict(settings)
        told |= {"entries": os.path.basename(settings.entries), "entries_sum": _sum(entries)}
        blocks = Blocks(folder, told, len(source), _BLOCK)
        if (folder / MANIFEST).exists():
            return dict(parse_json((folder / MANIFEST).read_text()))
        rows, counts, left, without = _balanced(source, blocks, settings, entries, workers)
        if not len(rows):
            raise UserError(f"none of the {len(source)} captions has one of the entries")
        write_atomically(folder / COUNTS, _table(entries, counts, settings.limit, left))
        told |= {
            "without_caption": int(without[1]),
            "without_entry": int(without[0]),
            "drawn_by_none": len(source) - int(without.sum()) - len(rows),
            "entries_in_list": len(entries),
            "entries_found": int((counts > 0).sum()),
            "entries_above_limit": int((counts > settings.limit).sum()),
            "found_before": int(counts.sum()),
            "found_after": int(left.sum()),
        }
        manifest = write_kept(folder, source, rows, told)
        blocks.remove()
        return manifest


def _balanced(source, blocks, settings, entries, workers):
    """(rows that stay, each entry's count before and after, captions without entry and blank)."""
    options = entries, settings.lower_case, settings.seed
    with progress_bar(2 * len(source), 0, "captions") as progress:

        def passed(stage, compute, given, *chances):
            with pool(workers, _begin_worker, *options, *chances) as executor:
                yield from blocks.results(stage, compute, given, executor, workers, progress)

        def captions(block):
            return source.captions(block.start, block.stop)

        counts, without = np.zeros(len(entries), np.int64), np.zeros(2, np.int64)
        for found in passed("counts", _count, lambda block: (captions(block),)):
            counts[found["entries"]] += found["counts"]
            without += found["without"]
        rows, left = [np.zeros(0, np.int64)], np.zeros(len(entries), np.int64)
        chances = probabilities(counts, settings.limit)
        kept = passed("kept", _keep, lambda block: (source.keys(block), captions(block)), chances)
        for block, found in zip(blocks.ranges, kept, strict=True):
            rows.append(block.start + found["rows"])
            left[found["entries"]] += found["counts"]
    return np.concatenate(rows), counts, left, without


def _sum(entries):
    return hashlib.sha256("\n".join(entries).encode(errors="surrogatepass")).hexdigest()


def _table(entries, counts, limit, left):
    """A CSV of the entries that were found, the most frequent first."""
    file, chances = io.StringIO(), probabilities(counts, limit)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["entry", "count", "probability", "kept"])
    for number in np.argsort(-counts, kind="stable")[: int((counts > 0).sum())].tolist():
        row = entries[number], counts[number], f"{chances[number]:.6g}", left[number]
        writer.writerow(row)
    return file.getvalue()


# The command line


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    define_input(values)
    flags.DEFINE_string(
        "entries",
        None,
        "File with an entry in each line, or a .json with a list of them; or wordnet, the words of "
        "an installed WordNet.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "limit",
        None,
        "Of entries in more captions than this, about so many captions stay. MetaCLIP has 20,000 "
        "for a pool of 1.6 billion.",
        lower_bound=1,
        required=True,
        flag_values=values,
    )
    flags.DEFINE_integer("seed", 0, "Seed of the draws.", flag_values=values)
    flags.DEFINE_bool(
        "lower_case", False, "Take captions in lower case, as most lists are.", flag_values=values
    )
    flags.DEFINE_integer(
        "workers",
        cores(),
        "How many processes look for entries; by default one for each core.",
        lower_bound=1,
        flag_values=values,
    )


def listed_as_told(values: Any) -> tuple[dict[str, Any], str]:
    """Balances the data; returns the manifest, and why examples are left out, in words."""
    settings = Balance(
        **input_of(values),
        entries=values.entries,
        limit=values.limit,
        seed=values.seed,
        lower_case=values.lower_case,
    )
    manifest = balance(settings, values.output, workers=values.workers)
    reasons = {
        "without_caption": "have no caption",
        "without_entry": "have none of the entries",
        "drawn_by_none": f"have only entries in more than {settings.limit} captions",
    }
    named = [f"{manifest[key]} {why}" for key, why in reasons.items() if manifest[key]]
    has_counts = f"{absolute(values.output) / COUNTS} has the count of each entry"
    return manifest, "; ".join([*named, has_counts])
