"""Where examples come from: pairs of a picture and captions that can be read by their number.

A source is an object with the methods and attributes of `Source`:

    len(source)             the number of examples
    source.read(index)      the example's Record: the picture's file, its captions and their weights
                            (raises Unreadable); many threads may call it
    source.keys(indices)    what names these examples in a report, list[str]
    source.captions()       the first caption of every example, list[str]
    source.boundaries       where runs of neighbours begin, and the end, int64 [runs + 1]
    source.mean_bytes       mean size of an example
    source.faults           [(key, reason, detail)] of what is lost before it has a number

To add one, write a function with `table_source`'s arguments and enter it in `SOURCES`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from cyclip_jax.data.sources.mixture import Mixture
from cyclip_jax.data.sources.parquet import parquet_source
from cyclip_jax.data.sources.record import (
    CaptionRule,
    Record,
    Source,
    Unreadable,
    draw_caption,
)
from cyclip_jax.data.sources.table import csv_source, emoji_source
from cyclip_jax.data.sources.tfds import PREFIX, tfds_source
from cyclip_jax.data.sources.tfrecord import tfrecord_source
from cyclip_jax.data.sources.webdataset import webdataset_source
from cyclip_jax.errors import UserError

__all__ = [
    "SOURCES",
    "CaptionRule",
    "Mixture",
    "Record",
    "Source",
    "Unreadable",
    "create_mixture",
    "create_source",
    "csv_source",
    "draw_caption",
]

SOURCES: dict[str, Callable[..., Source]] = {
    "csv": csv_source,
    "emoji": emoji_source,
    "parquet": parquet_source,
    "tfds": tfds_source,
    "tfrecord": tfrecord_source,
    "webdataset": webdataset_source,
}

_SETTINGS = (
    "image_key",
    "caption_key",
    "caption_weights",
    "templates",
    "delimiter",
    "kept_examples",
)

_ENDINGS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".tar": "webdataset",
    ".tfrecord": "tfrecord",
    ".tfrecords": "tfrecord",
    ".parquet": "parquet",
}


def create_source(name: str, path: str | None, *, config_key: str, **settings: Any) -> Source:
    """Opens the data set at `path` with the source called `name`.

    Args:
      name: a key of `SOURCES`, or "auto": by how the path begins or ends.
      path: where the data set lies.
      config_key: full name of the config key that holds `path`, for messages ("config.data.train").
      settings: the sources' own, `_SETTINGS`; each takes those that it can use.

    Raises:
      UserError: no source of this name, no setting of this name, or what the source itself refuses.
    """
    unknown = settings.keys() - _SETTINGS
    if unknown:
        raise UserError(
            f"{config_key} has no setting {', '.join(sorted(unknown))} beside it; "
            f"there are {', '.join(_SETTINGS)}"
        )
    path = None if path is None else str(path)
    if name == "auto":
        name = _by_path(path, config_key)
    if name not in SOURCES:
        known = ", ".join(repr(known) for known in ("auto", *sorted(SOURCES), "mixture"))
        raise UserError(
            f"there is no data source {name!r}; set config.data.source to one of {known}"
        )
    return SOURCES[name](path, config_key=config_key, **settings)


def create_mixture(
    mixture: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> Mixture:
    """Opens several sources as a Mixture.

    Args:
      mixture: {name: settings}, each with "train", its path, and "weight", see `Mixture`; "source"
        and any of `create_source`'s settings may differ from the run's.
      settings: the run's own, which stand where a part has none.
    """
    parts = {}
    for name, own in mixture.items():
        own = dict(settings) | dict(own)
        weight, path = own.pop("weight", 1.0), own.pop("train", None)
        source = create_source(
            own.pop("source", "auto"), path, config_key=f"config.data.mixture.{name}.train", **own
        )
        parts[name] = source, weight
    return Mixture(parts)


def _by_path(path, config_key):
    """The name of the source that a path belongs to."""
    if not path:
        return "csv"  # which says what is missing
    if path.startswith(PREFIX):
        return "tfds"
    for ending, name in _ENDINGS.items():
        if path.lower().endswith(ending):
            return name
    raise UserError(
        f"{config_key} is {path}, whose ending tells no format "
        f"({', '.join(_ENDINGS)}, or {PREFIX}… before a TensorFlow Datasets name); "
        "set config.data.source"
    )
