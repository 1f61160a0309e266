"""How often captions name classes, and whether a model knows the more frequent ones better.

Udandarao et al. (2024) find that zero-shot accuracy follows how often a model has read of a class.
"""

import collections
import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from cyclip_jax.evals.metric import About, Metric
from cyclip_jax.evals.statistics.intervals import floats, interval
from cyclip_jax.evals.statistics.rank_correlation import Spearman

_WORD = re.compile(r"\w+")


def captions_with(captions: Iterable[str], names: Sequence[str]) -> Int[np.ndarray, "c"]:
    """How many captions have each name in them, as whole words, in capitals or not.

    Args:
      captions: texts, which are passed through once.
      names: of the C classes; one without a letter or digit is in no caption.

    Returns:
      int64 [C].
    """
    wanted = [tuple(_WORD.findall(name.lower())) for name in names]
    known, lengths = set(wanted) - {()}, sorted({len(words) for words in wanted} - {0})
    counts = collections.Counter()
    for caption in captions:
        words = _WORD.findall(caption.lower())
        counts.update(
            {
                part
                for length in lengths
                for start in range(len(words) - length + 1)
                if (part := tuple(words[start : start + length])) in known
            }
        )
    return np.array([counts[words] for words in wanted], np.int64)


def frequency_correlation(
    counts: Int[np.ndarray, "c"], is_hit: Bool[np.ndarray, "n"], labels: Int[np.ndarray, "n"]
) -> Metric:
    """The rank correlation of classes' counts with their accuracies; its interval is over classes.

    Args:
      counts: captions that name each of the C classes, int [C].
      is_hit: whether each picture was told right, bool [N].
      labels: their classes, int [N]. A class without pictures is left out.
    """
    pictures = np.bincount(labels, minlength=len(counts))
    told = pictures > 0
    hits = np.bincount(labels, weights=is_hit, minlength=len(counts))
    correlation = Spearman(counts[told].astype(float), hits[told] / pictures[told])
    classes = int(told.sum())
    bounds = floats(interval(correlation, classes))
    return About().metric(correlation(np.ones(classes)), bounds, chance=0.0)
