"""Sentences that the text tower is trained on, by themselves, in pairs or in triplets.

They come from a file or from the captions of the run. They are held in memory: a million sentences
of Wikipedia take 120 MB. Which of them a step sees is a pure function of the step.
"""

import dataclasses
import functools
import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from etils import epath
from jaxtyping import Int

from cyclip_jax.data.order import sentences_of_step
from cyclip_jax.data.record import Unreadable, told
from cyclip_jax.data.sources.table import StringArray
from cyclip_jax.data.tables import Table, encoded_lines
from cyclip_jax.errors import UserError
from cyclip_jax.files import how_written, parse_json

CAPTIONS, WORDNET = "captions", "wordnet"  # in place of a path
# Keys of a batch, in the order of a file's columns.
BATCH_KEYS = ("sentences", "positives", "negatives")
CSV_COLUMNS = ("sent0", "sent1", "hard_neg")  # of nli_for_simcse.csv
# Of SNLI and MNLI: "-" is a pair on whose label its annotators do not agree.
_NLI_KEYS = ("sentence1", "sentence2", "gold_label")
_ENTAILED, _CONTRADICTED = "entailment", "contradiction"
_NLI_LABELS = (_ENTAILED, _CONTRADICTED, "neutral", "-")
# How many others may stand in, one after the other, for sentences that cannot be tokenised.
_REPLACEMENTS = 8

Rows = Iterator[tuple[str, Sequence[str] | Unreadable]]  # (name of the row, its sentences)


def is_supervised(train: str) -> bool:
    """Whether sentences come with positives, as the place that they are from tells.

    Args:
      train: a path, CAPTIONS or WORDNET.

    Raises:
      UserError: the path does not tell what it is.
    """
    if train == CAPTIONS or train.lower().endswith(".txt"):
        return False
    if train == WORDNET or train.lower().endswith((".csv", ".tsv", ".jsonl")):
        return True
    raise UserError(
        f"config.sentences.train is {train}, whose ending does not tell what it is; set it to a "
        ".txt with a sentence a line, a .csv or .tsv with the columns sent0, sent1 and perhaps "
        f"hard_neg, a .jsonl of SNLI or MNLI, '{CAPTIONS}' or '{WORDNET}'"
    )


@dataclasses.dataclass(frozen=True)
class SentenceSet:
    """Sentences in rows of one, two or three.

    Attributes:
      name: what they are called.
      columns: each row's sentences: itself; its positive; its hard negative.
      faults: [(name of the row, reason, detail)] of what is left out.
      sum: of all sentences in their order, by which a changed file is known.
    """

    name: str
    columns: tuple[StringArray, ...]
    faults: list[tuple[str, str, str]]
    sum: str

    def __len__(self) -> int:
        return len(self.columns[0])


def read_sentences(
    train: str,
    columns: int,
    *,
    captions: Callable[[], list[str]],
    wordnet: Callable[[], Rows],
    max_bad_share: float,
) -> SentenceSet:
    """Reads sentences.

    Args:
      train: a path, CAPTIONS or WORDNET.
      columns: how many sentences stand side by side, 1 to 3.
      captions: function that gives the run's captions; "" of an example that cannot be read.
      wordnet: function that gives WordNet's rows.
      max_bad_share: share of rows above which those that cannot be used are an error.

    Raises:
      UserError: there is no such file, it lacks a column, or too much of it cannot be used.
    """
    if train == CAPTIONS:
        name = "config.data.train"
        rows: Rows = (
            (f"caption {n}", (text,)) for n, text in enumerate(captions()) if text.strip()
        )
    elif train == WORDNET:
        name, rows = "WordNet", wordnet()
    else:
        name, rows = train, _rows_of_file(train, columns)
    texts = [(bytearray(), array("q")) for _ in range(columns)]
    faults, digest = [], hashlib.sha256()
    for key, row in rows:
        if not isinstance(row, Unreadable) and not all(text.strip() for text in row[:columns]):
            row = Unreadable("a sentence is empty")
        if isinstance(row, Unreadable):
            faults.append((key, row.reason, row.detail))
            continue
        for (encoded, ends), text in zip(texts, row, strict=False):
            encoded += text.strip().encode("utf-8", "replace")
            ends.append(len(encoded))
    for encoded, ends in texts:
        digest.update(encoded)
        digest.update(np.asarray(ends, np.int64).tobytes())
    kept = len(texts[0][1])
    _check_share(name, faults, kept, max_bad_share)
    found = tuple(StringArray(encoded, ends) for encoded, ends in texts)
    return SentenceSet(name, found, faults, digest.hexdigest())


def _check_share(name, faults, kept, max_bad_share):
    if not kept:
        why = f": {faults[0][1]} ({faults[0][0]})" if faults else ""
        raise UserError(f"{name} has no sentence that can be used{why}")
    share = len(faults) / (len(faults) + kept)
    if share > max_bad_share:
        key, reason, _ = faults[0]
        raise UserError(
            f"{share:.2%} of the sentences of {name} cannot be used, more than the allowed "
            f"{max_bad_share:.2%}; the first is {key}: {reason}. Mend them, or raise "
            "config.data.max_bad_share"
        )


def _rows_of_file(path, columns):
    if not epath.Path(path).is_file():
        raise UserError(
            f"{path} is not a file{how_written(path)}; set config.sentences.train to a file of "
            "sentences"
        )
    if not is_supervised(path):
        return _rows_of_text(path)
    if path.lower().endswith(".jsonl"):
        return _rows_of_nli(path, columns)
    return _rows_of_table(path, columns)


def _rows_of_text(path):
    for number, line in enumerate(encoded_lines(path), start=1):
        key = f"{path}, line {number}"
        try:
            yield key, (line.decode("utf-8-sig" if number == 1 else "utf-8"),)
        except UnicodeDecodeError as error:
            yield key, Unreadable("the sentence is not UTF-8", f"byte {error.start + 1}")


def _rows_of_table(path, columns):
    table = Table(path, "\t" if path.lower().endswith(".tsv") else ",", "config.data.delimiter")
    setting = "config.sentences.train"
    if columns == 3 and CSV_COLUMNS[2] not in table.names:
        raise UserError(
            f"{path} has no column {CSV_COLUMNS[2]!r}; set config.sentences.hard_negative_weight "
            "to 0, with which there are no hard negatives"
        )
    places = [table.position(name, setting) for name in CSV_COLUMNS[:columns]]
    for row in table.rows():
        key = f"{path}, line {row.line}"
        if row.fault is not None:
            yield key, Unreadable(*row.fault)
        else:
            yield key, [row.fields[place] for place in places]


def _rows_of_nli(path, columns):
    """(premise, what it entails, what contradicts it) of SNLI's and MNLI's lines.

    Each entailed sentence of a premise makes a row with one of its contradictions. With hard
    negatives a premise that nothing contradicts makes none.
    """
    by_premise = {}
    for number, line in enumerate(encoded_lines(path), start=1):
        key = f"{path}, line {number}"
        try:
            pair = parse_json(line)
            premise, sentence, label = (pair[name] for name in _NLI_KEYS)
            if not isinstance(premise, str) or not isinstance(sentence, str):
                raise TypeError("a sentence is no text")
            if label not in _NLI_LABELS:
                raise ValueError(f"the label {label!r} is none of {', '.join(_NLI_LABELS)}")
        except (KeyError, TypeError, ValueError) as error:
            yield key, Unreadable("the line is no pair of SNLI or MNLI", repr(error))
            continue
        if label in (_ENTAILED, _CONTRADICTED):
            found = by_premise.setdefault(premise, {_ENTAILED: [], _CONTRADICTED: []})
            found[label].append((key, sentence))
    for premise, found in by_premise.items():
        against = found[_CONTRADICTED]
        for number, (key, sentence) in enumerate(found[_ENTAILED]):
            if columns < 3:
                yield key, (premise, sentence)
            elif against:
                yield key, (premise, sentence, against[number % len(against)][1])


class SentenceBatches:
    """What each step sees of sentences: a function of the step, [m, L] for this process.

    Args:
      sentences: all of them.
      tokenizer: function from texts to token ids, int32 [n, L].
      batch_size: M, rows of the global batch.
      seed: of their order.
      process_index: which part of each batch is made here.
      process_count: in how many parts each batch is made.

    Raises:
      UserError: there are fewer sentences than a batch has rows.
    """

    def __init__(
        self,
        sentences: SentenceSet,
        tokenizer: Callable[[list[str]], Int[np.ndarray, "n l"]],
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        check_enough(sentences, batch_size)
        self._sentences, self._tokenizer, self._seed = sentences, tokenizer, seed
        self._batch_size = batch_size
        part = batch_size // process_count
        self._own = slice(process_index * part, (process_index + 1) * part)

    def __call__(self, step: int) -> dict[str, Int[np.ndarray, "m l"]]:
        """{key of the batch: token ids} of a step of the run.

        Raises:
          UserError: none of several rows in turn can be tokenised.
        """
        rows = sentences_of_step(self._seed, step, len(self._sentences), self._batch_size)
        rows = rows[self._own].tolist()
        try:
            tokens = self._tokens(rows)
        except Unreadable:
            tokens = [np.concatenate(parts) for parts in zip(*map(self._any, rows), strict=True)]
        return dict(zip(BATCH_KEYS, tokens, strict=False))

    def _tokens(self, rows):
        tokenise = functools.partial(told, "the sentence cannot be tokenised", self._tokenizer)
        columns = self._sentences.columns
        return [np.asarray(tokenise([texts[row] for row in rows]), np.int32) for texts in columns]

    def _any(self, row):
        """The tokens of a row, or of the first after it that has some."""
        for number in range(_REPLACEMENTS + 1):
            try:
                return self._tokens([(row + number) % len(self._sentences)])
            except Unreadable as error:
                fault = error
        raise UserError(
            f"row {row} of {self._sentences.name} and the {_REPLACEMENTS} after it cannot be "
            f"tokenised: {fault.detail}"
        )


def check_enough(sentences: SentenceSet, batch_size: int) -> None:
    """Raises UserError where there are fewer sentences than a batch has rows."""
    if len(sentences) < batch_size:
        raise UserError(
            f"config.sentences.batch_size is {batch_size}, but {sentences.name} has only "
            f"{len(sentences)} rows; set it to at most that"
        )
