"""Whether predictions in image space and in text space agree, which is what CyCLIP is about."""

import numpy as np

from cyclip_jax.evals.data.class_names import checked_templates
from cyclip_jax.evals.data.labelled import open_images, open_train_and_test
from cyclip_jax.evals.data.superclasses import read_superclasses, superclass_of_each
from cyclip_jax.evals.statistics.classification import class_embeddings
from cyclip_jax.evals.statistics.cyclic import cyclic_consistencies
from cyclip_jax.evals.statistics.intervals import mean_with_interval
from cyclip_jax.evals.statistics.neighbours import nearest

_K = (1, 3, 5, 10)


_TILE_ROWS = 1024


_NO_LABEL = -2


def consistency(
    name,
    *,
    train,
    test,
    image_key=None,
    label_key=None,
    templates=None,
    superclasses=None,
    pairs=None,
):
    """Consistency of zero-shot with nearest-neighbour predictions (Goel et al. 2022, section 4.2).

    Args:
      name: of the evaluation, for messages.
      train, test: labelled images, as `open_labelled` reads them; the classes are those of `train`.
      image_key, label_key: as there.
      templates: sentences with {} around a class's name; default those of `test`.
      superclasses: for fine and coarse accuracy, see `read_superclasses`; default neither.
      pairs: file of images and captions on which the two terms of the objective are measured, as
        data.train; default none.

    Returns:
      An evaluator (see evals/__init__.py) that gives, with intervals,
      `consistency@k`, the share of the test images whose zero-shot class is the majority among the
      k nearest training images (a tie shrinks k by one until it is broken; k = 1, 3, 5, 10, as far
      as there are training images); `zeroshot_top1` and `knn_top1@k`, how often each is right;
      `fine_top1`, zero-shot among the classes of the true superclass, and `coarse_top1`, zero-shot
      counted right in the true superclass; `inmodal_consistency` and `crossmodal_consistency`, the
      means over all j, k of (⟨I_j,I_k⟩ − ⟨T_j,T_k⟩)² and (⟨I_j,T_k⟩ − ⟨I_k,T_j⟩)²; `images`,
      `train_images`, `pairs`: what was scored. An image with several most similar classes has no
      zero-shot class, one equally near to more than ten training images no nearest ones: it counts
      as inconsistent and wrong. `chance_…`: what a random class gets.

    Raises:
      UserError: what is wrong with the data.
    """
    key = f"config.evals.{name}"
    columns = {"image_key": image_key, "label_key": label_key}
    data = open_train_and_test(name, train, test, are_named=True, **columns)
    classes = data.train.classes
    if templates is None:
        templates = data.test.templates
    else:
        templates = checked_templates(templates, f"{key}.templates")
    groups = None
    if superclasses is not None:
        by_class = read_superclasses(superclasses, config_key=f"{key}.superclasses")
        groups = superclass_of_each(classes, by_class, config_key=f"{key}.superclasses")
        groups = np.unique(groups, return_inverse=True)[1]  # [C]
    pair_set = None if pairs is None else open_images(pairs, config_key=f"{key}.pairs")

    def evaluate(encoders, output):
        class_embeds = class_embeddings(encoders.text_embeds, classes, templates)
        train_embeds, train_labels, test_embeds, labels = data.features(encoders, normalize=True)
        zeroshot = predictions(test_embeds, class_embeds)
        ks = [k for k in _K if k <= len(train_embeds)]
        majorities = neighbour_labels(test_embeds, train_embeds, train_labels, ks[-1])
        results = {"images": len(labels), "train_images": len(train_embeds)}
        results |= mean_with_interval("zeroshot_top1", zeroshot == labels)
        results["chance_zeroshot_top1"] = 1 / len(classes)
        for k in ks:
            majority = majorities[:, k - 1]
            results |= mean_with_interval(f"consistency@{k}", zeroshot == majority)
            results |= mean_with_interval(f"knn_top1@{k}", majority == labels)
            results[f"chance_knn_top1@{k}"] = 1 / len(classes)
        output.json("agreement", agreement(zeroshot == labels, majorities == labels[:, None], ks))
        if groups is not None:
            results |= fine_and_coarse(test_embeds, class_embeds, groups, labels)
        if pair_set is not None:
            *embeds, captions = encoders.pair_embeds(pair_set)
            results |= cyclic_consistencies(*embeds) | {"pairs": len(captions)}
        return results

    return evaluate


def predictions(image_embeds, class_embeds, *, among=None):
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


def coarse_predictions(image_embeds, class_embeds, groups):
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


def fine_and_coarse(image_embeds, class_embeds, groups, labels):
    """The metrics `fine_top1` and `coarse_top1` of classes in groups, see `consistency`."""
    sizes = np.bincount(groups)[groups[labels]]  # of each image's group
    fine = predictions(image_embeds, class_embeds, among=(groups, groups[labels]))
    coarse = coarse_predictions(image_embeds, class_embeds, groups)
    results = mean_with_interval("fine_top1", fine == labels)
    results |= mean_with_interval("coarse_top1", coarse == groups[labels])
    chance = {
        "chance_fine_top1": float(np.mean(1 / sizes)),
        "chance_coarse_top1": float(np.mean(sizes / len(groups))),
    }
    return results | chance


def neighbour_labels(test_embeds, train_embeds, train_labels, k):
    """The majority label of each image's 1, 2, …, k nearest training images, int [N, k].

    It is −2, which no prediction is, where an image has no nearest ones: its similarities are NaN,
    or more than k training images are equally near, as all are to a model that has collapsed.
    """
    wanted = min(k + 1, len(train_embeds))
    similarities, places = nearest(test_embeds, train_embeds, wanted)
    votes = np.where(np.isneginf(similarities), _NO_LABEL, train_labels[places])[:, :k]
    majorities = majority_labels(votes)
    is_flat = (similarities[:, 0] == similarities[:, -1]) & (wanted > k)
    return np.where(is_flat[:, None], _NO_LABEL, majorities)


def majority_labels(votes):
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


def agreement(zeroshot_right, knn_right, ks):
    """Shares of the images by who is right, for each k, as the report tabulates them."""
    by_k = [knn_right[:, k - 1] for k in ks]
    return {
        "k": list(ks),
        "both_right": [float(np.mean(zeroshot_right & right)) for right in by_k],
        "only_zeroshot": [float(np.mean(zeroshot_right & ~right)) for right in by_k],
        "only_knn": [float(np.mean(~zeroshot_right & right)) for right in by_k],
        "both_wrong": [float(np.mean(~zeroshot_right & ~right)) for right in by_k],
    }
