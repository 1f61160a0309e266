"""What is found out about each example by itself: whether it can be used, its sizes, its hashes."""

import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from cyclip_jax.data.clip_bpe import find_clip_vocabulary, read_clip_merges
from cyclip_jax.data.inspection.thumbnails import Thumbnails, thumbnail
from cyclip_jax.data.listing import Blocks, Found, Input, pool
from cyclip_jax.data.record import Record, Unreadable, read_told, told
from cyclip_jax.data.tokenizers import (
    SPECIAL_TOKENS,
    Tokenizer,
    check_name,
    create_tokenizer,
    read_sentencepiece,
)
from cyclip_jax.data.transform import MAX_PIXELS
from cyclip_jax.errors import UserError

_READERS = 8  # threads of a process: where pictures lie far away, most of the time is waiting
_AT_ONCE = 32  # encoded pictures in memory
BLOCK = 1024  # examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """How captions are counted; each attribute has the name of its flag.

    Attributes:
      tokenizer, context_length: see `create_tokenizer`.
      vocabulary: path of the vocabulary's file, or None.
    """

    tokenizer: str = "clip_bpe"
    vocabulary: str | None = None
    context_length: int = 77

    def open(self) -> Tokenizer:
        """The tokenizer, of as many ids as its vocabulary has.

        Raises:
          UserError: there is no such tokenizer or vocabulary.
        """
        check_name(self.tokenizer)
        if self.tokenizer == "clip_bpe":
            merges = read_clip_merges(self.vocabulary or find_clip_vocabulary())
            ids = 2 * 256 + len(merges)
        elif self.vocabulary is None:
            raise UserError(
                "--tokenizer=sentencepiece needs a vocabulary; set --vocabulary to a model, as "
                "`python -m cyclip_jax.data.tokenizers` trains one"
            )
        else:
            ids = read_sentencepiece(self.vocabulary).get_piece_size()
        return create_tokenizer(
            self.tokenizer,
            vocab_size=ids + SPECIAL_TOKENS,
            context_length=self.context_length,
            vocabulary=self.vocabulary,
        )


class Fault(NamedTuple):
    """Why an example cannot be used, as Unreadable says it."""

    example: int
    reason: str
    detail: str


class Examples(NamedTuple):
    """What is known of n examples; what is not known of one that cannot be read is 0.

    Attributes:
      faults: of those that cannot be used, in their order.
      is_readable: whether each can be used.
      digests: SHA-256 of the picture's file.
      sizes: (bytes of the picture's file, width, height), the latter in pixels.
      tokens: of the first caption, start-of-text and end-of-text included.
      captions: a hash of the first caption.
      thumbnails: of the pictures.
    """

    faults: list[Fault]
    is_readable: Bool[np.ndarray, "n"]
    digests: UInt8[np.ndarray, "n 32"]
    sizes: Int[np.ndarray, "n 3"]
    tokens: Int[np.ndarray, "n"]
    captions: UInt8[np.ndarray, "n 16"]
    thumbnails: Thumbnails


class _Looker:
    """What a process needs to look at examples; a worker keeps one."""

    def __init__(self, data: Input, config_key: str, tokens: Tokens) -> None:
        from cyclip_jax.data.decoding import pixels_of  # TensorFlow: slow to import

        self.source, self.tokenizer, self.pixels_of = (
            data.open(config_key),
            tokens.open(),
            pixels_of,
        )

    def look(self, rows: range) -> Found:
        """What `Examples` tells of a block."""
        found = _blank(len(rows))
        faults: list[Fault] = []
        with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
            for start in range(0, len(rows), _AT_ONCE):
                part = rows[start : start + _AT_ONCE]
                for place, record in enumerate(readers.map(self._read, part), start):
                    try:
                        self._enter(found, place, record)
                    except Unreadable as error:
                        faults.append(Fault(rows[place], error.reason, error.detail))
        for place, name in enumerate(Fault._fields):
            found[f"fault_{name}"] = np.array([str(fault[place]) for fault in faults] or [""])
        return found

    def _read(self, row):
        try:
            return read_told(self.source.read, row)
        except Unreadable as error:
            return error

    def _enter(self, found: Found, place: int, record: Record | Unreadable) -> None:
        if isinstance(record, Unreadable):
            raise record
        pixels = self.pixels_of(record.image, MAX_PIXELS)
        caption = record.captions[0]
        (ids,) = told("the caption cannot be tokenised", self.tokenizer.whole_ids, [caption])
        encoded = caption.encode(errors="surrogatepass")
        found["captions"][place] = _bytes(hashlib.blake2b(encoded, digest_size=16).digest())
        found["tokens"][place] = len(ids) + SPECIAL_TOKENS
        found["digests"][place] = _bytes(hashlib.sha256(record.image).digest())
        found["sizes"][place] = len(record.image), pixels.shape[1], pixels.shape[0]
        small = thumbnail(pixels)
        found["luma"][place], found["chroma"][place] = small.luma[0], small.chroma[0]
        found["is_readable"][place] = True


def _blank(n):
    return {
        "is_readable": np.zeros(n, bool),
        "digests": np.zeros((n, 32), np.uint8),
        "sizes": np.zeros((n, 3), np.int64),
        "tokens": np.zeros(n, np.int32),
        "captions": np.zeros((n, 16), np.uint8),
        "luma": np.zeros((n, 32, 32), np.uint8),
        "chroma": np.zeros((n, 2, 16, 16), np.uint8),
    }


def _bytes(digest):
    return np.frombuffer(digest, np.uint8)


_own: list[_Looker] = []  # of a worker process


def _begin_worker(*arguments):
    _own[:] = [_Looker(*arguments)]


def _look(rows):
    return _own[0].look(rows)


def look_at(
    data: Input,
    config_key: str,
    tokens: Tokens,
    blocks: Blocks,
    workers: int,
    progress: Callable[[int, int], object],
) -> Examples:
    """Looks at all examples of a data set.

    Args:
      data: says which.
      config_key: what messages call its path.
      tokens: how captions are counted.
      blocks: of its examples, which go on where they were.
      workers: how many processes look at examples.
      progress: function that is called with the examples done and 0.

    Raises:
      UserError: a worker died.
    """
    faults, parts = [], {name: [rows] for name, rows in _blank(0).items()}
    at_once = workers if workers > 1 else 0  # what this process finds out itself is kept at once
    with pool(workers, _begin_worker, data, config_key, tokens) as executor:
        for found in blocks.results(
            "examples", _look, lambda rows: (rows,), executor, at_once, progress
        ):
            for name, rows in parts.items():
                rows.append(found[name])
            told_of = [found[f"fault_{name}"].tolist() for name in Fault._fields]
            faults += [
                Fault(int(example), reason, detail)
                for example, reason, detail in zip(*told_of, strict=True)
                if example
            ]
    whole = {name: np.concatenate(rows) for name, rows in parts.items()}
    thumbnails = Thumbnails(whole.pop("luma"), whole.pop("chroma"))
    return Examples(faults, thumbnails=thumbnails, **whole)
