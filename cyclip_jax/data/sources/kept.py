"""A list of the examples of a data set that are worth training on, and the data set with it.

`data.prepare balance`, `data.prepare score` and `data.inspect --clean` write it: a folder with the
numbers of the kept examples, and with what was kept and why. The data stay where they are.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from cyclip_jax.data.record import Source, Unreadable, read_told
from cyclip_jax.data.sources.mixture import Mixture
from cyclip_jax.data.sources.subset import Subset
from cyclip_jax.errors import UserError
from cyclip_jax.files import (
    absolute,
    file_errors,
    how_written,
    parse_json,
    write_atomically,
    write_json,
)

ROWS = "kept.npy"
MANIFEST = "manifest.json"
_COMPARED = 8  # pictures that tell whether a list belongs to a data set


class Kept(Subset):
    """The examples of a source that a list keeps, in the order of the source.

    Attributes:
      sum: SHA-256 of their numbers.
    """

    def __init__(self, source: Source, rows: Int[np.ndarray, "n"]) -> None:
        super().__init__(source, rows)
        self.sum: str = _sum(rows)


def write_kept(
    folder: str | os.PathLike[str],
    source: Source,
    rows: Int[np.ndarray, "n"],
    told: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the list, and last its manifest, without which no list counts as whole.

    Args:
      folder: where it goes, local or remote.
      source: the data, which may be `Kept` of another list.
      rows: numbers of the examples that stay, rising, int [n].
      told: what the manifest has besides: what was kept and why.

    Returns:
      The manifest.
    """
    folder = absolute(folder)
    if isinstance(source, Kept):
        source, rows = source.source, source.rows[rows]
    rows = np.asarray(rows, np.int64)
    file = io.BytesIO()
    np.save(file, rows, allow_pickle=False)
    write_atomically(folder / ROWS, file.getvalue())
    manifest = {
        "input_examples": len(source),
        "examples": len(rows),
        **told,
        "kept_sum": _sum(rows),
        "pictures": {str(row): digest for row, digest in _pictures(source)},
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def open_kept(folder: str, source: Source, config_key: str) -> Kept:
    """A source with the examples alone that a list keeps.

    Args:
      folder: as `write_kept` left it.
      source: the data for which the list was written.
      config_key: full name of the config key that holds `folder`, for messages.

    Raises:
      UserError: there is no such list, it is not whole, or it was written for other data.
    """
    manifest = _read_manifest(folder, config_key)
    rows = _read_rows(folder, manifest, config_key)
    if manifest.input_examples != len(source):
        raise UserError(
            f"{config_key} {folder} was written for {manifest.input_examples} examples, and the "
            f"data have {len(source)}; write it anew, or bring back the data"
        )
    for row, digest in _pictures(source, manifest.pictures):
        if digest is not None and manifest.pictures[row] not in (None, digest):
            raise UserError(
                f"{config_key} {folder} was written for other data: example {row} "
                f"({source.keys([row])[0]}) has another picture; write it anew, or bring back the "
                "data"
            )
    return Kept(source, rows)


def kept_sum(source: Source | Mixture) -> str | None:
    """What tells the kept examples of training data from others; None where no list is followed."""
    sources = source.sources if isinstance(source, Mixture) else [source]
    sums = [one.sum if isinstance(one, Kept) else "" for one in sources]
    return " ".join(sums) if any(sums) else None


class _Manifest(NamedTuple):
    """What a list says of the data that it was written for."""

    input_examples: int
    kept_sum: str
    pictures: dict[int, str | None]


def _read_manifest(folder, config_key):
    try:
        told = parse_json((absolute(folder) / MANIFEST).read_text())
        pictures = {int(row): digest for row, digest in told["pictures"].items()}
        return _Manifest(int(told["input_examples"]), str(told["kept_sum"]), pictures)
    except file_errors() as error:
        raise UserError(
            f"{config_key} {folder} holds no finished list of kept examples{how_written(folder)} "
            f"({MANIFEST} cannot be read); name a folder that data.prepare balance or score, or "
            "data.inspect --clean, wrote, and let it finish"
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{config_key} {folder} holds no list of kept examples: its {MANIFEST} is another one; "
            "name a folder that data.prepare balance or score, or data.inspect --clean, wrote"
        ) from error


def _read_rows(folder, manifest, config_key):
    path = absolute(folder) / ROWS
    try:
        with path.open("rb") as file:
            rows = np.load(file, allow_pickle=False)
        is_whole = len(rows) > 0 and _sum(rows) == manifest.kept_sum
    except (EOFError, TypeError, ValueError, *file_errors()):
        is_whole = False
    if not is_whole:
        raise UserError(
            f"{config_key}: {path} is damaged, or not the list that its {MANIFEST} tells of; "
            "write it anew"
        )
    return rows


def _pictures(source: Source, rows: Iterable[int] | None = None):
    """Yields (row, SHA-256 of its picture's file, or None) of some examples."""
    spread = np.unique(np.linspace(0, len(source) - 1, _COMPARED).astype(int))
    for row in spread.tolist() if rows is None else rows:
        try:
            yield row, hashlib.sha256(read_told(source.read, row).image).hexdigest()
        except Unreadable:
            yield row, None


def _sum(rows):
    return hashlib.sha256(np.asarray(rows, "<i8").tobytes()).hexdigest()
