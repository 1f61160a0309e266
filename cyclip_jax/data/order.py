"""The order of the examples: a pure function of (seed, epoch), so that no iterator is ever saved.

A full shuffle reads anywhere in the data. Where that is slow (remote shards, disks that turn),
`in_windows` mixes examples that lie near each other, in many places at once.
"""

import dataclasses
import functools
import itertools

import numpy as np
from jaxtyping import Int

from cyclip_jax.data.sources import Mixture, Source
from cyclip_jax.errors import UserError

LANES = 64  # at most so many places in the data are read at once in a windowed order
RUNS_PER_WINDOW = 4  # pieces of the data that a lane mixes
# Epochs of a mixture's parts are numbered apart, so that their orders are unrelated.
_PART_STRIDE = 1 << 40
_COUNTS = -(1 << 50)  # in place of an epoch: the stream that says how many of each part
_SENTENCES = 1 << 61  # and the epoch: the stream that orders sentences
_PLACES = -(1 << 51)  # less the epoch: the stream that mixes the parts within a batch


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


def steps_per_epoch(size: int, batch_size: int) -> int:
    """The number of whole batches in one epoch; examples that fill no batch are left out.

    Args:
      size: number of examples.
      batch_size: rows of the global batch.

    Raises:
      UserError: there is not a single whole batch.
    """
    if size < batch_size:
        raise UserError(
            f"config.batch_size is {batch_size}, but the training data has only {size} examples; "
            "set config.batch_size to at most that, or config.data.train to a larger dataset"
        )
    return size // batch_size


def examples_of_epoch(
    source: Source | Mixture,
    seed: int,
    epoch: int,
    *,
    batch_size: int,
    shuffle: bool = True,
    window: int | None = None,
) -> Int[np.ndarray, "n 2"]:
    """The examples of one pass over a source, in the order in which they are trained on.

    Args:
      source: where the examples come from (see sources/__init__.py).
      seed: the seed of the order.
      epoch: which pass over the data this is.
      batch_size: rows of the global batch; a full shuffle of one source does not depend on it.
      shuffle: whether to shuffle; otherwise the order is the source's.
      window: how many examples `in_windows` mixes with one another; None shuffles fully.

    Returns:
      int64 [n, 2], each example's (epoch, index). The epoch counts passes over the example's own
      source, also within a mixture; it seeds what is random about the example.
    """
    if isinstance(source, Mixture):
        return _mixed(source, seed, epoch, batch_size, shuffle, window)
    indices = _order_of(source, seed, epoch, shuffle, window, batch_size)
    return np.stack([np.full_like(indices, epoch), indices], axis=1)


def order(seed: int, epoch: int, size: int, shuffle: bool = True) -> Int[np.ndarray, "size"]:
    """All numbers from 0 to size - 1 in the order of one epoch, a pure function.

    Args:
      seed: the seed of the order.
      epoch: which pass over the data this is.
      size: number of examples.
      shuffle: whether to shuffle.

    Returns:
      int64 [size], a permutation.
    """
    if not shuffle:
        return np.arange(size, dtype=np.int64)
    return np.argsort(_random(seed, epoch, size), kind="stable")


def sentences_of_step(
    seed: int, step: int, size: int, batch_size: int
) -> Int[np.ndarray, "batch_size"]:
    """The sentences that a step sees, a pure function.

    Each pass over them has an order of its own. Those that fill no whole batch are left out of it,
    so that no batch has a sentence twice.

    Args:
      seed: the seed of the order.
      step: of the run.
      size: number of sentences, at least a batch.
      batch_size: rows of the global batch.

    Returns:
      int64 [batch_size], numbers of sentences.
    """
    epoch, batch = divmod(step, size // batch_size)
    return _order_of_sentences(seed, epoch, size)[batch * batch_size :][:batch_size]


@functools.lru_cache(maxsize=2)
def _order_of_sentences(seed, epoch, size):
    return order(seed, _SENTENCES + epoch, size)


def in_windows(
    seed: int,
    epoch: int,
    boundaries: Int[np.ndarray, "k+1"],
    *,
    window: int,
    batch_size: int,
) -> Int[np.ndarray, "n"]:
    """An order whose batches need few pieces of the data at a time, a pure function.

    The data are cut into runs of neighbours that cross no boundary, the runs are shuffled, and the
    sequence of them is split evenly among lanes. Each lane gives every batch as many examples, and
    shuffles those within its share of the window. As a batch is [lane, example], and processes take
    equal parts of it, each reads some of the lanes, whatever their number.

    Args:
      seed: the seed of the order.
      epoch: which pass over the data this is.
      boundaries: where the runs may begin (shards, row groups), and the end, int64 [K + 1].
      window: how many examples, in all lanes together, are mixed with one another.
      batch_size: rows of the global batch.

    Returns:
      int64 [n // batch_size · batch_size]; the other n % batch_size of the n examples are left out.
    """
    lanes = int(np.gcd(batch_size, LANES))
    share = max(window // lanes, 1)
    starts, lengths = _runs(boundaries, max(share // RUNS_PER_WINDOW, 1))
    chosen = order(seed, epoch, len(starts))
    starts, lengths = starts[chosen], lengths[chosen]
    before = np.cumsum(lengths) - lengths
    sequence = np.repeat(starts - before, lengths) + np.arange(lengths.sum())  # [n]
    steps = len(sequence) // batch_size
    per_lane = steps * (batch_size // lanes)
    sequence = sequence[: lanes * per_lane].reshape(lanes, per_lane)
    # Sorted by (window, random number): shuffled within each window.
    random = _random(seed, ~epoch, sequence.size).reshape(sequence.shape)
    windows = np.broadcast_to(np.arange(per_lane) // share, sequence.shape)
    sequence = np.take_along_axis(sequence, np.lexsort((random, windows)), axis=1)
    batches = sequence.reshape(lanes, steps, -1).transpose(1, 0, 2)  # [steps, lanes, B / lanes]
    return batches.reshape(-1)


def counts_of_steps(
    source: Mixture, seed: int, first_step: int, last_step: int, batch_size: int
) -> Int[np.ndarray, "steps parts"]:
    """How many examples of each part of a mixture the batches of some steps hold.

    Systematic sampling: the shares of a batch are laid end to end, and a comb of `batch_size` teeth
    with one random offset counts them. So each part has its share rounded down or up, its exact
    share in the mean, and no step depends on those before it.

    Args:
      source: the mixture.
      seed: the seed of the order.
      first_step: the first of the steps.
      last_step: the step after the last of them.
      batch_size: rows of the global batch.

    Returns:
      int64 [last_step - first_step, parts].
    """
    steps = np.arange(first_step, last_step)
    offsets = (_random(seed, _COUNTS, last_step)[first_step:] >> np.uint64(11)) * 2.0**-53  # [0, 1)
    ends = np.cumsum(source.shares(steps), axis=1) * batch_size  # [steps, parts]
    ends[:, -1] = batch_size
    teeth = np.ceil(ends - offsets[:, None]).astype(np.int64)
    return np.diff(np.maximum(teeth, 0), axis=1, prepend=0)


def drawn_from_parts(source: Mixture, position: Position, batch_size: int) -> dict[str, int]:
    """How many examples a run has drawn of each part of a mixture.

    Args:
      source: the mixture.
      position: the place in the data up to which they are counted.
      batch_size: rows of the global batch.

    Returns:
      {name of the part: number of examples}.
    """
    steps = position.epoch * (len(source) // batch_size) + position.examples // batch_size
    counts = counts_of_steps(source, position.seed, 0, steps, batch_size).sum(axis=0)
    return dict(zip(source.names, counts.tolist(), strict=True))


def _random(seed, epoch, size):
    """uint64 [size], reproducible: the first numbers do not depend on `size`."""
    key = np.array([seed, epoch], dtype=np.int64).view(np.uint64)
    # NumPy keeps a bit generator's raw output from version to version, but not what
    # `Generator.permutation` makes of it, and a run may be resumed under another version.
    return np.random.Philox(key=key).random_raw(size)


def _order_of(source, seed, epoch, shuffle, window, batch_size):
    if shuffle and window is not None and window < len(source):
        return in_windows(seed, epoch, source.boundaries, window=window, batch_size=batch_size)
    return order(seed, epoch, len(source), shuffle)


def _runs(boundaries, length):
    """(starts, lengths) of the runs of at most `length` examples between the boundaries."""
    starts = [np.arange(first, end, length) for first, end in itertools.pairwise(boundaries)]
    starts = np.concatenate(starts)
    ends = np.append(starts[1:], boundaries[-1])
    return starts, ends - starts


def _mixed(source, seed, epoch, batch_size, shuffle, window):
    """`examples_of_epoch` of a Mixture: an epoch is as long as all parts together."""
    steps = len(source) // batch_size
    counts = counts_of_steps(source, seed, 0, (epoch + 1) * steps, batch_size)
    behind, counts = counts[: epoch * steps].sum(axis=0), counts[epoch * steps :]
    rows = np.empty((steps * batch_size, 2), np.int64)
    # The batches' places in the order of the parts, then shuffled within each batch.
    part_of = np.repeat(np.tile(np.arange(len(source.names)), steps), counts.reshape(-1))
    for part, (inner, start) in enumerate(zip(source.sources, source.starts, strict=False)):
        rows[part_of == part] = _of_part(
            inner, seed, part, start, behind[part], counts[:, part].sum(), shuffle, window
        )
    batches = rows.reshape(steps, batch_size, 2)
    places = np.argsort(_random(seed, _PLACES - epoch, rows.shape[0]).reshape(steps, -1))
    return np.take_along_axis(batches, places[:, :, None], axis=1).reshape(-1, 2)


def _of_part(source, seed, part, start, behind, count, shuffle, window):
    """(epoch, index in the mixture) of the part's next `count` examples, int64 [count, 2]."""
    pieces = [np.empty((0, 2), np.int64)]
    while count:
        epoch, first = divmod(int(behind), len(source))
        indices = _order_of(source, seed, epoch + (part + 1) * _PART_STRIDE, shuffle, window, 1)
        indices = indices[first : first + count]
        pieces.append(np.stack([np.full_like(indices, epoch), indices + start], axis=1))
        behind, count = behind + len(indices), count - len(indices)
    return np.concatenate(pieces)
