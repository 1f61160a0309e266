import numpy as np
import pytest
import scipy.stats

from cyclip_jax.evals.statistics.rank_correlation import Spearman


def test_the_correlation_of_weighted_numbers_is_scipys_of_repeated_ones():
    rng = np.random.default_rng(0)
    scores, given = rng.integers(6, size=40) / 2, rng.normal(size=40).round(1)  # both with ties
    correlation = Spearman(scores, given)
    for weights in (np.ones(40, int), rng.integers(4, size=40)):
        rows = np.repeat(np.arange(40), weights)
        expected = scipy.stats.spearmanr(scores[rows], given[rows]).statistic
        assert correlation(weights) == pytest.approx(expected, rel=1e-12)
    assert correlation.parts().mean() == pytest.approx(correlation(np.ones(40)), rel=1e-12)


def test_a_model_without_an_order_has_no_correlation_and_scores_without_one_none_at_all():
    once = np.ones(3)
    assert Spearman(np.arange(3.0), np.full(3, 0.7))(once) == 0
    assert not Spearman(np.arange(3.0), np.full(3, 0.7)).parts().any()
    assert np.isnan(Spearman(np.full(3, 0.7), np.arange(3.0))(once))
    assert np.isnan(Spearman(np.arange(3.0), np.arange(3.0))(np.array([0, 2, 0])))
