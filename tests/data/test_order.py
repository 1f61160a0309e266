"""The order of the examples: permutations, windows, and how a mixture's parts take turns."""

import itertools

import numpy as np
import pytest

from cyclip_jax.data.order import (
    LANES,
    RUNS_PER_WINDOW,
    Position,
    counts_of_steps,
    drawn_from_parts,
    examples_of_epoch,
    in_windows,
    order,
)
from cyclip_jax.data.sources import Mixture
from cyclip_jax.errors import UserError


class Numbers:
    """A source of which only the order is asked; runs begin at each shard."""

    faults = ()

    def __init__(self, *shards):
        self.boundaries = np.cumsum([0, *shards])

    def __len__(self):
        return int(self.boundaries[-1])


def windowed(epoch=0, *, shards=(1000,), window=128, batch_size=16, seed=3):
    boundaries = np.cumsum([0, *shards])
    return in_windows(seed, epoch, boundaries, window=window, batch_size=batch_size)


def as_text(numbers):
    return " ".join(map(str, numbers.reshape(-1).tolist()))


def test_the_orders_stay_what_they_were():
    """Golden values: a change here would change what a resumed run sees."""
    assert as_text(order(7, 2, 8)) == "6 7 4 0 1 5 3 2"
    first, second = (windowed(epoch, shards=(7, 9), window=8, batch_size=4) for epoch in (0, 1))
    assert as_text(first) == "13 8 9 12 6 5 10 3 1 2 15 14 11 7 4 0"
    assert as_text(second) == "7 6 14 10 9 5 15 2 8 12 0 11 3 4 13 1"
    mixture = Mixture({"a": (Numbers(5), 1), "b": (Numbers(3), 3)})
    rows = examples_of_epoch(mixture, 0, 0, batch_size=4)
    assert as_text(rows[:, 0]) == "0 0 0 0 0 1 1 1"
    assert as_text(rows[:, 1]) == "3 6 7 5 2 6 7 5"


# Windows.


@pytest.mark.parametrize("batch_size", [1, 6, 16, 64, 200])
@pytest.mark.parametrize("shards", [(1003,), (500, 3, 500), (0, 250, 250, 0, 503), (1,) * 1003])
def test_windows_give_each_example_once_but_for_less_than_a_batch(shards, batch_size):
    indices = windowed(shards=shards, batch_size=batch_size)

    assert indices.dtype == np.int64
    assert len(indices) == 1003 // batch_size * batch_size
    assert len(np.unique(indices)) == len(indices)
    assert indices.min() >= 0 and indices.max() < 1003


def test_windows_leave_out_other_examples_in_each_epoch():
    left_out = [
        set(range(1003)) - set(windowed(epoch, shards=(1003,)).tolist()) for epoch in range(4)
    ]

    assert [len(examples) for examples in left_out] == [11] * 4
    assert len(set.union(*left_out)) > 30


def test_a_windowed_order_is_pure_and_differs_by_seed_and_epoch():
    np.testing.assert_array_equal(windowed(), windowed())
    for other in (windowed(1), windowed(seed=4), windowed(batch_size=32), windowed(window=64)):
        assert np.mean(windowed() == other[: len(windowed())]) < 0.02


def test_a_window_of_everything_is_the_full_shuffle():
    source = Numbers(400, 600)
    full = examples_of_epoch(source, 3, 1, batch_size=16)
    assert full[:, 1].tolist() == order(3, 1, 1000).tolist() and set(full[:, 0]) == {1}

    for window in (1000, 5000, None):
        rows = examples_of_epoch(source, 3, 1, batch_size=16, window=window)
        np.testing.assert_array_equal(rows, full)
    smaller = examples_of_epoch(source, 3, 1, batch_size=16, window=999)
    assert not np.array_equal(smaller, full[: len(smaller)])


def test_without_shuffling_a_window_changes_nothing():
    rows = examples_of_epoch(Numbers(10), 3, 2, batch_size=4, shuffle=False, window=4)

    assert rows.tolist() == [[2, index] for index in range(10)]


@pytest.mark.parametrize("processes", [2, 4, 16])
def test_each_process_reads_runs_of_its_own(processes):
    size, batch_size, window = 16_384, 128, 2048
    run = window // LANES // RUNS_PER_WINDOW
    indices = windowed(shards=(size,), window=window, batch_size=batch_size)
    shares = indices.reshape(-1, processes, batch_size // processes)
    runs = [set((shares[:, p].reshape(-1) // run).tolist()) for p in range(processes)]

    for one, other in itertools.combinations(runs, 2):
        assert one.isdisjoint(other)
    assert {len(of_process) for of_process in runs} == {size // run // processes}


def test_a_window_needs_few_runs_at_a_time():
    size, batch_size, window = 65_536, 256, 4096
    run = window // LANES // RUNS_PER_WINDOW
    indices = windowed(shards=(size,), window=window, batch_size=batch_size)

    for first in range(0, size, window):
        runs = np.unique(indices[first : first + window] // run)
        assert len(runs) == LANES * RUNS_PER_WINDOW
        assert window / len(runs) == run  # and of each run everything


def test_no_run_crosses_a_boundary():
    shards = (10,) * 100  # shorter than a run of 32 would be
    indices = windowed(shards=shards, window=128, batch_size=1)

    for first in range(0, 1000 - 128, 128):
        # A window of 128 holds 12 whole shards, and at most parts of two more.
        assert len(np.unique(indices[first : first + 128] // 10)) <= 14


def test_neighbours_are_mixed():
    """Neighbours in the data seldom meet in a batch, and each batch comes from everywhere."""
    size, batch_size = 131_072, 512
    indices = windowed(shards=(size // 8,) * 8, window=8192, batch_size=batch_size)
    batch_of = np.empty(size, np.int64)
    batch_of[indices] = np.arange(size) // batch_size
    means = indices.reshape(-1, batch_size).mean(axis=1) / size
    in_file_order = np.arange(size).reshape(-1, batch_size).mean(axis=1) / size

    # A full shuffle lets 0.4% meet, the order of the file 99.8%.
    assert np.mean(batch_of[1:] == batch_of[:-1]) < 0.08
    # The batches' means scatter by 0.289 / √512 = 0.013 in a full shuffle.
    assert np.std(means) < 0.03 < 0.28 < np.std(in_file_order)


# Mixtures.


def mixture_of(*weights, sizes=(100, 60, 40)):
    parts = zip("abc", sizes, weights, strict=False)
    return Mixture({name: (Numbers(size), weight) for name, size, weight in parts})


def test_whole_shares_are_the_counts_of_every_batch():
    counts = counts_of_steps(mixture_of(2, 1, 1), 0, 0, 50, 8)

    assert counts.tolist() == [[4, 2, 2]] * 50


def test_counts_are_the_shares_rounded_and_exact_in_the_mean():
    source = mixture_of(0.5, 0.3, 0.2)
    counts = counts_of_steps(source, 1, 0, 20_000, 7)  # shares 3.5, 2.1, 1.4

    assert (counts.sum(axis=1) == 7).all()
    assert (counts >= [3, 2, 1]).all() and (counts <= [4, 3, 2]).all()
    np.testing.assert_allclose(counts.mean(axis=0), [3.5, 2.1, 1.4], atol=0.01)


def test_a_step_alone_counts_as_in_a_row():
    source = mixture_of([(0, 1), (30, 5)], 2, [(10, 0), (20, 3)])
    row = counts_of_steps(source, 7, 0, 40, 16)

    for step in range(40):
        np.testing.assert_array_equal(counts_of_steps(source, 7, step, step + 1, 16), row[[step]])
    assert not np.array_equal(counts_of_steps(source, 8, 0, 40, 16), row)


def test_a_part_of_weight_zero_is_never_drawn():
    for weights in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        counts = counts_of_steps(mixture_of(*weights), 0, 0, 1000, 5)
        assert not counts[:, weights.index(0)].any()


def test_weights_change_linearly_between_their_steps():
    source = mixture_of([(10, 4), (20, 0)], 1, 0)
    shares = source.shares([0, 10, 15, 20, 99])

    np.testing.assert_allclose(shares[:, 0], [4 / 5, 4 / 5, 2 / 3, 0, 0])
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    counts = counts_of_steps(source, 0, 0, 40, 5)
    assert counts[:10].tolist() == [[4, 1, 0]] * 10
    assert counts[20:].tolist() == [[0, 5, 0]] * 20
    wanted = source.shares(np.arange(40)) * 5
    assert (np.abs(counts - wanted) < 1).all() and len(np.unique(counts[10:20, 0])) > 1


def epochs_of(source, epochs, **changes):
    arguments = {"batch_size": 8} | changes
    return [examples_of_epoch(source, 5, epoch, **arguments) for epoch in range(epochs)]


@pytest.mark.parametrize("window", [None, 16])
def test_each_part_goes_through_epochs_of_its_own(window):
    source = mixture_of([(0, 1), (60, 8)], 3, 2)
    rows = np.concatenate(epochs_of(source, 4, window=window))
    assert len(rows) == 4 * 200

    for first, end in itertools.pairwise(source.starts):
        part = rows[(rows[:, 1] >= first) & (rows[:, 1] < end)]
        size = end - first
        assert len(part) > 1.5 * size
        for epoch in range(len(part) // size):
            examples = part[part[:, 0] == epoch][:, 1]
            assert sorted(examples.tolist()) == list(range(first, end))
        # One after the other, but within a batch, which is shuffled.
        latest = np.maximum.accumulate(part[:, 0])
        assert (latest[8:] >= latest[:-8]).all() and (part[8:, 0] >= latest[:-8]).all()
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_no_two_choices_of_a_mixture_share_their_random_numbers(monkeypatch):
    keys = []
    philox = np.random.Philox
    monkeypatch.setattr(np.random, "Philox", lambda key: keys.append(tuple(key)) or philox(key=key))
    epochs_of(mixture_of(1, 1, 1), 1, window=16)

    # The counts, the places within a batch, and for each part its runs and its windows.
    assert len(keys) >= 2 + 3 * 2 and len(set(keys)) == len(keys)


def test_the_batches_of_a_mixture_have_the_counts_of_their_steps():
    source = mixture_of([(0, 1), (60, 8)], 3, 2)
    rows = np.concatenate(epochs_of(source, 3)).reshape(-1, 8, 2)
    parts = np.searchsorted(source.starts, rows[:, :, 1], side="right") - 1
    counts = np.stack([np.sum(parts == part, axis=1) for part in range(3)], axis=1)

    np.testing.assert_array_equal(counts, counts_of_steps(source, 5, 0, 75, 8))
    # Mixed within the batch, so that processes, which take parts of it, draw from all.
    assert all(np.unique(parts[:, place]).size == 3 for place in range(8))


def test_an_epoch_of_a_mixture_is_the_same_alone():
    source = mixture_of([(0, 1), (60, 8)], 3, 2)
    again = mixture_of([(0, 1), (60, 8)], 3, 2)
    together = epochs_of(source, 4)

    for epoch in (3, 1):
        alone = examples_of_epoch(again, 5, epoch, batch_size=8)
        np.testing.assert_array_equal(alone, together[epoch])


def test_what_a_run_has_drawn_is_told_by_its_position():
    source = mixture_of([(0, 1), (60, 8)], 3, 2)
    rows = np.concatenate(epochs_of(source, 2))[: 200 + 6 * 8]
    parts = np.searchsorted(source.starts, rows[:, 1], side="right") - 1
    drawn = drawn_from_parts(source, Position(epoch=1, examples=48, seed=5), 8)

    assert drawn == {name: int(np.sum(parts == part)) for part, name in enumerate("abc")}
    assert drawn_from_parts(source, Position(0, 0, 5), 8) == {"a": 0, "b": 0, "c": 0}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0, 0, 0], "weights of config.data.mixture are all 0 at the start"),
        (["often", 1, 1], r"mixture\.a\.weight is 'often'; set it to a number or to pairs"),
        ([None, 1, 1], r"mixture\.a\.weight is None; set it to a number or to pairs"),
        (
            [1, -1, 1],
            r"mixture\.b\.weight is -1; set it to pairs .* whose numbers are not negative$",
        ),
        ([1, 1, [(5, 1), (5, 2)]], r"mixture\.c\.weight is .*whose steps rise and"),
    ],
)
def test_weights_that_are_none_are_refused(weights, message):
    with pytest.raises(UserError, match=message):
        mixture_of(*weights)


def test_a_mixture_of_nothing_is_refused_and_so_are_steps_without_weight():
    with pytest.raises(UserError, match=r"config\.data\.mixture is empty"):
        Mixture({})
    fading = mixture_of([(0, 1), (7, 0)], 0, 0)
    with pytest.raises(UserError, match=r"mixture are all 0 at step 7"):
        examples_of_epoch(fading, 0, 0, batch_size=8)
