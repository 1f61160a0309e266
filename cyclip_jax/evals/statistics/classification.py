"""Classes scored by similarity: accuracies, ranks, confusions."""

import collections
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.labelled import LabelledImages
from cyclip_jax.evals.encoders import ClassRows, Encoders
from cyclip_jax.evals.metric import SHARE, Metric, share_at
from cyclip_jax.evals.statistics.intervals import floats, interval, mean_with_interval
from cyclip_jax.evals.statistics.unit_norm import unit_rows

_TILE_ROWS = 1024
_UNTOLD = -1  # the prediction for a NaN embedding


class Embedded(NamedTuple):
    """LabelledImages as a model sees them, of the M pictures that can be read.

    Attributes:
      images: unit-norm embeddings of the pictures, float [M, D].
      classes: unit-norm embeddings of the classes, float [C, D].
      labels: int [M], each picture's class.
      index: int [M], the pictures' numbers in the data set.
    """

    images: Float[np.ndarray, "m d"]
    classes: Float[np.ndarray, "c d"]
    labels: Int[np.ndarray, "m"]
    index: Int[np.ndarray, "m"]


def embed(encoders: Encoders, dataset: LabelledImages, *, by_head: bool = False) -> Embedded:
    """Embeds the pictures and the classes of a data set.

    Args:
      encoders: of the model.
      dataset: the pictures and their classes.
      by_head: whether the classes are those of the model's head, in place of their texts. A class
        then has one number more, its bias, and a picture a 1 there; classes have no unit norm.

    Raises:
      UserError: the model cannot tell the classes, or its head has them not.
    """
    if by_head:
        classes = rows_of_head(encoders.head, dataset)
        images, index = encoders.image_embeds(dataset)
        return Embedded(with_constant(images), classes, dataset.labels[index], index)
    class_embeds = embed_classes(encoders, dataset.classes, dataset.templates)
    image_embeds, index = encoders.image_embeds(dataset)
    return Embedded(image_embeds, class_embeds, dataset.labels[index], index)


def rows_of_head(head: ClassRows | None, dataset: LabelledImages) -> Float[np.ndarray, "c d+1"]:
    """What a model's head has of the classes of a data set, weights and then the bias, [C, D + 1].

    Raises:
      UserError: there is no head, or it lacks one of the classes.
    """
    if head is None:
        raise UserError(
            "the model has no head of classes; set `head` to False, or choose a fine-tuned model"
        )
    places = {name: place for place, name in enumerate(head.names)}
    unknown = [name for name in dataset.classes if name not in places]
    if unknown:
        raise UserError(
            f"{dataset.path} has classes that the model's head has not: {', '.join(unknown[:5])}"
        )
    rows = [places[name] for name in dataset.classes]
    return rows_of_classes(head)[rows]


def rows_of_classes(head: ClassRows) -> Float[np.ndarray, "c d+1"]:
    """The `class_rows` of a model's head."""
    return class_rows(head.weights.T, head.biases)


def class_rows(
    kernel: Float[np.ndarray, "d c"], bias: Float[np.ndarray, "c"]
) -> Float[np.ndarray, "c d+1"]:
    """A row for each class, [C, D + 1], whose inner product with [x, 1] is its score."""
    return np.concatenate([kernel, bias[None]]).T


def with_constant(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d+1"]:
    """Features and a last one that is 1, which the bias weighs: [N, D] -> [N, D + 1]."""
    return np.pad(features, ((0, 0), (0, 1)), constant_values=1)


def embed_classes(
    encoders: Encoders, classes: Sequence[str], templates: Sequence[str]
) -> Float[np.ndarray, "c d"]:
    """The `class_embeddings` of a model, which must be able to tell the classes by their prompts.

    Where some of them have the same tokens, a warning says which.

    Raises:
      UserError: all prompts of all classes have the same tokens.
    """
    alike = classes_alike(encoders.tokenize, classes, templates)
    if alike and len(alike[0]) == len(set(classes)):
        raise UserError(
            f"all {len(alike[0])} classes have the same tokens in every template, such as "
            f"{templates[0].format(classes[0])!r}: the context of the model is too short, or its "
            "vocabulary lacks their names; shorten the templates or the names in `classes`"
        )
    if alike:
        named = "; ".join(", ".join(map(repr, group[:3])) for group in alike[:3])
        logging.warning(
            "%d classes have the same tokens as another in every template, so that the model "
            "cannot tell them apart: %s%s; shorten the templates or the names in `classes`",
            sum(map(len, alike)),
            named,
            "; …" if len(alike) > 3 else "",
        )
    return class_embeddings(encoders.text_embeds, classes, templates)


def classes_alike(
    tokenize: Callable[[list[str]], Int[np.ndarray, "n l"]],
    classes: Sequence[str],
    templates: Sequence[str],
) -> list[list[str]]:
    """Groups of different names whose prompts have the same tokens in every template.

    A context that is too short cuts the name off, and a vocabulary may lack it.
    """
    groups = [list(dict.fromkeys(classes))]
    for template in templates:  # of the second only those are asked that the first leaves alike
        finer = []
        for group in groups:
            by_tokens = collections.defaultdict(list)
            tokens = np.asarray(tokenize([template.format(name) for name in group]))
            for name, row in zip(group, tokens, strict=True):
                by_tokens[row.tobytes()].append(name)
            finer += [names for names in by_tokens.values() if len(names) > 1]
        groups = finer
    return groups


def class_embeddings(
    embed_texts: Callable[[list[str]], Float[np.ndarray, "n d"]],
    classes: Sequence[str],
    templates: Sequence[str],
) -> Float[np.ndarray, "c d"]:
    """The classes as a model reads them: means over templates, with unit norm.

    Args:
      embed_texts: function from n texts to unit-norm embeddings [n, D].
      classes: the names of the C classes.
      templates: sentences with {} that stand around a name.

    Returns:
      float [C, D].
    """
    prompts = prompts_of(classes, templates)
    embeds = embed_texts(prompts).reshape(len(classes), len(templates), -1)  # [C, templates, D]
    return unit_rows(embeds.mean(axis=1))


def prompts_of(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every class's name in every template, one class after the other."""
    return [template.format(name) for name in classes for template in templates]


def scores_of_classes(
    image_embeds: Float[np.ndarray, "n d"],
    class_embeds: Float[np.ndarray, "c d"],
    scale: float,
    bias: float | None = None,
) -> Float[np.ndarray, "n c"]:
    """How likely a model finds each class of each picture, in float64.

    Args:
      image_embeds: [N, D], unit norm.
      class_embeds: [C, D], unit norm.
      scale: factor of the similarities.
      bias: what the sigmoid loss adds to them; None is a model that was trained with the softmax.

    Returns:
      [N, C]. Of the softmax the classes share 1; the sigmoid judges each class by itself (Zhai et
      al. 2023).
    """
    logits = scale * image_embeds.astype(float) @ class_embeds.astype(float).T
    if bias is not None:
        return 1 / (1 + np.exp(-(logits + bias)))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def ranks_of_label(
    image_embeds: Float[np.ndarray, "n d"],
    class_embeds: Float[np.ndarray, "c d"],
    labels: Int[np.ndarray, "n"],
    *,
    names: Sequence[str] | None = None,
) -> Int[np.ndarray, "n"]:
    """How many other classes come before the label's, int [N]; ties are misses.

    Where a similarity is NaN, it is the number C of all classes.

    Args:
      image_embeds: [N, D].
      class_embeds: [C, D].
      labels: int [N].
      names: of the classes; by default all are different. Classes of one name have one prompt, so
        that no model can tell them apart: among themselves they rank in their order, as by an
        argmax.
    """
    _, first, ids, sizes = np.unique(
        np.arange(len(class_embeds)) if names is None else np.asarray(names),
        return_index=True,
        return_inverse=True,
        return_counts=True,
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


def top_k(
    ranks: Int[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
    classes: int,
    every_k: Sequence[int],
) -> tuple[dict[str, Metric], dict[str, Bool[np.ndarray, "n"]]]:
    """Accuracies from the ranks of the right classes.

    Args:
      ranks: how many classes come before the right one, int [N].
      labels: the right classes, int [N].
      classes: their number C.
      every_k: the k of which `top<k>` is wanted; 1 and those below C are given.

    Returns:
      ({name: Metric}, {name: hits bool [N]}): `top<k>`, and `mean_per_class` among the metrics.
    """
    ks = [k for k in every_k if k < classes or k == 1]
    hits = {f"top{k}": ranks < k for k in ks}
    metrics = {
        f"top{k}": mean_with_interval(ranks < k, chance=k / classes, about=share_at(k)) for k in ks
    }
    metrics["mean_per_class"] = mean_per_class(ranks < 1, labels, classes)
    return metrics, hits


def mean_per_class(
    is_hit: Bool[np.ndarray, "n"], labels: Int[np.ndarray, "n"], classes: int
) -> Metric:
    """The mean over the C classes that have images of each one's share of hits, bool [N]."""

    def statistic(weights):
        hits = np.bincount(labels, weights * is_hit, minlength=classes)
        images = np.bincount(labels, weights, minlength=classes)
        return np.mean(hits[images > 0] / images[images > 0])

    mean = float(statistic(np.ones(len(labels))))
    bounds = floats(interval(statistic, len(labels)))
    return SHARE.metric(mean, bounds, 1 / classes)


def predicted(
    image_embeds: Float[np.ndarray, "n d"], class_embeds: Float[np.ndarray, "c d"]
) -> Int[np.ndarray, "n"]:
    """The most similar class of each image, int [N]; -1 where a similarity, of [N, C], is NaN."""
    predictions = []
    for start in range(0, len(image_embeds), _TILE_ROWS):
        similarities = image_embeds[start : start + _TILE_ROWS] @ class_embeds.T  # [tile, C]
        is_nan = np.isnan(similarities).any(axis=1)
        predictions.append(np.where(is_nan, _UNTOLD, similarities.argmax(axis=1)))
    return np.concatenate(predictions)


def confusion(
    labels: Int[np.ndarray, "n"], predictions: Int[np.ndarray, "n"], classes: int
) -> Int[np.ndarray, "c c"]:
    """How many images of each class (rows) are taken for which (columns), int [C, C]."""
    counts = np.zeros((classes, classes), int)
    told = predictions != _UNTOLD
    np.add.at(counts, (labels[told], predictions[told]), 1)
    return counts


def class_table(
    names: Sequence[str],
    is_hit: Bool[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
    predictions: Int[np.ndarray, "n"],
) -> list[dict[str, Any]]:
    """For each class its images, top1 and the class that most of its misses are taken for.

    Args:
      names: of the C classes.
      is_hit: whether each image was told right, bool [N].
      labels, predictions: the classes that each image has and is taken for, int [N].

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
                "most_confused_with": names[int(wrong.argmax())] if wrong.any() else None,
            }
        )
    return table
