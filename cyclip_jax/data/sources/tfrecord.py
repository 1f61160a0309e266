"""TFRecord shards of tf.train.Example, as img2dataset and `cyclip_jax.data.prepare` write them."""

import posixpath
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from google.protobuf.message import DecodeError
from jaxtyping import Int

from cyclip_jax.data.captions import CaptionRule
from cyclip_jax.data.reading import RECORDS_TRIED, Reading
from cyclip_jax.data.record import Record, Unreadable, first_caption, part_of
from cyclip_jax.data.sources.ranges import Files, expand
from cyclip_jax.data.sources.shard_index import (
    TFRECORD_TAIL,
    Members,
    masked_crc32c,
    open_indexes,
    reason_of,
    scan_tfrecord,
)
from cyclip_jax.errors import UserError
from cyclip_jax.runtime.started import import_tensorflow

IMAGE_KEY = "jpg;png;webp;image;image/encoded"
CAPTION_KEY = "txt"


def tfrecord_source(path: str, reading: Reading, *, config_key: str) -> "TfRecords":
    """Opens uncompressed TFRecord shards; no record is read but the first.

    Args:
      path: a pattern of shards (see `ranges.expand`).
      reading: its image_key is the feature with the picture's file, by default IMAGE_KEY. Of
        several with ; between them the first that is found counts. Its caption_key is the feature
        with the captions, or a tuple of several, by default CAPTION_KEY.
      config_key: full name of the config key that holds `path`, for messages.

    Raises:
      UserError: a shard is missing or unreadable, there are no records, or the first lacks the
        features.
    """
    paths = expand(path, config_key=config_key, endings=(".tfrecord", ".tfrecords"))
    rule = reading.caption_rule(CAPTION_KEY)
    indexes = open_indexes(paths, scan_tfrecord)
    source = TfRecords(
        paths,
        indexes,
        reading.image_key or IMAGE_KEY,
        rule,
        kept_examples=reading.kept_examples,
        negative_image_key=reading.negative_image_key,
    )
    if not len(source):
        faults = "".join(f" ({name}: {fault})" for name, _, fault in source.faults[:1])
        raise UserError(
            f"there is no record in {path}{faults}; set {config_key} to shards that have some"
        )
    source.check_features(path)
    reading.check_negatives(source, path)
    return source


class TfRecords:
    """Examples of TFRecord shards (see `tfrecord_source`).

    Args:
      paths: of the shards.
      indexes: what `open_indexes` gives for the shards.
      image_key: which feature of a record is the picture.
      rule: which features are its captions.
      label_names: {feature: names}, for features that hold the number of a class.
      parts: [(shard, first, end)], the records that count; by default all of every shard.
      kept_examples: how many of the examples read lately are kept in memory.
      negative_image_key: which feature is a picture that a wrong caption describes, if any is.

    Attributes:
      boundaries: where each part's examples begin, and the end, int64 [parts + 1].
      faults: [(key, reason, detail)] of records that are lost with the end of their shard.
    """

    def __init__(
        self,
        paths: list[str],
        indexes: Sequence[Members],
        image_key: str,
        rule: CaptionRule,
        *,
        label_names: Mapping[str, list[str]] | None = None,
        parts: Sequence[tuple[int, int, int]] | None = None,
        kept_examples: int = 0,
        negative_image_key: str | None = None,
    ) -> None:
        self._paths = paths
        self._negative_image_keys = (negative_image_key or "").split(";")
        self._image_keys = image_key.split(";")
        self._rule = rule
        self._label_names = label_names or {}
        if parts is None:
            parts = [(shard, 0, len(index.offsets)) for shard, index in enumerate(indexes)]
        self._parts = parts
        cut = [(indexes[shard], slice(first, end)) for shard, first, end in parts]
        empty = np.zeros(0, np.int64)
        self._offsets = np.concatenate([empty, *(index.offsets[part] for index, part in cut)])
        self._sizes = np.concatenate([empty, *(index.sizes[part] for index, part in cut)])
        self._files = Files(paths, kept_bytes=int(kept_examples * self.mean_bytes))
        self.boundaries: Int[np.ndarray, "parts+1"] = np.cumsum(
            [0] + [len(index.offsets[part]) for index, part in cut]
        )
        self.faults: list[tuple[str, str, str]] = [
            (path, reason_of(index.fault), index.fault)
            for path, index in zip(paths, indexes, strict=True)
            if index.fault
        ]

    def __len__(self) -> int:
        return int(self.boundaries[-1])

    def keys(self, indices: Iterable[int]) -> list[str]:
        """The examples' shards and numbers in them, list[str]."""
        keys = []
        for index in indices:
            part = part_of(self.boundaries, index)
            shard, first, _ = self._parts[part]
            number = first + index - self.boundaries[part]
            keys.append(f"{posixpath.basename(self._paths[shard])}#{number}")
        return keys

    def captions(self, first: int = 0, end: int | None = None) -> list[str]:
        """The first caption of these examples, list[str]; "" where there is none."""
        return [first_caption(self.read, index) for index in range(len(self))[first:end]]

    def read(self, index: int) -> Record:
        """The Record of an example; raises Unreadable."""
        features = self._features(index)
        image = _first_bytes(features, self._image_keys)
        if image is None:
            raise Unreadable("the image is missing")
        values = [self._texts(field, features) for field in self._rule.fields]
        negative_image = _first_bytes(features, self._negative_image_keys)
        return self._rule.record(image, values, negative_image or b"")

    @property
    def mean_bytes(self) -> float:
        """Mean size of a record in bytes."""
        return float(self._sizes.mean()) if len(self._sizes) else 0.0

    def check_features(self, path: str | None) -> None:
        """Raises UserError where the first record that can be read lacks picture or caption."""
        features = self._first_features(path)
        known = ", ".join(sorted(features)) or "none"
        if not any(key in features for key in self._image_keys):
            raise UserError(
                f"the records of {path} have no feature {';'.join(self._image_keys)} "
                f"(features: {known}); set config.data.image_key"
            )
        if not any(field in features for field in self._rule.fields):
            raise UserError(
                f"the records of {path} have no feature {', '.join(self._rule.fields)} "
                f"(features: {known}); set config.data.caption_key"
            )

    def _first_features(self, path):
        errors = []
        for index in range(min(len(self), RECORDS_TRIED)):
            try:
                return self._features(index)
            except Unreadable as error:
                errors.append(error)
        raise UserError(f"the first record of {path} cannot be read: {errors[0]}") from errors[0]

    def _features(self, index):
        shard = self._parts[part_of(self.boundaries, index)][0]
        content = self._content(shard, int(self._offsets[index]), int(self._sizes[index]))
        try:
            return import_tensorflow().train.Example.FromString(content).features.feature
        except DecodeError as error:
            raise Unreadable("the record is damaged", str(error)) from error

    def _content(self, shard: int, offset: int, size: int) -> bytes:
        content = self._files.read(shard, offset, size + TFRECORD_TAIL)
        content, tail = content[:size], content[size:]
        if int.from_bytes(tail, "little") != masked_crc32c(content):
            raise Unreadable("the record is damaged", "its checksum is another")
        return content

    def _texts(self, field, features):
        if field not in features:
            return []
        feature = features[field]
        if field in self._label_names:
            names = self._label_names[field]
            # TensorFlow Datasets writes -1 where a class is not told.
            numbers = [number for number in feature.int64_list.value if number >= 0]
            if any(number >= len(names) for number in numbers):
                raise Unreadable("the class has no name", str(numbers))
            return [names[number] for number in numbers]
        kind = feature.WhichOneof("kind")
        return list(getattr(feature, kind).value) if kind else []


def _first_bytes(features, keys):
    """The value of the first of some features that a record has; None where it has none."""
    feature = next((features[key] for key in keys if key in features), None)
    return feature.bytes_list.value[0] if feature is not None and feature.bytes_list.value else None
