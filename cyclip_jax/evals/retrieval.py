"""Retrieval in both directions, the validation loss, and consistency on held-out pairs."""

import base64
import io

import numpy as np
import scipy.sparse
from PIL import Image
from scipy.sparse.csgraph import connected_components

from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.pairs import distinct, open_pairs
from cyclip_jax.evals.statistics.cyclic import cyclic_consistencies
from cyclip_jax.evals.statistics.intervals import bounds_of, interval
from cyclip_jax.evals.statistics.ranking import ranks_of_best_partner

_RECALL_AT = (1, 5, 10)
# Places in the published evaluation's array of ranks for each image; it fills one.
_PUBLISHED_PLACES = 5


def retrieval(
    name,
    *,
    pairs,
    source="auto",
    images=None,
    split="test",
    image_key=None,
    caption_key=None,
    delimiter=",",
    gallery_captions=0,
    captions_per_image=None,
    published_recall=False,
):
    """Scores held-out pairs.

    Each picture is embedded once, however many captions it has. Pictures or captions that stand in
    several pairs are one query with several partners: it hits at k when any partner is among its
    first k.

    Args:
      name: of the evaluation.
      pairs: file of images and captions, as data.train; or Karpathy's .json of COCO or Flickr30k;
        or a folder in CLIP_benchmark's layout. See `open_pairs`.
      source, image_key, caption_key, delimiter: as in config.data.
      images: folder that the pictures of a .json lie in; default the file's own.
      split: of a .json or folder.
      gallery_captions: how many captions the report shows with the images that they retrieve.
      captions_per_image: how many of each image's captions are scored, the first in file order, 5
        for COCO and Flickr30k; None scores all.
      published_recall: adds `image_to_text_recall@k_as_published`, see `published_recall_of`.

    Returns:
      An evaluator (see evals/__init__.py) that gives `image_to_text_recall@k` and
      `text_to_image_recall@k` (fractions), `mean_recall` over these six, and
      `image_to_text_median_rank` and `text_to_image_median_rank` (1 is first), each with its
      interval over images, of which one carries all its captions, and those that share a caption
      are one draw; `chance_…`, the recall that a random order gets; the training loss's terms, as
      means over groups of batch_size pairs in file order, the last group smaller;
      `inmodal_consistency` and `crossmodal_consistency` over all pairs, with intervals over images;
      `images`, `captions`, `pairs`: what was scored.

    Raises:
      UserError: what is wrong with the data, or no caption per image.
    """
    config_key = f"config.evals.{name}"
    if captions_per_image is not None and captions_per_image < 1:
        raise UserError(f"{config_key}.captions_per_image must be at least 1, or None")
    read_pairs = open_pairs(
        pairs,
        config_key=config_key,
        source=source,
        images=images,
        split=split,
        image_key=image_key,
        caption_key=caption_key,
        delimiter=delimiter,
    )

    def evaluate(encoders, output):
        dataset = read_pairs()
        image_embeds, indices = encoders.image_embeds(dataset.images)
        image_ids, captions = _readable(dataset, indices)
        if captions_per_image is not None:
            kept = np.flatnonzero(_occurrence(image_ids) < captions_per_image)
            image_ids, captions = image_ids[kept], [captions[pair] for pair in kept]
        text_ids, first_pair = distinct(captions)
        pair_embeds = image_embeds[image_ids], encoders.text_embeds(captions)
        text_embeds = pair_embeds[1][first_pair]

        results = mean_loss(encoders, *pair_embeds)
        results |= cyclic_consistencies(*pair_embeds, clusters=image_ids)
        image_ranks = ranks_of_best_partner(image_embeds, text_embeds, image_ids, text_ids)
        text_ranks = ranks_of_best_partner(text_embeds, image_embeds, text_ids, image_ids)
        results |= recall_of_ranks(image_ranks, text_ranks, image_ids, text_ids)
        chance = chance_recall("image_to_text", image_ids, text_ids)
        chance |= chance_recall("text_to_image", text_ids, image_ids)
        results |= chance | {"chance_mean_recall": float(np.mean(list(chance.values())))}
        if published_recall:
            results |= published_recall_of(results)
        results |= {"images": len(image_embeds), "captions": len(text_embeds)}
        results["pairs"] = len(captions)
        if gallery_captions and output.is_wanted:
            chosen = np.random.default_rng(0).permutation(len(text_embeds))[:gallery_captions]
            pictures = dataset.images.source
            content = gallery(
                captions=[captions[first_pair[text]] for text in chosen],
                ranks=text_ranks[chosen],
                ranked=np.argsort(-text_embeds[chosen] @ image_embeds.T, axis=1),  # [texts, images]
                partners=[set(image_ids[text_ids == text].tolist()) for text in chosen],
                read_image=lambda image: _read(pictures, indices[image]),
            )
            output.json("gallery", content)
        return results

    return evaluate


def mean_loss(encoders, image_embeds, text_embeds):
    """Means of the loss's metrics over groups of batch_size pairs, weighted by their size."""
    totals = {}
    for first in range(0, len(image_embeds), encoders.batch_size):
        group = slice(first, first + encoders.batch_size)
        metrics = encoders.loss(image_embeds[group], text_embeds[group])
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(image_embeds[group])
    return {name: total / len(image_embeds) for name, total in totals.items()}


def recall_of_ranks(image_ranks, text_ranks, image_ids, text_ids):
    """Recall at k, its mean and the median rank, with intervals over images.

    An image that is drawn brings its captions along: what is sampled when such data are collected
    are images. Images that share a caption are one draw, as their ranks depend on each other: the
    unit of both directions is a connected component of the graph of images and captions.

    Args:
      image_ranks: of each image's best caption, int [I], 0 is first.
      text_ranks: of each caption's best image, int [T].
      image_ids, text_ids: int [P], the partners; every image and every caption has one.

    Returns:
      {"image_to_text_recall@k", "text_to_image_recall@k", "mean_recall",
      "image_to_text_median_rank", "text_to_image_median_rank", and each with _ci_low and _ci_high}.
    """
    images, nodes = len(image_ranks), len(image_ranks) + len(text_ranks)
    edges = np.ones(len(image_ids), bool), (image_ids, images + np.asarray(text_ids))
    graph = scipy.sparse.coo_array(edges, shape=(nodes, nodes))
    units, unit_of = connected_components(graph, directed=False)
    statistics = {}
    for name, ranks, clusters in (
        ("image_to_text", image_ranks, unit_of[:images]),
        ("text_to_image", text_ranks, unit_of[images:]),
    ):
        for k in _RECALL_AT:
            statistics[f"{name}_recall@{k}"] = _weighted_mean(ranks < k, clusters, units)
        statistics[f"{name}_median_rank"] = _weighted_median(ranks + 1, clusters)
    recalls = ["_recall@" in name for name in statistics]

    def all_of(weights):
        values = np.array([statistic(weights) for statistic in statistics.values()])
        return np.append(values, values[recalls].mean())

    names = [*statistics, "mean_recall"]
    values = all_of(np.ones(units, np.int64))
    results = dict(zip(names, values.tolist(), strict=True))
    for name, *bounds in zip(names, *interval(all_of, units), strict=True):
        results |= bounds_of(name, bounds)
    return results


def _weighted_mean(values, clusters, n):
    """A function of weights int [n] of the clusters -> the mean of values, NaN of none."""
    sums = np.bincount(clusters, weights=values, minlength=n)
    sizes = np.bincount(clusters, minlength=n)

    def mean(weights):
        total = weights @ sizes
        return weights @ sums / total if total else np.nan

    return mean


def _weighted_median(values, clusters):
    """A function of weights of the clusters -> the median of values, each that often; or NaN."""
    order = np.argsort(values, kind="stable")
    values, clusters = values[order], clusters[order]

    def median(weights):
        ends = np.cumsum(weights[clusters])
        if not ends[-1]:
            return np.nan
        middle = np.searchsorted(ends, [(ends[-1] - 1) // 2, ends[-1] // 2], side="right")
        return values[middle].mean()

    return median


def chance_recall(name, query_ids, target_ids):
    """The recall that a random order of the targets gets, by numbers of partners.

    Args:
      name: prefix of the results.
      query_ids, target_ids: int [P], the partners; every query and every target has one.

    Returns:
      {"chance_<name>_recall@k": …} as fractions.
    """
    targets = int(target_ids.max()) + 1
    pairs = np.unique(np.asarray(query_ids, np.int64) * targets + target_ids)
    partners = np.bincount(pairs // targets)
    results = {}
    for k in _RECALL_AT:
        # It misses at k when the first k are drawn from the wrong targets alone.
        misses = [np.clip((targets - partners - i) / max(targets - i, 1), 0, 1) for i in range(k)]
        results[f"chance_{name}_recall@{k}"] = float(np.mean(1 - np.prod(misses, axis=0)))
    return results


def published_recall_of(results):
    """The text-retrieval recall that the official evaluation would report for the same ranks.

    Its array of ranks has five places for each image, of which it fills one; the others stay 0,
    which is the first rank and a hit at every k. So it reports (4 + recall)/5, 0.8 or more.

    Args:
      results: with `image_to_text_recall@k` and its chance.

    Returns:
      {"image_to_text_recall@k_as_published": …, "chance_…": …} as fractions.
    """
    hits = _PUBLISHED_PLACES - 1  # for each image, whatever the model
    return {
        f"{name}_as_published": (hits + value) / _PUBLISHED_PLACES
        for name, value in results.items()
        if name.removeprefix("chance_") in {f"image_to_text_recall@{k}" for k in _RECALL_AT}
    }


def _readable(dataset, indices):
    """The Pairs whose images could be read, these numbered anew by their place in `indices`."""
    number = np.full(len(dataset.images.source), -1)
    number[indices] = np.arange(len(indices))
    image_ids = number[dataset.image_ids]
    kept = np.flatnonzero(image_ids >= 0)
    return image_ids[kept], [dataset.captions[pair] for pair in kept]


def _occurrence(ids):
    """How often each value of int [P] stood before: 0 for the first time, then 1, 2, …"""
    order = np.argsort(ids, kind="stable")
    _, starts, counts = np.unique(ids[order], return_index=True, return_counts=True)
    occurrence = np.empty_like(ids)
    occurrence[order] = np.arange(len(ids)) - np.repeat(starts, counts)
    return occurrence


def _read(dataset, index):
    """One picture of the source, uint8 [h, w, 3]."""
    from cyclip_jax.data.decoding import decode  # TensorFlow: slow to import
    from cyclip_jax.runtime.started import import_tensorflow

    return decode(import_tensorflow().constant(dataset.read(index).image)).numpy()


def gallery(*, captions, ranks, ranked, partners, read_image, columns=6):
    """Captions with the images nearest to them, as the report shows them.

    Args:
      captions: the queries, list[str].
      ranks: of each caption's best image, int [len(captions)], 0 is first; ties are misses.
      ranked: image numbers by falling similarity, int [len(captions), images].
      partners: for each caption the set of its own images' numbers.
      read_image: function from an image number to uint8 [h, w, 3].
      columns: images per caption.

    Returns:
      [{"caption", "rank" of its best image from 1, "of", "images": [{"jpeg", "is_partner"}]}], for
      JSON; pictures in base64.
    """
    return [
        {
            "caption": caption,
            "rank": int(rank) + 1,
            "of": len(row),
            "images": [
                {"jpeg": _thumbnail(read_image(image)), "is_partner": int(image) in own}
                for image in row[:columns]
            ],
        }
        for caption, rank, row, own in zip(captions, ranks, ranked, partners, strict=True)
    ]


def _thumbnail(pixels, side=96):
    """A picture as JPEG in base64, at most `side` pixels wide and high."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()
