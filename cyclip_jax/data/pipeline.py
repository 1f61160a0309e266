"""From a source to batches: order, split by process, load, augment, tokenise, batch.

The order of examples is a pure function of (seed, epoch), and everything random about an example
one of (seed, epoch, index). So a `Position` of three numbers is the whole state of the input, and
resuming is arithmetic: no iterator is saved and no data is passed over.
"""

import dataclasses
import json
import logging
import posixpath
import sys

import numpy as np
import tensorflow as tf

from cyclip_jax.data import images
from cyclip_jax.errors import UserError

# The accelerators belong to JAX; TensorFlow would otherwise reserve their memory.
tf.config.set_visible_devices([], "GPU")

# How many other examples may stand in, one after the other, for one that cannot be read.
REPLACEMENTS = 8

NO_EXAMPLE = -1  # in place of an example's index

AUGMENTATIONS = ("none", "random_resized_crop")


@dataclasses.dataclass(frozen=True)
class Position:
    """A place in the endless stream of examples.

    Attributes:
      epoch: whole passes over the data that lie behind.
      examples: examples consumed of this epoch, by all processes together.
      seed: the seed of the order.
    """

    epoch: int
    examples: int
    seed: int


def order(seed, epoch, size, shuffle=True):
    """The order of the examples in one epoch, a pure function.

    Args:
      seed, epoch: whole numbers.
      size: number of examples.
      shuffle: whether to shuffle; otherwise the order is the source's.

    Returns:
      int64 [size], a permutation of 0 … size - 1.
    """
    if not shuffle:
        return np.arange(size, dtype=np.int64)
    key = np.array([seed, epoch], dtype=np.int64).view(np.uint64)
    # NumPy keeps a bit generator's raw output from version to version, but not what
    # `Generator.permutation` makes of it, and a run may be resumed under another version.
    return np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable")


def steps_per_epoch(size, batch_size):
    """Whole batches in one epoch of `size` examples; the rest, less than a batch, is left out.

    Raises:
      UserError: there is not a single whole batch.
    """
    if size < batch_size:
        raise UserError(
            f"config.batch_size is {batch_size}, but the training data has only {size} examples; "
            "set config.batch_size to at most that, or config.data.train to a larger dataset"
        )
    return size // batch_size


def train_batches(
    source,
    tokenizer,
    *,
    batch_size,
    image_size,
    seed,
    position,
    shuffle,
    augmentation,
    crop_scale,
    bad_examples,
    colour_jitter=0.0,
    process_index=0,
    process_count=1,
):
    """This process's rows of the endless sequence of training batches.

    Each epoch's order is cut into batches of `batch_size`, and process p takes the p-th of
    `process_count` equal parts of each batch: a step's global batch is the same for any number of
    processes. An example that cannot be read (see `BadExamples`) is replaced by another, drawn
    by (seed, epoch, index), so that every process has the same number of batches.

    Args:
      source: see sources.py.
      tokenizer: list[str] of n captions → int32 [n, l].
      batch_size: of all processes together.
      image_size: side of the images in pixels.
      seed: of order, augmentation and replacement.
      position: the `Position` to start from, or None for the beginning. The batches from there on
        are those of a run that was never interrupted.
      shuffle: whether to shuffle, anew in each epoch.
      augmentation: "none" (resize and centre crop) or "random_resized_crop".
      crop_scale: least and greatest share of the image that a random crop keeps.
      bad_examples: the `BadExamples` that counts those that cannot be read.
      colour_jitter: strength of random changes of colour, see images.py; 0 is none.
      process_index, process_count: which part of each batch is read here.

    Returns:
      An iterator of (batch, position after it). A batch is {"images": uint8 [b, h, w, 3],
      "tokens": int32 [b, l]} with b = batch_size / process_count. The position tells of the
      batches handed out, however many are already prefetched. Closing the iterator ends its work.

    Raises:
      UserError: at once, if the arguments do not fit each other; while iterating, if there are too
        many bad examples.
    """
    _rows_per_process(batch_size, process_count)
    steps_per_epoch(len(source), batch_size)
    position = position or Position(epoch=0, examples=0, seed=seed)
    if position.seed != seed:
        raise UserError(
            f"the data position to resume from belongs to seed {position.seed}, but config.seed "
            f"is {seed}; set config.seed={position.seed}, or start in a new workdir"
        )
    if augmentation not in AUGMENTATIONS:
        raise UserError(
            f"there is no augmentation {augmentation!r}; set config.data.augmentation to one of "
            + ", ".join(repr(name) for name in AUGMENTATIONS)
        )
    if len(source) - position.examples < batch_size:
        position = Position(position.epoch + 1, 0, seed)  # no whole batch is left of this epoch

    def load(index, epoch):
        """(uint8 [image_size, image_size, 3], caption) of one example."""
        image, caption = _read(source, index)
        example_seed = images.example_seed(seed, epoch, index)
        if augmentation == "random_resized_crop":
            image = images.random_resized_crop(image, image_size, example_seed, crop_scale)
        else:
            image = images.resize_and_centre_crop(image, image_size)
        if colour_jitter:
            # A stream of its own, apart from the one that crops the example.
            image = images.colour_jitter(image, example_seed + 1, colour_jitter)
        return image, caption

    def load_or_replace(epoch, index):
        # A stream of its own, apart from the one that crops the example.
        draw = images.example_seed(~seed, epoch, index)
        others = tf.random.stateless_uniform(
            [REPLACEMENTS], draw, 0, len(source), tf.int64, alg="philox"
        )
        candidates = tf.concat([[index], others], axis=0)
        return _first_readable(lambda i: load(i, epoch), candidates, index, image_size)

    def rows_of_epoch(epoch):
        examples = position.examples if epoch == position.epoch else 0
        indices = order(seed, epoch, len(source), shuffle)[examples:]
        return _rows_of_process(indices, batch_size, process_index, process_count)

    dataset = (
        tf.data.Dataset.range(position.epoch, sys.maxsize)
        .map(lambda epoch: (epoch, tf.numpy_function(rows_of_epoch, [epoch], tf.int64)))
        .prefetch(1)  # the next epoch's order is ready before this epoch ends
        .flat_map(_one_by_one)
        .map(load_or_replace, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size // process_count, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )
    loaded = _iterate(dataset, source, image_size, bad_examples)
    return _with_positions(loaded, tokenizer, position, len(source), batch_size)


def eval_batches(
    source,
    tokenizer,
    *,
    batch_size,
    image_size,
    bad_examples=None,
    process_index=0,
    process_count=1,
):
    """This process's rows of one pass over the source, in its order, every example once.

    Args:
      source, tokenizer, batch_size, image_size, process_index, process_count: as in
        `train_batches`.
      bad_examples: the `BadExamples` that counts those that cannot be read; without one they are
        only logged.

    Returns:
      An iterator of {"images": uint8 [b, h, w, 3], "tokens": int32 [b, l], "mask": bool [b]} with
      b = batch_size / process_count, as many for every process. Rows whose mask is False, those
      that fill up the last batch and those that cannot be read, have black images and the tokens
      of an empty caption.

    Raises:
      UserError: as `train_batches`.
    """
    _rows_per_process(batch_size, process_count)
    filled_up = -(-len(source) // batch_size) * batch_size
    indices = np.full(filled_up, NO_EXAMPLE, dtype=np.int64)
    indices[: len(source)] = np.arange(len(source))
    rows = _rows_of_process(indices, batch_size, process_index, process_count)

    def load(index):
        image, caption = _read(source, index)
        return images.resize_and_centre_crop(image, image_size), caption

    def load_or_leave_out(index):
        candidates = tf.boolean_mask(index[tf.newaxis], index[tf.newaxis] != NO_EXAMPLE)
        return _first_readable(load, candidates, index, image_size)

    dataset = (
        tf.data.Dataset.from_tensor_slices(rows)
        .map(load_or_leave_out, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size // process_count, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )
    return _with_masks(_iterate(dataset, source, image_size, bad_examples, False), tokenizer)


class BadExamples:
    """Counts and names, once each, the examples that cannot be read.

    Bad is an example whose image is missing or cannot be decoded, or whose caption is blank. Each
    process counts those it meets itself, so each wants a file of its own.
    """

    def __init__(self, path, limit_share, dataset_size):
        """Takes up the examples already named in the file.

        Args:
          path: file of one JSON object a line: {"key", "index", "reason"}. It is made only when
            there is a bad example.
          limit_share: share of the dataset that may be bad.
          dataset_size: number of examples in the dataset.

        Raises:
          UserError: the file already names more than the limit.
        """
        self._path = str(path)
        self._limit_share = limit_share
        self._dataset_size = dataset_size
        self._known = set()
        if tf.io.gfile.exists(self._path):
            self._take_up_file()
            self._check_limit()

    @property
    def count(self):
        """Number of distinct bad examples."""
        return len(self._known)

    def __contains__(self, key_and_index):
        return tuple(key_and_index) in self._known

    def add(self, key, index, reason):
        """Counts and writes down an example, unless it is already known.

        Raises:
          UserError: there are now more than the limit.
        """
        if (key, index) in self:
            return
        self._known.add((key, index))
        tf.io.gfile.makedirs(posixpath.dirname(self._path) or ".")
        with tf.io.gfile.GFile(self._path, "a") as file:
            file.write(json.dumps({"key": key, "index": index, "reason": reason}) + "\n")
        self._check_limit()

    def _take_up_file(self):
        with tf.io.gfile.GFile(self._path) as file:
            text = file.read()
        # A process that was killed while writing may have left half a line.
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            with tf.io.gfile.GFile(self._path, "w") as file:
                file.write(whole)
        for line in whole.splitlines():
            example = json.loads(line)
            self._known.add((example["key"], example["index"]))

    def _check_limit(self):
        if self.count > self._limit_share * self._dataset_size:
            raise UserError(
                f"{self.count} of {self._dataset_size} examples "
                f"({self.count / self._dataset_size:.2%}) cannot be read, more than the allowed "
                f"{self._limit_share:.2%}; mend those named in {self._path}, or raise "
                "config.data.max_bad_share"
            )


def _rows_per_process(batch_size, process_count):
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"config.batch_size is {batch_size}, which cannot be split among {process_count} "
            "processes; set it to a multiple of that"
        )
    return batch_size // process_count


def _rows_of_process(indices, batch_size, process_index, process_count):
    """The examples that one process reads, batch after batch; a last partial batch is dropped.

    Args:
      indices: int64 [n].

    Returns:
      int64 [n // batch_size · batch_size / process_count].
    """
    steps = len(indices) // batch_size
    batches = indices[: steps * batch_size].reshape(steps, process_count, -1)
    return batches[:, process_index].reshape(-1)


def _one_by_one(epoch, indices):
    """A dataset of (epoch, index) for each of one epoch's indices."""
    indices = tf.ensure_shape(indices, [None])
    return tf.data.Dataset.from_tensor_slices(indices).map(lambda index: (epoch, index))


def _read(source, index):
    """(uint8 [h, w, 3], caption) of one example; raises tf.errors.OpError if it is bad."""
    encoded, caption = source.read(index)
    with tf.control_dependencies([tf.debugging.Assert(~_is_blank(caption), ["blank caption"])]):
        return images.decode(encoded), tf.identity(caption)


def _is_blank(caption):
    return tf.strings.regex_full_match(caption, r"(\s|\p{Z})*")


def _first_readable(load, candidates, requested, image_size):
    """Loads the first example that can be.

    In a graph, only a dataset can go on after an error: a small one, of the candidates in turn,
    drops those that raise one and stops at the first that does not.

    Args:
      load: index → (image, caption), raising tf.errors.OpError for a bad example.
      candidates: int64 [k], in the order of preference.
      requested: int64, the index that is wanted, only handed on.
      image_size: side of the image.

    Returns:
      (image, caption, requested, used): used is the index of the example that was loaded, or
      NO_EXAMPLE, with a black image and no caption, where there was none.
    """
    black = tf.zeros([image_size, image_size, 3], tf.uint8)
    nothing = tf.data.Dataset.from_tensors((black, "", np.int64(NO_EXAMPLE)))
    readable = (
        tf.data.Dataset.from_tensor_slices(candidates)
        .map(lambda index: (*load(index), index))
        .ignore_errors()
        .concatenate(nothing)
        .take(1)
    )
    image, caption, used = readable.get_single_element()
    return image, caption, requested, used


def _iterate(dataset, source, image_size, bad_examples, replaced=True):
    """Yields (images, captions, used) as NumPy arrays, and reports the bad examples."""
    options = tf.data.Options()
    options.deterministic = True
    for pictures, captions, requested, used in dataset.with_options(options).as_numpy_iterator():
        for index in requested[(requested != used)].tolist():
            _report(source, index, bad_examples)
        if replaced and NO_EXAMPLE in used:
            index = int(requested[used == NO_EXAMPLE][0])
            raise UserError(
                f"example {source.keys([index])[0]} and the {REPLACEMENTS} drawn to replace it "
                "cannot be read; check the paths in config.data.train"
            )
        yield pictures, captions, used


def _report(source, index, bad_examples):
    """Names a bad example, with the reason; reads it once more to find that."""
    key = source.keys([index])[0]
    if bad_examples is None:
        logging.warning("left out %s (row %d): %s", key, index, _reason(source, index))
    elif (key, index) not in bad_examples:
        bad_examples.add(key, index, _reason(source, index))


def _reason(source, index):
    """Why an example cannot be read, in words."""
    try:
        encoded, caption = source.read(tf.constant(index, tf.int64))
    except tf.errors.NotFoundError:
        return "the image file is missing"
    except tf.errors.OpError as error:
        return f"the image file cannot be read: {_first_line(error)}"
    if _is_blank(caption):
        return "the caption is empty"
    try:
        images.decode(encoded)
    except tf.errors.OpError as error:
        return f"the image cannot be decoded: {_first_line(error)}"
    return "failed once, but could be read afterwards"


def _first_line(error):
    """An operation's error without the name that TensorFlow gave the operation."""
    return error.message.split("}}")[-1].strip().splitlines()[0]


def _with_positions(loaded, tokenizer, position, size, batch_size):
    """Yields (batch, position after it) for every (images, captions, used)."""
    for pictures, captions, _ in loaded:
        examples = position.examples + batch_size
        if size - examples < batch_size:
            position = Position(position.epoch + 1, 0, position.seed)
        else:
            position = dataclasses.replace(position, examples=examples)
        yield {"images": pictures, "tokens": _tokenise(tokenizer, captions)}, position


def _with_masks(loaded, tokenizer):
    """Yields an evaluation batch for every (images, captions, used)."""
    for pictures, captions, used in loaded:
        yield {
            "images": pictures,
            "tokens": _tokenise(tokenizer, captions),
            "mask": used != NO_EXAMPLE,
        }


def _tokenise(tokenizer, captions):
    """int32 [n, l] of n captions, bytes as they come out of TensorFlow."""
    return np.asarray(tokenizer([caption.decode() for caption in captions]), dtype=np.int32)
