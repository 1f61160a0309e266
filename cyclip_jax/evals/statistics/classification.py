"""Classes scored by similarity: accuracies, ranks, confusions."""

import numpy as np

from cyclip_jax.evals.statistics.intervals import bounds_of, interval

_TILE_ROWS = 1024


_UNTOLD = -1  # the prediction for a NaN embedding


def embed(encoders, dataset):
    """Embeds the pictures and the classes of LabelledImages.

    Returns:
      (image_embeds [M, D], class_embeds [C, D], labels int [M]) of the M pictures that can be read.
    """
    class_embeds = class_embeddings(encoders.text_embeds, dataset.classes, dataset.templates)
    image_embeds, indices = encoders.image_embeds(dataset)
    return image_embeds, class_embeds, dataset.labels[indices]


def class_embeddings(embed_texts, classes, templates):
    """Unit-norm mean over the templates of unit-norm text embeddings, [C, D]."""
    prompts = [template.format(name) for name in classes for template in templates]
    embeds = embed_texts(prompts).reshape(len(classes), len(templates), -1).mean(axis=1)
    return embeds / np.linalg.norm(embeds, axis=1, keepdims=True)


def ranks_of_label(image_embeds, class_embeds, labels, *, names=None):
    """How many other classes come before the label's, int [N]; ties are misses.

    Where a similarity is NaN, it is the number C of all classes.

    Args:
      image_embeds: [N, D].
      class_embeds: [C, D].
      labels: int [N].
      names: of the classes; default all different. Classes of one name have one prompt, so that no
        model can tell them apart: among themselves they rank in their order, as by an argmax.
    """
    names = range(len(class_embeds)) if names is None else names
    _, first, ids, sizes = np.unique(
        names, return_index=True, return_inverse=True, return_counts=True
    )
    before = np.asarray([np.sum(ids[:c] == ids[c]) for c in range(len(ids))])  # of the same name
    ranks = []
    for start in range(0, len(image_embeds), _TILE_ROWS):
        tile = slice(start, start + _TILE_ROWS)
        similarities = image_embeds[tile] @ class_embeds[first].T  # [tile, distinct names]
        own = np.take_along_axis(similarities, ids[labels[tile], None], axis=1)
        others = ~(similarities < own) @ sizes - sizes[ids[labels[tile]]]
        is_nan = np.isnan(similarities).any(axis=1)
        ranks.append(np.where(is_nan, len(ids), others + before[labels[tile]]))
    return np.concatenate(ranks)


def mean_per_class(is_hit, labels, classes):
    """Mean over the classes that have images of each one's share of hits, with its interval.

    Args:
      is_hit: bool [N].
      labels: int [N].
      classes: their number C.

    Returns:
      {"mean_per_class": …, "mean_per_class_ci_low": …, "mean_per_class_ci_high": …}.
    """

    def statistic(weights):
        hits = np.bincount(labels, weights * is_hit, minlength=classes)
        images = np.bincount(labels, weights, minlength=classes)
        return np.mean(hits[images > 0] / images[images > 0])

    mean = float(statistic(np.ones(len(labels))))
    return {"mean_per_class": mean} | bounds_of("mean_per_class", interval(statistic, len(labels)))


def predicted(image_embeds, class_embeds):
    """The most similar class of each image, int [N]; -1 where a similarity is NaN."""
    predictions = []
    for start in range(0, len(image_embeds), _TILE_ROWS):
        similarities = image_embeds[start : start + _TILE_ROWS] @ class_embeds.T  # [tile, C]
        is_nan = np.isnan(similarities).any(axis=1)
        predictions.append(np.where(is_nan, _UNTOLD, similarities.argmax(axis=1)))
    return np.concatenate(predictions)


def confusion(labels, predictions, classes):
    """How many images of each class (rows) are taken for which (columns), int [C, C]."""
    counts = np.zeros((classes, classes), int)
    told = predictions != _UNTOLD
    np.add.at(counts, (labels[told], predictions[told]), 1)
    return counts


def class_table(names, is_hit, labels, predictions):
    """For each class its images, top1 and the class that most of its misses are taken for.

    Returns:
      [{"class", "images", "top1", "most_confused_with"}], for JSON; None where there is nothing.
    """
    by_class = np.argsort(labels, kind="stable")
    rows = np.split(by_class, np.searchsorted(labels[by_class], np.arange(1, len(names))))
    table = []
    for number, (name, own) in enumerate(zip(names, rows, strict=True)):
        wrong = predictions[own]
        wrong = np.bincount(wrong[(wrong != number) & (wrong != _UNTOLD)], minlength=1)
        table.append(
            {
                "class": name,
                "images": len(own),
                "top1": float(is_hit[own].mean()) if len(own) else None,
                "most_confused_with": names[wrong.argmax()] if wrong.any() else None,
            }
        )
    return table
