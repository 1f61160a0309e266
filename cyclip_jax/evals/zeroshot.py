"""Zero-shot classification of a folder of labelled images."""

import numpy as np

from cyclip_jax.errors import UserError
from cyclip_jax.evals.datasets import open_labelled
from cyclip_jax.evals.intervals import mean_with_interval

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
      those of k below the number of classes, with intervals, and `images`, how many were scored.

    Raises:
      UserError: what is wrong with the folder.
    """
    config_key = f"config.evals.{name}.folder"
    dataset = open_labelled(folder, config_key=config_key)
    if dataset.templates is None:
        raise UserError(
            f"{folder}/classes.json does not exist; "
            'write {"classes": […], "templates": ["a photo of a {}."]}'
        )

    def evaluate(encoders, output):
        class_embeds = class_embeddings(encoders.text_embeds, dataset.classes, dataset.templates)
        image_embeds, indices = encoders.image_embeds(dataset)
        ranks = ranks_of_label(image_embeds, class_embeds, dataset.labels[indices])
        results = {"images": len(indices)}
        for k in _TOP:
            if k < len(dataset.classes):
                results |= mean_with_interval(f"top{k}", ranks < k)
        return results

    return evaluate


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
