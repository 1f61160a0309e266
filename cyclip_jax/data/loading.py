"""Examples by their number: read, decoded, and, where one is bad, replaced, in a graph."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from jaxtyping import Bool, Int, UInt8

from cyclip_jax.data import images
from cyclip_jax.data.captions import draw_caption
from cyclip_jax.data.record import Record, Unreadable, read_told
from cyclip_jax.data.second_views import SecondCaption
from cyclip_jax.data.sources import Mixture, Source
from cyclip_jax.data.transform import Transform

NO_EXAMPLE = -1  # in place of an example's index
NEGATIVE = "negative_tokens"  # the name in a batch of the wrong captions
HAS_NEGATIVE_IMAGE = "has_negative_image"

Pictures: TypeAlias = dict[str, UInt8[tf.Tensor, "h w 3"] | Bool[tf.Tensor, ""]]


@dataclasses.dataclass(frozen=True)
class Loader:
    """What the examples of a batch are loaded with.

    Attributes:
      source: where they come from (see sources/__init__.py).
      pictures: graph function (encoded [files], row int64 [2]) → {name in the batch: tensor},
        raising tf.errors.OpError.
      specs: {name in the batch: tf.TensorSpec} of what `pictures` gives.
      captions: {name in the batch: function (record, epoch, index) → text}.
      words: {name in the batch: function of a record → text} of what is handed on as it is, in
        UTF-8, and not tokenised.
    """

    source: Source | Mixture
    pictures: Callable[[tf.Tensor, tf.Tensor], Pictures]
    specs: Mapping[str, tf.TensorSpec]
    captions: dict[str, Callable[[Record, int, int], str]]
    words: Mapping[str, Callable[[Record], str]] = dataclasses.field(default_factory=dict)

    @property
    def files(self) -> int:
        """How many files of pictures an example has: its own, and perhaps its negative one."""
        return 1 + (HAS_NEGATIVE_IMAGE in self.specs)

    @property
    def texts(self) -> tuple[str, ...]:
        """The names in the batch of all that is text."""
        return (*self.captions, *self.words)

    def read(self, epoch: int, index: int) -> tuple[list[bytes], dict[str, bytes]]:
        """(encoded images, {name in the batch: text}) of one example; raises Unreadable."""
        if index == NO_EXAMPLE:
            raise Unreadable("no example")
        record = read_told(self.source.read, index)
        texts = {name: text(record, epoch, index) for name, text in self.captions.items()}
        texts |= {name: text(record) for name, text in self.words.items()}
        encoded = {name: text.encode("utf-8", "replace") for name, text in texts.items()}
        return [record.image, record.negative_image][: self.files], encoded

    def read_rows(self, rows: Int[np.ndarray, "n 2"]) -> list[np.ndarray]:
        """The files and captions of some examples, from the numbers that the graph has of them.

        Args:
          rows: int64 [n, 2] of (epoch, index).

        Returns:
          Whether each can be read, bool [n]; the encoded images, bytes [n, files], and each kind of
          texts, bytes [n].
        """
        is_read = np.zeros(len(rows), bool)
        encoded = np.full((len(rows), self.files), b"", object)
        captions = {name: np.full(len(rows), b"", object) for name in self.texts}
        for i, (epoch, index) in enumerate(rows.tolist()):
            try:
                encoded[i], texts = self.read(epoch, index)
                is_read[i] = True
            except Unreadable:
                continue  # reported when the batch is handed out
            for name, text in texts.items():
                captions[name][i] = text
        return [is_read, encoded, *captions.values()]


def train_loader(
    source: Source | Mixture,
    image_size: int,
    seed: int,
    transform: Transform,
    second_transform: Transform | None = None,
    second_caption: SecondCaption | None = None,
    negative_caption: SecondCaption | None = None,
    has_negative_images: bool = False,
) -> Loader:
    """What training loads examples with.

    Args:
      source: where they come from.
      image_size: side of the images in pixels.
      seed: of everything that is random about an example.
      transform: what happens to a picture.
      second_transform: the same for its second view, "second_images"; None leaves that out.
      second_caption: what makes the second view of a caption, "second_tokens"; None leaves that
        out.
      negative_caption: what makes a wrong caption, NEGATIVE; None leaves that out.
      has_negative_images: whether examples have the pictures that wrong captions describe,
        "negative_images", and HAS_NEGATIVE_IMAGE.
    """

    def caption(record, epoch, index):
        return draw_caption(record, seed, epoch, index)

    def derived(make):
        return lambda record, epoch, index: make(
            record, caption(record, epoch, index), seed, epoch, index
        )

    captions = {"tokens": caption}
    for name, make in (("second_tokens", second_caption), (NEGATIVE, negative_caption)):
        if make is not None:
            captions[name] = derived(make)
    pictures = _train_pictures(image_size, seed, transform, second_transform, has_negative_images)
    specs = {"images": _image_spec(image_size)}
    if second_transform is not None:
        specs["second_images"] = _image_spec(image_size)
    if has_negative_images:
        specs["negative_images"] = _image_spec(image_size)
        specs[HAS_NEGATIVE_IMAGE] = tf.TensorSpec([], tf.bool)
    return Loader(source, pictures, specs, captions)


def eval_loader(
    source: Source | Mixture,
    image_size: int,
    resize_mode: str = "shortest",
    words: Mapping[str, Callable[[Record], str]] | None = None,
) -> Loader:
    """What evaluations load examples with: nothing is random, and the first caption is taken.

    Args:
      source: where they come from.
      image_size: side of the images in pixels.
      resize_mode: how a picture becomes a square, see `Transform`.
      words: as of `Loader`; None is nothing.
    """
    pictures = _eval_pictures(image_size, resize_mode)
    captions = {"tokens": lambda record, epoch, index: record.captions[0]}
    return Loader(source, pictures, {"images": _image_spec(image_size)}, captions, words or {})


def prepared(
    encoded: bytes, image_size: int, resize_mode: str = "shortest"
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture's file as evaluations prepare it.

    Args:
      encoded: the file's bytes.
      image_size, resize_mode: as in `eval_loader`.

    Raises:
      tf.errors.OpError: it is no picture.
    """
    row = tf.constant([0, 0], tf.int64)  # nothing is random
    return _eval_pictures(image_size, resize_mode)(tf.constant([encoded]), row)["images"].numpy()


def _image_spec(side):
    return tf.TensorSpec([side, side, 3], tf.uint8)


@functools.cache
def _train_pictures(image_size, seed, transform, second, has_negative_images):
    def pictures(encoded, row):
        example_seed = images.example_seed(seed, row[0], row[1])
        of = {"size": image_size, "settings": transform}
        if second is None:
            views = {"images": images.transform(encoded[0], example_seed, **of)}
        else:
            both = images.two_views(encoded[0], example_seed, second=second, **of)
            views = dict(zip(("images", "second_images"), both, strict=True))
        if not has_negative_images:
            return views
        is_there = encoded[1] != b""
        # In place of a missing one, which nothing compares, stands the picture itself, whose
        # statistics are no stranger to a BatchNorm.
        negative = images.transform(
            tf.where(is_there, encoded[1], encoded[0]), example_seed + images.NEGATIVE, **of
        )
        return views | {"negative_images": negative, HAS_NEGATIVE_IMAGE: is_there}

    return _traced_once(pictures)


@functools.cache
def _eval_pictures(image_size, resize_mode):
    """Traced once for all evaluations."""
    settings = Transform(resize_mode=resize_mode)

    def pictures(encoded, row):
        del row  # nothing is random
        return {"images": images.transform(encoded[0], size=image_size, settings=settings)}

    return _traced_once(pictures)


def _traced_once(pictures):
    """A graph function of (encoded, row), that the several places that call it share."""
    signature = [tf.TensorSpec([None], tf.string), tf.TensorSpec([2], tf.int64)]
    return tf.function(pictures, input_signature=signature, autograph=False)


def load_chunk(
    rows: Int[tf.Tensor, "c 2"],
    *,
    loader: Loader,
    candidates: Callable[[tf.Tensor], tf.Tensor],
) -> tuple[dict[str, Any], tf.Tensor, tf.Tensor]:
    """Loads some examples: together, or, where one of them cannot be read, one by one.

    In a graph, only a dataset can go on after an error: a small one drops what raises one, and what
    follows takes its place.

    Args:
      rows: int64 [c, 2].
      loader: what they are loaded with.
      candidates: row → int64 [k, 2], the examples that may stand for it, in order of preference.

    Returns:
      ({name in the batch: images uint8 [c, h, w, 3], or texts [c]}, rows, used [c]): used is the
      index of the example that was loaded in each place, or NO_EXAMPLE, with black images and empty
      texts, where there was none.
    """
    kinds = {name: spec.dtype for name, spec in loader.specs.items()}
    texts = dict.fromkeys(loader.texts, tf.string)

    def load_rows(rows):
        is_read, encoded, *captions = tf.numpy_function(
            loader.read_rows, [rows], [tf.bool, tf.string, *texts.values()]
        )
        n = rows.shape[0]
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(is_read), ["unread"])]):
            captions = [tf.ensure_shape(part, [n]) for part in captions]
            encoded = tf.ensure_shape(encoded, [n, loader.files])
        pictures = tf.map_fn(
            lambda example: loader.pictures(*example), (encoded, rows), fn_output_signature=kinds
        )
        pictures = {
            name: tf.ensure_shape(pictures[name], [n, *spec.shape])
            for name, spec in loader.specs.items()
        }
        return pictures | dict(zip(texts, captions, strict=True)), rows[:, 1]

    def load_one(row):
        black = {
            name: tf.zeros([1, *spec.shape], spec.dtype) for name, spec in loader.specs.items()
        }
        empty = dict.fromkeys(texts, tf.constant([""]))
        nothing = tf.data.Dataset.from_tensors((black | empty, np.array([NO_EXAMPLE], np.int64)))
        readable = tf.data.Dataset.from_tensor_slices(candidates(row)).map(
            lambda candidate: load_rows(candidate[tf.newaxis])
        )
        found = readable.ignore_errors().concatenate(nothing).take(1).get_single_element()
        return tf.nest.map_structure(lambda part: part[0], found)

    def one_by_one(rows):
        return tf.map_fn(load_one, rows, fn_output_signature=(kinds | texts, tf.int64))

    chunk = tf.data.Dataset.from_tensors(rows)
    together = chunk.map(load_rows).ignore_errors()
    parts, used = together.concatenate(chunk.map(one_by_one)).take(1).get_single_element()
    return parts, rows, used
