"""A data set's embeddings as one looks through them: found by a sentence, a picture, or a row.

CyCLIP asks that image space and text space have one geometry. For a picture of the collection that
can be seen: its neighbours among the pictures and the neighbours of its caption among the captions
should be the same examples.
"""

import concurrent.futures
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute
from jaxtyping import Bool, Float, Int

from cyclip_jax.data.pillow import small_jpeg
from cyclip_jax.data.record import Source, Unreadable, read_told
from cyclip_jax.data.transform import MAX_PIXELS
from cyclip_jax.embeddings.layout import Embeddings
from cyclip_jax.embeddings.nearest import Nearest
from cyclip_jax.embeddings.write import picture_sum
from cyclip_jax.evals.encoders import Encoders
from cyclip_jax.evals.statistics.unit_norm import unit_rows

MOST_HITS = 192  # of a space, at a time
UPLOAD_PIXELS = 40_000_000
THUMBNAIL = 224  # pixels of the longer side
_KEPT_THUMBNAILS = 2000  # about 20 MB
_SAMPLED = 60  # rows for the collection's mean

_compute: Any = pyarrow.compute  # its functions are made when it is imported
Vector = Float[np.ndarray, "d"]


class Query(NamedTuple):
    """What is looked for: a vector for each space, [D], or None where there is none."""

    images: Vector | None
    texts: Vector | None


class Hit(NamedTuple):
    """A row that was found.

    Attributes:
      row: its number in the collection.
      score: the cosine.
      name, caption: of its example.
      in_both: whether the other space has it among its best, too.
    """

    row: int
    score: float
    name: str
    caption: str
    in_both: bool


@dataclasses.dataclass(frozen=True)
class Found:
    """The best rows of both spaces.

    Attributes:
      images, texts: the hits among pictures and among captions; None where it was not looked there.
      shared: how many are among both; None where only one space was looked through.
    """

    images: list[Hit] | None
    texts: list[Hit] | None
    shared: int | None


class Collection:
    """A data set's embeddings, the model that made them, and the data themselves.

    Args:
      embeddings: as they lie on the disk.
      index: function of rows [N, D] that makes what finds the nearest.
      encoders: of the model; None where there is none, so that only rows are looked for.
      source: the data, for their pictures; None where they are not there.

    Attributes:
      size: how many rows there are.
      encoders, source: as given.
      images, texts: the embeddings, float32 [N, D]; None where there are none.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        index: Callable[[Float[np.ndarray, "n d"]], Nearest],
        encoders: Encoders | None = None,
        source: Source | None = None,
    ) -> None:
        shards = embeddings.shards
        self._metadata: Any = pyarrow.concat_tables(
            [shard.metadata for shard in shards], promote_options="permissive"
        )
        self.encoders, self.source = encoders, source
        self.size: int = self._metadata.num_rows
        self.images = _joined([shard.images for shard in shards])
        self.texts = _joined([shard.texts for shard in shards])
        self._nearest: dict[str, Nearest] = {
            name: index(rows)
            for name, rows in (("images", self.images), ("texts", self.texts))
            if rows is not None
        }
        self._pool = concurrent.futures.ThreadPoolExecutor(len(self._nearest))
        self._turn = threading.Lock()  # one query at a time is on the device
        self._small: Callable[[int], bytes] = functools.lru_cache(_KEPT_THUMBNAILS)(
            self._made_small
        )

    def name(self, row: int) -> str:
        """What the data call an example."""
        return self._told("image_path", row)

    def caption(self, row: int) -> str:
        """An example's caption, or ""."""
        return self._told("caption", row)

    def of_text(self, text: str) -> Query:
        """A query by a sentence, which goes to both spaces."""
        assert self.encoders is not None
        with self._turn:
            # Encoders keep what they have embedded: these are for once.
            row = dataclasses.replace(self.encoders).text_embeds([text])[0]
        return Query(row, row)

    def of_picture(self, encoded: bytes) -> tuple[Query, bytes]:
        """A query by a picture's file, and the picture as a thumbnail.

        Raises:
          Unreadable: it is none, or has too many pixels.
        """
        from cyclip_jax.data.loading import prepared  # TensorFlow: slow to import

        assert self.encoders is not None
        thumbnail = _small(encoded, UPLOAD_PIXELS)
        image = prepared(encoded, self.encoders.image_size, self.encoders.resize_mode)
        with self._turn:
            row = unit_rows(self.encoders.encode_features(image[np.newaxis]))[0]
        return Query(row, row), thumbnail

    def of_row(self, row: int) -> Query:
        """A query by a picture of the collection in image space, and its caption in text space."""
        return Query(
            None if self.images is None else self.images[row],
            None if self.texts is None else self.texts[row],
        )

    def find(
        self,
        query: Query,
        count: int,
        *,
        where: str = "",
        without: int | None = None,
        spaces: Sequence[str] = ("images", "texts"),
    ) -> Found:
        """The best rows for a query.

        Args:
          query: what is looked for.
          count: how many rows of each space.
          where: words that all stand in the caption or the name of what is found.
          without: a row that is not to be found.
          spaces: those of "images" and "texts" that are looked through.
        """
        among = self._among(where, without)
        asked = {
            space: vector
            for space, vector in zip(Query._fields, query, strict=True)
            if vector is not None and space in self._nearest and space in spaces
        }
        answers = self._pool.map(
            lambda space: self._nearest[space](asked[space], count, among), asked
        )
        found = dict(zip(asked, answers, strict=True))
        sets = [set(rows.tolist()) for rows, _ in found.values()]
        both = sets[0] & sets[1] if len(sets) == 2 else set()
        hits = {
            space: [
                Hit(row, score, self.name(row), self.caption(row), row in both)
                for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
            ]
            for space, (rows, scores) in found.items()
        }
        shared = len(both) if len(sets) == 2 else None
        return Found(hits.get("images"), hits.get("texts"), shared)

    def mean_shared(self, count: int) -> float | None:
        """How many of `count` neighbours the two spaces share, as the mean over some rows.

        Args:
          count: up to MOST_HITS.

        Returns:
          The mean, of what `find` finds; None where there is one space alone.
        """
        if self.images is None or self.texts is None:
            return None
        pairs = zip(*self._neighbours_of_sample, strict=True)
        return float(np.mean([len(np.intersect1d(a[:count], b[:count])) for a, b in pairs]))

    @functools.cached_property
    def _neighbours_of_sample(self) -> list[list[Int[np.ndarray, "k"]]]:
        """Of some rows the nearest others in each space."""
        sample = self.spread(_SAMPLED)
        return [
            [self._nearest[space](rows[row], MOST_HITS, self._among("", row))[0] for row in sample]
            for space, rows in (("images", self.images), ("texts", self.texts))
            if rows is not None
        ]

    def thumbnail(self, row: int) -> bytes | None:
        """A picture of the collection as a small JPEG file; None where it cannot be shown."""
        try:
            return self._small(row)
        except Unreadable:
            return None

    def spread(self, count: int, where: str = "") -> list[int]:
        """So many rows from all over the collection, of those with all these words."""
        among = self._among(where, None)
        rows = np.arange(self.size) if among is None else np.flatnonzero(among)
        places = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)
        return rows[np.unique(places)].tolist()

    def plain(self, row: int) -> Hit:
        """A row that was not looked for."""
        return Hit(row, math.nan, self.name(row), self.caption(row), False)

    def _among(self, where, without) -> Bool[np.ndarray, "n"] | None:
        words = where.lower().split()
        if not words and without is None:
            return None
        among = np.ones(self.size, bool)
        for word in words:
            among &= _compute.match_substring(self._searched, word).to_numpy()
        if without is not None:
            among[without] = False
        return among

    @functools.cached_property
    def _searched(self) -> Any:
        """Captions and names together, in lower case."""
        columns = [
            self._metadata[name].cast(pyarrow.large_string()).fill_null("")
            for name in ("caption", "image_path")
            if name in self._metadata.column_names
        ]
        # Nobody types what stands between them.
        joined = _compute.binary_join_element_wise(
            *columns, pyarrow.scalar("\n", pyarrow.large_string())
        )
        return _compute.utf8_lower(joined)

    def _told(self, column, row):
        if column not in self._metadata.column_names:
            return ""
        value = self._metadata[column][row].as_py()
        return "" if value is None else str(value)

    def _made_small(self, row):
        columns = self._metadata.column_names
        example = self._metadata["example"][row].as_py() if "example" in columns else None
        if self.source is None or example is None or not 0 <= example < len(self.source):
            raise Unreadable("the data are not there")
        picture = read_told(self.source.read, example).image
        # Nothing is shown but what was embedded, whatever has come to lie in its place.
        if picture_sum(picture) != self._metadata["picture_sum"][row].as_py():
            raise Unreadable("the picture is another one than was embedded")
        return _small(picture)


def _joined(parts):
    """Shards of embeddings as float32 [N, D]; None where there are none."""
    if not parts or parts[0] is None:
        return None
    whole = np.empty((sum(map(len, parts)), parts[0].shape[1]), np.float32)
    first = 0
    for part in parts:
        whole[first : first + len(part)] = part
        first += len(part)
    return whole


def _small(encoded, max_pixels=MAX_PIXELS):
    """A picture as a JPEG file, with nothing of the file that it came from."""
    from cyclip_jax.data.decoding import pixels_of  # TensorFlow: slow to import

    return small_jpeg(pixels_of(encoded, max_pixels), THUMBNAIL)
