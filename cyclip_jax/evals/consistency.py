"""Whether predictions in image space and in text space agree, which is what CyCLIP is about."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from cyclip_jax.data.places import DataPath
from cyclip_jax.evals.checks import check_named, check_types
from cyclip_jax.evals.data.class_names import checked_templates
from cyclip_jax.evals.data.image_set import first_captions
from cyclip_jax.evals.data.labelled import (
    check_images,
    check_train_and_test,
    open_images,
    open_train_and_test,
)
from cyclip_jax.evals.data.superclasses import Superclasses, read_superclasses, superclass_of_each
from cyclip_jax.evals.evaluator import Evaluator, Needs, Opened
from cyclip_jax.evals.metric import Metric, count, share_at
from cyclip_jax.evals.statistics.classification import embed_classes, prompts_of
from cyclip_jax.evals.statistics.cyclic import cyclic_consistencies
from cyclip_jax.evals.statistics.intervals import mean_with_interval
from cyclip_jax.evals.statistics.neighbours import nearest

_K = (1, 3, 5, 10)
_TILE_ROWS = 1024
_NO_LABEL = -2


@dataclasses.dataclass(frozen=True)
class Consistency:
    """Consistency of zero-shot with nearest-neighbour predictions (Goel et al. 2022, section 4.2).

    Attributes:
      name: of the evaluation, for messages.
      train, test: labelled images, as `open_labelled` reads them; the classes are those of `train`.
      image_key, label_key: as there.
      templates: sentences with {} around a class's name; default those of `test`.
      superclasses: for fine and coarse accuracy, see `read_superclasses`; default neither.
      pairs: file of images and captions on which the two terms of the objective are measured, as
        data.train; default none.

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    name: str
    _: dataclasses.KW_ONLY
    train: DataPath
    test: DataPath
    image_key: str | None = None
    label_key: str | None = None
    templates: Sequence[str] | None = None
    superclasses: Superclasses | None = None
    pairs: DataPath | None = None

    def __post_init__(self) -> None:
        key = f"config.evals.{self.name}"
        if self.templates is not None:
            checked_templates(self.templates, f"{key}.templates")
        check_types(self)
        check_named(self, "superclasses")
        check_train_and_test(self)
        if self.pairs is not None:
            check_images(self.pairs, config_key=f"{key}.pairs")

    def open(self) -> Evaluator:
        """Opens the data.

        Returns:
          An evaluator (see evals/__init__.py) that gives, with intervals, `consistency@k`, the
          share of the test images whose zero-shot class is the majority among the k nearest
          training images (a tie shrinks k by one until it is broken; k = 1, 3, 5, 10, as far as
          there are training images); `zeroshot_top1` and `knn_top1@k`, how often each is right;
          `fine_top1`, zero-shot among the classes of the true superclass, and `coarse_top1`,
          zero-shot counted right in the true superclass; `inmodal_consistency` and
          `crossmodal_consistency`, the means over all j, k of (⟨I_j,I_k⟩ − ⟨T_j,T_k⟩)² and
          (⟨I_j,T_k⟩ − ⟨I_k,T_j⟩)²; `images`, `train_images`, `pairs`: what was scored. An image
          with several most similar classes has no zero-shot class, one equally near to more than
          ten training images no nearest ones: it counts as inconsistent and wrong. `chance_…`: what
          a random class gets. Outcomes: each of `images` has its `label`, its zero-shot class
          `zeroshot` and its `majority` [N, k] among the nearest images (negative where it has
          none), and each of these metrics; each of `pairs` has its part in the two terms.

        Raises:
          UserError: what is wrong with the data.
        """
        key = f"config.evals.{self.name}"
        data = open_train_and_test(self, are_named=True)
        classes = data.train.classes
        templates = self.templates or data.test.templates
        groups = None
        if self.superclasses is not None:
            by_class = read_superclasses(self.superclasses, config_key=f"{key}.superclasses")
            groups = superclass_of_each(classes, by_class, config_key=f"{key}.superclasses")
            groups = np.unique(groups, return_inverse=True)[1]  # [C]
        pair_set = (
            None if self.pairs is None else open_images(self.pairs, config_key=f"{key}.pairs")
        )

        def evaluate(encoders, output):
            class_embeds = embed_classes(encoders, classes, templates)
            features = data.features(encoders, normalize=True)
            labels, train_labels = features.test_labels, features.train_labels
            zeroshot = predictions(features.test, class_embeds)
            ks = [k for k in _K if k <= len(features.train)]
            majorities = neighbour_labels(features.test, features.train, train_labels, ks[-1])
            output.json(
                "agreement", _agreement(zeroshot == labels, majorities == labels[:, None], ks)
            )
            majorities = majorities[:, [k - 1 for k in ks]]  # [N, len(ks)]
            metrics, hits = _both_predictions(zeroshot, majorities, labels, ks, len(classes))
            if groups is not None:
                further = fine_and_coarse(features.test, class_embeds, groups, labels)
                metrics, hits = metrics | further[0], hits | further[1]
            counts = {"images": count(len(labels)), "train_images": count(len(train_labels))}
            metrics = counts | metrics
            predicted = {"zeroshot": zeroshot, "majority": majorities}
            outcomes = {"images": {**features.test_items, **predicted, **hits}}
            if pair_set is not None:
                embeds = encoders.pair_embeds(pair_set)
                consistencies, parts = cyclic_consistencies(embeds.images, embeds.texts)
                metrics |= {**consistencies, "pairs": count(len(embeds.captions))}
                outcomes["pairs"] = {"index": embeds.index, **parts}
            output.outcomes(outcomes)
            return metrics

        def needs():
            further = [] if pair_set is None else [pair_set]
            prompts = prompts_of(classes, templates)
            return Needs(
                [data.train, data.test, *further], [prompts, *map(first_captions, further)]
            )

        return Opened(evaluate, needs)


def _both_predictions(zeroshot, majorities, labels, ks, classes):
    """({name: Metric}, {name: hits bool [N]}): how often either is right, and how often they agree.

    Classes are int [N], those of `majorities` int [N, len(ks)].
    """
    chance = 1 / classes
    hits = {"zeroshot_top1": zeroshot == labels}
    metrics = {"zeroshot_top1": mean_with_interval(hits["zeroshot_top1"], chance=chance)}
    for k, majority in zip(ks, majorities.T, strict=True):
        agree, right, about = zeroshot == majority, majority == labels, share_at(k)
        hits |= {f"consistency@{k}": agree, f"knn_top1@{k}": right}
        metrics[f"consistency@{k}"] = mean_with_interval(agree, about=about)
        metrics[f"knn_top1@{k}"] = mean_with_interval(right, chance=chance, about=about)
    return metrics, hits


def predictions(
    image_embeds: Float[np.ndarray, "n d"],
    class_embeds: Float[np.ndarray, "c d"],
    *,
    among: tuple[Int[np.ndarray, "c"], Int[np.ndarray, "n"]] | None = None,
) -> Int[np.ndarray, "n"]:
    """The class most similar to each image, int [N]; −1 where several are, or NaN.

    Args:
      image_embeds: [N, D].
      class_embeds: [C, D].
      among: (group of each class int [C], group of each image int [N]): only classes of an image's
        group may be predicted; default all.
    """
    predicted = np.empty(len(image_embeds), np.int64)
    for first in range(0, len(image_embeds), _TILE_ROWS):
        tile = slice(first, first + _TILE_ROWS)
        similarities = image_embeds[tile] @ class_embeds.T  # [tile, C]
        if among is not None:
            groups, own = among
            similarities = np.where(groups == own[tile, None], similarities, -np.inf)
        predicted[tile] = _single_best(similarities)
    return predicted


def coarse_predictions(
    image_embeds: Float[np.ndarray, "n d"],
    class_embeds: Float[np.ndarray, "c d"],
    groups: Int[np.ndarray, "c"],
) -> Int[np.ndarray, "n"]:
    """The group whose best class is most similar to each image, int [N]; −1 where several are.

    Args:
      image_embeds: [N, D].
      class_embeds: [C, D].
      groups: of each class, int [C], all of 0 … G − 1.
    """
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(groups.max() + 1))
    predicted = np.empty(len(image_embeds), np.int64)
    for first in range(0, len(image_embeds), _TILE_ROWS):
        tile = slice(first, first + _TILE_ROWS)
        similarities = image_embeds[tile] @ class_embeds[order].T  # [tile, C]
        predicted[tile] = _single_best(np.maximum.reduceat(similarities, starts, axis=1))
    return predicted


def _single_best(similarities):
    """The column of each row's only maximum, int [N], or −1."""
    best = similarities.max(axis=1, keepdims=True)
    is_clear = (similarities >= best).sum(axis=1) == 1
    return np.where(is_clear, similarities.argmax(axis=1), -1)


def fine_and_coarse(
    image_embeds: Float[np.ndarray, "n d"],
    class_embeds: Float[np.ndarray, "c d"],
    groups: Int[np.ndarray, "c"],
    labels: Int[np.ndarray, "n"],
) -> tuple[dict[str, Metric], dict[str, Bool[np.ndarray, "n"]]]:
    """Accuracy within the true superclass and of the superclass, see `Consistency`.

    Args:
      image_embeds, class_embeds: unit-norm [N, D] and [C, D].
      groups: the superclass of each class, int [C], all of 0 … G − 1.
      labels: the class of each image, int [N].

    Returns:
      ({name: Metric}, {name: hits bool [N]}) of `fine_top1` and `coarse_top1`.
    """
    sizes = np.bincount(groups)[groups[labels]]  # of each image's group
    fine = predictions(image_embeds, class_embeds, among=(groups, groups[labels])) == labels
    coarse = coarse_predictions(image_embeds, class_embeds, groups) == groups[labels]
    metrics = {
        "fine_top1": mean_with_interval(fine, chance=float(np.mean(1 / sizes))),
        "coarse_top1": mean_with_interval(coarse, chance=float(np.mean(sizes / len(groups)))),
    }
    return metrics, {"fine_top1": fine, "coarse_top1": coarse}


def neighbour_labels(
    test_embeds: Float[np.ndarray, "n d"],
    train_embeds: Float[np.ndarray, "m d"],
    train_labels: Int[np.ndarray, "m"],
    k: int,
) -> Int[np.ndarray, "n k"]:
    """The majority label of each image's 1, 2, …, k nearest training images, int [N, k].

    It is −2, which no prediction is, where an image has no nearest ones: its similarities are NaN,
    or more than k training images are equally near, as all are to a model that has collapsed.

    Args:
      test_embeds, train_embeds: unit-norm [N, D] and [M, D].
      train_labels: int [M].
      k: at most M.
    """
    wanted = min(k + 1, len(train_embeds))
    similarities, places = nearest(test_embeds, train_embeds, wanted)
    votes = np.where(np.isneginf(similarities), _NO_LABEL, train_labels[places])[:, :k]
    majorities = majority_labels(votes)
    is_flat = (similarities[:, 0] == similarities[:, -1]) & (wanted > k)
    return np.where(is_flat[:, None], _NO_LABEL, majorities)


def majority_labels(votes: Int[np.ndarray, "n k"]) -> Int[np.ndarray, "n k"]:
    """The majority among the first 1, 2, …, K votes, a tie shrinking their number until broken.

    Args:
      votes: labels of the nearest neighbours, the nearest first, int [N, K].

    Returns:
      int [N, K]; column k − 1 is the majority of the first k.
    """
    majorities = votes.copy()
    for k in range(2, votes.shape[1] + 1):
        first = votes[:, :k]
        counts = (first[:, :, None] == first[:, None, :]).sum(axis=2)  # [N, k]
        leader = np.take_along_axis(first, counts.argmax(axis=1)[:, None], axis=1)  # [N, 1]
        leads = counts == counts.max(axis=1, keepdims=True)
        is_clear = ~(leads & (first != leader)).any(axis=1)
        majorities[:, k - 1] = np.where(is_clear, leader[:, 0], majorities[:, k - 2])
    return majorities


def _agreement(zeroshot_right, knn_right, ks):
    """Shares of the images by who is right, bool [N] and for the first 1, 2, … neighbours [N, K].

    The report tabulates them for these k.
    """
    by_k = [knn_right[:, k - 1] for k in ks]
    return {
        "k": list(ks),
        "both_right": [float(np.mean(zeroshot_right & right)) for right in by_k],
        "only_zeroshot": [float(np.mean(zeroshot_right & ~right)) for right in by_k],
        "only_knn": [float(np.mean(~zeroshot_right & right)) for right in by_k],
        "both_wrong": [float(np.mean(~zeroshot_right & ~right)) for right in by_k],
    }
