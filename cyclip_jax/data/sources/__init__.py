"""Where examples come from: pairs of a picture and captions that can be read by their number.

A source is an object with the methods and attributes of `Source`:

    len(source)             the number of examples
    source.read(index)      the example's Record: the picture's file, its captions and their weights
                            (raises Unreadable); many threads may call it
    source.keys(indices)    the names of these examples in a report, list[str]
    source.captions()       the first caption of every example, or of those from one number up to
                            before another, list[str]
    source.boundaries       where runs of neighbours begin, and the end, int64 [runs + 1]
    source.mean_bytes       mean size of an example
    source.faults           [(key, reason, detail)] of what is lost before it has a number

To add one, write a function with `csv_source`'s arguments and enter it in `SOURCES`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from cyclip_jax.data.captions import CaptionRule, draw_caption
from cyclip_jax.data.places import TFDS, DataPath, expanded_place
from cyclip_jax.data.reading import Reading
from cyclip_jax.data.record import Record, Source, Unreadable
from cyclip_jax.data.sources.kept import open_kept
from cyclip_jax.data.sources.mixture import Mixture, Weight, check_weights
from cyclip_jax.data.sources.parquet import parquet_source
from cyclip_jax.data.sources.table import csv_source, emoji_source
from cyclip_jax.data.sources.tfds import tfds_source
from cyclip_jax.data.sources.tfrecord import tfrecord_source
from cyclip_jax.data.sources.webdataset import webdataset_source
from cyclip_jax.errors import UserError
from cyclip_jax.files import FilePath, check_scheme, how_written, located_from_anywhere

__all__ = [
    "SOURCES",
    "CaptionRule",
    "DataSet",
    "Mixture",
    "Reading",
    "Record",
    "Source",
    "Unreadable",
    "create_mixture",
    "create_source",
    "draw_caption",
    "parts_of_mixture",
    "source_told_by",
]

SOURCES: dict[str, Callable[..., Source]] = {
    "csv": csv_source,
    "emoji": emoji_source,
    "parquet": parquet_source,
    "tfds": tfds_source,
    "tfrecord": tfrecord_source,
    "webdataset": webdataset_source,
}

_ENDINGS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".tar": "webdataset",
    ".tfrecord": "tfrecord",
    ".tfrecords": "tfrecord",
    ".parquet": "parquet",
}


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Where a data set lies and how it is read, checked without a look at it.

    Attributes:
      name: a key of `SOURCES`, or "auto", which chooses by how the path begins or ends.
      path: where the data set lies.
      reading: what of a record is the picture, and what its captions.
      config_key: full name of the config key that holds `path`, for messages ("config.data.train").
      kept: folder with a list of the examples that are wanted (see kept.py); None is all of them.

    Raises:
      UserError: there is no source of this name or no path, or the path does not tell the source.
    """

    name: str
    path: str | None
    reading: Reading
    config_key: str
    kept: str | None = None

    def __post_init__(self) -> None:
        name = _by_path(self.path, self.config_key) if self.name == "auto" else self.name
        if name not in SOURCES:
            known = ", ".join(repr(known) for known in ("auto", *sorted(SOURCES), "mixture"))
            raise UserError(
                f"there is no data source {name!r}; set config.data.source to one of {known}"
            )
        object.__setattr__(self, "name", name)
        _check_named(name, self.path, self.config_key)
        check_scheme(str(self.path), self.config_key, by_tensorflow=True)
        if SOURCES[name] is csv_source:
            self.reading.delimiter_of(str(self.path))

    def open(self) -> Source:
        """Opens the source; raises UserError where it refuses the data."""
        source = SOURCES[self.name](str(self.path), self.reading, config_key=self.config_key)
        if self.kept is None:
            return source
        return open_kept(self.kept, source, f"{self.config_key.rpartition('.')[0]}.kept")


def create_source(
    name: str,
    path: str | None,
    *,
    config_key: str,
    usual: Reading | None = None,
    kept: str | None = None,
    **reading: Any,
) -> Source:
    """Opens the data set at `path` with the source called `name`.

    Args:
      name: a key of `SOURCES`, or "auto", which chooses by how the path begins or ends.
      path: where the data set lies.
      config_key: full name of the config key that holds `path`, for messages ("config.data.train").
      usual: the settings where `reading` says nothing else; None are those of `Reading()`.
      kept: folder with a list of the examples that are wanted; None is all of them.
      **reading: arguments of `Reading`; a source uses those that mean something to it.

    Raises:
      UserError: there is no source or no setting of this name, or the source refuses the data.
    """
    path = None if path is None else expanded_place(str(path))
    return DataSet(name, path, _reading(reading, config_key, usual), config_key, kept).open()


def parts_of_mixture(
    mixture: Mapping[str, Mapping[str, Any]], reading: Reading
) -> dict[str, tuple[DataSet, Weight]]:
    """The data sets of config.data.mixture with their weights, checked without a look at them.

    Args:
      mixture: {name: settings}. Each part has "train", its path, and may have "weight" (see
        `Mixture`), "source", "kept" and any of the settings of `Reading`.
      reading: the run's own settings, which hold where a part says nothing else.

    Raises:
      UserError: there are no parts, or one of them has a setting that cannot be used.
    """
    check_weights({name: own.get("weight", 1.0) for name, own in mixture.items()})
    return {name: _part(name, reading, **own) for name, own in mixture.items()}


def _part(
    name: str,
    usual: Reading,
    *,
    train: DataPath | None = None,
    weight: Weight = 1.0,
    source: str = "auto",
    kept: FilePath | None = None,
    **reading: Any,
) -> tuple[DataSet, Weight]:
    """One part of a mixture: its data set, and its weight."""
    config_key = f"config.data.mixture.{name}.train"
    return DataSet(source, train, _reading(reading, config_key, usual), config_key, kept), weight


def mixture_from_anywhere(mixture: Any, settings: Mapping[str, Any]) -> Any:
    """config.data.mixture with paths that mean the same from any folder; `settings` is its data."""
    del settings
    return {
        name: located_from_anywhere(_part, own) if isinstance(own, Mapping) else own
        for name, own in mixture.items()
    }


def _reading(settings: Mapping[str, Any], config_key: str, usual: Reading | None = None) -> Reading:
    """A Reading with these settings, and for the rest as usual."""
    known = [field.name for field in dataclasses.fields(Reading)]
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise UserError(
            f"there is no setting {', '.join(unknown)} beside {config_key}; "
            f"the settings are {', '.join(known)}"
        )
    return dataclasses.replace(usual or Reading(), **settings)


def create_mixture(
    mixture: Mapping[str, Mapping[str, Any]], reading: Reading | None = None
) -> Mixture:
    """Opens several sources as a Mixture; arguments and errors as `parts_of_mixture`."""
    parts = parts_of_mixture(mixture, reading or Reading())
    return Mixture({name: (data_set.open(), weight) for name, (data_set, weight) in parts.items()})


def source_told_by(path: str) -> str | None:
    """The name of the source that a path tells by how it begins or ends; None where it does not."""
    if path.startswith(TFDS):
        return "tfds"
    return next((name for end, name in _ENDINGS.items() if path.lower().endswith(end)), None)


def _by_path(path, config_key):
    """The name of the source that a path belongs to."""
    if not path:
        return "csv"  # which says what is missing
    if name := source_told_by(path):
        return name
    raise UserError(
        f"{config_key} is {path}{how_written(path)}, whose ending does not tell the format "
        f"({', '.join(_ENDINGS)}, or {TFDS}… before a TensorFlow Datasets name); "
        "set config.data.source"
    )


def _check_named(name, path, config_key):
    """Raises UserError where there is no path, with an example of one for the source."""
    if path:
        return
    endings = {source: ending for ending, source in reversed(_ENDINGS.items())}
    if name == "tfds":
        example = f"a data set of TensorFlow Datasets, e.g. --{config_key}={TFDS}coco_captions"
    elif endings.get(name, ".csv") == ".csv":
        example = (
            "a CSV of image paths and captions, "
            f"e.g. --{config_key}=/data/cc3m/train.csv, or to shards"
        )
    else:
        example = f"shards, e.g. --{config_key}='/data/cc3m/{{00000..00331}}{endings[name]}'"
    raise UserError(f"{config_key} is empty; set it to {example}")
