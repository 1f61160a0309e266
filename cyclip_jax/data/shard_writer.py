"""One shard of prepared data: which examples it holds, and how they are written.

A shard is what img2dataset writes with output_format=tfrecord: tf.train.Example records with "key",
the picture's file under "jpg", "png" or "webp", "txt" (here with every caption), "width" and
"height".
"""

import collections
import concurrent.futures
import dataclasses
import io
import json
import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int
from PIL import Image

from cyclip_jax.data.pillow import encoded_as, open_picture, stored_format
from cyclip_jax.data.record import Record, Unreadable, part_of, read_told
from cyclip_jax.data.sources import create_source
from cyclip_jax.data.sources.shard_index import make_index, scan_tfrecord
from cyclip_jax.data.transform import MAX_PIXELS
from cyclip_jax.errors import UserError, shortened
from cyclip_jax.files import sha256_of, unfinished_path, write_atomically
from cyclip_jax.runtime.started import import_tensorflow

READERS = 8  # threads of a process: where pictures lie far away, most of the time is waiting
READ_AHEAD = 64  # examples
REPORT_EVERY = 32  # examples


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The settings that decide about the result; each has the name of its option.

    Attributes:
      input: paths or patterns of the data, tuple of str; see `create_source`.
      source, image_key, caption_key, delimiter, template: see `create_source`; () and None mean
        the source's defaults.
      examples_per_shard: how many examples of the input a shard covers, dropped ones included.
      resize: the pixels of the shorter side to which larger pictures are shrunk, or None.
      quality: the quality of the JPEG files that `resize` makes, 1 … 100.
      max_pixels: pictures of more pixels are dropped without being decoded.
      shuffle_seed: the seed of the order; None keeps the input's order.
      check: whether pictures that are only copied are decoded first.
    """

    input: tuple[str, ...]
    source: str = "auto"
    image_key: str | None = None
    caption_key: tuple[str, ...] = ()
    delimiter: str = ","
    template: tuple[str, ...] = ()
    examples_per_shard: int = 10_000
    resize: int | None = None
    quality: int = 95
    max_pixels: int = MAX_PIXELS
    shuffle_seed: int | None = None
    check: bool = True


class Inputs:
    """All data sets of the input, one after the other, read by number as from one source."""

    def __init__(self, settings: Preparation) -> None:
        in_order = settings.shuffle_seed is None
        self._sources = [
            create_source(
                settings.source,
                path,
                config_key="input",
                image_key=settings.image_key,
                caption_key=settings.caption_key or None,
                templates=settings.template,
                delimiter=settings.delimiter,
                kept_examples=2 * READ_AHEAD if in_order else 0,
            )
            for path in settings.input
        ]
        self._starts = np.cumsum([0, *map(len, self._sources)])
        self.faults: list[tuple[str, str, str]] = [
            fault for source in self._sources for fault in source.faults
        ]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> Record:
        """The Record of an example; raises Unreadable."""
        source, inner = self._find(index)
        return read_told(source.read, inner)

    def key(self, index: int) -> str:
        """The name of an example in a report."""
        source, inner = self._find(index)
        return source.keys([inner])[0]

    def _find(self, index):
        part = part_of(self._starts, index)
        return self._sources[part], int(index - self._starts[part])


# One picture


def stored_picture(
    encoded: bytes, settings: Preparation
) -> tuple[str, bytes, tuple[int, int] | None]:
    """A picture's file as it is stored.

    Orientation tags are ignored, as in training.

    Args:
      encoded: the file's bytes.
      settings: the options of the preparation.

    Returns:
      (feature, bytes, size): "jpg", "png" or "webp"; the file; (width, height), or None where it
      was copied without being read.

    Raises:
      Unreadable: it has too many pixels or cannot be decoded.
    """
    from cyclip_jax.data.decoding import pixels_of  # TensorFlow: slow to import

    feature = stored_format(encoded)
    if feature and not settings.check:
        size = _size_in_header(encoded, settings.max_pixels)
        if not settings.resize or (size and min(size) <= settings.resize):
            return feature, encoded, size
    try:
        picture = Image.fromarray(pixels_of(encoded, settings.max_pixels))
    except Unreadable as error:
        detail = error.detail.replace("data.max_pixels = ", "--max_pixels=")
        raise Unreadable(error.reason, detail) from error
    if settings.resize and min(picture.size) > settings.resize:
        shorter = min(picture.size)
        # As training does it, and torchvision: the longer side is rounded down.
        width, height = (settings.resize * side // shorter for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        return "jpg", encoded_as(picture, "JPEG", quality=settings.quality), picture.size
    if feature is None:
        return "png", encoded_as(picture, "PNG"), picture.size
    return feature, encoded, picture.size


def _size_in_header(encoded, max_pixels):
    """(width, height), or None where the header cannot be read; raises Unreadable."""
    try:
        with open_picture(io.BytesIO(encoded), max_pixels) as picture:
            width, height = picture.size
    except Image.DecompressionBombError as error:
        detail = f"more pixels than --max_pixels={max_pixels}"
        raise Unreadable("the image is too large", detail) from error
    except Exception:  # Pillow's readers raise whatever they stumble upon
        return None
    if width * height > max_pixels:
        detail = f"{width} × {height} pixels, more than --max_pixels={max_pixels}"
        raise Unreadable("the image is too large", detail)
    return width, height


# One shard


def write_shard(
    source: Inputs,
    settings: Preparation,
    folder: epath.Path,
    name: str,
    indices: Int[np.ndarray, "n"],
    progress: Callable[[int, int], object],
) -> None:
    """Writes a shard and its index, and then its report NAME.json.

    Args:
      source: where the examples come from.
      settings: the options of the preparation.
      folder: the folder of the result.
      name: the shard's name without its ending.
      indices: the numbers of its examples in the source, int64 [n].
      progress: function that is called now and then with the numbers of examples that were done
        and that were dropped since the last call.
    """
    open_writer = import_tensorflow().io.TFRecordWriter
    path = folder / f"{name}.tfrecord"
    unfinished = unfinished_path(path)
    try:
        with warnings.catch_warnings(), open_writer(os.fspath(unfinished)) as writer:
            warnings.simplefilter("ignore")  # what Pillow thinks of odd pictures
            dropped = _write_records(writer, source, settings, indices, progress)
        # What is hashed is what was stored, also where that is a service.
        size, sha256 = unfinished.stat().length, sha256_of(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    make_index(os.fspath(path), scan_tfrecord)
    report = {
        "examples": len(indices) - len(dropped),
        "bytes": size,
        "sha256": sha256,
        "dropped": by_reason(dropped),
        "dropped_rows": dropped,
    }
    write_atomically(folder / f"{name}.json", as_json(report))


def _write_records(writer, source, settings, indices, progress):
    """Writes the examples that can be used; returns the others, as they stand in DROPPED."""
    dropped, reported = [], (0, 0)
    for done, (index, future) in enumerate(_read_ahead(source, indices), start=1):
        key = source.key(index)
        try:
            writer.write(_example(key, future.result(), settings))
        except Unreadable as error:
            dropped.append(
                {"key": key, "index": index, "reason": error.reason, "detail": error.detail}
            )
        if done % REPORT_EVERY == 0 or done == len(indices):
            progress(done - reported[0], len(dropped) - reported[1])
            reported = done, len(dropped)
    return dropped


def _example(key, record, settings):
    """A serialised tf.train.Example; raises Unreadable."""
    train = import_tensorflow().train
    feature, encoded, size = stored_picture(record.image, settings)
    values = {"key": [key], feature: [encoded], "txt": record.captions}
    features = {
        name: train.Feature(bytes_list=train.BytesList(value=map(_as_bytes, content)))
        for name, content in values.items()
    }
    for name, side in zip(("width", "height"), size or (), strict=False):
        features[name] = train.Feature(int64_list=train.Int64List(value=[side]))
    example = train.Example(features=train.Features(feature=features))
    return example.SerializeToString(deterministic=True)  # a map has no order of its own


def _as_bytes(value):
    # JSON and tar files may hold lone surrogates, which UTF-8 has no bytes for.
    return value.encode("utf-8", "replace") if isinstance(value, str) else value


def _read_ahead(source, indices):
    """Yields each example's (index, future of its Record) in order."""
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        waiting = collections.deque()
        try:
            for index in map(int, indices):
                waiting.append((index, pool.submit(source.read, index)))
                if len(waiting) == READ_AHEAD:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            pool.shutdown(cancel_futures=True)


def by_reason(rows: list[dict[str, Any]]) -> dict[str, int]:
    """{reason: number of rows}, the commonest first."""
    counts = collections.Counter(row["reason"] for row in rows)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def as_json(value: Any) -> str:
    """The text of a JSON file beside the shards."""
    return json.dumps(value, indent=1) + "\n"


def sentence(error: Exception) -> str:
    """The message of an expected error, which names the options instead of config keys."""
    if not isinstance(error, UserError):
        text = shortened(getattr(error, "message", None) or str(error))
        return f"{text}; once that is mended, the same command continues"
    message = str(error).replace("config.data.templates", "--template")
    return message.replace("config.data.", "--")
