"""Zero-shot classification of labelled images."""

import inspect

import numpy as np

from cyclip_jax.errors import UserError
from cyclip_jax.evals.datasets import PRESET, open_named
from cyclip_jax.evals.intervals import bounds_of, interval, mean_with_interval

_TOP = (1, 3, 5, 10)
_TILE_ROWS = 1024
_MOST_CONFUSIONS = 2000  # classes; with more the matrix of confusions is not written
_UNTOLD = -1  # the prediction for a NaN embedding


def zeroshot(
    name, *, folder, split=None, classes=None, image_key=None, label_key=None, preset=None
):
    """Top-k accuracy with class embeddings made from templates (Radford et al. 2021, section 3.1).

    Args:
      name: of the evaluation, for messages.
      folder: the labelled pictures in any layout of `datasets.open_labelled`, which has the other
        settings too; "preset:cifar10" is one of presets.PRESETS where TensorFlow Datasets has it.
      split, classes, image_key, label_key, preset: see there. Without templates the prompt is "a
        photo of a {}.".

    Returns:
      An evaluator (see evals/__init__.py) that gives `top1`, `top3`, `top5`, `top10` as fractions,
      those of k below the number of classes, with intervals, and `chance_…`; `mean_per_class`, the
      mean over the classes with images of each one's top1, with its interval; `images`, how many
      were scored, and `classes`. Details: `classes.json`, and `confusion.npz` with counts [C, C],
      true by predicted, of up to 2,000 classes.

    Raises:
      UserError: what is wrong with the data.
    """
    dataset = open_named(
        folder,
        config_key=f"config.evals.{name}.folder",
        split=split,
        classes=classes,
        image_key=image_key,
        label_key=label_key,
        preset=preset,
    )

    def evaluate(encoders, output):
        image_embeds, class_embeds, labels = embed(encoders, dataset)
        ranks = ranks_of_label(image_embeds, class_embeds, labels, names=dataset.classes)
        results = {"images": len(ranks), "classes": len(dataset.classes)}
        for k in _TOP:
            if k < len(dataset.classes):
                results |= mean_with_interval(f"top{k}", ranks < k)
                results[f"chance_top{k}"] = k / len(dataset.classes)
        results |= mean_per_class(ranks < 1, labels, len(dataset.classes))
        results["chance_mean_per_class"] = 1 / len(dataset.classes)
        if output.is_wanted:
            predictions = predicted(image_embeds, class_embeds)
            output.json("classes", class_table(dataset.classes, ranks < 1, labels, predictions))
            if len(dataset.classes) <= _MOST_CONFUSIONS:
                counts = confusion(labels, predictions, len(dataset.classes))
                output.arrays("confusion", counts=counts, classes=np.asarray(dataset.classes))
        return results

    return evaluate


def open_settings(settings, config_key):
    """Opens the data that a zero-shot evaluation of these settings would score.

    Args:
      settings: {"folder": …, …} as those of `zeroshot`, or with a `preset` alone; its `type` may be
        among them.
      config_key: full name of the config key that holds them, for messages.

    Returns:
      LabelledImages.

    Raises:
      UserError: there is no such setting, or something is wrong with the data.
    """
    settings = dict(settings)
    kind = settings.pop("type", "zeroshot")
    if kind != "zeroshot":
        raise UserError(f"{config_key}.type is {kind!r}; leave it out, or set it to 'zeroshot'")
    if "folder" not in settings and settings.get("preset"):
        settings["folder"] = f"{PRESET}{settings['preset']}"
    try:
        inspect.signature(zeroshot).bind("", **settings)
    except TypeError as error:
        raise UserError(f"{config_key}: {error}") from error
    folder = settings.pop("folder")
    if folder is None:
        raise UserError(f"{config_key}.folder is empty; set it to labelled pictures")
    return open_named(folder, config_key=f"{config_key}.folder", **settings)


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
