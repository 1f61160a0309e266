"""Embeds a data set, shard by shard.

A shard is the unit of everything: several processes take turns at them, each with the model on its
own devices, and a killed command goes on with those that are missing. Which examples are embedded
together depends on their numbers alone, so that the files have the same bytes either way.
"""

import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Float16

from cyclip_jax.data.listing import Blocks, Input
from cyclip_jax.data.record import Record, Source
from cyclip_jax.data.result_folder import claimed
from cyclip_jax.embeddings.layout import (
    IMAGES,
    MANIFEST,
    METADATA,
    TEXTS,
    UNREADABLE,
    rows_as_bytes,
    shard_path,
    table_as_bytes,
)
from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.loose_pictures import open_pictures
from cyclip_jax.evals.encoders import Encoders
from cyclip_jax.evals.statistics.unit_norm import unit_rows
from cyclip_jax.files import (
    absolute,
    file_errors,
    from_anywhere,
    parse_json,
    remove_unfinished,
    write_atomically,
    write_json,
)
from cyclip_jax.interop.hub import pinned
from cyclip_jax.runtime.agreement import (
    check_same_everywhere,
    process_zero_first,
    wait_for_all_processes,
)
from cyclip_jax.runtime.progress import progress_bar
from cyclip_jax.training.opened_model import open_model

SHARD_SIZE = 16384  # examples
_AHEAD = 2  # batches beside the one on the device
_CAPTION, _SUM = "caption", "picture_sum"  # names in a batch

Rows = Float16[np.ndarray, "n d"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted(Input):
    """What is to be embedded of data, which may be a folder of pictures, too.

    Attributes:
      images: whether pictures are embedded.
      texts: whether first captions are; None embeds them where the data have some.
      text_windows: whether a caption too long for the model is the mean of its windows.
      batch_size: examples that each process embeds at once.
      shard_size: examples of a shard.
    """

    images: bool = True
    texts: bool | None = None
    text_windows: bool = False
    batch_size: int = 64
    shard_size: int = SHARD_SIZE

    def opened(self) -> "Opened":
        """The data, opened.

        Raises:
          UserError: something is wrong with them, or they lack what is to be embedded.
        """
        source, has_captions = open_data(self)
        if self.texts and not has_captions:
            raise UserError(
                f"--data={self.input} is pictures without captions; leave out --texts, or name the "
                "CSV or the shards that have both"
            )
        embeds_texts = has_captions if self.texts is None else self.texts
        if not self.images and not embeds_texts:
            raise UserError("neither pictures nor captions are embedded; set --images or --texts")
        return Opened(source, has_captions, embeds_texts)


class Opened(NamedTuple):
    """Data that are to be embedded, whether they have captions, and whether these are embedded."""

    source: Source
    has_captions: bool
    embeds_texts: bool


def open_data(data: Input) -> tuple[Source, bool]:
    """Opens what is embedded.

    Args:
      data: what `Input` may name, or a folder of pictures.

    Returns:
      (the data, whether they have captions).

    Raises:
      UserError: something is wrong with them.
    """
    if data.source == "auto" and data.kept is None and absolute(data.input, "--data").is_dir():
        return open_pictures(data.input).source, False
    return data.open("--data"), True


def picture_sum(picture: bytes) -> str:
    """What tells a picture's file from others: its BLAKE2b of 16 bytes, in hexadecimal digits."""
    return hashlib.blake2b(picture, digest_size=16).hexdigest()


class Unusable(NamedTuple):
    """An example that could not be embedded, by its number and name, and why."""

    example: int
    name: str
    reason: str
    detail: str


class _Unusables:
    """Takes what `eval_batches` tells of examples that cannot be read."""

    def __init__(self) -> None:
        self._found: dict[int, Unusable] = {}

    def __contains__(self, key_and_index: tuple[str, int]) -> bool:
        return key_and_index[1] in self._found

    def add(
        self, key: str, index: int, reason: str, detail: str = "", position: Any = None
    ) -> None:
        """Takes one."""
        del position
        self._found[index] = Unusable(index, key, reason, detail)

    def taken_from(self, rows: range) -> list[Unusable]:
        """Those with these numbers, which are then forgotten."""
        return [self._found.pop(index) for index in sorted(self._found) if index in rows]


def embed_data(
    wanted: Wanted,
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    step: int | None = None,
    weights: str = "raw",
) -> dict[str, Any]:
    """Writes the embeddings of a data set, as layout.py says; continues what was begun.

    Args:
      wanted: the data, and what of them is embedded.
      checkpoint: anything that `cyclip_jax.load` takes.
      output: folder, local or remote.
      step, weights: which of a workdir's weights, as of `open_checkpoint`.

    Returns:
      The manifest.

    Raises:
      UserError: the data or the model cannot be read, or the folder holds something else.
    """
    folder = absolute(output, "--output")
    is_first = jax.process_index() == 0
    with claimed(folder) if is_first else contextlib.nullcontext():
        data = wanted.opened()
        opened = open_model(
            checkpoint,
            step=step,
            weights=weights,
            batch_size=wanted.batch_size,
            text_windows=wanted.text_windows,
            alone=True,
        )
        settings = dataclasses.asdict(wanted)
        told = {"data": from_anywhere(settings.pop("input"))} | settings
        told |= {
            "kept": None if wanted.kept is None else from_anywhere(wanted.kept),
            "texts": data.embeds_texts,
            "weights_sum": opened.checkpoint.weights_sum(),
        }
        examples = len(data.source)
        check_same_everywhere(told | {"examples": examples})
        blocks = process_zero_first(lambda: _begun(folder, told, examples, wanted.shard_size))
        if not (folder / MANIFEST).exists():
            job = _Job(wanted, data, opened.encoders, folder, blocks)
            job.write_own_shards()
            wait_for_all_processes()
            about = {
                "checkpoint": from_anywhere(pinned(checkpoint)),
                "step": opened.checkpoint.step,
                "weights": weights,
                "logit_scale": opened.logit_scale,
                "logit_bias": opened.logit_bias,
            }
            if is_first:
                _finish(folder, blocks, told | about)
            wait_for_all_processes()
        return dict(parse_json((folder / MANIFEST).read_text()))


def _begun(folder, told, examples, shard_size):
    """The folder's Blocks; what a killed process left half written is removed."""
    for kind in (IMAGES, TEXTS, METADATA):
        remove_unfinished(folder / kind)
    blocks = Blocks(folder, told, examples, shard_size)
    remove_unfinished(blocks.folder)
    return blocks


@dataclasses.dataclass(frozen=True)
class _Job:
    """What this process does of a data set's embeddings.

    Attributes:
      wanted: as the command was told.
      data: as they were opened.
      encoders: the model, on this process's devices.
      folder: where the shards go.
      blocks: the examples of each shard, and where it is noted that one is whole.
    """

    wanted: Wanted
    data: Opened
    encoders: Encoders
    folder: epath.Path
    blocks: Blocks

    def write_own_shards(self) -> None:
        """Writes those of this process's shards that are missing."""
        ranges = list(enumerate(self.blocks.ranges))[jax.process_index() :: jax.process_count()]
        done = {path.name for path in _notes(self.blocks)}
        missing = [(n, rows) for n, rows in ranges if _note(self.blocks, n).name not in done]
        unusable = _Unusables()
        batches = self._batches([rows for _, rows in missing], unusable)
        total, left = (sum(len(rows) for _, rows in some) for some in (ranges, missing))
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(progress_bar(total, total - left))
            # One thread: two would both compile.
            pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
            stack.callback(batches.close)
            embedded = _in_turn(pool, self._embedded, batches)
            for number, rows in missing:
                parts = []
                for _ in range(-(-len(rows) // self.wanted.batch_size)):
                    parts.append(next(embedded))
                    progress(len(parts[-1]["example"]), 0)
                self._write(number, parts, unusable.taken_from(rows), progress)

    def _batches(self, ranges, unusable) -> Generator[dict[str, Any], None, None]:
        """Batches as of `eval_batches`, with the examples' numbers."""
        numbers = (
            np.arange(first, first + self.wanted.batch_size)
            for rows in ranges
            for first in range(rows.start, rows.stop, self.wanted.batch_size)
        )
        if self.wanted.images:
            batches = self._whole_batches(ranges, unusable)
        else:
            batches = self._captions_alone(ranges, unusable)
        for batch, example in zip(batches, numbers, strict=True):
            yield {**batch, "example": example}

    def _whole_batches(self, ranges, unusable):
        from cyclip_jax.data.pipeline import eval_batches  # TensorFlow: slow to import

        words: dict[str, Callable[[Record], str]] = {
            _CAPTION: lambda record: record.captions[0],
            _SUM: lambda record: picture_sum(record.image),
        }
        tokenize = self.encoders.tokenize if self.data.embeds_texts else _no_tokens
        return eval_batches(
            self.data.source,
            tokenize,
            batch_size=self.wanted.batch_size,
            image_size=self.encoders.image_size,
            resize_mode=self.encoders.resize_mode,
            bad_examples=unusable,
            ranges=ranges,
            words=words,
        )

    def _captions_alone(self, ranges, unusable):
        """The same without pictures, which are not even read where captions lie apart."""
        source, size = self.data.source, self.wanted.batch_size
        for rows in ranges:
            for first in range(rows.start, rows.stop, size):
                captions = source.captions(first, min(first + size, rows.stop))
                mask = np.zeros(size, bool)
                mask[: len(captions)] = [bool(caption.strip()) for caption in captions]
                for row in np.flatnonzero(~mask[: len(captions)]).tolist():
                    key = source.keys([first + row])[0]
                    unusable.add(key, first + row, "there is no caption")
                captions += [""] * (size - len(captions))
                texts = [one.encode("utf-8", "replace") for one in captions]
                yield {"tokens": self.encoders.tokenize(captions), "mask": mask, _CAPTION: texts}

    def _embedded(self, batch):
        """What is written of a batch: columns of the rows that could be read."""
        mask = batch["mask"]
        found: dict[str, Any] = {"example": batch["example"][mask]}
        captions = np.asarray(batch[_CAPTION], object)[mask]
        found[_CAPTION] = [text.decode() if self.data.has_captions else None for text in captions]
        found[_SUM] = [None] * len(captions)
        if self.wanted.images:
            found[_SUM] = [text.decode() for text in np.asarray(batch[_SUM], object)[mask]]
            features = self.encoders.encode_features(batch["images"])
            found[IMAGES] = _half(unit_rows(features[mask]))
        if self.data.embeds_texts:
            found[TEXTS] = _half(self.encoders.encode_text(batch["tokens"])[mask])
        return found

    def _write(self, number, parts, unusable, progress):
        """Writes a shard, and last of all that it is whole."""
        example = np.concatenate([part["example"] for part in parts])
        shards = len(self.blocks.ranges)
        if len(example):
            for kind in (IMAGES, TEXTS):
                if kind in parts[0]:
                    rows = np.concatenate([part[kind] for part in parts])
                    path = shard_path(self.folder, kind, number, shards)
                    write_atomically(path, rows_as_bytes(rows))
            names = self.data.source.keys(example.tolist())
            columns: dict[str, Any] = {"image_path": names, "example": example}
            for name in (_CAPTION, _SUM):
                columns[name] = [one for part in parts for one in part[name]]
            path = shard_path(self.folder, METADATA, number, shards)
            write_atomically(path, table_as_bytes(columns))
        progress(len(unusable), len(unusable))
        write_json(_note(self.blocks, number), {"kept": len(example), "unusable": unusable})


def _no_tokens(captions):
    return np.zeros((len(captions), 1), np.int32)


def _half(rows):
    if not np.isfinite(rows).all():
        raise UserError(
            "the model's embeddings are not finite; use an earlier checkpoint of it (--step)"
        )
    return rows.astype(np.float16)


def _in_turn(
    pool: concurrent.futures.Executor, function: Callable[[Any], Any], items: Iterable[Any]
) -> Iterator[Any]:
    """Yields function(item) of each item in their order; few of them wait at a time."""
    waiting: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _notes(blocks):
    return blocks.folder.iterdir() if blocks.folder.exists() else ()


def _note(blocks, number):
    """The file that is there once a shard is whole."""
    return blocks.folder / f"shard-{number:06d}.json"


def _finish(folder, blocks, told):
    """Writes what is known of all shards, which makes the embeddings whole."""
    kept, reasons = 0, Counter[str]()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Unusable._fields)
    for number in range(len(blocks.ranges)):
        try:
            note = parse_json(_note(blocks, number).read_text())
        except file_errors() as error:
            raise UserError(
                f"shard {number} is missing in {folder}; all processes must write into one folder, "
                "which all of them see"
            ) from error
        kept += note["kept"]
        for fields in note["unusable"]:
            reasons[Unusable(*fields).reason] += 1
            writer.writerow(fields)
    if reasons:
        write_atomically(folder / UNREADABLE, text.getvalue().encode("utf-8", "surrogatepass"))
    if not kept:
        raise UserError(f"no example of {told['data']} can be embedded; {UNREADABLE} says why")
    told |= {"examples": kept, "unreadable": dict(reasons.most_common())}
    write_json(folder / MANIFEST, told)
    blocks.remove()
