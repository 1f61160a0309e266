"""Parquet files with pictures and captions, as Hugging Face exports data sets."""

import contextlib
import importlib.util
import itertools
import posixpath
import threading
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from cyclip_jax.data.captions import CaptionRule
from cyclip_jax.data.mistaken import LONGEST, mistaken_for
from cyclip_jax.data.reading import Reading
from cyclip_jax.data.record import Record, Unreadable, first_caption, part_of
from cyclip_jax.data.sources.ranges import Kept, expand, is_remote, retrying
from cyclip_jax.errors import UserError
from cyclip_jax.files import file_errors

IMAGE_KEY = "image"
CAPTION_KEY = "caption"
KEPT_ROW_GROUPS = 8


def parquet_source(path: str, reading: Reading, *, config_key: str) -> "ParquetRows":
    """Opens Parquet files; only their footers are read.

    A row is read with the whole of its row group. Random order is therefore fast only where row
    groups are small: Hugging Face puts 100 rows of pictures into one. With
    config.data.shuffle_window neighbours are read together. `cyclip_jax.data.prepare` turns any
    Parquet files into TFRecord shards.

    Args:
      path: a pattern of files (see `ranges.expand`).
      reading: its image_key is a column with the picture's file, as bytes or as Hugging Face's
        struct with the field "bytes", by default IMAGE_KEY. Its caption_key is a column of strings
        or of lists of strings, or a tuple of several, by default CAPTION_KEY. Examples are kept in
        memory as whole row groups.
      config_key: full name of the config key that holds `path`, for messages.

    Raises:
      UserError: pyarrow is not installed, or a file is missing, is not Parquet or lacks a column.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{config_key} is {path}, which needs pyarrow; run pip install pyarrow")
    paths = expand(path, config_key=config_key, endings=(".parquet",))
    rule = reading.caption_rule(CAPTION_KEY)
    source = ParquetRows(paths, reading.image_keys(IMAGE_KEY), rule, reading.kept_examples)
    if not len(source):
        raise UserError(f"there is no row in {path}; set {config_key} to files that have some")
    return source


class ParquetRows:
    """Rows of Parquet files (see `parquet_source`).

    Attributes:
      boundaries: where each row group begins, and the end, int64 [row groups + 1].
      mean_bytes: mean size of a row.
      faults: always empty, as a damaged file is refused when it is opened.
    """

    faults: Sequence[tuple[str, str, str]] = ()

    def __init__(
        self,
        paths: list[str],
        image_keys: Mapping[str, str],
        rule: CaptionRule,
        kept_examples: int = 0,
    ) -> None:
        self._paths, self._rule = paths, rule
        self._files = [_ParquetFile(path) for path in paths]
        self._images = len(image_keys)
        self._columns = [*image_keys.values(), *rule.fields]
        settings = [*image_keys.items(), *zip(rule.settings, rule.fields, strict=True)]
        self._groups, counts, sizes = [], [0], []
        for number, file in enumerate(self._files):
            with file.damage_told():
                file.check_columns(settings)
                groups = file.row_groups()
            for group, (rows, size) in enumerate(groups):
                self._groups.append((number, group))
                counts.append(rows)
                sizes.append(size)
        self.boundaries: Int[np.ndarray, "groups+1"] = np.cumsum(counts, dtype=np.int64)
        self.mean_bytes: float = sum(sizes) / max(len(self), 1)
        rows_per_group = max(len(self) / max(len(self._groups), 1), 1)
        self._kept = Kept(max(KEPT_ROW_GROUPS, int(kept_examples / rows_per_group)))

    def __len__(self) -> int:
        return int(self.boundaries[-1])

    def keys(self, indices: Iterable[int]) -> list[str]:
        """The rows' files and numbers in them, list[str]."""
        keys = []
        for index in indices:
            group = part_of(self.boundaries, index)
            file, number = self._groups[group]
            row = index - self.boundaries[group - number]
            keys.append(f"{posixpath.basename(self._paths[file])}#{row}")
        return keys

    def captions(self, first: int = 0, end: int | None = None) -> list[str]:
        """The first caption of these rows, list[str]; "" where there is none."""
        captions, wanted = [], range(len(self))[first:end]
        for group, (start, stop) in enumerate(itertools.pairwise(self.boundaries.tolist())):
            rows = range(max(start, wanted.start), min(stop, wanted.stop))
            if not rows:
                continue
            try:
                columns = self._read_group(group, list(self._rule.fields))
            except Unreadable:
                captions += [""] * len(rows)
            else:
                captions += [first_caption(self._record, b"", columns, row - start) for row in rows]
        return captions

    def read(self, index: int) -> Record:
        """The Record of a row; raises Unreadable."""
        group = part_of(self.boundaries, index)
        columns = self._kept.get(group, lambda: self._read_group(group, self._columns))
        image, *negative_images = columns[: self._images]
        row = int(index - self.boundaries[group])
        negatives = [cell for column in negative_images if _is_filled(cell := column[row])]
        pictures = map(_picture, (image[row], *negatives))
        return self._record(next(pictures), columns[self._images :], row, *pictures)

    def _record(self, picture, columns, row, *negative_image):
        try:
            texts = [_texts(column, row) for column in columns]
            return self._rule.record(picture, texts, *negative_image)
        except UnicodeDecodeError as error:
            raise Unreadable("the caption is not UTF-8", f"byte {error.start + 1}") from error

    def _read_group(self, group, columns):
        file, number = self._groups[group]
        return self._files[file].read(number, columns)


def _is_filled(value):
    """Whether a cell has anything in it that could be a picture."""
    content = value.as_py()
    return any(content.values()) if isinstance(content, dict) else bool(content)


def _picture(value):
    """The file's bytes in a cell; raises Unreadable."""
    is_struct = hasattr(value, "keys")
    content = (value["bytes"] if is_struct else value).as_py() if value.is_valid else None
    if content:
        return content
    if is_struct and value.is_valid and "path" in value and value["path"].is_valid:
        raise Unreadable(
            "the row has the path of a picture and no picture; train from a CSV of paths instead",
            value["path"].as_py(),
        )
    raise Unreadable("the image is missing")


def _texts(column, row):
    value = column[row].as_py()
    return [text for text in (value if isinstance(value, list) else [value]) if text is not None]


def _holds_pictures(kind):
    """Whether an Arrow type is that of bytes, or a struct of them."""
    import pyarrow.types as types

    if types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_pictures(kind.field(place).type)
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_null(kind) or _is_one_of(kind, "binary", "large_binary", "binary_view")


def _holds_texts(kind):
    """Whether an Arrow type is that of strings, of their bytes, or of lists of either."""
    import pyarrow.types as types

    while hasattr(kind, "value_type"):  # of a list, or of a dictionary
        kind = kind.value_type
    return types.is_null(kind) or _is_one_of(
        kind, "string", "large_string", "string_view", "binary", "large_binary", "binary_view"
    )


def _is_one_of(kind, *names):
    import pyarrow.types as types

    return any(getattr(types, f"is_{name}")(kind) for name in names)


class _ParquetFile:
    """One file; opened while it is read, by one thread at a time."""

    def __init__(self, path):
        import pyarrow.parquet

        self._path, self._lock = path, threading.Lock()
        with self.damage_told():
            with self._open() as file:
                self._metadata = pyarrow.parquet.read_metadata(file)
            self._schema = self._metadata.schema.to_arrow_schema()

    @contextlib.contextmanager
    def damage_told(self):
        """A context that reads the footer; what is damaged in it becomes a UserError."""
        import pyarrow

        try:
            yield
        except (pyarrow.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
            told = self._kind() or error
            raise UserError(f"{self._path} cannot be read as Parquet: {told}") from error

    def check_columns(self, settings):
        """Raises UserError where a column is missing, or holds no pictures or no texts.

        Args:
          settings: [(setting of config.data, the column that it names)].
        """
        for name, key in settings:
            if key not in self._schema.names:
                names = ", ".join(self._schema.names)
                raise UserError(
                    f"{self._path} has no column {key!r} (columns: {names}); set config.data.{name}"
                )
            kind = self._schema.field(key).type
            if name.endswith("image_key"):
                self._check_pictures(name, key, kind)
            elif not _holds_texts(kind):
                raise UserError(
                    f"the column {key!r} of {self._path} holds {kind} and no texts; "
                    f"set config.data.{name}"
                )

    def _check_pictures(self, name, key, kind):
        if not _holds_pictures(kind):
            raise UserError(
                f"the column {key!r} of {self._path} holds {kind} and not one picture a row, "
                f"as bytes or as a struct with 'bytes'; set config.data.{name}, or, if it "
                "holds paths, write paths and captions as a CSV"
            )
        if self._has_no_bytes(f"{key}.bytes"):
            raise UserError(
                f"the column {key!r} of {self._path} holds paths and no pictures; "
                f"write paths and captions as a CSV, or set config.data.{name}"
            )

    def _has_no_bytes(self, path_in_schema):
        """Whether the file itself says that a column of it is empty in every row."""
        groups = list(map(self._metadata.row_group, range(self._metadata.num_row_groups)))
        chunks = [
            group.column(number)
            for group in groups
            for number in range(group.num_columns)
            if group.column(number).path_in_schema == path_in_schema
        ]
        statistics = [chunk.statistics for chunk in chunks]
        return bool(chunks) and all(
            told is not None and told.has_null_count and told.null_count == chunk.num_values
            for told, chunk in zip(statistics, chunks, strict=True)
        )

    def row_groups(self):
        """[(rows, bytes)] of each row group; raises UserError where the rows do not add up."""
        groups = map(self._metadata.row_group, range(self._metadata.num_row_groups))
        found = [(group.num_rows, group.total_byte_size) for group in groups]
        rows = [rows for rows, _ in found]
        if min(rows, default=0) < 0 or sum(rows) != self._metadata.num_rows:
            raise UserError(
                f"{self._path} cannot be read as Parquet: it has {self._metadata.num_rows} rows, "
                f"and its row groups have {sum(rows)}; copy or download it again"
            )
        return found

    def read(self, group, columns):
        """The columns of a row group, as pyarrow arrays; raises Unreadable."""
        return retrying(self._read, group, columns)

    def _read(self, group, columns):
        import pyarrow
        import pyarrow.parquet

        try:
            with self._lock, self._open() as file:
                opened = pyarrow.parquet.ParquetFile(
                    file, metadata=self._metadata, page_checksum_verification=True
                )
                table = opened.read_row_group(group, columns=columns, use_threads=False)
        except (pyarrow.ArrowException, OSError) as error:
            # Arrow's own errors carry no number; the system's may pass.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise Unreadable("the row group is damaged", str(error)) from error
        if table.num_rows != self._metadata.row_group(group).num_rows:
            raise Unreadable("the row group is damaged", f"it has {table.num_rows} rows")
        return [table[column] for column in columns]

    def _kind(self):
        with contextlib.suppress(*file_errors()), self._open() as file:
            return mistaken_for(file.read(LONGEST))

    def _open(self):
        import pyarrow

        if is_remote(self._path):
            from etils import epath

            return epath.Path(self._path).open("rb")
        return pyarrow.memory_map(self._path.removeprefix("file://"))
