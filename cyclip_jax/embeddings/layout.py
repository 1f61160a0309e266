"""The files of a data set's embeddings, laid out as clip-retrieval lays them out.

    DIR/img_emb/img_emb_0000.npy        float16 [n, D], unit norm
    DIR/text_emb/text_emb_0000.npy      float16 [n, D], unit norm
    DIR/metadata/metadata_0000.parquet  a row for each of the n examples
    DIR/embeddings.json                 what was embedded, and by which model
    DIR/unreadable.csv                  the examples that could not be, and why

Row j of the files of one number belongs to one example. Examples that cannot be read have no row.
"""

import functools
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
from etils import epath
from jaxtyping import Float16

from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute, entries, file_errors, how_written, parse_json

IMAGES, TEXTS, METADATA = "img_emb", "text_emb", "metadata"
MANIFEST, UNREADABLE = "embeddings.json", "unreadable.csv"
# clip-retrieval's names of the first two; the others are ours.
COLUMNS: dict[str, Any] = {
    "image_path": pyarrow.string(),  # the example's name, for most data the picture's path
    "caption": pyarrow.string(),  # its first one; null where the data have none
    "example": pyarrow.int64(),  # its number in the data
    "picture_sum": pyarrow.string(),  # see `picture_sum`; null where no picture was embedded
}
_ENDINGS = {IMAGES: ".npy", TEXTS: ".npy", METADATA: ".parquet"}
_LEAST_DIGITS = 4


def shard_path(folder: epath.Path, kind: str, number: int, shards: int) -> epath.Path:
    """Where the `number`-th of so many shards of a kind lies; names sort as numbers do."""
    digits = max(_LEAST_DIGITS, len(str(shards - 1)))
    return folder / kind / f"{kind}_{number:0{digits}}{_ENDINGS[kind]}"


def rows_as_bytes(rows: Float16[np.ndarray, "n d"]) -> bytes:
    """The content of a shard of embeddings."""
    file = io.BytesIO()
    np.save(file, rows, allow_pickle=False)
    return file.getvalue()


def table_as_bytes(columns: dict[str, Sequence[Any]]) -> bytes:
    """The content of a shard of metadata."""
    schema = pyarrow.schema(list(COLUMNS.items()))
    table = pyarrow.table([columns[name] for name in COLUMNS], schema=schema)
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()


class Shard(NamedTuple):
    """The rows of one number.

    Attributes:
      images, texts: float16 [n, D], mapped from the disk where it is a local one; None where they
        were not embedded.
      metadata: a pyarrow.Table with the columns of COLUMNS, or what another program wrote.
    """

    images: Float16[np.ndarray, "n d"] | None
    texts: Float16[np.ndarray, "n d"] | None
    metadata: pyarrow.Table


class Embeddings:
    """A data set's embeddings, which this or clip-retrieval wrote.

    Args:
      folder: of the layout above.

    Attributes:
      folder: as an absolute path.
      about: the content of MANIFEST; {} of what another program wrote.

    Raises:
      UserError: there are none, or what is there does not fit together.
    """

    def __init__(self, folder: str) -> None:
        self.folder: epath.Path = absolute(folder)
        paths = {
            kind: [path for path in entries(self.folder / kind) if path.suffix == ending]
            for kind, ending in _ENDINGS.items()
        }
        present = [kind for kind in (IMAGES, TEXTS) if paths[kind]]
        if not present or not paths[METADATA]:
            raise UserError(
                f"{folder} holds no embeddings{how_written(folder)}: {IMAGES} or {TEXTS}, and "
                f"{METADATA}, are missing; `python -m cyclip_jax.embed` writes them"
            )
        numbers = {kind: list(map(_number, paths[kind])) for kind in (*present, METADATA)}
        for kind in present:
            if numbers[kind] != numbers[METADATA]:
                raise UserError(
                    f"{folder} has other shards in {kind} than in {METADATA}; bring back the "
                    "missing ones, or embed the data again"
                )
        self._paths = paths
        self.about: dict[str, Any] = self._read_about()

    @functools.cached_property
    def shards(self) -> list[Shard]:
        """All shards in the order of their numbers."""
        return [
            self._open(*(self._paths[kind][n] if self._paths[kind] else None for kind in _ENDINGS))
            for n in range(len(self._paths[METADATA]))
        ]

    @property
    def dim(self) -> int:
        """D, the numbers of an embedding."""
        images, texts, _ = self.shards[0]
        rows = texts if images is None else images
        assert rows is not None
        return rows.shape[1]

    def _open(self, images, texts, metadata):
        rows = [None if path is None else _open_rows(path) for path in (images, texts)]
        try:
            with metadata.open("rb") as file:
                table = pyarrow.parquet.read_table(file)
        except (pyarrow.ArrowException, *file_errors()) as error:
            raise UserError(f"{metadata} cannot be read: {error}") from error
        for path, array in zip((images, texts), rows, strict=True):
            if array is not None and len(array) != table.num_rows:
                raise UserError(
                    f"{path} has {len(array)} rows, and {metadata} {table.num_rows}; embed the "
                    "data again"
                )
        return Shard(rows[0], rows[1], table)

    def _read_about(self):
        path = self.folder / MANIFEST
        if not path.exists():
            return {}
        try:
            return dict(parse_json(path.read_text()))
        except (TypeError, ValueError, *file_errors()) as error:
            raise UserError(f"{path} cannot be read: {error}") from error


def _number(path):
    return path.stem.rpartition("_")[2]


def _open_rows(path):
    try:
        if "://" in str(path):
            array = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        else:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, ValueError, *file_errors()) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if array.ndim != 2 or array.dtype.kind != "f":
        raise UserError(f"{path} holds no rows of numbers, but {array.dtype}{list(array.shape)}")
    return array
