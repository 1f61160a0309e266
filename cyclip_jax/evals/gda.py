"""Gaussian discriminant analysis beside zero-shot: what images add to names, without training."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from cyclip_jax.data.places import DataPath
from cyclip_jax.errors import UserError
from cyclip_jax.evals.checks import check_at_least, check_named, check_types
from cyclip_jax.evals.data.class_names import checked_templates
from cyclip_jax.evals.data.labelled import check_train_and_test, open_train_and_test
from cyclip_jax.evals.evaluator import Evaluator, Needs, Opened
from cyclip_jax.evals.metric import Metric, count
from cyclip_jax.evals.statistics.classification import (
    embed_classes,
    prompts_of,
    ranks_of_label,
    with_constant,
)
from cyclip_jax.evals.statistics.intervals import mean_with_interval
from cyclip_jax.evals.statistics.splits import (
    check_share,
    held_out,
    k_shot,
    missing_images,
    places_in_class,
)
from cyclip_jax.files import FilePath

_TILE_ROWS = 1024
_ZEROSHOT_SCALE = 100  # of the cosines, as published; the bound of CLIP's logit scale
_ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # the grid of the published code


@dataclasses.dataclass(frozen=True)
class Gda:
    """Zero-shot logits plus those of Gaussian discriminant analysis (Wang et al., ICLR 2024).

    Attributes:
      name: of the evaluation, for messages.
      train, test: labelled images, as `open_labelled` reads them; the classes are those of `train`.
      shots: images of each class, 2 or more (without augmentation one has no covariance), or fewer
        where some cannot be read; None takes all.
      alpha: weight of the second logits; None chooses among 10^−4, 10^−3, …, 10^2 by accuracy on
        other training images, the smallest of equally good ones. With `shots` these are up to
        min(shots, 4) further ones of each class, without they are held out, and the Gaussians are
        then estimated again from all.
      templates: sentences with {} around a class's name; default those of `train`.
      validation_share: of each class's images that are held out.
      seed: of the images drawn.
      classes, image_key, label_key: of both data sets, see `open_labelled`.

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    name: str
    _: dataclasses.KW_ONLY
    train: DataPath
    test: DataPath
    shots: int | None = None
    alpha: float | None = None
    templates: Sequence[str] | None = None
    validation_share: float = 0.2
    seed: int = 0
    classes: FilePath | None = None
    image_key: str | None = None
    label_key: str | None = None

    def __post_init__(self) -> None:
        key = f"config.evals.{self.name}"
        if self.templates is not None:
            checked_templates(self.templates, f"{key}.templates")
        check_types(self)
        if self.shots is not None and self.shots < 2:
            raise UserError(
                f"{key}.shots {self.shots} must be at least 2: one image has no covariance"
            )
        check_at_least(self, 0, "alpha")
        check_share(key, self.validation_share)
        check_named(self, "classes")
        check_train_and_test(self)

    def open(self) -> Evaluator:
        """Opens the data.

        Returns:
          An evaluator (see evals/__init__.py) that gives `zeroshot_top1`, `gda_top1`,
          `ensemble_top1` with intervals and `chance_…`; `alpha`; `images` and `train_images`, how
          many were scored and how many the Gaussians come from. Detail of a choice: `alphas.json`.
          Outcomes: each of `images` has its `label`, `zeroshot_top1`, `gda_top1` and
          `ensemble_top1`.

        Raises:
          UserError: what is wrong with the data; in an evaluation, a class has fewer than two
            images that can be read, or without `shots` none.
        """
        key = f"config.evals.{self.name}"
        data = open_train_and_test(self, classes=self.classes)
        names, templates = data.train.classes, self.templates or data.train.templates

        def split(labels, least):
            """(images that α is chosen with, that it is chosen on, of the result), bool [N]."""
            needs = {
                "also_validation": self.shots is not None and self.alpha is None,
                "least": least,
            }
            if missing := missing_images(labels, names, self.shots or 1, **needs):
                raise UserError(f"{key}.train {missing}")
            if self.shots is not None:
                own, further = k_shot(places_in_class(labels, self.seed), self.shots)
                return own, further, own
            everything = np.ones(len(labels), bool)
            if self.alpha is not None:
                return everything, ~everything, everything
            is_held = held_out(labels, self.validation_share, self.seed, f"{key}.train", "alpha")
            return ~is_held, is_held, everything

        split(data.train.labels, self.shots)

        def evaluate(encoders, output):
            features = data.features(encoders, normalize=True)
            shown, labels = features.train, features.train_labels  # of those that can be read
            fitting, choosing, final = split(labels, min(self.shots or 1, 2))
            texts = embed_classes(encoders, names, templates)
            zeroshot = np.pad(_ZEROSHOT_SCALE * texts, ((0, 0), (0, 1)))  # [C, D + 1], no bias
            weight = self.alpha
            if weight is None:
                known, others = (
                    (shown[fitting], labels[fitting]),
                    (shown[choosing], labels[choosing]),
                )
                weight = _chosen_alpha(*known, *others, zeroshot, output)
            gaussian = discriminant(shown[final], labels[final], len(names))
            hits = _hits(features, names, zeroshot, gaussian, weight)
            output.outcomes({"images": {**features.test_items, **hits}})
            return {
                "images": count(len(features.test)),
                "train_images": count(int(final.sum())),
                "alpha": Metric(weight),
                **{name: mean_with_interval(h, chance=1 / len(names)) for name, h in hits.items()},
            }

        def needs():
            return Needs([data.train, data.test], [prompts_of(names, templates)])

        return Opened(evaluate, needs)


def _hits(features, names, zeroshot, gaussian, weight):
    """{metric: bool [N]} of either classifier and of both, whose class rows are [C, D + 1]."""
    rows, labels = with_constant(features.test), features.test_labels
    return {
        "zeroshot_top1": ranks_of_label(rows, zeroshot, labels, names=names) < 1,
        "gda_top1": ranks_of_label(rows, gaussian, labels) < 1,
        "ensemble_top1": ranks_of_label(rows, zeroshot + weight * gaussian, labels) < 1,
    }


def _chosen_alpha(features, labels, other_features, other_labels, zeroshot, output):
    """The best α on images other than those that the Gaussians come from."""
    gaussian = discriminant(features, labels, len(zeroshot))
    rows = with_constant(other_features)
    tried = {
        a: float(np.mean(ranks_of_label(rows, zeroshot + a * gaussian, other_labels) < 1))
        for a in _ALPHAS
    }
    table = [{"alpha": a, "validation_top1": accuracy} for a, accuracy in tried.items()]
    output.json("alphas", table)
    return max(tried, key=lambda a: tried[a])  # the smallest of equally good ones


def discriminant(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"], classes: int
) -> Float[np.ndarray, "c d+1"]:
    """Bayes' classifier for Gaussians of one covariance and equally frequent classes.

    The class c scores xᵀ P μ_c − ½ μ_cᵀ P μ_c + log 1/C. The covariance Σ is that within the
    classes, with N − 1, and its inverse is estimated by the empirical-Bayes ridge
    P = D ((N − 1) Σ + tr(Σ) 1)⁻¹ (Kubokawa and Srivastava 2008), as Wang et al. 2024 do.

    Args:
      features: float [N, D].
      labels: int [N], of each class one at least.
      classes: their number C.

    Returns:
      float64 [C, D + 1], a score is an inner product with [x, 1]; NaN where a feature is.
    """
    n, d = features.shape
    sums, scatter = np.zeros((classes, d)), np.zeros((d, d))
    tiles = [slice(start, start + _TILE_ROWS) for start in range(0, n, _TILE_ROWS)]
    for tile in tiles:
        np.add.at(sums, labels[tile], features[tile])
    means = sums / np.bincount(labels, minlength=classes)[:, None]  # [C, D]
    if not np.isfinite(means).all():
        return np.full((classes, d + 1), np.nan)
    for tile in tiles:
        centred = features[tile] - means[labels[tile]]  # [tile, D]
        scatter += centred.T @ centred  # (N − 1) Σ
    ridge = np.trace(scatter) / (n - 1) * np.eye(d)
    weights = means @ (d * np.linalg.pinv(scatter + ridge, hermitian=True))  # [C, D]
    bias = -np.log(classes) - np.sum(weights * means, axis=1) / 2
    return np.concatenate([weights, bias[:, None]], axis=1)
