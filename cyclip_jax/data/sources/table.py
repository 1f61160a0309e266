"""CSV and TSV files of paths and captions, and the quickstart's drawings."""

import csv
import posixpath
import re
from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from cyclip_jax.data.captions import CaptionRule
from cyclip_jax.data.reading import Reading
from cyclip_jax.data.record import Record
from cyclip_jax.data.sources.ranges import read_whole
from cyclip_jax.errors import UserError
from cyclip_jax.runtime.started import import_tensorflow

IMAGE_KEY = "image"
CAPTION_KEY = "caption"
_STANDS_ALONE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*://")


def csv_source(path: str, reading: Reading, *, config_key: str) -> "CsvSource":
    """Opens a CSV or TSV file of image paths and captions without touching any image.

    Args:
      path: the file, local or remote (gs://…), in UTF-8; its first row names the columns.
      reading: its image_key is the name of the column of image paths, by default IMAGE_KEY. A path
        is relative to the file's folder unless it is absolute or has a scheme. Its caption_key is
        the name of the column of captions, or a tuple of several, by default CAPTION_KEY.
      config_key: full name of the config key that holds `path`, for messages.

    Returns:
      A CsvSource. A field that a row lacks counts as empty, so that the row cannot be read.

    Raises:
      UserError: `path` is not a file, or the file is not such a table or has no rows.
    """
    gfile = import_tensorflow().io.gfile
    if not gfile.exists(path) or gfile.isdir(path):
        raise UserError(
            f"{path} is not a file; set {config_key} to a CSV of image paths and captions"
        )
    rule, image_key = reading.caption_rule(CAPTION_KEY), reading.image_key or IMAGE_KEY
    images, *captions = _read_columns(path, image_key, rule.fields, reading.delimiter_of(path))
    if len(images) == 0:
        raise UserError(
            f"{path} has no rows below its header; set {config_key} to a CSV that has some"
        )
    return CsvSource(posixpath.dirname(path), images, captions, rule)


class CsvSource:
    """Image-caption pairs of a CSV file (see `csv_source`).

    Args:
      folder: the folder that relative paths begin in.
      images: the image paths.
      captions: columns of captions.
      rule: what of a row is its captions.

    Attributes:
      boundaries: all rows are one run, [0, rows].
      mean_bytes: a usual size of pictures, as theirs is not known.
      faults: always empty.
    """

    faults: Sequence[tuple[str, str, str]] = ()
    mean_bytes: float = 100_000

    def __init__(
        self,
        folder: str,
        images: "Sequence[str] | StringArray",
        captions: "Sequence[Sequence[str] | StringArray]",
        rule: CaptionRule,
    ) -> None:
        self._folder = folder
        self._images = images
        self._captions = captions
        self._rule = rule
        self.boundaries: Int[np.ndarray, "2"] = np.array([0, len(images)], np.int64)

    def __len__(self) -> int:
        return len(self._images)

    def keys(self, indices: Iterable[int]) -> list[str]:
        """The image paths of these rows as they stand in the file, list[str]."""
        return [self._images[index] for index in indices]

    def captions(self) -> list[str]:
        """The first column of captions in file order, list[str]."""
        column = self._captions[0]
        return [column[row] for row in range(len(column))]

    def read(self, index: int) -> Record:
        """The Record of a row; raises Unreadable."""
        path = self._images[index]
        if self._folder and not _STANDS_ALONE.match(path):
            path = f"{self._folder}/{path}"
        image = read_whole(path)
        return self._rule.record(image, [[column[index]] for column in self._captions])


class StringArray:
    """Many strings in one; a Python list of millions would take several times the memory.

    Args:
      encoded: the strings' UTF-8 bytes, one after the other.
      ends: the end of each, int64 [n].
    """

    def __init__(
        self, encoded: bytes | bytearray, ends: Sequence[int] | Int[np.ndarray, "n"]
    ) -> None:
        self._encoded = bytes(encoded)
        self._offsets = np.concatenate([[0], ends]).astype(np.int64)  # [n + 1]

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]
        return self._encoded[self._offsets[index] : self._offsets[index + 1]].decode()


def _read_columns(path, image_key, caption_keys, delimiter):
    """Columns of a table as `StringArray`s; raises UserError where there are no such."""
    columns = [(bytearray(), array("q")) for _ in range(1 + len(caption_keys))]
    reader = csv.reader(_lines(path), delimiter=delimiter)
    try:
        header = next(reader, [])
        positions = [
            _column(path, header, image_key, "config.data.image_key"),
            *(_column(path, header, key, "config.data.caption_key") for key in caption_keys),
        ]
        for row in reader:
            if not row:
                continue  # a blank line
            for (encoded, ends), position in zip(columns, positions, strict=True):
                encoded += row[position].encode() if position < len(row) else b""
                ends.append(len(encoded))
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error}; mend the quoting there or before, "
            "or set config.data.delimiter"
        ) from error
    return [StringArray(encoded, ends) for encoded, ends in columns]


def _column(path, header, name, config_key):
    """The position of the column `name`."""
    if name not in header:
        # A single column is the sign of another delimiter.
        or_delimiter = " or config.data.delimiter" if len(header) < 2 else ""
        raise UserError(
            f"{path} has no column {name!r} (columns: {', '.join(header) or 'none'}); "
            f"set {config_key}{or_delimiter}"
        )
    return header.index(name)


def _lines(path):
    """The lines of a UTF-8 file, a leading byte-order mark removed."""
    with import_tensorflow().io.gfile.GFile(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}, byte {error.start + 1} of the line is not UTF-8 "
                    f"(0x{line[error.start]:02x}); convert the file, e.g. with "
                    "iconv -f LATIN1 -t UTF-8"
                ) from error


def emoji_source(path: str, reading: Reading, *, config_key: str) -> CsvSource:
    """Builds the quickstart's drawings in the folder of `path`, then opens that as a CSV.

    Args:
      path: as in `csv_source`.
      reading: as in `csv_source`.
      config_key: as in `csv_source`.

    Raises:
      UserError: the packages with the drawings are missing, or `csv_source` raises it.
    """
    from cyclip_jax.data import emoji

    emoji.build(posixpath.dirname(path))
    return csv_source(path, reading, config_key=config_key)
