"""Data of pairs: distinct pictures, each with one caption or several."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from cyclip_jax.data.record import first_caption, read_told
from cyclip_jax.data.sources import CaptionRule, Unreadable, source_told_by
from cyclip_jax.data.sources.ranges import READERS
from cyclip_jax.data.sources.subset import Subset
from cyclip_jax.data.sources.table import CsvSource
from cyclip_jax.data.sources.webdataset import WebDataset
from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.image_set import ImageSet
from cyclip_jax.evals.data.labelled import check_images, open_images
from cyclip_jax.files import how_written, parse_json, read_text


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pictures and captions that belong together.

    Attributes:
      images: the distinct pictures, an ImageSet.
      image_ids: int [P], each pair's picture.
      captions: each pair's caption, list[str]; none is blank. Pairs are in file order.
    """

    images: ImageSet
    image_ids: Int[np.ndarray, "pairs"]
    captions: list[str]


def open_pairs(
    path: str,
    *,
    config_key: str,
    source: str = "auto",
    images: str | None = None,
    split: str | None = "test",
    image_key: str | None = None,
    caption_key: str | Sequence[str] | None = None,
    delimiter: str = ",",
) -> Callable[[], Pairs]:
    """Opens a data set of pairs.

    Args:
      path: one of
        - a file or shards as data.train, whose records may hold several captions; rows of a CSV
          with the same image path are one picture;
        - a .json with Karpathy and Fei-Fei's splits (`dataset_coco.json`, `dataset_flickr30k.json`
          and their like): {"images": [{"filename", "filepath" where there are sub-folders, "split",
          "sentences": [{"raw"}]}]};
        - a folder in CLIP_benchmark's layout for retrieval: `dataset_type.txt`, and of each split
          `nshards.txt` and tar shards 0.tar, 1.tar, …, whose .txt holds a caption a line.
      config_key: full name of the config keys' parent, for messages.
      source, image_key, caption_key, delimiter: as in config.data; of the first kind of path alone.
      images: folder that the pictures of a .json lie in; default the file's own.
      split: of a .json or folder.

    Returns:
      A function () -> Pairs. It reads the captions, and keeps them.

    Raises:
      UserError: what is wrong with the data.
    """
    if _is_json(path):
        opened = _open_karpathy(path, images, split, config_key)
        return functools.cache(lambda: _read_pairs(opened, has_one_each=True))
    if path and (epath.Path(path) / "dataset_type.txt").exists():
        opened = _open_clip_benchmark(path, split, config_key)
        return functools.cache(lambda: _read_pairs(opened, has_one_each=True, is_by_line=True))
    opened = open_images(
        path,
        config_key=f"{config_key}.pairs",
        source=_source_of(source),
        image_key=image_key,
        caption_key=caption_key,
        delimiter=delimiter,
    )
    is_one_text = caption_key is None or (isinstance(caption_key, str) and ":" not in caption_key)
    has_one_each = is_one_text and isinstance(opened.source, CsvSource | WebDataset)
    return functools.cache(lambda: _read_pairs(opened, has_one_each=has_one_each))


def check_pairs(
    path: str,
    *,
    config_key: str,
    source: str,
    images: str | None,
    image_key: str | None,
    caption_key: str | Sequence[str] | None,
    delimiter: str,
) -> None:
    """Raises UserError where `open_pairs` with these arguments would without a look at the data."""
    if _is_json(path):
        return
    if images is not None:
        raise UserError(
            f"{config_key}.images is {images}, but {config_key}.pairs is no .json, whose pictures "
            "may lie elsewhere; leave it out"
        )
    source = _source_of(source)
    if path and source == "auto" and source_told_by(str(path)) is None:
        return  # it may be a folder in CLIP_benchmark's layout
    columns = {"image_key": image_key, "caption_key": caption_key, "delimiter": delimiter}
    check_images(path, config_key=f"{config_key}.pairs", source=source, **columns)


def _is_json(path):
    return str(path).lower().endswith(".json")


def _source_of(source):
    """What `source` means for pairs; a mixture is a matter of training."""
    return "auto" if source == "mixture" else source


def distinct(
    values: Iterable[Hashable],
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "distinct"]]:
    """Numbers equal values alike, in the order in which they first stand.

    Returns:
      (the number of each one's distinct value, int [n]; where each distinct value first stands).
    """
    numbers: dict[Hashable, int] = {}
    ids = np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)
    return ids, np.unique(ids, return_index=True)[1]


def _open_karpathy(path, images, split, config_key):
    """An ImageSet of the sentences' rows: a picture stands in as many as it has captions."""
    file = epath.Path(path)
    if not file.exists():
        raise UserError(
            f"{path} does not exist{how_written(path)}; set {config_key}.pairs to a file that does"
        )
    rows, splits = [], set()
    try:
        for entry in parse_json(file.read_bytes())["images"]:
            splits.add(entry["split"])
            if entry["split"] == split:
                folder = f"{entry['filepath']}/" if "filepath" in entry else ""
                rows += [(folder + entry["filename"], text["raw"]) for text in entry["sentences"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not laid out as dataset_coco.json, "
            '{"images": [{"filename", "split", "sentences": [{"raw"}]}]} '
            f"({error!r}); set {config_key}.pairs to such a file"
        ) from error
    if not rows:
        raise UserError(
            f"{path} has no captions in the split {split!r} (splits: "
            f"{', '.join(sorted(splits)) or 'none'}); set {config_key}.split"
        )
    folder = str(file.parent if images is None else images)
    rule = CaptionRule("raw")
    paths, captions = zip(*rows, strict=True)
    # Tuples serve as its arrays of strings.
    columns: Any = paths, [[first_caption(rule.record, b"", [[text]]) for text in captions]]
    source = CsvSource(folder, *columns, rule)
    return ImageSet(source, ("karpathy", str(path), folder, split), str(path))


def _open_clip_benchmark(path, split, config_key):
    """An ImageSet of the shards of a split."""
    folder = epath.Path(path)
    kind = read_text(folder / "dataset_type.txt").strip()
    if kind.lower() != "retrieval":
        raise UserError(
            f"{path} holds data for {kind!r} by its dataset_type.txt; set {config_key}.pairs to "
            "data for retrieval"
        )
    shards = folder / split / "nshards.txt"
    try:
        count = int(read_text(shards))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{shards} does not tell the number of shards ({error}); set {config_key}.split to a "
            "folder that has one"
        ) from error
    pattern = f"{folder / split}/{{0..{count - 1}}}.tar"
    return open_images(pattern, config_key=f"{config_key}.pairs", source="webdataset")


def _read_pairs(opened, *, has_one_each, is_by_line=False):
    """Pairs of an ImageSet.

    Args:
      opened: the ImageSet, of which only a CSV's rows may share a picture.
      has_one_each: whether its examples have one caption each, which is read without the picture.
      is_by_line: whether a text holds a caption a line.
    """
    source = opened.source
    if has_one_each:
        texts = [[text] for text in source.captions()]
    else:
        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            texts = list(pool.map(lambda row: _captions_of(source, row), range(len(source))))
    if is_by_line:
        texts = [text.splitlines() for (text,) in texts]
    texts = [[text for text in own if text.strip()] for own in texts]
    rows = np.repeat(np.arange(len(texts)), [len(own) for own in texts])
    if not len(rows):
        raise UserError(f"no example of {opened.path} has a caption")
    lacking = [row for row, own in enumerate(texts) if not own]
    if lacking:
        first = source.keys(lacking[:1])[0]
        logging.warning(
            "left out %d of %s without caption: %s, …", len(lacking), opened.path, first
        )
    image_ids, first = distinct(
        source.keys(rows) if isinstance(source, CsvSource) else rows.tolist()
    )
    images = opened
    if len(first) < len(source):
        kept = rows[first]  # which depends on the captions, so it belongs to the identity
        identity = *opened.identity, "rows", hashlib.sha256(kept.tobytes()).hexdigest()
        images = ImageSet(Subset(source, kept), identity, opened.path)
    return Pairs(images, image_ids, [text for own in texts for text in own])


def _captions_of(source, row):
    """All captions of an example; none where it cannot be read."""
    try:
        return read_told(source.read, row).captions
    except Unreadable as error:
        logging.warning("left out %s (row %d): %s", source.keys([row])[0], row, error)
        return []
