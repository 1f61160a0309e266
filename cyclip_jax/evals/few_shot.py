"""Few-shot linear probes: how much a classifier learns from k images of each class."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from cyclip_jax.data.places import DataPath
from cyclip_jax.errors import UserError
from cyclip_jax.evals.checks import check_at_least, check_named, check_types
from cyclip_jax.evals.data.labelled import check_train_and_test, open_train_and_test
from cyclip_jax.evals.evaluator import Evaluator, Needs, Opened
from cyclip_jax.evals.metric import count, share_at
from cyclip_jax.evals.statistics.classification import class_rows, ranks_of_label, with_constant
from cyclip_jax.evals.statistics.intervals import floats, interval
from cyclip_jax.evals.statistics.logistic import (
    check_regularization,
    chosen_regularization,
    logistic_regression,
)
from cyclip_jax.evals.statistics.splits import k_shot, missing_images, places_in_class
from cyclip_jax.files import FilePath


@dataclasses.dataclass(frozen=True)
class FewShot:
    """Logistic regression on k images of each class (Radford et al. 2021, section 3.1).

    Attributes:
      name: of the evaluation, for messages.
      train, test: labelled images, as `open_labelled` reads them; the classes are those of `train`.
      shots: the k, one or several. One is left out, with a warning, for which some class has too
        few images in `train`, or no image is left to choose `regularization` by.
      seeds: how many draws of the k images, without replacement; those of a smaller k are among
        those of a larger. With one draw the intervals are over test images alone.
      regularization: λ of `logistic_regression`; None chooses it for each draw by `sweep` on up to
        min(k, 4) further images of each class.
      max_iterations: of L-BFGS.
      normalize: whether features get unit norm.
      classes, image_key, label_key: of both data sets, see `open_labelled`.

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    name: str
    _: dataclasses.KW_ONLY
    train: DataPath
    test: DataPath
    shots: int | Sequence[int] = (1, 2, 4, 8, 16)
    seeds: int = 3
    regularization: float | None = 0.1
    max_iterations: int = 1000
    normalize: bool = True
    classes: FilePath | None = None
    image_key: str | None = None
    label_key: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        key = f"config.evals.{self.name}"
        checked_shots(key, self.shots)
        check_regularization(key, self.regularization)
        check_at_least(self, 1, "seeds", "max_iterations")
        check_named(self, "classes")
        check_train_and_test(self)

    def open(self) -> Evaluator:
        """Opens the data.

        Returns:
          An evaluator (see evals/__init__.py) that gives `top1@k`, the mean over the draws, with
          intervals over draws and test images (`interval_over_both`), and `chance_top1@k`;
          `images`, `classes`. Detail: `few_shot.json`, a row for each draw. Outcomes: each of
          `images` has its `label` and for each k its `top1@k` in every draw, bool [N, draws].

        Raises:
          UserError: what is wrong with the data, or every k is too large.
        """
        key = f"config.evals.{self.name}"
        shots = checked_shots(key, self.shots)
        data = open_train_and_test(self, classes=self.classes)
        names, limits = data.train.classes, {"max_iterations": self.max_iterations}
        needs = {"also_validation": self.regularization is None}
        if missing := missing_images(data.train.labels, names, shots[0], **needs):
            raise UserError(f"{key}.train {missing}")
        shots = possible_shots(key, data.train.labels, names, shots, **needs)

        def fit(features, labels, draw, k):
            """(Fit, λ) of one draw."""
            own, further = k_shot(places_in_class(labels, draw), k)
            shown, strength = (features[own], labels[own]), self.regularization
            if strength is None:
                strength, _ = chosen_regularization(
                    *shown, features[further], labels[further], len(names), **limits
                )
            return logistic_regression(*shown, len(names), **limits)(strength), strength

        def evaluate(encoders, output):
            features = data.features(encoders, self.normalize)
            labels, rows = features.train_labels, with_constant(features.test)
            outcomes = features.test_items
            metrics, table = {"images": count(len(rows)), "classes": count(len(names))}, []
            # Of the images that can be read.
            for k in possible_shots(key, labels, names, shots, **needs):
                fits = [fit(features.train, labels, draw, k) for draw in range(self.seeds)]
                classifiers = [class_rows(probe.kernel, probe.bias) for probe, _ in fits]
                ranks = [ranks_of_label(rows, one, features.test_labels) for one in classifiers]
                is_hit = np.asarray(ranks) < 1  # [draws, N]
                outcomes[f"top1@{k}"] = is_hit.T
                metrics[f"top1@{k}"] = share_at(k).metric(
                    float(is_hit.mean()), interval_over_both(is_hit), 1 / len(names)
                )
                table += _table_rows(k, is_hit, fits)
            output.json("few_shot", table)
            output.outcomes({"images": outcomes})
            return metrics

        return Opened(evaluate, lambda: Needs([data.train, data.test]))


def _table_rows(k, is_hit, fits):
    """Rows of `few_shot.json`, one for each draw."""
    return [
        {
            "shots": k,
            "draw": draw,
            "top1": float(is_hit[draw].mean()),
            "regularization": strength,
            "iterations": probe.iterations,
        }
        for draw, (probe, strength) in enumerate(fits)
    ]


def checked_shots(key: str, shots: Any) -> list[int]:
    """The different k of `shots`, whole numbers from 1 on or one such number, in their order.

    Raises:
      UserError: `shots` is something else.
    """
    several = [shots] if isinstance(shots, int) else shots
    if not (
        isinstance(several, (list, tuple))
        and several
        and all(isinstance(k, int) and k >= 1 for k in several)
    ):
        raise UserError(f"{key}.shots {shots!r} must be whole numbers of at least 1")
    return sorted(set(several))


def possible_shots(
    key: str,
    labels: Int[np.ndarray, "n"],
    names: Sequence[str],
    shots: Sequence[int],
    *,
    also_validation: bool,
) -> list[int]:
    """The k for which `missing_images` finds nothing; warns of the others."""
    possible = []
    for k in shots:
        missing = missing_images(labels, names, k, also_validation=also_validation)
        if missing is None:
            possible.append(k)
        else:
            logging.warning("%s: top1@%d is left out: train %s", key, k, missing)
    return possible


def interval_over_both(is_hit: Bool[np.ndarray, "draws n"]) -> tuple[float, float]:
    """The middle 95 % of the mean over draws of the training images and over test images.

    Each resample draws test images, and the draws of training images independently of them, both
    with replacement (the pigeonhole bootstrap, Owen 2007).

    Args:
      is_hit: bool [draws, N].

    Returns:
      (low, high).
    """
    draws, n = is_hit.shape
    rng = np.random.default_rng(1)  # another stream than the images'

    def statistic(weights):
        drawn = np.bincount(rng.integers(draws, size=draws), minlength=draws)
        return drawn @ (is_hit @ weights) / (draws * n)

    return floats(interval(statistic, n))
