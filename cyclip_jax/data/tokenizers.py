"""Turns captions into token ids, by CLIP's byte-pair encoding or by a SentencePiece vocabulary.

A tokenizer is called with texts and gives int32 [n, context_length]; its attributes are
`vocab_size`, `context_length` and `vocabulary` (the path of the file it read). Every tokenizer
keeps three rules:

- start-of-text is vocab_size - 2 and end-of-text vocab_size - 1: the largest id, because the text
  tower pools at the argmax of the ids;
- padding is 0;
- a caption too long for the context is cut so that it still ends with end-of-text, unless
  `keep_end_of_text` is false.

Train a SentencePiece vocabulary on the captions of a csv file with

    python -m cyclip_jax.data.tokenizers --train=captions.csv --vocab_size=8000 \\
        --output=tokenizer.model
"""

import contextlib
import hashlib
import html
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import ftfy
import numpy as np
import sentencepiece
from absl import flags
from etils import epath
from jaxtyping import Int

from cyclip_jax.data.clip_bpe import (
    CLIP_WORD,
    clip_byte_characters,
    find_clip_vocabulary,
    merge_pairs,
    read_clip_merges,
)
from cyclip_jax.data.mistaken import mistaken_for
from cyclip_jax.data.tables import Table
from cyclip_jax.errors import UserError
from cyclip_jax.files import (
    absolute,
    check_scheme,
    expanded,
    how_written,
    sha256_of,
    write_atomically,
)
from cyclip_jax.runtime import command
from cyclip_jax.workdir.layout import TOKENIZER

SPECIAL_TOKENS = 2  # start-of-text and end-of-text
CACHED_WORDS = 1 << 16  # some 10 MB, and hardly a word of a caption is missing
# What `vocabulary_sum` gives for CLIP's own vocabulary, which need not be installed to be known.
CLIP_SUM = "5f18cb6b835103478b836491ea76999ba2c4fec655f284974851535078710790"


class Tokenizer(Protocol):
    """A function of texts with attributes, as described at the top of this file."""

    vocab_size: int
    context_length: int
    vocabulary: str
    vocabulary_sum: str
    keep_end_of_text: bool

    def __call__(self, texts: str | Iterable[str]) -> Int[np.ndarray, "n l"]:
        """Token ids, int32 [n, context_length], of n texts (a single string counts as one)."""
        ...

    def whole_ids(self, texts: str | Iterable[str]) -> list[list[int]]:
        """The ids of n texts of any length, uncut and without special tokens."""
        ...


def create_tokenizer(
    name: str,
    *,
    vocab_size: int,
    context_length: int,
    vocabulary: str | os.PathLike[str] | None = None,
    keep_end_of_text: bool = True,
) -> Tokenizer:
    """The tokenizer called `name`: a function of texts (see the top of this file).

    Args:
      name: "clip_bpe" or "sentencepiece".
      vocab_size: number of ids, the special tokens included; 49,408 for CLIP's own vocabulary.
      context_length: tokens per text, the special tokens included.
      vocabulary: path of the vocabulary's file. Without one, "clip_bpe" looks for CLIP's in the
        installed packages; "sentencepiece" needs one.
      keep_end_of_text: whether a text too long for the context still ends with end-of-text. If not,
        the text tower reads it at start-of-text and sees nothing of it, as in the official CyCLIP.

    Raises:
      UserError: the name is unknown, the context has no room for the special tokens, the
        vocabulary is missing or unreadable, or its size does not agree with `vocab_size`.
    """
    check_name(name)
    if context_length < SPECIAL_TOKENS:
        raise UserError(
            f"a context of {context_length} has no room for start-of-text and end-of-text; "
            f"set config.model.context_length to {SPECIAL_TOKENS} or more"
        )
    return TOKENIZERS[name](
        vocabulary,
        vocab_size=vocab_size,
        context_length=context_length,
        keep_end_of_text=keep_end_of_text,
    )


def check_name(name: str) -> None:
    """Raises UserError where there is no tokenizer of this name."""
    if name not in TOKENIZERS:
        raise UserError(
            f"unknown tokenizer '{name}'; set config.data.tokenizer to one of: "
            f"{', '.join(sorted(TOKENIZERS))}"
        )


def vocabulary_of(data: Any, workdir: str | os.PathLike[str]) -> str | None:
    """Path of a run's vocabulary, or None for the vocabulary of an installed package.

    Args:
      data: the run's config.data.
      workdir: the run's directory, in which a SentencePiece model is trained if none is named.
    """
    if data.vocabulary is None and data.tokenizer == "sentencepiece":
        return str(epath.Path(workdir) / TOKENIZER)
    return data.vocabulary


def vocabulary_sum(name: str, vocabulary: str | os.PathLike[str] | None) -> str:
    """The SHA-256 of what a vocabulary holds, which two files of one vocabulary share.

    Args:
      name: "clip_bpe" or "sentencepiece".
      vocabulary: path of the vocabulary's file; None is CLIP's own.

    Raises:
      UserError, OSError: the file is missing or cannot be read.
    """
    if vocabulary is None:
        return CLIP_SUM
    if name == "clip_bpe":
        return _sum_of_merges(read_clip_merges(vocabulary))
    return sha256_of(absolute(vocabulary, "the vocabulary"))


def _sum_of_merges(merges):  # not of the file: gzip may compress the same merges in other ways
    return hashlib.sha256(json.dumps(list(merges)).encode()).hexdigest()


class ClipBpeTokenizer:
    """CLIP's byte-pair encoding, with the ids of open_clip's default tokenizer on every text.

    Attributes:
      word_ids: {word: its ids}, of at most CACHED_WORDS words that were met.
    """

    def __init__(
        self,
        vocabulary: str | os.PathLike[str] | None = None,
        *,
        vocab_size: int,
        context_length: int,
        keep_end_of_text: bool = True,
    ) -> None:
        self.vocabulary: str = os.fspath(vocabulary or find_clip_vocabulary())
        self.vocab_size: int = vocab_size
        self.context_length: int = context_length
        self.keep_end_of_text: bool = keep_end_of_text
        self._merges = read_clip_merges(self.vocabulary)
        self.vocabulary_sum: str = _sum_of_merges(self._merges)
        self._byte_ids = {byte: id_ for id_, byte in enumerate(clip_byte_characters())}
        # Not functools.lru_cache, which could not be pickled into a worker process.
        self.word_ids: dict[str, tuple[int, ...]] = {
            "<start_of_text>": (vocab_size - 2,),
            "<end_of_text>": (vocab_size - 1,),
        }
        size = 2 * 256 + len(self._merges) + SPECIAL_TOKENS
        if size != vocab_size:
            raise UserError(
                f"the vocabulary {self.vocabulary} has {size} ids but config.model.vocab_size is "
                f"{vocab_size}; set config.model.vocab_size to {size}"
            )

    def __call__(self, texts: str | Iterable[str]) -> Int[np.ndarray, "n l"]:
        """Token ids, int32 [n, context_length], of n texts (a single string counts as one)."""
        texts = [texts] if isinstance(texts, str) else texts
        return pad_and_cut([self.encode(text) for text in texts], self)

    def whole_ids(self, texts: str | Iterable[str]) -> list[list[int]]:
        """The ids of n texts of any length, uncut and without special tokens."""
        texts = [texts] if isinstance(texts, str) else texts
        return [self.encode(text, enough=math.inf) for text in texts]

    def encode(self, text: str, *, enough: float | None = None) -> list[int]:
        """The ids of one text without special tokens, cut a little after there are enough.

        Args:
          text: the text.
          enough: how many ids are wanted; None is the context's length.
        """
        enough, ids = self.context_length if enough is None else enough, []
        for match in CLIP_WORD.finditer(clean(text)):
            ids += self._encode_word(match[0])
            if len(ids) >= enough:
                break
        return ids

    def _encode_word(self, word):
        ids = self.word_ids.get(word)
        if ids is None:
            byte_ids = [self._byte_ids[byte] for byte in word.encode()]
            byte_ids[-1] += 256  # the last byte of a word has an id of its own
            ids = merge_pairs(byte_ids, self._merges)
            if len(self.word_ids) < CACHED_WORDS:
                self.word_ids[word] = ids
        return ids


class SentencePieceTokenizer:
    """A SentencePiece model, whose pieces have the lowest ids, and the special tokens.

    Any model works that leaves room for them; ids between stay unused. A model from
    `train_sentencepiece` also keeps id 0 for padding alone.
    """

    def __init__(
        self,
        vocabulary: str | os.PathLike[str] | None,
        *,
        vocab_size: int,
        context_length: int,
        keep_end_of_text: bool = True,
    ) -> None:
        if not vocabulary:
            raise UserError(
                "the sentencepiece tokenizer needs a vocabulary; set config.data.vocabulary to a "
                "model, as trained by `python -m cyclip_jax.data.tokenizers --train=captions.csv "
                f"--vocab_size={vocab_size} --output=tokenizer.model`"
            )
        self.vocabulary: str = os.fspath(vocabulary)
        self.vocab_size: int = vocab_size
        self.context_length: int = context_length
        self.keep_end_of_text: bool = keep_end_of_text
        self._model = read_sentencepiece(self.vocabulary)
        self.vocabulary_sum: str = vocabulary_sum("sentencepiece", self.vocabulary)
        pieces = self._model.get_piece_size()
        if pieces > vocab_size - SPECIAL_TOKENS:
            raise UserError(
                f"the vocabulary {self.vocabulary} has {pieces} pieces, and with {SPECIAL_TOKENS} "
                f"special tokens does not fit into config.model.vocab_size = {vocab_size}; "
                f"set config.model.vocab_size to {pieces + SPECIAL_TOKENS} or more"
            )

    def __call__(self, texts: str | Iterable[str]) -> Int[np.ndarray, "n l"]:
        """Token ids, int32 [n, context_length], of n texts (a single string counts as one)."""
        return pad_and_cut(self.whole_ids(texts), self)

    def whole_ids(self, texts: str | Iterable[str]) -> list[list[int]]:
        """The ids of n texts of any length, uncut and without special tokens."""
        texts = [texts] if isinstance(texts, str) else texts
        # One thread: the processes that read the data are the parallelism.
        return self._model.encode(list(map(_as_utf8, texts)), num_threads=1)


TOKENIZERS: dict[str, Callable[..., Tokenizer]] = {
    "clip_bpe": ClipBpeTokenizer,
    "sentencepiece": SentencePieceTokenizer,
}


def pad_and_cut(
    ids_of_texts: Sequence[Sequence[int]], tokenizer: Tokenizer
) -> Int[np.ndarray, "n l"]:
    """The rows of a batch: start-of-text, a text's ids, end-of-text, and zeros.

    Args:
      ids_of_texts: n lists of ids of any length, without special tokens.
      tokenizer: gives the sizes.

    Returns:
      int32 [n, context_length]. Ids that do not fit before end-of-text are dropped; end-of-text is
      dropped with them if `keep_end_of_text` is false.
    """
    length = tokenizer.context_length
    start, end = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    rows = np.zeros((len(ids_of_texts), length), np.int32)
    for row, ids in zip(rows, ids_of_texts, strict=True):
        if tokenizer.keep_end_of_text:
            ids = ids[: length - SPECIAL_TOKENS]
        tokens = [start, *ids, end][:length]
        row[: len(tokens)] = tokens
    return rows


def clean(text: str) -> str:
    """The text as CLIP reads it: mended Unicode, no HTML entities, single spaces, lower case."""
    text = ftfy.fix_text(text)
    with contextlib.suppress(ValueError):  # an entity of thousands of digits stays what it is
        text = html.unescape(html.unescape(text))  # twice: crawled "&amp;amp;" is common
    return " ".join(text.split()).lower()


def _as_utf8(text):  # with "?" for lone surrogates, which SentencePiece cannot express
    return text.encode("utf-8", "replace").decode("utf-8")


def read_sentencepiece(path: str | os.PathLike[str]) -> sentencepiece.SentencePieceProcessor:
    """The SentencePiece model in a file; raises UserError where there is none."""
    path = expanded(path)
    try:
        content = absolute(path, "the vocabulary").read_bytes()
        if not content:
            raise RuntimeError("the file is empty")
        if kind := mistaken_for(content):
            raise RuntimeError(kind)
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cannot read the SentencePiece model {path}{how_written(path)} ({error}); set "
            "config.data.vocabulary to a model, as written by "
            "`python -m cyclip_jax.data.tokenizers`"
        ) from error


def train_sentencepiece(captions: Iterable[str], *, vocab_size: int, output: str) -> str:
    """Trains a unigram SentencePiece model for `SentencePieceTokenizer`.

    Texts are normalised to NFKC and lower case. Id 0 is padding, and id 1 is the unknown. Every
    caption is used and kept in memory; the same captions give the same file.

    Args:
      captions: the texts to learn from; blank ones are skipped.
      vocab_size: number of ids, special tokens included. There will be at most vocab_size - 2
        pieces, and fewer if the captions do not have so many.
      output: path of the model, which is written only when it is complete.

    Returns:
      `output`.

    Raises:
      UserError: no caption has text, or the vocabulary is too small for their characters.
    """
    # SentencePiece drops whatever text holds "▅", its own mark of the unknown.
    sentences = [" ".join(_as_utf8(caption).replace("▅", " ").split()) for caption in captions]
    sentences = list(filter(None, sentences))
    if not sentences:
        raise UserError(
            "there is no caption to train on, as all are empty; give captions with text"
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size - SPECIAL_TOKENS,
            hard_vocab_limit=False,
            normalization_rule_name="nmt_nfkc_cf",
            # Longer sentences would be dropped without a word; the default is 4192 bytes.
            max_sentence_length=max(len(sentence.encode()) for sentence in sentences),
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"cannot train a vocabulary of {vocab_size} ids on {len(sentences)} captions; give a "
            f"larger vocabulary or more text (SentencePiece says: {error})"
        ) from error
    write_atomically(output, model.getvalue())
    return output


def read_captions(
    path: str | os.PathLike[str], *, caption_key: str = "caption", delimiter: str = ","
) -> list[str]:
    """The captions of a CSV or TSV file in UTF-8 with a header, "" where a row has none.

    Raises:
      UserError: the file is missing or no such table, it has no column `caption_key`, a row has
        more fields than the header, or the delimiter is not one character.
    """
    path = expanded(path)
    check_scheme(path, "--train", by_tensorflow=True)
    if len(delimiter) != 1:
        raise UserError(f"--delimiter is '{delimiter}'; set it to one character")
    if delimiter == "," and os.fspath(path).lower().endswith(".tsv"):
        delimiter = "\t"
    try:
        table = Table(os.fspath(path), delimiter, "--delimiter")
        position = table.position(caption_key, "--caption_key")
        captions = []
        for row in table.rows():
            is_short = len(row.fields) < len(table.names)  # often a blank caption at the end
            if row.fault is not None and not is_short:
                raise UserError(f"{path} cannot be used: {': '.join(row.fault)}; mend it")
            captions.append("" if is_short else row.fields[position])
        return captions
    except OSError as error:
        raise UserError(
            f"cannot read the captions of {path}{how_written(path)}: {error}"
        ) from error


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    for name, default, meaning in (
        ("train", None, "CSV file of captions, with a header."),
        ("caption_key", "caption", "Name of the column of captions."),
        ("delimiter", ",", r"Character between columns; \t is a tab."),
        ("output", None, "Path of the model that is written."),
    ):
        flags.DEFINE_string(name, default, meaning, required=default is None, flag_values=values)
    ids = "Number of ids, two special tokens included."
    flags.DEFINE_integer("vocab_size", None, ids, required=True, flag_values=values)


def train_on_file(values: Any) -> str | None:
    """Trains on a file's captions and says what came of it; returns what is wrong, or None."""
    delimiter = values.delimiter.replace(r"\t", "\t")
    output = str(absolute(values.output, "--output"))
    captions = read_captions(values.train, caption_key=values.caption_key, delimiter=delimiter)
    try:
        train_sentencepiece(captions, vocab_size=values.vocab_size, output=output)
    except OSError as error:
        return f"error: {error}"
    blank = sum(not caption.strip() for caption in captions)
    pieces = read_sentencepiece(output).get_piece_size()
    print(f"{values.output}: {pieces} pieces from {len(captions)} captions, {blank} of them blank")
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; None are the arguments of the process."""
    how = str(__doc__).partition("Train a")
    command.run(train_on_file, define_flags, doc=how[1] + how[2], arguments=arguments)


if __name__ == "__main__":
    main()
