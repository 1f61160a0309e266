"""How well a linear classifier of frozen features does, whatever it was fitted by."""

import numpy as np
from jaxtyping import Float

from cyclip_jax.evals.data.labelled import Features
from cyclip_jax.evals.metric import Metric
from cyclip_jax.evals.output import Output
from cyclip_jax.evals.statistics.classification import (
    class_rows,
    ranks_of_label,
    top_k,
    with_constant,
)

_TOP = (1, 5)


def probe_scores(
    features: Features,
    kernel: Float[np.ndarray, "d c"],
    bias: Float[np.ndarray, "c"],
    output: Output,
) -> dict[str, Metric]:
    """Tests a classifier, [D, C] and [C], and writes the outcome of each test image.

    Returns:
      `top1`, `top5` where there are more than 5 classes, and `mean_per_class`.
    """
    labels = features.test_labels
    ranks = ranks_of_label(with_constant(features.test), class_rows(kernel, bias), labels)
    metrics, hits = top_k(ranks, labels, len(bias), _TOP)
    output.outcomes({"images": {**features.test_items, **hits}})
    return metrics
