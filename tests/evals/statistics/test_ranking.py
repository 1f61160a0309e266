import jax
import numpy as np
import pytest

from cyclip_jax.evals.statistics import ranking
from cyclip_jax.evals.statistics.ranking import ranks_of_best_partner

# Rows are queries, columns targets; the embeddings are the table itself against the identity.
TABLE = np.array(
    [
        [0.9, 0.1, 0.2, 0.3],  # own first
        [0.8, 0.5, 0.1, 0.0],  # own second
        [0.7, 0.6, 0.6, 0.1],  # own ties with another for second: a miss, third
        [0.4, 0.3, 0.2, 0.1],  # own last
    ]
)
OWN = np.arange(4)


def random_case(queries, targets, pairs, d=8):
    """Embeddings, and partners of every query but the last, some of them given twice."""
    rng = np.random.default_rng(queries)
    ids = np.append(rng.integers(queries - 1, size=pairs), np.arange(queries - 1))
    partners = rng.integers(targets, size=len(ids))
    again = rng.permutation(len(ids))[: len(ids) // 3]
    ids, partners = np.append(ids, ids[again]), np.append(partners, partners[again])
    return rng.normal(size=(queries, d)), rng.normal(size=(targets, d)), ids, partners


def by_definition(queries, targets, query_ids, target_ids):
    similarities = queries @ targets.T
    ranks = []
    for query, row in enumerate(similarities):
        own = set(target_ids[query_ids == query].tolist())
        best = max((row[target] for target in own), default=-np.inf)
        ranks.append(sum(t not in own and not row[t] < best for t in range(len(row))))
    return ranks


def test_ranks_of_a_hand_made_table():
    ranks = ranks_of_best_partner(TABLE, np.eye(4), OWN, OWN)
    np.testing.assert_array_equal(ranks, [0, 1, 2, 3])


def test_any_partner_is_a_hit_and_the_others_are_no_competition():
    queries, targets = np.array([2, 0, 1, 0, 3, 0]), np.array([2, 3, 0, 0, 1, 3])
    ranks = ranks_of_best_partner(TABLE, np.eye(4), queries, targets)
    np.testing.assert_array_equal(ranks, [0, 0, 2, 1])


@pytest.mark.parametrize("tile_size", [1, 7 * 40, 3 * 8 * 40, 1 << 26])
def test_tiles_give_the_ranks_of_the_definition(tile_size):
    case = random_case(50, 40, 60)
    ranks = ranks_of_best_partner(*case, tile_size=tile_size)
    np.testing.assert_array_equal(ranks, by_definition(*case))
    assert ranks[-1] == 40  # it has no partner


def test_one_device_gives_the_ranks_of_eight(monkeypatch):
    case = random_case(37, 23, 40)
    assert len(jax.local_devices()) == 8
    eight = ranks_of_best_partner(*case)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    np.testing.assert_array_equal(ranks_of_best_partner(*case), eight)


def test_no_more_similarities_than_a_tile_has_are_in_memory(monkeypatch):
    sizes = []

    def recorded(queries, targets):
        sizes.append(8 * len(queries) * len(targets))
        return queries @ targets.T

    monkeypatch.setattr(ranking, "similarity", recorded)
    ranks_of_best_partner(*random_case(203, 31, 5), tile_size=1000)
    assert sizes == [8 * 4 * 31]  # seven tiles of 29 queries, filled up to 32


def test_equal_targets_tie_to_the_last_bit_wherever_they_stand():
    """In a product by blocks the columns at its edge may be summed in another order."""
    rng = np.random.default_rng(0)
    for n in (5, 33, 101):
        same = np.repeat(rng.normal(size=(1, 512)).astype(np.float32), n, axis=0)
        ranks = ranks_of_best_partner(same, same, np.arange(n), np.arange(n))
        np.testing.assert_array_equal(ranks, n - 1)


def test_double_precision_is_kept():
    targets = np.array([[1.0, 0.0], [1.0 + 1e-12, 0.0]])
    ranks = ranks_of_best_partner(np.eye(2)[:1], targets, np.array([0]), np.array([1]))
    np.testing.assert_array_equal(ranks, [0])


def test_nan_is_a_miss_and_a_wrong_target_that_is_nan_comes_before():
    nan_query, nan_target = TABLE.copy(), np.eye(4)
    nan_query[0] = np.nan
    np.testing.assert_array_equal(
        ranks_of_best_partner(nan_query, np.eye(4), OWN, OWN), [4, 1, 2, 3]
    )
    nan_target[3] = np.nan  # against query 3's own, and before all the others'
    np.testing.assert_array_equal(ranks_of_best_partner(TABLE, nan_target, OWN, OWN), [1, 2, 3, 4])
    every = np.repeat(0, 4), OWN  # even where no target is wrong
    assert ranks_of_best_partner(nan_query[:1], np.eye(4), *every) == [4]
