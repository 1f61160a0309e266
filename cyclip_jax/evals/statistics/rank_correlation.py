"""Whether two columns of numbers have the same order (Spearman 1904), also of resampled data."""

import numpy as np
from jaxtyping import Float, Shaped


class Spearman:
    """The rank correlation of scores with what a model gives, as a function of weights.

    Equal numbers share the mean of their ranks. A model that gives one number to all has no order,
    and its correlation is 0. Where the scores are all equal there is nothing to find: it is NaN.

    Args:
      scores: finite numbers [N].
      given: finite numbers [N].
    """

    def __init__(self, scores: Float[np.ndarray, "n"], given: Float[np.ndarray, "n"]) -> None:
        # The place of each number among the distinct ones: the order need be found but once.
        self._places = [np.unique(values, return_inverse=True)[1] for values in (scores, given)]

    def __call__(self, weights: Shaped[np.ndarray, "n"]) -> float:
        """The correlation where each of the N is there so many times, int [N]."""
        of_scores, of_given = (_centred_ranks(places, weights) for places in self._places)
        of_scores_squared, of_given_squared = weights @ of_scores**2, weights @ of_given**2
        if not of_scores_squared:
            return float("nan")
        if not of_given_squared:
            return 0.0
        covariance = weights @ (of_scores * of_given)
        return float(covariance / np.sqrt(of_scores_squared * of_given_squared))

    def parts(self) -> Float[np.ndarray, "n"]:
        """Each one's part in the correlation, the product of its standardised ranks, [N].

        Their mean is the correlation.
        """
        once = np.ones(len(self._places[0]))
        of_scores, of_given = (_centred_ranks(places, once) for places in self._places)
        norm = np.sqrt(np.mean(of_scores**2) * np.mean(of_given**2))
        return of_scores * of_given / norm if norm else np.zeros(len(once))


def _centred_ranks(places, weights):
    """Ranks less their mean, [N], where each is there so many times; halves are exact."""
    counts = np.bincount(places, weights=weights)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return (ranks - (counts.sum() + 1) / 2)[places]
