"""Zero-shot classification of a folder of labelled images."""

import json

import numpy as np
from etils import epath

from cyclip_jax.data.sources import create_source
from cyclip_jax.errors import UserError

_TOP = (1, 3, 5, 10)
_TILE_ROWS = 1024


def zeroshot(name, *, folder):
    """Top-k accuracy with class embeddings made from templates (Radford et al. 2021, section 3.1).

    Args:
      name: of the evaluation, for messages.
      folder: has `labels.csv` (columns image, label: a class's number or name) and `classes.json`
        ({"classes": […], "templates": ["a photo of a {}."]}).

    Returns:
      An evaluator (see evals/__init__.py) that gives `top1`, `top3`, `top5`, `top10` as fractions,
      those of k below the number of classes, and `images`, how many were scored.

    Raises:
      UserError: what is wrong with the folder.
    """
    folder = epath.Path(folder)
    classes, templates = read_classes(folder / "classes.json")
    dataset, path = open_labelled(folder, f"config.evals.{name}.folder")
    labels = read_labels(dataset.captions(), classes, path)

    def evaluate(encoders, figures):
        del figures  # the results are numbers
        class_embeds = class_embeddings(encoders.embed_texts, classes, templates)  # [C, D]
        image_embeds, _, indices = encoders.embed_pairs(dataset, with_text=False)
        if not len(indices):
            raise UserError(f"none of the images of {path} can be read")
        ranks = ranks_of_label(image_embeds, class_embeds, labels[indices])
        results = {f"top{k}": float(np.mean(ranks < k)) for k in _TOP if k < len(classes)}
        return results | {"images": len(indices)}

    return evaluate


def open_labelled(folder, config_key):
    """(source, path) of a folder's labels.csv, with columns image and label.

    Raises:
      UserError: what is wrong with it; `config_key` names it.
    """
    path = epath.Path(folder) / "labels.csv"
    columns = {"image_key": "image", "caption_key": "label"}
    return create_source("csv", str(path), config_key=config_key, **columns), path


def class_embeddings(embed_texts, classes, templates):
    """Unit-norm mean over the templates of unit-norm text embeddings, [C, D]."""
    prompts = [template.format(name) for name in classes for template in templates]
    embeds = embed_texts(prompts).reshape(len(classes), len(templates), -1).mean(axis=1)
    return embeds / np.linalg.norm(embeds, axis=1, keepdims=True)


def ranks_of_label(image_embeds, class_embeds, labels):
    """How many other classes are at least as similar as the label's, int [N]; ties are misses."""
    ranks = []
    for first in range(0, len(image_embeds), _TILE_ROWS):
        tile = slice(first, first + _TILE_ROWS)
        similarities = image_embeds[tile] @ class_embeds.T  # [tile, C]
        own = np.take_along_axis(similarities, labels[tile, None], axis=1)
        ranks.append((~(similarities < own)).sum(axis=1) - 1)  # NaN is a miss
    return np.concatenate(ranks)


def read_classes(path):
    """Class names and templates of a classes.json; UserError where they are not what they must."""
    if not path.exists():
        raise UserError(
            f'{path} does not exist; write {{"classes": […], "templates": ["a photo of a {{}}."]}}'
        )
    try:
        content = json.loads(path.read_text())
        classes, templates = list(content["classes"]), list(content["templates"])
        for template in templates:
            template.format("")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{path} needs lists 'classes' and 'templates' ({error!r})") from error
    if not classes or not templates or not all("{}" in template for template in templates):
        raise UserError(f"{path} needs a class and a template, and a {{}} in each template")
    if len(set(classes)) < len(classes):
        raise UserError(f"{path} names a class twice")
    return classes, templates


def read_labels(labels, classes, path):
    """Class numbers int [N] of labels that are all names, or else all numbers."""
    by_name = {name: number for number, name in enumerate(classes)}
    by_number = {str(number): number for number in range(len(classes))}
    for numbers in (by_name, by_number):
        if all(label in numbers for label in labels):
            return np.asarray([numbers[label] for label in labels])
    unknown = sorted({label for label in labels if label not in by_name | by_number})
    raise UserError(
        f"{path} has labels that are neither all classes of classes.json nor all numbers below "
        f"{len(classes)}" + (f": {', '.join(map(repr, unknown[:5]))}" if unknown else "")
    )
