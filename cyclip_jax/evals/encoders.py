"""What an evaluator sees of a model, and how it embeds a data set with it."""

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from cyclip_jax.data.record import Source
from cyclip_jax.data.sources.subset import Subset
from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.image_set import ImageSet, first_places
from cyclip_jax.evals.statistics.unit_norm import unit_rows

Rows = Float[np.ndarray, "n d"]
IMAGES, TEXTS = "images", "texts"  # what is embedded
# Of a kind and a number of rows: a context that is told how many of them each batch has.
Embedding = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]


class Interrupted(Exception):
    """The run was told to stop within an evaluation."""


class NoneReadable(UserError):
    """No picture of an ImageSet can be read."""


class PairEmbeds(NamedTuple):
    """The M pictures of an ImageSet that can be read, and their captions.

    Attributes:
      images, texts: unit-norm embeddings, float [M, D], row j of both one pair.
      captions: each picture's first caption.
      index: int [M], the pictures' numbers in the data set.
    """

    images: Rows
    texts: Rows
    captions: list[str]
    index: Int[np.ndarray, "m"]


class ClassRows(NamedTuple):
    """The head of a fine-tuned model, by which a picture f has the score s·(⟨f, w_c⟩ + b_c).

    Attributes:
      names: of the C classes.
      weights: w, float [C, D].
      biases: b, float [C].
    """

    names: Sequence[str]
    weights: Float[np.ndarray, "c d"]
    biases: Float[np.ndarray, "c"]


@contextlib.contextmanager
def _unheard(kind: str, total: int) -> Iterator[Callable[[int], None]]:
    """An Embedding that nobody looks at."""
    del kind, total
    yield lambda rows: None


@dataclasses.dataclass(frozen=True)
class Encoders:
    """A model as two functions and the little that an evaluator needs besides.

    One of these serves one pass over all evaluations: what it has embedded it keeps, [N, D] in
    float32, so that evaluations of the same data embed it once.

    Attributes:
      encode_features: this process's rows, uint8 [b, H, W, 3] -> float32 [B, D] of all processes'
        rows, in NumPy, without the unit norm.
      encode_text: the same for token ids int32 [b, L], or windows [b, W, L], with unit norm.
      gather: any array with this process's rows -> all processes' rows, in NumPy.
      loss: (image_embeds [n, D], text_embeds [n, D]) -> {name: scalar}, the training loss's terms.
      tokenize: texts -> int32 [n, L], or windows [n, W, L].
      image_size: pixels per side.
      resize_mode: how a picture becomes a square, see `data.transform.Transform`.
      batch_size: rows B over all processes; also the size of the groups that losses are taken in.
      head: the classes that the model itself scores; None where it has no such head.
      process_index, process_count: whose rows are this process's.
      check_stop: called after each batch; may raise Interrupted.
      embedding: hears of every batch, see evals/progress.py.
      unreadable: {identity of an ImageSet: how many of its examples could not be read}, of those
        that were asked for.
    """

    encode_features: Callable[[UInt8[np.ndarray, "b h w 3"]], Rows]
    encode_text: Callable[[Int[np.ndarray, "b ..."]], Rows]
    gather: Callable[[Shaped[np.ndarray, "b ..."]], Shaped[np.ndarray, "n ..."]]
    loss: Callable[[Rows, Rows], Mapping[str, Any]]
    tokenize: Callable[[list[str]], Int[np.ndarray, "n ..."]]
    image_size: int
    batch_size: int
    resize_mode: str = "shortest"
    head: ClassRows | None = None
    process_index: int = 0
    process_count: int = 1
    check_stop: Callable[[], None] = lambda: None
    embedding: Embedding = _unheard
    unreadable: dict[Hashable, int] = dataclasses.field(
        default_factory=dict, init=False, compare=False
    )
    _kept: dict[Hashable, Any] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def image_features(self, images: ImageSet) -> tuple[Rows, Int[np.ndarray, "n"]]:
        """Embeds all pictures of an ImageSet in its order, without the unit norm.

        Returns:
          (features [M, D], indices [M]) of the M examples that could be read; `indices` are their
          places in the source.

        Raises:
          NoneReadable: none can be read.
        """
        features, indices = self._keep(
            ("features", images.identity), lambda: self._features(images)
        )
        self.unreadable[images.identity] = len(images.source) - len(indices)
        return features, indices

    def embeds_of_rows(self, source: Source, rows: range) -> tuple[Rows, Int[np.ndarray, "m"]]:
        """Embeds some pictures of a large data set, of which nothing is kept.

        Args:
          source: the data.
          rows: the examples' numbers.

        Returns:
          (unit-norm embeddings [m, D], places in `rows`) of the m pictures that can be read; D is 0
          where none can.
        """
        images = ImageSet(Subset(source, np.arange(rows.start, rows.stop)), (rows,), "the data")
        try:
            return dataclasses.replace(self).image_embeds(images)
        except NoneReadable:
            return np.zeros((0, 0), np.float32), np.zeros(0, int)

    def image_embeds(self, images: ImageSet) -> tuple[Rows, Int[np.ndarray, "n"]]:
        """Embeds all pictures of `images` as `image_features` does, with unit norm."""
        features, indices = self.image_features(images)
        return unit_rows(features), indices

    def pair_embeds(self, pairs: ImageSet) -> PairEmbeds:
        """Embeds the pictures and captions of `pairs`, each picture once with its first caption."""
        image_embeds, indices = self.image_embeds(pairs)
        first = first_places(pairs, indices)
        captions = pairs.source.captions()
        captions = [captions[index] for index in indices[first]]
        return PairEmbeds(image_embeds[first], self.text_embeds(captions), captions, indices[first])

    def text_embeds(self, texts: Iterable[str]) -> Rows:
        """Unit-norm embeddings [n, D] of any number of texts, each distinct one embedded once."""
        texts = tuple(texts)
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}

        def embed():
            return self._texts(list(distinct))[[distinct[text] for text in texts]]

        return self._keep(("texts", texts), embed)

    def _keep(self, key, compute):
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def _features(self, images):
        from cyclip_jax.data.pipeline import eval_batches  # TensorFlow: slow to import

        features, masks, left = [], [], len(images.source)
        with self.embedding(IMAGES, left) as advance:
            for batch in eval_batches(
                images.source,
                lambda captions: np.zeros((len(captions), 1), np.int32),  # the pictures alone
                batch_size=self.batch_size,
                image_size=self.image_size,
                resize_mode=self.resize_mode,
                process_index=self.process_index,
                process_count=self.process_count,
            ):
                masks.append(self.gather(batch["mask"]))
                features.append(self.encode_features(batch["images"])[masks[-1]])
                advance(min(left, self.batch_size))
                left -= min(left, self.batch_size)
                self.check_stop()
        indices = np.flatnonzero(np.concatenate(masks))
        if not len(indices):
            raise NoneReadable(f"none of the images of {images.path} can be read")
        return np.concatenate(features), indices

    def _texts(self, texts):
        rows = self.batch_size // self.process_count
        start = self.process_index * rows
        embeds = []
        with self.embedding(TEXTS, len(texts)) as advance:
            for first in range(0, len(texts), self.batch_size):
                tokens = self.tokenize(texts[first : first + self.batch_size])
                padding = self.batch_size - len(tokens)
                # The last text again, not zeros: a row needs an end-of-text token.
                pad_width = ((0, padding), *[(0, 0)] * (tokens.ndim - 1))
                own = np.pad(tokens, pad_width, mode="edge")[start : start + rows]
                embeds.append(self.encode_text(own))
                advance(len(tokens))
                self.check_stop()
        return np.concatenate(embeds)[: len(texts)]
