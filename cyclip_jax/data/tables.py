"""CSV and TSV files row by row: the one reader of tables.

A table is text in UTF-8 whose first row names the columns. In a CSV a field may stand in quotation
marks, which are doubled within it. Many TSVs are made without any quoting, so that a quotation mark
in them is a part of the text. A table with tabs is therefore read without quoting, unless every
field of it that has a quotation mark is one that quoting would write, on one line.

What is wrong with one row is told with the row. What makes the rows that follow doubtful is a
UserError, which names the line.
"""

import enum
import itertools
import re
from collections.abc import Iterator
from typing import IO, NamedTuple

from cyclip_jax.data.mistaken import mistaken_for
from cyclip_jax.errors import UserError
from cyclip_jax.runtime.started import import_tensorflow

LONGEST_FIELD = 1 << 17  # characters, as Python's own reader has it
BLOCK = 1 << 16  # bytes that are read at once
LONGEST_LINE = 1 << 26  # bytes: a file with a longer one is no table
_QUOTED = re.compile(r'"((?:[^"]++|"")*+)"')
_PATH = re.compile(r"\S*/\S*|\S+\.\w{2,5}")
_NAMES_SHOWN = 20


class Fault(NamedTuple):
    """What is wrong with a row: a reason that many rows share, and where it is and how."""

    reason: str
    detail: str


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      line: the number of its first line, from 1.
      fields: its texts.
      fault: why it cannot be used, or None.
    """

    line: int
    fields: list[str]
    fault: Fault | None


class _Marks(enum.IntEnum):
    """What quotation marks a line has, the worst of them."""

    QUOTING = 0  # those that quoting writes
    WITHIN = 1  # some within a field that does not begin with one
    LOOSE = 2  # text follows one that closes a field
    OPEN = 3  # one that opens a field, and none that closes it


class Table:
    """A table whose header is read.

    Args:
      path: the file, local or remote.
      delimiter: the character between columns.
      setting: what sets the delimiter, for messages ("config.data.delimiter").

    Attributes:
      names: of the columns.

    Raises:
      UserError: the file is no text in UTF-8, or a quotation mark in it never closes.
    """

    def __init__(self, path: str, delimiter: str, setting: str) -> None:
        self._path, self._delimiter, self._setting = path, delimiter, setting
        self._has_quotes = delimiter != "\t" or self._are_quotes_of_quoting()
        self._rows = self._read_rows()
        self.names: list[str] = []  # until the header is read
        self.names = next(self._rows, Row(1, [], None)).fields

    def skip_comments(self, mark: str) -> None:
        """Takes lines at the top that begin with a mark for comments; before `rows`.

        The last of them names the columns where it has as many as the row below it.
        """
        comment, first = [], Row(1, self.names, None)
        while first.fields and first.fields[0].startswith(mark):
            comment, first = first.fields, next(self._rows, Row(1, [], None))
        self.names = first.fields
        if comment and len(comment) == len(first.fields):
            self.names = [comment[0].removeprefix(mark).strip(), *comment[1:]]
            self._rows = itertools.chain([first], self._rows)

    def position(self, name: str, setting: str) -> int:
        """The number of a column.

        Args:
          name: of the column.
          setting: what sets the name, for messages.

        Raises:
          UserError: there is no such column.
        """
        if name in self.names:
            return self.names.index(name)
        near = next((own for own in self.names if own.strip() == name), None)
        if near is not None:
            raise UserError(
                f"{self._path} has no column {name!r} but {near!r}, with a blank in its name; "
                f"remove the blank, or set {setting} to the name as it stands"
            )
        # A single column is the sign of another delimiter.
        or_delimiter = f" or {self._setting}" if len(self.names) < 2 else ""
        shown = self.names[:_NAMES_SHOWN] + ["…"] * (len(self.names) > _NAMES_SHOWN)
        raise UserError(
            f"{self._path} has no column {name!r} (columns: {', '.join(shown) or 'none'}); "
            f"set {setting}{or_delimiter}"
        )

    def rows(self) -> Iterator[Row]:
        """Reads the rows below the header, once; raises UserError."""
        for row in self._rows:
            surplus = [text for text in row.fields[len(self.names) :] if text.strip()]
            if row.fault is None and (len(row.fields) < len(self.names) or surplus):
                more = "more" if surplus else "fewer"
                fields = f"{len(row.fields)} field{'' if len(row.fields) == 1 else 's'}"
                detail = f"line {row.line}: {fields}, the header has {len(self.names)}"
                row = row._replace(
                    fault=Fault(f"the row has {more} fields than the header", detail)
                )
            yield row

    def _are_quotes_of_quoting(self):
        """Whether quoting could have written all quotation marks, each field on one line."""
        columns = 0
        for _, line in _lines(self._path):
            columns = columns or line.count(self._delimiter) + 1
            if '"' in line:
                fields, marks = _split(line.rstrip("\r\n"), self._delimiter)
                # Fewer than the header: marks at the ends of two fields are no pair.
                if marks != _Marks.QUOTING or len(fields) < columns:
                    return False
        return True

    def _read_rows(self):
        """Yields a Row for the header and every row, and none for a blank line."""
        lines = _lines(self._path)
        for number, line in lines:
            text, fault = line.rstrip("\r\n"), None
            if self._has_quotes and '"' in text:
                fields, marks = _split(text, self._delimiter)
                if marks == _Marks.OPEN:
                    fields = self._fields_of_lines(number, line, lines)
                elif marks == _Marks.LOOSE:
                    reason = "text follows a closing quotation mark"
                    fault = Fault(reason, f"line {number}: {text[:200]}")
            else:
                fields = text.split(self._delimiter)
            if len(text) > LONGEST_FIELD and max(map(len, fields)) > LONGEST_FIELD:
                raise UserError(
                    f"{self._path}, line {number}: a field has more than {LONGEST_FIELD} "
                    f"characters; shorten it, or set {self._setting}"
                )
            if fields != [""]:
                yield Row(number, fields, fault)

    def _fields_of_lines(self, number, line, lines):
        """The fields of a row of several lines, of which `line` is the first."""
        parts, size = [line], len(line)
        for _, part in lines:
            parts.append(part)
            size += len(part)
            # Within quotation marks every second one closes.
            if part.count('"') % 2 or size > LONGEST_FIELD:
                break
        text = "".join(parts).rstrip("\r\n").replace("\r\n", "\n")
        fields, marks = _split(text, self._delimiter)
        if marks == _Marks.OPEN:
            how = "never closes"
        elif marks == _Marks.LOOSE:
            how = f"closes only in line {number + len(parts) - 1}, where more text follows"
        elif self._are_rows(parts[1:], fields):
            how = f"closes only in line {number + len(parts) - 1}, around lines that look like rows"
        else:
            return fields
        raise UserError(
            f"{self._path}, line {number}: a quotation mark opens a field and {how}; double the "
            "quotation marks within texts and put such texts in quotation marks, or write a .tsv"
        )

    def _are_rows(self, lines, fields):
        """Whether lines within a field look like rows that a stray quotation mark swallowed."""
        others = [line.rstrip("\r\n").split(self._delimiter) for line in lines]
        whole = [other for other in others if 1 < len(other) == len(self.names)]
        paths = [column for column, text in enumerate(fields) if _PATH.fullmatch(text)]
        if not paths:
            return len(whole) == len(lines)
        return any(all(_PATH.fullmatch(other[column]) for column in paths) for other in whole)


def _split(text, delimiter):
    """(fields, _Marks) of a row with quotation marks."""
    fields, marks, place = [], _Marks.QUOTING, 0
    while True:
        quoted = _QUOTED.match(text, place) if text.startswith('"', place) else None
        end = text.find(delimiter, place if quoted is None else quoted.end())
        end = len(text) if end < 0 else end
        if quoted is not None and quoted.end() == end:
            fields.append(quoted[1].replace('""', '"'))
        else:
            fields.append(text[place:end])
            if quoted is not None:
                marks = max(marks, _Marks.LOOSE)
            elif text.startswith('"', place):
                return fields, _Marks.OPEN
            elif '"' in fields[-1]:
                marks = max(marks, _Marks.WITHIN)
        if end == len(text):
            return fields, marks
        place = end + 1


def _lines(path):
    """Yields (number, line with its end) of a file in UTF-8, a leading byte-order mark removed."""
    for number, line in enumerate(encoded_lines(path), start=1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number}, byte {error.start + 1} of the line is not UTF-8 "
                f"(0x{line[error.start]:02x}); convert the file, e.g. with "
                "iconv -f LATIN1 -t UTF-8 < FILE > NEW"
            ) from error


def encoded_lines(path: str) -> Iterator[bytes]:
    """Reads the lines of a text file as bytes with their ends.

    Lines end in LF or CR LF, and a single CR is a part of the text, unless the first line ends in
    CR alone.

    Args:
      path: the file, local or remote.

    Raises:
      UserError: the file is something else, or a line is longer than any text.
    """
    with _opened(path) as file:
        yield from _encoded_lines(path, file)


def _encoded_lines(path, file):
    rest = file.read(BLOCK)
    _check_beginning(path, rest)
    first = rest.find(b"\r")
    ends_in_cr = 0 <= first < len(rest) - 1 and b"\n" not in rest[: first + 2]
    while block := file.read(BLOCK):
        *lines, rest = _cut(rest, ends_in_cr)
        yield from lines
        rest += block
        if len(rest) > LONGEST_LINE:
            raise UserError(
                f"{path} has a line of more than {LONGEST_LINE >> 20} MiB; give a CSV or TSV file"
            )
    yield from filter(None, _cut(rest, ends_in_cr))


def _cut(block, ends_in_cr):
    """The lines of a block with their ends; the last one has none and may be empty."""
    if not ends_in_cr:
        *lines, rest = block.split(b"\n")
        return [*(line + b"\n" for line in lines), rest]
    lines = block.splitlines(keepends=True)  # a last CR may be half of a line's end
    return lines if lines and not lines[-1].endswith(b"\n") else [*lines, b""]


def _check_beginning(path, head):
    kind = mistaken_for(head)
    if kind is None and b"\0" in head[:2] and len(head) % 2 == 0:
        order = "BE" if head[0] == 0 else "LE"
        kind = f"it is UTF-16 text; convert it with iconv -f UTF-16{order} -t UTF-8 < FILE > NEW"
    if kind is not None:
        raise UserError(f"{path} is no CSV or TSV file in UTF-8: {kind}")


def _opened(path) -> IO[bytes]:
    if "://" in path:
        return import_tensorflow().io.gfile.GFile(path, "rb")
    return open(path, "rb")
