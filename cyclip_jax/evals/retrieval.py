"""Retrieval in both directions, the validation loss, and consistency on held-out pairs."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int
from scipy.sparse.csgraph import connected_components

from cyclip_jax.data.places import DataPath
from cyclip_jax.errors import UserError
from cyclip_jax.evals.checks import check_at_least, check_types
from cyclip_jax.evals.data.pairs import Pairs, check_pairs, distinct, open_pairs
from cyclip_jax.evals.evaluator import Evaluator, Needs, Opened
from cyclip_jax.evals.gallery import Answers, as_picture, confused, gallery
from cyclip_jax.evals.known_metrics import KNOWN, LOSS
from cyclip_jax.evals.metric import FURTHER_SHARE, SHARE, Metric, count, share_at
from cyclip_jax.evals.statistics.cyclic import cyclic_consistencies
from cyclip_jax.evals.statistics.intervals import floats, interval, weighted_median
from cyclip_jax.evals.statistics.ranking import ranks_of_best_partner
from cyclip_jax.files import FilePath

_RECALL_AT = (1, 5, 10)
# Places in the published evaluation's array of ranks for each image; it fills one.
_PUBLISHED_PLACES = 5


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Scores held-out pairs.

    Each picture is embedded once, however many captions it has. Pictures or captions that stand in
    several pairs are one query with several partners: it hits at k when any partner is among its
    first k.

    Attributes:
      name: of the evaluation.
      pairs: file of images and captions, as data.train; or Karpathy's .json of COCO or Flickr30k;
        or a folder in CLIP_benchmark's layout. See `open_pairs`.
      source, image_key, caption_key, delimiter: as in config.data.
      images: folder that the pictures of a .json lie in; default the file's own.
      split: of a .json or folder.
      gallery_captions: how many captions the report shows with the images that they retrieve, and
        at most how many with an image that it is most wrongly sure of; 0 or None shows none.
      captions_per_image: how many of each image's captions are scored, the first in file order, 5
        for COCO and Flickr30k; None scores all.
      published_recall: adds `image_to_text_recall@k_as_published`, see `published_recall_of`.
      embed_dims: sizes at which the first numbers of the embeddings are scored by themselves, as a
        model with nested dimensions is meant to be used.

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    name: str
    _: dataclasses.KW_ONLY
    pairs: DataPath
    source: str = "auto"
    images: FilePath | None = None
    split: str | None = "test"
    image_key: str | None = None
    caption_key: str | Sequence[str] | None = None
    delimiter: str = ","
    gallery_captions: int | None = 8
    captions_per_image: int | None = None
    published_recall: bool = False
    embed_dims: Sequence[int] = ()

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, 0, "gallery_captions")
        check_at_least(self, 1, "captions_per_image")
        if any(m < 1 for m in self.embed_dims):
            raise UserError(
                f"config.evals.{self.name}.embed_dims {self.embed_dims} must be whole numbers of "
                "at least 1"
            )
        check_pairs(self.pairs, images=self.images, **self._reading)

    @property
    def _reading(self):
        """How the pairs are read, for messages too."""
        return {
            "config_key": f"config.evals.{self.name}",
            "source": self.source,
            "image_key": self.image_key,
            "caption_key": self.caption_key,
            "delimiter": self.delimiter,
        }

    def open(self) -> Evaluator:
        """Opens the data.

        Returns:
          An evaluator (see evals/__init__.py) that gives `image_to_text_recall@k` and
          `text_to_image_recall@k` (fractions), `mean_recall` over these six, and
          `image_to_text_median_rank` and `text_to_image_median_rank` (1 is first), each with its
          interval over images, of which one carries all its captions, and those that share a
          caption are one draw; `chance_…`, the recall that a random order gets; the training loss's
          terms, as means over groups of batch_size pairs in file order, the last group smaller;
          `inmodal_consistency` and `crossmodal_consistency` over all pairs, with intervals over
          images; of each of `embed_dims` `mean_recall_<m>_dims`, with its interval; `images`,
          `captions`, `pairs`: what was scored. Details: `gallery.json`, `confused.json`. Outcomes:
          each of `images` and of `captions` has its recalls and its rank, 1 is first, and
          `cluster`, the draw that it belongs to; each caption the `image` of its first pair; each
          of `pairs` its `image` and its part in the two consistencies.

        Raises:
          UserError: what is wrong with the data.
        """
        read_pairs = open_pairs(self.pairs, images=self.images, split=self.split, **self._reading)

        def evaluate(encoders, output):
            scored = _scored(read_pairs(), encoders, self._scored_pairs)
            recalls = recall_of_ranks(
                scored.image_ranks, scored.text_ranks, scored.image_ids, scored.text_ids
            )
            pair_embeds = scored.image_embeds[scored.image_ids], scored.text_embeds[scored.text_ids]
            consistencies, parts = cyclic_consistencies(*pair_embeds, clusters=scored.image_ids)
            output.outcomes(_outcomes(scored, parts))
            if self.gallery_captions and output.is_wanted:
                answers = _answers(scored)
                found = gallery(answers, self.gallery_captions)
                output.json("gallery", found)
                output.json("confused", confused(answers, self.gallery_captions))
                if output.is_shown:
                    output.picture("gallery", as_picture(found))
            return {
                **_mean_loss(encoders, *pair_embeds),
                **consistencies,
                **recalls,
                **(published_recall_of(recalls) if self.published_recall else {}),
                **_recalls_of_sizes(scored, self.embed_dims, f"config.evals.{self.name}"),
                "images": count(len(scored.image_embeds)),
                "captions": count(len(scored.text_embeds)),
                "pairs": count(len(scored.kept)),
            }

        def needs():
            dataset = read_pairs()
            captions = [dataset.captions[pair] for pair in self._scored_pairs(dataset.image_ids)]
            return Needs([dataset.images], [captions])

        return Opened(evaluate, needs)

    def _scored_pairs(self, image_ids: Int[np.ndarray, "p"]) -> Int[np.ndarray, "scored"]:
        """Which pairs are scored, in their order: of each picture's the first so many."""
        if self.captions_per_image is None:
            return np.arange(len(image_ids))
        return np.flatnonzero(_occurrence(image_ids) < self.captions_per_image)


@dataclasses.dataclass(frozen=True)
class _Scored:
    """The P pairs that are scored, of I pictures and T different captions.

    Attributes:
      dataset: all Pairs there are.
      index: int [I], the pictures' numbers in the data set.
      kept: int [P], the pairs' numbers in the data set.
      image_ids, text_ids: int [P], each pair's picture and caption, by their rows.
      first_pair: int [T], the first of the P pairs with each caption.
      image_embeds, text_embeds: unit-norm [I, D] and [T, D].
      image_ranks, text_ranks: int [I] and [T], the rank of each one's best partner, 0 is first.
    """

    dataset: Pairs
    index: Int[np.ndarray, "i"]
    kept: Int[np.ndarray, "p"]
    image_ids: Int[np.ndarray, "p"]
    text_ids: Int[np.ndarray, "p"]
    first_pair: Int[np.ndarray, "t"]
    image_embeds: Float[np.ndarray, "i d"]
    text_embeds: Float[np.ndarray, "t d"]
    image_ranks: Int[np.ndarray, "i"]
    text_ranks: Int[np.ndarray, "t"]


def _scored(dataset, encoders, scored_pairs):
    """Embeds and ranks those of the pairs whose pictures can be read that are scored."""
    image_embeds, index = encoders.image_embeds(dataset.images)
    number = np.full(len(dataset.images.source), -1)
    number[index] = np.arange(len(index))
    image_ids = number[dataset.image_ids]
    kept = np.flatnonzero(image_ids >= 0)
    kept = kept[scored_pairs(image_ids[kept])]
    image_ids = image_ids[kept]
    captions = [dataset.captions[pair] for pair in kept]
    text_ids, first_pair = distinct(captions)
    text_embeds = encoders.text_embeds(captions)[first_pair]
    return _Scored(
        dataset,
        index,
        kept,
        image_ids,
        text_ids,
        first_pair,
        image_embeds,
        text_embeds,
        ranks_of_best_partner(image_embeds, text_embeds, image_ids, text_ids),
        ranks_of_best_partner(text_embeds, image_embeds, text_ids, image_ids),
    )


def _answers(scored):
    """What the pictures that the report shows are chosen from."""
    captions = [scored.dataset.captions[pair] for pair in scored.kept]
    return Answers(
        read=scored.dataset.images.source.read,
        index=scored.index,
        captions=[captions[pair] for pair in scored.first_pair],
        caption_of_image=dict(zip(scored.image_ids[::-1], captions[::-1], strict=True)),
        image_embeds=scored.image_embeds,
        text_embeds=scored.text_embeds,
        image_ids=scored.image_ids,
        text_ids=scored.text_ids,
        text_ranks=scored.text_ranks,
    )


def _recalls_of_sizes(scored, sizes, config_key):
    """The mean recall with the first numbers of the embeddings, for each of these sizes."""
    found = {}
    for m in sizes:
        if m > scored.image_embeds.shape[1]:
            raise UserError(
                f"{config_key}.embed_dims {m} is more than the {scored.image_embeds.shape[1]} "
                "dimensions of the embeddings; leave it out"
            )
        images, texts = (
            _unit_norm(rows[:, :m]) for rows in (scored.image_embeds, scored.text_embeds)
        )
        recalls = recall_of_ranks(
            ranks_of_best_partner(images, texts, scored.image_ids, scored.text_ids),
            ranks_of_best_partner(texts, images, scored.text_ids, scored.image_ids),
            *(scored.image_ids, scored.text_ids),
        )
        metric = dataclasses.replace(recalls["mean_recall"], is_headline=False)
        found[f"mean_recall_{m}_dims"] = metric
    return found


def _unit_norm(rows):
    """Rows [N, D] scaled to length 1; those of zeros alone, which find nothing, stay zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(norms, np.finfo(np.float32).tiny)


def _outcomes(scored, parts):
    """What became of each image, caption and pair, see `Retrieval`."""
    unit_of_image, unit_of_text = units(scored.image_ids, scored.text_ids)
    caption_index = distinct(scored.dataset.captions)[0]  # equal captions are one
    image_of_pair = scored.index[scored.image_ids]
    return {
        "images": {
            "index": scored.index,
            "cluster": unit_of_image,
            **_hits("image_to_text", scored.image_ranks),
        },
        "captions": {
            "index": caption_index[scored.kept[scored.first_pair]],
            "cluster": unit_of_text,
            "image": image_of_pair[scored.first_pair],
            **_hits("text_to_image", scored.text_ranks),
        },
        "pairs": {"index": scored.kept, "cluster": scored.image_ids, "image": image_of_pair}
        | parts,
    }


def _hits(name, ranks):
    """The outcomes of queries: whether each hits at every k, and its rank from 1 on."""
    hits = {f"{name}_recall@{k}": ranks < k for k in _RECALL_AT}
    return {**hits, f"{name}_rank": ranks + 1}


def _mean_loss(encoders, image_embeds, text_embeds):
    """Means of the loss's terms over groups of batch_size pairs, weighted by their size."""
    totals = {}
    for first in range(0, len(image_embeds), encoders.batch_size):
        group = slice(first, first + encoders.batch_size)
        terms = encoders.loss(image_embeds[group], text_embeds[group])
        for name, value in terms.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(image_embeds[group])
    n = len(image_embeds)
    return {name: KNOWN.get(name, LOSS).metric(total / n) for name, total in totals.items()}


def recall_of_ranks(
    image_ranks: Int[np.ndarray, "i"],
    text_ranks: Int[np.ndarray, "t"],
    image_ids: Int[np.ndarray, "p"],
    text_ids: Int[np.ndarray, "p"],
) -> dict[str, Metric]:
    """Recall at k, its mean and the median rank, with intervals over images.

    Args:
      image_ranks: of each image's best caption, int [I], 0 is first.
      text_ranks: of each caption's best image, int [T].
      image_ids, text_ids: int [P], the partners; every image and every caption has one.

    Returns:
      `image_to_text_recall@k` and `text_to_image_recall@k`, `image_to_text_median_rank` and
      `text_to_image_median_rank`, and `mean_recall`.
    """
    unit_of_image, unit_of_text = units(image_ids, text_ids)
    n = int(max(unit_of_image.max(), unit_of_text.max())) + 1
    statistics, blank = {}, {}  # functions of weights of the units; Metrics without value
    for name, ranks, clusters, ids in (
        ("image_to_text", image_ranks, unit_of_image, (image_ids, text_ids)),
        ("text_to_image", text_ranks, unit_of_text, (text_ids, image_ids)),
    ):
        for k, chance in chance_recall(*ids).items():
            statistics[f"{name}_recall@{k}"] = _weighted_mean(ranks < k, clusters, n)
            blank[f"{name}_recall@{k}"] = share_at(k).metric(np.nan, chance=chance)
        median = f"{name}_median_rank"
        statistics[median] = weighted_median(ranks + 1, clusters)
        blank[median] = KNOWN[median].metric(np.nan)
    is_recall = [metric.is_share for metric in blank.values()]
    chances = [metric.chance for metric in blank.values() if metric.chance is not None]
    blank["mean_recall"] = SHARE.metric(np.nan, chance=float(np.mean(chances)))

    def all_of(weights):
        values = np.array([statistic(weights) for statistic in statistics.values()])
        return np.append(values, values[is_recall].mean())

    values = all_of(np.ones(n, np.int64)).tolist()
    bounds = map(floats, zip(*interval(all_of, n), strict=True))
    return {
        name: dataclasses.replace(metric, value=value, interval=pair)
        for (name, metric), value, pair in zip(blank.items(), values, bounds, strict=True)
    }


def units(
    image_ids: Int[np.ndarray, "p"], text_ids: Int[np.ndarray, "p"]
) -> tuple[Int[np.ndarray, "i"], Int[np.ndarray, "t"]]:
    """What was drawn together when the data were collected: a number for each image and caption.

    An image that is drawn brings its captions along: what is sampled when such data are collected
    are images. Images that share a caption are one draw, as their ranks depend on each other: the
    unit of both directions is a connected component of the graph of images and captions.

    Args:
      image_ids, text_ids: int [P], the partners; every image and every caption has one.
    """
    images, texts = int(np.max(image_ids)) + 1, int(np.max(text_ids)) + 1
    edges = np.ones(len(image_ids), bool), (image_ids, images + np.asarray(text_ids))
    graph = scipy.sparse.coo_array(edges, shape=(images + texts, images + texts))
    unit_of = connected_components(graph, directed=False)[1]
    return unit_of[:images], unit_of[images:]


def _weighted_mean(values, clusters, n):
    """A function of weights int [n] of the clusters -> the mean of values, NaN of none."""
    sums = np.bincount(clusters, weights=values, minlength=n)
    sizes = np.bincount(clusters, minlength=n)

    def mean(weights):
        total = weights @ sizes
        return weights @ sums / total if total else np.nan

    return mean


def chance_recall(
    query_ids: Int[np.ndarray, "p"], target_ids: Int[np.ndarray, "p"]
) -> dict[int, float]:
    """{k: the recall that a random order of the targets gets}, by numbers of partners.

    Args:
      query_ids, target_ids: int [P], the partners; every query and every target has one.
    """
    targets = int(target_ids.max()) + 1
    pairs = np.unique(np.asarray(query_ids, np.int64) * targets + target_ids)
    partners = np.bincount(pairs // targets)
    chances = {}
    for k in _RECALL_AT:
        # It misses at k when the first k are drawn from the wrong targets alone.
        misses = [np.clip((targets - partners - i) / max(targets - i, 1), 0, 1) for i in range(k)]
        chances[k] = float(np.mean(1 - np.prod(misses, axis=0)))
    return chances


def published_recall_of(recalls: Mapping[str, Metric]) -> dict[str, Metric]:
    """The text-retrieval recall that the official evaluation would report for the same ranks.

    Its array of ranks has five places for each image, of which it fills one; the others stay 0,
    which is the first rank and a hit at every k. So it reports (4 + recall)/5, 0.8 or more.

    It is `image_to_text_recall@k_as_published`, of `image_to_text_recall@k`.
    """

    def inflated(share):
        return (_PUBLISHED_PLACES - 1 + share) / _PUBLISHED_PLACES

    true = {name: recalls[name] for name in (f"image_to_text_recall@{k}" for k in _RECALL_AT)}
    return {
        f"{name}_as_published": FURTHER_SHARE.metric(
            inflated(recall.value),
            chance=None if recall.chance is None else inflated(recall.chance),
        )
        for name, recall in true.items()
    }


def _occurrence(ids):
    """How often each value of int [P] stood before: 0 for the first time, then 1, 2, …"""
    order = np.argsort(ids, kind="stable")
    _, starts, counts = np.unique(ids[order], return_index=True, return_counts=True)
    occurrence = np.empty_like(ids)
    occurrence[order] = np.arange(len(ids)) - np.repeat(starts, counts)
    return occurrence
