"""CSV and TSV files of paths and captions, and the quickstart's drawings."""

import logging
import posixpath
from array import array
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from cyclip_jax.data.captions import CaptionRule
from cyclip_jax.data.reading import Reading
from cyclip_jax.data.record import Record, Unreadable
from cyclip_jax.data.sources.ranges import read_whole, stands_alone
from cyclip_jax.data.tables import Fault, Table
from cyclip_jax.errors import UserError
from cyclip_jax.files import how_written
from cyclip_jax.runtime.started import import_tensorflow

IMAGE_KEY = "image"
CAPTION_KEY = "caption"


def csv_source(path: str, reading: Reading, *, config_key: str) -> "CsvSource":
    """Opens a CSV or TSV file of image paths and captions without touching any image.

    Args:
      path: the file, local or remote (gs://…), in UTF-8; its first row names the columns.
      reading: its image_key is the name of the column of image paths, by default IMAGE_KEY. A path
        is relative to the file's folder unless it is absolute or has a scheme. Its caption_key is
        the name of the column of captions, or a tuple of several, by default CAPTION_KEY.
      config_key: full name of the config key that holds `path`, for messages.

    Returns:
      A CsvSource. A row with more or fewer fields than the header cannot be read.

    Raises:
      UserError: `path` is not a file, or the file is not such a table or has no rows that can be
        read.
    """
    gfile = import_tensorflow().io.gfile
    if not gfile.exists(path) or gfile.isdir(path):
        raise UserError(
            f"{path} is not a file{how_written(path)}; set {config_key} to a CSV of image "
            "paths and captions"
        )
    rule, image_keys = reading.caption_rule(CAPTION_KEY), reading.image_keys(IMAGE_KEY)
    table = Table(path, reading.delimiter_of(path), "config.data.delimiter")
    settings = [*image_keys.items(), *zip(rule.settings, rule.fields, strict=True)]
    (images, *captions), row_faults = _read_columns(table, settings)
    negative_images = captions.pop(0) if "negative_image_key" in image_keys else None
    if len(images) == 0:
        raise UserError(
            f"{path} has no rows below its header; set {config_key} to a CSV that has some"
        )
    if len(row_faults) == len(images):
        reason, detail = row_faults[0]
        raise UserError(f"no row of {path} can be used: {reason} ({detail}); mend the rows")
    if row_faults:
        reason, detail = next(iter(row_faults.values()))
        logging.warning(
            "%s: %d of %d rows cannot be used, the first since %s (%s)",
            *(path, len(row_faults), len(images), reason, detail),
        )
    return CsvSource(posixpath.dirname(path), images, captions, rule, row_faults, negative_images)


class CsvSource:
    """Image-caption pairs of a CSV file (see `csv_source`).

    Args:
      folder: the folder that relative paths begin in.
      images: the image paths.
      captions: columns of captions.
      rule: what of a row is its captions.
      row_faults: {row: what is wrong with it} of those that cannot be read.
      negative_images: the paths of pictures that wrong captions describe, "" where there is none;
        None is none at all.

    Attributes:
      row_faults: as given.
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
        row_faults: Mapping[int, Fault] | None = None,
        negative_images: "Sequence[str] | StringArray | None" = None,
    ) -> None:
        self.row_faults: Mapping[int, Fault] = row_faults or {}
        self._folder = folder
        self._images = images
        self._negative_images = negative_images
        self._captions = captions
        self._rule = rule
        self.boundaries: Int[np.ndarray, "2"] = np.array([0, len(images)], np.int64)

    def __len__(self) -> int:
        return len(self._images)

    def keys(self, indices: Iterable[int]) -> list[str]:
        """The image paths of these rows as they stand in the file, list[str]."""
        return [self._images[index] for index in indices]

    def captions(self, first: int = 0, end: int | None = None) -> list[str]:
        """The first column of captions in file order, list[str]; "" where a row cannot be read."""
        column = self._captions[0]
        rows = range(len(column))[first:end]
        return ["" if row in self.row_faults else column[row] for row in rows]

    def read(self, index: int) -> Record:
        """The Record of a row; raises Unreadable."""
        if index in self.row_faults:
            raise Unreadable(*self.row_faults[index])
        image, negative_image = self._picture(self._images[index]), b""
        if self._negative_images is not None and (path := self._negative_images[index].strip()):
            negative_image = self._picture(path)
        texts = [[column[index]] for column in self._captions]
        return self._rule.record(image, texts, negative_image)

    def _picture(self, path):
        """The bytes of a file; raises Unreadable."""
        if self._folder and not stands_alone(path):
            path = f"{self._folder}/{path}"
        return read_whole(path)


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


def _read_columns(table, settings):
    """Columns of a table as `StringArray`s, and {row: Fault} of its rows that cannot be used.

    Args:
      table: the Table.
      settings: [(setting of config.data, the column that it names)].
    """
    positions = [table.position(key, f"config.data.{setting}") for setting, key in settings]
    columns, faults = [(bytearray(), array("q")) for _ in positions], {}
    for number, (_, fields, fault) in enumerate(table.rows()):
        if fault is not None:
            faults[number] = fault
        for (encoded, ends), position in zip(columns, positions, strict=True):
            encoded += fields[position].encode() if position < len(fields) else b""
            ends.append(len(encoded))
    return [StringArray(encoded, ends) for encoded, ends in columns], faults


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
