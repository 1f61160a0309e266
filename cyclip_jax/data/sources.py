"""Where examples come from: image-caption pairs that can be read by their index.

A source is an object with

    len(source)             the number of examples
    source.keys(indices)    what names these examples in a report, list[str]
    source.captions()       every caption, list[str] (to train a tokenizer)
    source.read(index)      graph function: int64 scalar → (encoded image, caption), string scalars

To add one, write a function with `csv_source`'s arguments and enter it in `SOURCES`.
"""

import csv
import posixpath
from array import array

import numpy as np
import tensorflow as tf

from cyclip_jax.errors import UserError

# The accelerators belong to JAX; TensorFlow would otherwise reserve their memory.
tf.config.set_visible_devices([], "GPU")


def create_source(name, path, *, config_key, image_key, caption_key, delimiter):
    """Opens the dataset at `path` with the source called `name`.

    Args:
      name: a key of `SOURCES`.
      path: where the dataset lies.
      config_key: full name of the config key that holds `path`, for messages ("config.data.train").
      image_key, caption_key, delimiter: as in `csv_source`.

    Raises:
      UserError: no source of this name, or what the source itself refuses.
    """
    if name not in SOURCES:
        known = ", ".join(repr(known) for known in sorted(SOURCES))
        raise UserError(
            f"there is no data source {name!r}; set config.data.source to one of {known}"
        )
    return SOURCES[name](
        path,
        image_key=image_key,
        caption_key=caption_key,
        delimiter=delimiter,
        config_key=config_key,
    )


def csv_source(path, *, image_key, caption_key, delimiter=",", config_key="config.data.train"):
    """Opens a CSV or TSV file of image paths and captions; no image is touched.

    Args:
      path: the file, local or remote (gs://…), UTF-8, its first row naming the columns.
      image_key: name of the column of image paths, relative to the file's folder unless absolute
        or with a scheme.
      caption_key: name of the column of captions.
      delimiter: one character; the two characters backslash and t mean a tab.
      config_key: full name of the config key that holds `path`, for messages.

    Returns:
      A CsvSource. A row that lacks a field has it empty, and so cannot be read as an example.

    Raises:
      UserError: `path` is empty or no file, or the file is no such table or has no rows.
    """
    if not path:
        raise UserError(
            f"{config_key} is empty; set it to a CSV of image paths and captions, "
            f"e.g. --{config_key}=/data/cc3m/train.csv"
        )
    path = str(path)
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise UserError(
            f"{path} is not a file; set {config_key} to a CSV of image paths and captions"
        )
    delimiter = "\t" if delimiter == "\\t" else delimiter
    if len(delimiter) != 1:
        raise UserError(
            f"config.data.delimiter is {delimiter!r}; set it to one character, e.g. ',' or '\\t'"
        )
    images, captions = _read_columns(path, image_key, caption_key, delimiter)
    if len(images) == 0:
        raise UserError(f"{path} has no rows below its header; set {config_key} to a CSV with some")
    return CsvSource(posixpath.dirname(path), images, captions)


class CsvSource:
    """Image-caption pairs of a CSV file, see `csv_source`."""

    def __init__(self, folder, images, captions):
        """Args: the folder of relative paths; image paths and captions as `StringArray`s."""
        self._folder = folder
        self._images = images
        self._captions = captions

    def __len__(self):
        return len(self._images)

    def keys(self, indices):
        """The image paths of these rows as they stand in the file, list[str]."""
        return [self._images[index] for index in indices]

    def captions(self):
        """Every caption in file order, list[str]."""
        return list(self._captions)

    def read(self, index):
        """Reads one example; a graph function.

        Args:
          index: int64 scalar in [0, len(self)).

        Returns:
          (encoded image, caption), string scalars.

        Raises:
          tf.errors.OpError: the image file cannot be read.
        """
        path = self._images.gather(index)
        stands_alone = tf.strings.regex_full_match(path, r"(?s)(/|[A-Za-z][A-Za-z0-9+.-]*://).*")
        if self._folder:
            path = tf.where(stands_alone, path, tf.strings.join([self._folder, path], "/"))
        return tf.io.read_file(path), self._captions.gather(index)


class StringArray:
    """Many strings in one: a Python list of millions would take several times the memory."""

    def __init__(self, encoded, ends):
        """Args: the strings' UTF-8 bytes one after the other; the end of each, int64 [n]."""
        self._encoded = tf.constant(bytes(encoded))
        self._offsets = np.concatenate([[0], ends]).astype(np.int64)  # [n + 1]
        self._offsets_tensor = tf.constant(self._offsets)

    def __len__(self):
        return len(self._offsets) - 1

    def __getitem__(self, index):
        return self.gather(range(len(self))[index]).numpy().decode()

    def __iter__(self):
        encoded = self._encoded.numpy()
        for i in range(len(self)):
            yield encoded[self._offsets[i] : self._offsets[i + 1]].decode()

    def gather(self, index):
        """The string at an int64 scalar tensor, as a scalar tensor; a graph function."""
        start, end = tf.unstack(tf.gather(self._offsets_tensor, tf.stack([index, index + 1])))
        return tf.strings.substr(self._encoded, start, end - start)


def _read_columns(path, image_key, caption_key, delimiter):
    """Two columns of a table as `StringArray`s; raises UserError where there are no such."""
    columns = [(bytearray(), array("q")) for _ in range(2)]
    reader = csv.reader(_lines(path), delimiter=delimiter)
    try:
        header = next(reader, [])
        positions = [
            _column(path, header, image_key, "config.data.image_key"),
            _column(path, header, caption_key, "config.data.caption_key"),
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
    with tf.io.gfile.GFile(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}, byte {error.start + 1} of the line is not UTF-8 "
                    f"(0x{line[error.start]:02x}); convert the file, e.g. with "
                    "iconv -f LATIN1 -t UTF-8"
                ) from error


def emoji_source(path, **arguments):
    """The quickstart's drawings: builds them around `path`, then opens it as a CSV.

    Args and raises: as `csv_source`, and UserError where the packages with the drawings are
    missing.
    """
    from cyclip_jax.data import emoji

    emoji.build(posixpath.dirname(path))
    return csv_source(path, **arguments)


SOURCES = {"csv": csv_source, "emoji": emoji_source}
