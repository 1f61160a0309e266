"""From a source to batches: order, split by process, read, decode, augment, tokenise, batch.

The order of examples is a pure function of (seed, epoch), and everything random about an example
one of (seed, epoch, index). So a `Position` of three numbers is the whole state of the input, and
resuming is arithmetic: no iterator is saved and no data is passed over.
"""

import dataclasses
import functools
import logging
import sys
from collections.abc import Callable, Generator, Mapping, Sequence

import numpy as np
import tensorflow as tf
from jaxtyping import Int

from cyclip_jax.data import images
from cyclip_jax.data.bad_examples import BadExamples, NamesBadExamples
from cyclip_jax.data.decoding import unreadable
from cyclip_jax.data.loading import (
    HAS_NEGATIVE_IMAGE,
    NEGATIVE,
    NO_EXAMPLE,
    eval_loader,
    load_chunk,
    train_loader,
)
from cyclip_jax.data.order import Position, examples_of_epoch, steps_per_epoch
from cyclip_jax.data.record import Record, Unreadable, told
from cyclip_jax.data.second_views import SecondCaption
from cyclip_jax.data.sources import Mixture, Source
from cyclip_jax.data.transform import PLAIN, Transform
from cyclip_jax.errors import UserError

# The accelerators belong to JAX; TensorFlow would otherwise reserve their memory.
tf.config.set_visible_devices([], "GPU")

# How many other examples may stand in, one after the other, for one that cannot be read.
REPLACEMENTS = 8

# Examples that one call of the graph loads. What a call costs besides is shared by all of them;
# only where one of them cannot be read are they loaded one by one.
CHUNK = 8


def train_batches(
    source: Source | Mixture,
    tokenizer: Callable[[list[str]], Int[np.ndarray, "n l"]],
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    position: Position | None,
    bad_examples: BadExamples,
    shuffle: bool = True,
    shuffle_window: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    transform: Transform = PLAIN,
    second_transform: Transform | None = None,
    second_caption: SecondCaption | None = None,
    negative_caption: SecondCaption | None = None,
    has_negative_images: bool = False,
    labels: Int[np.ndarray, "n"] | None = None,
) -> Generator[tuple[dict[str, np.ndarray], Position], None, None]:
    """This process's rows of the endless sequence of training batches.

    Each epoch's order is cut into batches of `batch_size`, and process p takes the p-th of
    `process_count` equal parts of each batch: a step's global batch is the same for any number of
    processes. An example that cannot be read (see `BadExamples`) is replaced by another, drawn
    by (seed, epoch, index), so that every process has the same number of batches.

    Args:
      source: where the examples come from (see sources/__init__.py).
      tokenizer: function from n captions to token ids, int32 [n, l].
      batch_size: rows of the global batch, of all processes together.
      image_size: side of the images in pixels.
      seed: the seed of the order, augmentation, the choice among captions, and replacement.
      position: the `Position` to start from, or None for the beginning. The batches from there on
        are those of a run that was never interrupted.
      bad_examples: counts the examples that cannot be read.
      shuffle: whether each epoch has a random order of its own.
      shuffle_window: how many examples are mixed with one another (see `order.in_windows`); None
        shuffles fully.
      process_index: which part of each batch is read here.
      process_count: in how many parts each batch is read.
      transform: how a picture becomes an image.
      second_transform: how it becomes its second view; None makes none.
      second_caption: what makes the second view of a caption (see second_views.py); None makes
        none.
      negative_caption: what makes a wrong caption, "" where there is none; None makes none at all.
      has_negative_images: whether examples may have a picture that the wrong caption describes.
      labels: of the examples, int32 [n]; None are none.

    Returns:
      An iterator of (batch, position after it). A batch is {"images": uint8 [b, h, w, 3],
      "tokens": int32 [b, l]} with b = batch_size / process_count, and of second views also
      "second_images" and "second_tokens", of the same shapes; of wrong captions "negative_tokens",
      and "has_negative", bool [b]; of their pictures "negative_images", and "has_negative_image",
      which are those with a wrong caption too; and with labels "labels", int32 [b]. The position
      tells of the batches handed out, however many are already prefetched. Closing the iterator
      ends its work.

    Raises:
      UserError: at once, if the arguments do not fit each other; while iterating, if there are too
        many bad examples.
    """
    rows_here = _rows_per_process(batch_size, process_count)
    steps_per_epoch(len(source), batch_size)
    position = position or Position(epoch=0, examples=0, seed=seed)
    _check_position(position, seed)
    if len(source) - position.examples < batch_size:
        position = Position(position.epoch + 1, 0, seed)  # no whole batch is left of this epoch

    loader = train_loader(
        *(source, image_size, seed, transform),
        *(second_transform, second_caption, negative_caption, has_negative_images),
    )

    def rows_of_epoch(epoch):
        examples = examples_of_epoch(
            source, seed, epoch, batch_size=batch_size, shuffle=shuffle, window=shuffle_window
        )
        examples = examples[position.examples if epoch == position.epoch else 0 :]
        return _rows_of_process(examples, batch_size, process_index, process_count)

    chunk = _chunk_size(rows_here)
    candidates = functools.partial(_with_replacements, len(source), seed)
    dataset = (
        tf.data.Dataset.range(position.epoch, sys.maxsize)
        .map(lambda epoch: tf.numpy_function(rows_of_epoch, [epoch], tf.int64))
        .prefetch(1)  # the next epoch's order is ready before this epoch ends
        .flat_map(functools.partial(_chunks, chunk))
        .map(
            functools.partial(load_chunk, loader=loader, candidates=candidates),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        .batch(rows_here // chunk, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )
    for key, reason, detail in source.faults if process_index == 0 else ():
        bad_examples.add(key, NO_EXAMPLE, reason, detail)
    positions = _positions_after(position, len(source), batch_size)
    loaded = _iterate(dataset, loader, bad_examples, positions)
    return _train_batches(loaded, tokenizer, seed, loader, bad_examples, labels)


def _chunks(chunk, rows):
    """A data set of rows [n, 2] in chunks of so many."""
    rows = tf.ensure_shape(rows, [None, 2])
    return tf.data.Dataset.from_tensor_slices(tf.reshape(rows, [-1, chunk, 2]))


def _with_replacements(examples, seed, row):
    """A row (epoch, index) and those that stand in for it, of so many examples, in turn."""
    # A stream of its own, apart from those of the example itself.
    draw = images.example_seed(~seed, row[0], row[1])
    others = tf.random.stateless_uniform([REPLACEMENTS], draw, 0, examples, tf.int64, alg="philox")
    others = tf.stack([tf.fill([REPLACEMENTS], row[0]), others], axis=1)
    return tf.concat([row[tf.newaxis], others], axis=0)


def eval_batches(
    source: Source | Mixture,
    tokenizer: Callable[[list[str]], Int[np.ndarray, "n l"]],
    *,
    batch_size: int,
    image_size: int,
    resize_mode: str = "shortest",
    bad_examples: NamesBadExamples | None = None,
    process_index: int = 0,
    process_count: int = 1,
    ranges: Sequence[range] | None = None,
    words: Mapping[str, Callable[[Record], str]] | None = None,
) -> Generator[dict[str, np.ndarray], None, None]:
    """This process's rows of one pass over the source, in its order, every example once.

    Of several captions the first is taken.

    Args:
      source, tokenizer, batch_size, image_size, process_index, process_count: as in
        `train_batches`.
      resize_mode: how a picture becomes a square, see `Transform`.
      bad_examples: counts the examples that cannot be read; without it they are only logged.
      ranges: of the examples' numbers, each of which begins with a batch of its own; None is all
        examples as one.
      words: {name in the batch: function of a record → text}, what else is told of examples.

    Returns:
      An iterator of {"images": uint8 [b, h, w, 3], "tokens": int32 [b, l], "mask": bool [b]} with
      b = batch_size / process_count, as many for every process, and of `words` each as bytes [b] in
      UTF-8. Rows whose mask is False, those that fill up the last batch of a range and those that
      cannot be read, have black images and the tokens of an empty caption.

    Raises:
      UserError: the arguments do not fit each other.
    """
    rows_here = _rows_per_process(batch_size, process_count)
    ranges = [range(len(source))] if ranges is None else ranges
    bounds = np.array([(rows.start, rows.stop) for rows in ranges], np.int64).reshape(-1, 2)
    chunk = _chunk_size(rows_here)
    loader = eval_loader(source, image_size, resize_mode, words)

    def rows_of_range(bounds):
        first, end = bounds[0], bounds[1]
        starts = tf.range(first, end, batch_size) + rows_here * process_index
        index = tf.reshape(starts[:, tf.newaxis] + tf.range(rows_here, dtype=tf.int64), [-1])
        index = tf.where(index < end, index, NO_EXAMPLE)
        return tf.stack([tf.fill(tf.shape(index), np.int64(NO_EXAMPLE)), index], axis=1)

    def itself(row):
        return tf.boolean_mask(row[tf.newaxis], row[tf.newaxis, 1] != NO_EXAMPLE)

    dataset = (
        tf.data.Dataset.from_tensor_slices(bounds)
        .map(rows_of_range)
        .flat_map(functools.partial(_chunks, chunk))
        .map(
            functools.partial(load_chunk, loader=loader, candidates=itself),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        .batch(rows_here // chunk, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )
    loaded = _iterate(dataset, loader, bad_examples)
    return _eval_batches(loaded, tokenizer, loader, bad_examples)


def _rows_per_process(batch_size, process_count):
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"config.batch_size is {batch_size}, which cannot be split among {process_count} "
            f"processes; set it to a multiple of {process_count}"
        )
    return batch_size // process_count


def _check_position(position, seed):
    if position.seed != seed:
        raise UserError(
            f"the data position to resume from belongs to seed {position.seed}, but config.seed "
            f"is {seed}; set config.seed={position.seed}, or start in a new workdir"
        )


def _chunk_size(rows):
    """The greatest divisor of `rows` up to CHUNK."""
    return max(size for size in range(1, CHUNK + 1) if rows % size == 0)


def _rows_of_process(rows, batch_size, process_index, process_count):
    """The examples that one process reads, batch after batch; a last partial batch is dropped.

    Args:
      rows: int64 [n, 2].

    Returns:
      int64 [n // batch_size · batch_size / process_count, 2].
    """
    steps = len(rows) // batch_size
    batches = rows[: steps * batch_size].reshape(steps, process_count, -1, 2)
    return np.ascontiguousarray(batches[:, process_index]).reshape(-1, 2)


def _iterate(dataset, loader, bad_examples, positions=None):
    """Yields (parts, used, epochs, position) of every batch; reports the bad examples.

    The parts are {name in the batch: images, or captions, of which tokens become}. They and the
    next two are NumPy arrays. `positions` are those after each batch, in training, where bad
    examples are replaced.
    """
    options = tf.data.Options()
    options.deterministic = True
    replaced = positions is not None
    for batch in dataset.with_options(options).as_numpy_iterator():
        position = next(positions) if replaced else None
        # [chunks, c, …] → [b, …]
        parts, rows, used = tf.nest.map_structure(
            lambda part: part.reshape(-1, *part.shape[2:]), batch
        )
        for epoch, index in rows[rows[:, 1] != used].tolist():
            _report(loader, epoch, index, bad_examples, position)
        if replaced and NO_EXAMPLE in used:
            raise _not_replaced(loader.source, int(rows[used == NO_EXAMPLE][0, 1]))
        yield parts, used, rows[:, 0], position


def _not_replaced(source, index):
    return UserError(
        f"example {source.keys([index])[0]} and the {REPLACEMENTS} drawn to replace it "
        "cannot be read; check the paths in config.data.train"
    )


def _report(loader, epoch, index, bad_examples, position):
    """Names a bad example, with the reason; reads it once more to find that."""
    key = loader.source.keys([index])[0]
    if bad_examples is None or (key, index) not in bad_examples:
        _name(key, index, *_reason(loader, epoch, index), bad_examples, position)


def _name(key, index, reason, detail, bad_examples, position=None):
    if bad_examples is None:
        logging.warning("left out %s (row %d): %s %s", key, index, reason, detail)
    else:
        bad_examples.add(key, index, reason, detail, position)


def _reason(loader, epoch, index):
    """(reason, detail), why an example cannot be read."""
    try:
        encoded, _ = loader.read(epoch, index)
        loader.pictures(tf.constant(encoded), tf.constant([epoch, index], tf.int64))
    except Unreadable as error:
        return error.reason, error.detail
    except tf.errors.OpError as error:
        problem = unreadable(error)
        return problem.reason, problem.detail
    return "failed once, but could be read afterwards", ""


def _positions_after(position, size, batch_size):
    """Yields the position after every batch from a position on."""
    while True:
        examples = position.examples + batch_size
        if size - examples < batch_size:
            position = Position(position.epoch + 1, 0, position.seed)
        else:
            position = dataclasses.replace(position, examples=examples)
        yield position


def _train_batches(
    loaded, tokenizer, seed, loader, bad_examples, labels
) -> Generator[tuple[dict[str, np.ndarray], Position], None, None]:
    """Yields (batch, position after it) of what `_iterate` yields."""
    for parts, used, epochs, position in loaded:
        batch, faults = _tokenised(tokenizer, loader, parts)
        used = used.copy() if faults else used
        for place, fault in faults.items():
            index = int(used[place])
            key = loader.source.keys([index])[0]
            _name(key, index, fault.reason, fault.detail, bad_examples, position)
            used[place], another = _another(tokenizer, loader, seed, int(epochs[place]), index)
            for name, part in another.items():
                batch[name][place] = part
        yield batch if labels is None else {**batch, "labels": labels[used]}, position


def _another(tokenizer, loader, seed, epoch, index):
    """What stands in for an example that cannot be tokenised.

    Returns:
      (its number, {name: images or tokens}).
    """
    row = tf.constant([epoch, index], tf.int64)
    for candidate in _with_replacements(len(loader.source), seed, row)[1:]:
        try:
            encoded, captions = loader.read(*candidate.numpy().tolist())
            pictures = loader.pictures(tf.constant(encoded), candidate)
        except (Unreadable, tf.errors.OpError):
            continue  # reported when its own turn comes
        parts = {name: [part] for name, part in captions.items()}
        parts |= {name: part.numpy()[np.newaxis] for name, part in pictures.items()}
        batch, faults = _tokenised(tokenizer, loader, parts)
        if not faults:
            return int(candidate[1]), {name: part[0] for name, part in batch.items()}
    raise _not_replaced(loader.source, index)


def _eval_batches(loaded, tokenizer, loader, bad_examples):
    """Yields an evaluation batch of what `_iterate` yields."""
    for parts, used, _, _ in loaded:
        batch, faults = _tokenised(tokenizer, loader, parts)
        used = used.copy()
        for place, fault in faults.items():
            index = int(used[place])
            key = loader.source.keys([index])[0]
            _name(key, index, fault.reason, fault.detail, bad_examples)
            batch["images"][place], used[place] = 0, NO_EXAMPLE
        yield {**batch, "mask": used != NO_EXAMPLE}


def _tokenised(tokenizer, loader, parts):
    """(batch, {place: Unreadable}) of what `_iterate` yields, every kind of captions tokenised.

    Where there are faults, the batch's images may be written to.
    """
    batch, faults = dict(parts), {}
    for name in loader.captions:
        batch[name], of_these = _tokenise(tokenizer, parts[name])
        faults = of_these | faults
    if NEGATIVE in loader.captions:
        batch["has_negative"] = np.array([text != b"" for text in parts[NEGATIVE]])
        if HAS_NEGATIVE_IMAGE in batch:
            batch[HAS_NEGATIVE_IMAGE] = batch[HAS_NEGATIVE_IMAGE] & batch["has_negative"]
    if faults:
        batch |= {name: batch[name].copy() for name in loader.specs}
    return batch, faults


def _tokenise(tokenizer, captions):
    """Tokenises n captions, bytes as they come out of TensorFlow.

    Returns:
      (token ids, faults): int32 [n, l], and {place: Unreadable} of those captions that cannot be
      tokenised, which have the ids of an empty caption.
    """
    texts = [caption.decode() for caption in captions]
    tokenise = functools.partial(told, "the caption cannot be tokenised", tokenizer)
    try:
        return np.asarray(tokenise(texts), dtype=np.int32), {}
    except Unreadable:
        rows, faults = [], {}
    for place, text in enumerate(texts):
        try:
            rows.append(tokenise([text])[0])
        except Unreadable as fault:
            rows.append(tokenizer([""])[0])  # what this raises is no example's fault
            faults[place] = fault
    return np.asarray(rows, dtype=np.int32), faults
