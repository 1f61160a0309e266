"""Choices between captions or pictures that differ by little, scored."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.choices import Choices
from cyclip_jax.evals.data.image_set import ImageSet
from cyclip_jax.evals.data.pairs import distinct
from cyclip_jax.evals.flat import flat_numbers
from cyclip_jax.evals.metric import SHARE, Metric, count
from cyclip_jax.evals.statistics.intervals import floats, interval, mean_with_interval

# Of four similarities in random order: each of two comparisons is won half the time, and both of
# both by the four orders of 24 in which the two right ones come first.
_WINOGROUND_CHANCE = {"text_score": 1 / 4, "image_score": 1 / 4, "group_score": 1 / 6}
_TILE_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Scored:
    """How choices were made.

    Attributes:
      metrics: {name: Metric}.
      table: the same by category, a dict of each row.
      outcomes: of each example that was scored, {name: [N]}.
    """

    metrics: dict[str, Metric]
    table: list[dict[str, Any]]
    outcomes: dict[str, Any]


def score_choices(
    choices: Choices,
    image_embeds: Callable[[ImageSet], tuple[Float[np.ndarray, "m d"], Any]],
    text_embeds: Callable[[Sequence[str]], Float[np.ndarray, "n d"]],
) -> Scored:
    """Scores the examples whose pictures can all be read.

    Args:
      choices: the examples.
      image_embeds: function from an ImageSet to (unit-norm embeddings [M, D], their places in it).
      text_embeds: function from n texts to unit-norm embeddings [n, D].

    Raises:
      UserError: there is no such example.
    """
    embeds, indices = image_embeds(choices.images)
    image_number = {choices.pictures[index]: row for row, index in enumerate(indices)}
    kept = [n for n, e in enumerate(choices.examples) if all(p in image_number for p in e.pictures)]
    scored = [choices.examples[number] for number in kept]
    if not scored:
        raise UserError(f"no example of {choices.path} has pictures that can all be read")
    captions = [caption for example in scored for caption in example.captions]
    text_ids, first = distinct(captions)
    texts = text_embeds([captions[index] for index in first])
    image_ids = np.array([[image_number[p] for p in e.pictures] for e in scored])
    text_rows = np.split(text_ids, np.cumsum([len(e.captions) for e in scored])[:-1])
    categories = np.array([example.category for example in scored])
    clusters = distinct([tuple(path for path, _ in e.pictures) for e in scored])[0]
    score = _winoground if choices.layout == "winoground" else _choice
    metrics, table, hits = score(embeds, texts, image_ids, text_rows, categories, clusters)
    counts = {
        "examples": count(len(scored)),
        "images": count(len(np.unique(image_ids))),
        "captions": count(len(texts)),
    }
    of_examples = {"index": kept, "cluster": clusters, "category": categories, **hits}
    return Scored(metrics | counts, table, of_examples)


def choices_made(
    right: Float[np.ndarray, "n"], wrong: Float[np.ndarray, "n k"]
) -> Bool[np.ndarray, "n"]:
    """Whether each choice is right, bool [N]: ties and NaN are misses.

    Args:
      right: similarities of the right answers, [N].
      wrong: those of the wrong ones, [N, K], -inf where there are fewer than K.
    """
    return np.all(right[:, None] > wrong, axis=1)


def winoground_scores(similarities: Float[np.ndarray, "n 2 2"]) -> Bool[np.ndarray, "n 3"]:
    """Text, image and group score of each example, bool [N, 3] (Thrush et al. 2022).

    The similarities, [N, 2, 2], are of image i with caption j.
    """
    own = np.stack([similarities[:, 0, 0], similarities[:, 1, 1]], axis=1)  # [N, 2]
    text = choices_made(own[:, 0], similarities[:, 0, 1:]) & choices_made(
        own[:, 1], similarities[:, 1, :1]
    )
    image = choices_made(own[:, 0], similarities[:, 1:, 0]) & choices_made(
        own[:, 1], similarities[:, :1, 1]
    )
    return np.stack([text, image, text & image], axis=1)


def _choice(image_embeds, text_embeds, image_ids, text_rows, categories, clusters):
    """(metrics, rows of the table, {name: hits}) of the layout "choice"."""
    sizes = np.array([len(row) for row in text_rows])
    is_right = _right(image_embeds, text_embeds, image_ids[:, 0], text_rows)
    # Whoever does not look at the picture sees the mean of all.
    mean_image = image_embeds[np.unique(image_ids)].mean(axis=0, keepdims=True)
    is_right_blind = _right(mean_image, text_embeds, np.zeros_like(image_ids[:, 0]), text_rows)
    chance = 1 / sizes  # of each example

    def accuracy(rows, hits=is_right):
        return mean_with_interval(
            hits[rows], clusters=clusters[rows], chance=float(np.mean(chance[rows]))
        )

    everything = np.arange(len(is_right))
    metrics = {
        "accuracy": accuracy(everything),
        "blind_accuracy": _neither(accuracy(everything, is_right_blind)),
        "macro_accuracy": _macro_accuracy(is_right, chance, categories, clusters),
    }
    table = []
    for category, rows in _by_category(categories):
        found = accuracy(rows)
        low, high = found.interval or (np.nan, np.nan)
        row = {"category": category, "examples": len(rows), "accuracy": found.value}
        row |= {"low": low, "high": high, "chance": found.chance}
        table.append(row | {"blind_accuracy": float(is_right_blind[rows].mean())})
    return metrics, table, {"accuracy": is_right, "blind_accuracy": is_right_blind}


def _neither(metric):
    """A Metric of which neither more nor less is better, and which is no headline."""
    return dataclasses.replace(metric, better=None, is_headline=False)


def _right(image_embeds, text_embeds, image_rows, text_rows):
    """Whether each example's picture prefers its first caption, bool [N].

    Args:
      image_rows: number of each example's picture, [N].
      text_rows: numbers of its captions, N arrays.
    """
    sizes = np.array([len(row) for row in text_rows])
    similarities = np.full((len(text_rows), sizes.max()), -np.inf)
    for column in range(sizes.max()):
        has = np.flatnonzero(sizes > column)
        texts = np.array([text_rows[row][column] for row in has])
        similarities[has, column] = _similarities(image_embeds, text_embeds, image_rows[has], texts)
    return choices_made(similarities[:, 0], similarities[:, 1:])


def _macro_accuracy(is_right, chance, categories, clusters):
    """The mean over the categories of each one's accuracy, as a Metric."""
    numbers = np.unique(categories, return_inverse=True)[1]

    def mean_of_means(values, weights):
        drawn = np.bincount(numbers, weights=weights)
        means = np.bincount(numbers, weights=weights * values)[drawn > 0] / drawn[drawn > 0]
        return means.mean()

    each_once = np.ones(len(is_right))
    bounds = interval(
        lambda weights: mean_of_means(is_right, weights[clusters]), clusters.max() + 1
    )
    return SHARE.metric(
        float(mean_of_means(is_right, each_once)),
        floats(bounds),
        float(mean_of_means(chance, each_once)),
    )


def _winoground(image_embeds, text_embeds, image_ids, text_rows, categories, clusters):
    """(metrics, rows of the table, {name: hits}) of the layout "winoground"."""
    text_ids = np.stack(text_rows)  # [N, 2]
    similarities = np.empty((len(text_ids), 2, 2))
    for image in range(2):
        for text in range(2):
            similarities[:, image, text] = _similarities(
                image_embeds, text_embeds, image_ids[:, image], text_ids[:, text]
            )
    scores = winoground_scores(similarities)
    hits = dict(zip(_WINOGROUND_CHANCE, scores.T, strict=True))
    metrics = {
        name: mean_with_interval(hits[name], clusters=clusters, chance=chance)
        for name, chance in _WINOGROUND_CHANCE.items()
    }
    table = []
    for category, rows in _by_category(categories):
        own = {n: mean_with_interval(h[rows], clusters=clusters[rows]) for n, h in hits.items()}
        table.append({"category": category, "examples": len(rows)} | flat_numbers(own))
    return metrics, table, hits


def _by_category(categories):
    """[(name, its examples' numbers)], sorted by name."""
    names, numbers = np.unique(categories, return_inverse=True)
    return [(str(name), np.flatnonzero(numbers == n)) for n, name in enumerate(names)]


def _similarities(image_embeds, text_embeds, image_ids, text_ids):
    """Inner products float64 [N] of the images with the texts of these numbers.

    Each is summed in the same order, so that equal embeddings are equally similar to the last bit.
    """
    tiles = []
    for first in range(0, len(image_ids), _TILE_ROWS):
        tile = slice(first, first + _TILE_ROWS)
        images = image_embeds[image_ids[tile]].astype(np.float64)
        tiles.append((images * text_embeds[text_ids[tile]]).sum(axis=1))
    return np.concatenate(tiles)
