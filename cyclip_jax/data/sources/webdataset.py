"""Tar shards as webdataset and img2dataset write them."""

import logging
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from cyclip_jax.data.captions import CaptionRule
from cyclip_jax.data.reading import Reading
from cyclip_jax.data.record import Record, Unreadable, first_caption, part_of
from cyclip_jax.data.sources.ranges import Files, Kept, expand
from cyclip_jax.data.sources.shard_index import Members, open_indexes, reason_of, scan_tar
from cyclip_jax.errors import UserError
from cyclip_jax.files import parse_json

IMAGE_KEY = "jpg;jpeg;png;webp;gif;bmp"
CAPTION_KEY = "txt"
KEPT_SHARDS = 16  # whose examples' names are kept
ABSENT = -1  # in place of the offset of a member that an example lacks
DOUBLED = "two examples of the shard follow each other under one name"
APART = "the caption does not stand beside its picture in the shard; pack it with tar --sort=name"


def webdataset_source(path: str, reading: Reading, *, config_key: str) -> "WebDataset":
    """Opens tar shards without reading any picture.

    Args:
      path: a pattern of shards (see `ranges.expand`).
      reading: its image_key is the ending of the picture's member, by default IMAGE_KEY. Of several
        with ; between them the first that is found counts. Its caption_key is the ending of the
        caption's member, such as "txt", or a tuple of several, by default CAPTION_KEY.
        "json:caption" names a field of a JSON member, which may hold a list.
      config_key: full name of the config key that holds `path`, for messages.

    Raises:
      UserError: a shard is missing or unreadable, or no example has such a picture and caption.
    """
    paths = expand(path, config_key=config_key, endings=(".tar",))
    rule, image_key = reading.caption_rule(CAPTION_KEY), reading.image_key or IMAGE_KEY
    indexes = open_indexes(paths, scan_tar)
    source = WebDataset(
        *(paths, indexes, image_key, rule, reading.kept_examples),
        negative_image_key=reading.negative_image_key,
    )
    endings = ", ".join(sorted(source.endings)[:20]) or "nothing"
    if not len(source):
        faults = "".join(f" ({name}: {fault})" for name, _, fault in source.faults[:1])
        raise UserError(
            f"no example of {path} has a picture ({image_key}); the shards hold "
            f"members that end in {endings}{faults}; set config.data.image_key"
        )
    if all((offsets == ABSENT).all() for offsets, _ in source.caption_places):
        if source.bad:
            reason, detail = next(iter(source.bad.values()))
            raise UserError(f"no example of {path} can be used: {reason} ({detail})")
        raise UserError(
            f"no example of {path} has a caption ({', '.join(rule.fields)}); the shards hold "
            f"members that end in {endings}; set config.data.caption_key"
        )
    source.check_json_fields(path)
    reading.check_negatives(source, path)
    return source


class WebDataset:
    """Examples of tar shards (see `webdataset_source`).

    Attributes:
      boundaries: where each shard's examples begin, and the end, int64 [shards + 1].
      faults: [(key, reason, detail)] of examples that are lost with the end of their shard.
      bad: {example: (reason, detail)} of those whose members do not belong together.
      caption_places: [(offsets, sizes)] of the members of each caption field, int64 and uint32 [n].
      endings: the endings of the members in the shards.
    """

    def __init__(
        self,
        paths: list[str],
        indexes: Sequence[Members],
        image_key: str,
        rule: CaptionRule,
        kept_examples: int = 0,
        *,
        negative_image_key: str | None = None,
    ) -> None:
        self._rule = rule
        self._image_endings = image_key.split(";")
        members = [field.partition(":") for field in rule.fields]
        self._json_fields = [field for _, _, field in members]
        pictures, negatives = _Places(), _Places()
        negative_endings = (negative_image_key or "").split(";")
        captions = [_Places() for _ in members]
        self.endings: set[str] = set()
        self.faults: list[tuple[str, str, str]] = []
        self.bad: dict[int, tuple[str, str]] = {}
        counts = [0]
        for path, index in zip(paths, indexes, strict=True):
            self.endings |= set(index.names)
            if index.fault:
                self.faults.append((path, reason_of(index.fault), index.fault))
            image = _first_places(index, self._image_endings)
            texts = [_first_places(index, [ending]) for ending, _, _ in members]
            has_picture = image[0] != ABSENT
            pictures.add(image, has_picture)
            negatives.add(_first_places(index, negative_endings), has_picture)
            for places, text in zip(captions, texts, strict=True):
                places.add(text, has_picture)
            self._add_bad(path, index, has_picture, texts, counts[-1])
            counts.append(int(has_picture.sum()))
            if counts[-1] < len(has_picture):
                lacking = len(has_picture) - counts[-1]
                logging.warning("%s: %d examples without a picture are left out", path, lacking)
        self.boundaries: Int[np.ndarray, "shards+1"] = np.cumsum(counts, dtype=np.int64)
        self._image = pictures.joined()
        self._negative_image = negatives.joined() if negative_image_key is not None else None
        self._files = Files(paths, kept_bytes=int(kept_examples * self.mean_bytes))
        self.caption_places: list[tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]] = [
            places.joined() for places in captions
        ]
        # Millions of names would take more memory than all that is needed to read.
        self._keys = Kept[list[str]](KEPT_SHARDS)
        self._paths = paths

    def __len__(self) -> int:
        return int(self.boundaries[-1])

    def keys(self, indices: Iterable[int]) -> list[str]:
        """The examples' names in their shards, each after the path of the shard, list[str]."""
        names = []
        for index in indices:
            shard = part_of(self.boundaries, index)
            keys = self._keys.get(shard, lambda shard=shard: self._keys_of_shard(shard))
            names.append(f"{self._paths[shard]}/{keys[index - self.boundaries[shard]]}")
        return names

    def captions(self, first: int = 0, end: int | None = None) -> list[str]:
        """The first caption of these examples, list[str]; "" where there is none."""
        return [first_caption(self._captions, index) for index in range(len(self))[first:end]]

    def read(self, index: int) -> Record:
        """The Record of an example; raises Unreadable."""
        image = self._member(self._image, index)
        if self._negative_image is None or self._negative_image[0][index] == ABSENT:
            return self._captions(index, image)
        return self._captions(index, image, self._member(self._negative_image, index))

    def _member(self, places, index):
        offset, size = (int(part[index]) for part in places)
        return self._files.read(part_of(self.boundaries, index), offset, size)

    def check_json_fields(self, path: str | None) -> None:
        """Raises UserError where captions are fields of JSON that the first example lacks."""
        known, shard = set(), part_of(self.boundaries, 0)
        for (offsets, sizes), field in zip(self.caption_places, self._json_fields, strict=True):
            if not field or offsets[0] == ABSENT:
                return
            try:
                content = parse_json(self._files.read(shard, int(offsets[0]), int(sizes[0])))
            except (Unreadable, ValueError):
                return
            if not isinstance(content, dict) or field in content:
                return
            known |= set(content)
        raise UserError(
            f"the first example of {path} has no JSON field for {', '.join(self._rule.fields)} "
            f"(fields: {', '.join(sorted(known)) or 'none'}); set config.data.caption_key"
        )

    @property
    def mean_bytes(self) -> float:
        """Mean size of a picture's file in bytes."""
        return float(self._image[1].mean()) if len(self) else 0.0

    def _add_bad(self, path, index, has_picture, texts, start):
        """Notes the examples of a shard whose members do not belong together."""
        doubled = _doubled(index)
        has_text = np.any([offsets != ABSENT for offsets, _ in texts], axis=0)
        lone_texts = {index.keys[sample] for sample in np.flatnonzero(~has_picture & has_text)}
        lone_pictures = np.flatnonzero(has_picture & ~has_text) if lone_texts else ()
        apart = [sample for sample in lone_pictures if index.keys[sample] in lone_texts]
        number = start - 1 + np.cumsum(has_picture)
        for samples, reason in ((apart, APART), (doubled, DOUBLED)):
            for sample in samples:
                if has_picture[sample]:
                    self.bad[int(number[sample])] = (reason, f"{index.keys[sample]} in {path}")

    def _captions(self, index: int, image: bytes = b"", negative_image: bytes = b"") -> Record:
        if index in self.bad:
            raise Unreadable(*self.bad[index])
        shard = part_of(self.boundaries, index)
        values = []
        for (offsets, sizes), field in zip(self.caption_places, self._json_fields, strict=True):
            if offsets[index] == ABSENT:
                values.append([])
                continue
            content = self._files.read(shard, int(offsets[index]), int(sizes[index]))
            values.append(_texts_of_json(content, field) if field else [content])
        return self._rule.record(image, values, negative_image)

    def _keys_of_shard(self, shard):
        count = int(self.boundaries[shard + 1] - self.boundaries[shard])
        try:
            (index,) = open_indexes([self._paths[shard]], scan_tar)
            has_picture = _first_places(index, self._image_endings)[0] != ABSENT
            keys = [index.keys[sample] for sample in np.flatnonzero(has_picture)]
        except UserError:
            keys = []
        # A shard that is gone or another than when it was opened does not tell their names.
        return keys if len(keys) == count else [f"#{number}" for number in range(count)]


def _texts_of_json(content, field):
    try:
        value = parse_json(content).get(field)
    except (ValueError, AttributeError) as error:
        raise Unreadable("the caption's JSON cannot be read", str(error)) from error
    values = value if isinstance(value, list) else [value]
    return [value for value in values if value is not None]


class _Places:
    """Grows (offsets int64 [N], sizes uint32 [N]) shard by shard."""

    def __init__(self):
        self._offsets, self._sizes = [], []

    def add(self, places, kept):
        self._offsets.append(places[0][kept])
        self._sizes.append(places[1][kept].astype(np.uint32))

    def joined(self) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
        return np.concatenate(self._offsets), np.concatenate(self._sizes)


def _doubled(index):
    """The numbers of the examples of which two members have one ending: two under one name."""
    members = index.samples * len(index.names) + index.endings
    different, counts = np.unique(members, return_counts=True)
    return np.unique(different[counts > 1] // max(len(index.names), 1))


def _first_places(index, endings):
    """(offsets, sizes) of each example's member with the first of these endings that it has."""
    samples = int(index.samples[-1]) + 1 if len(index.samples) else 0
    offsets, sizes = np.full(samples, ABSENT, np.int64), np.zeros(samples, np.int64)
    for ending in reversed([ending.strip().lower() for ending in endings]):
        if ending in index.names:
            chosen = index.endings == index.names.index(ending)
            offsets[index.samples[chosen]] = index.offsets[chosen]
            sizes[index.samples[chosen]] = index.sizes[chosen]
    return offsets, sizes
