"""Data sets of TensorFlow Datasets, read example by example from their own files."""

import importlib.util

import numpy as np
from etils import epath

from cyclip_jax.data.places import TFDS, cut_split
from cyclip_jax.data.reading import Reading
from cyclip_jax.data.record import Unreadable
from cyclip_jax.data.sources.shard_index import Members, open_indexes, scan_tfrecord
from cyclip_jax.data.sources.tfrecord import TfRecords
from cyclip_jax.errors import UserError
from cyclip_jax.files import how_written

IMAGE_KEY = "image"
# The first that a data set has: captions, or the number of a class, which stands for its name.
CAPTION_KEYS = ("caption", "captions/text", "captions", "text", "label")


def tfds_source(path: str, reading: Reading, *, config_key: str) -> TfRecords:
    """Opens a data set of TensorFlow Datasets, and builds it first where it is not there yet.

    Args:
      path: "NAME[/CONFIG][:VERSION][@SPLIT]", or the folder of a data set in place of the name,
        with or without "tfds:" before it. The split is "train" by default, and may be a slice such
        as train[:90%].
      reading: its image_key and caption_key are features; a feature within another is written
        outer/inner. The default caption is the first of CAPTION_KEYS that the data set has. A class
        becomes its name.
      config_key: full name of the config key that holds `path`, for messages.

    Raises:
      UserError: tensorflow-datasets is not installed, there is no such data set, split or feature,
        or it cannot be built here.
    """
    builder, split = _open_builder(path, config_key)
    features = _flat_features(builder.info.features)
    image_keys = reading.image_keys(IMAGE_KEY)
    rule = reading.caption_rule(next((key for key in CAPTION_KEYS if key in features), "caption"))
    for name, key in [*image_keys.items(), *zip(rule.settings, rule.fields, strict=True)]:
        if key not in features:
            raise UserError(
                f"{path} has no feature {key!r} (features: {', '.join(sorted(features))}); "
                f"set config.data.{name}"
            )
    names = {
        key: features[key].names for key in rule.fields if getattr(features[key], "names", None)
    }
    try:
        instructions = builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        known = ", ".join(builder.info.splits)
        raise UserError(
            f"{path} has no split {split!r} (splits: {known}); write one of them after the @"
        ) from error
    paths = [str(instruction.filename) for instruction in instructions]
    ranges = [(part.skip, part.skip + part.take) for part in instructions]
    arguments = {
        "label_names": names,
        "kept_examples": reading.kept_examples,
        "negative_image_key": reading.negative_image_key,
    }
    image_key = image_keys["image_key"]
    file_format = getattr(builder.info.file_format, "value", None)
    if file_format == "array_record":
        return _ArrayRecords(paths, ranges, image_key, rule, **arguments)
    if file_format != "tfrecord":
        raise UserError(
            f"{path} is kept as {file_format}, which cannot be read in random order; "
            "build it with file_format='tfrecord'"
        )
    parts = [(shard, *ends) for shard, ends in enumerate(ranges)]
    indexes = open_indexes(paths, scan_tfrecord)
    return TfRecords(paths, indexes, image_key, rule, parts=parts, **arguments)


class _ArrayRecords(TfRecords):
    """The same examples in ArrayRecord files, which carry an index of their own."""

    def __init__(self, paths, ranges, image_key, rule, **arguments):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._shards = [ArrayRecordDataSource([path]) for path in paths]
        indexes = [_numbers(len(shard)) for shard in self._shards]
        parts = [(shard, *ends) for shard, ends in enumerate(ranges)]
        super().__init__(paths, indexes, image_key, rule, parts=parts, **arguments)

    def _content(self, shard: int, offset: int, size: int) -> bytes:
        del size  # an offset is the record's number here, see `_numbers`
        try:
            return self._shards[shard][offset]
        except (RuntimeError, ValueError, OSError) as error:
            raise Unreadable("the file cannot be read", str(error)) from error


def _numbers(n):
    """Members whose places are the records' numbers."""
    return Members(np.arange(n), np.zeros(n), np.zeros(n), np.arange(n), [], [], "")


def _open_builder(path, config_key):
    """(the builder, the split) of a path."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise UserError(
            f"{config_key} is {path}, which needs TensorFlow Datasets; "
            "run pip install 'cyclip_jax[data]'"
        )
    import tensorflow_datasets as tfds

    name, split = cut_split(path.removeprefix(TFDS))
    try:
        if "/" in name and epath.Path(name).exists():
            return tfds.builder_from_directory(name), split or "train"
        builder = tfds.builder(name)
        builder.download_and_prepare()
        return builder, split or "train"
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"{config_key} is {path}, and TensorFlow Datasets has no {name!r}{how_written(name)}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except (AssertionError, ImportError, OSError, ValueError) as error:
        raise UserError(f"{config_key} {path} cannot be opened: {error}") from error


def _flat_features(features, prefix=""):
    """{"outer/inner": feature} of every feature, as they are named in the records."""
    flat = {}
    for name, feature in features.items():
        inner = getattr(feature, "feature", feature)  # of a sequence
        if hasattr(inner, "items"):
            flat |= _flat_features(inner, f"{prefix}{name}/")
        else:
            flat[prefix + name] = inner
    return flat
