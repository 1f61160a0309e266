"""Retrieval in both directions, the validation loss, and consistency on held-out pairs."""

import base64
import io

import numpy as np
import tensorflow as tf
from PIL import Image

from cyclip_jax.data.images import decode
from cyclip_jax.errors import UserError
from cyclip_jax.evals.datasets import open_images
from cyclip_jax.losses import cyclic_consistency

_RECALL_AT = (1, 5, 10)
# Places in the published evaluation's array of ranks for each image; it fills one.
_PUBLISHED_PLACES = 5


def retrieval(
    name,
    *,
    pairs,
    source="auto",
    image_key=None,
    caption_key=None,
    delimiter=",",
    gallery_captions=0,
    captions_per_image=None,
    published_recall=False,
):
    """Scores held-out pairs.

    Rows with the same image or the same caption are one image or one caption with several
    partners: a query hits at k when any partner is among its first k.

    Args:
      name: of the evaluation.
      pairs: file of images and captions, as data.train.
      source, image_key, caption_key, delimiter: as in config.data.
      gallery_captions: how many captions the report shows with the images that they retrieve.
      captions_per_image: how many of each image's captions are scored, the first in file order;
        None scores all.
      published_recall: adds `image_to_text_recall@k_as_published`, see `published_recall_of`.

    Returns:
      An evaluator (see evals/__init__.py) that gives `image_to_text_recall@k`,
      `text_to_image_recall@k` and `chance_…`, what a random order gets (fractions); the training
      loss's terms, as means over groups of batch_size pairs in file order, the last group smaller;
      `inmodal_consistency` and `crossmodal_consistency` over all pairs; `images`, `captions`,
      `pairs`: what was scored.

    Raises:
      UserError: what is wrong with the file, or no caption per image.
    """
    if captions_per_image is not None and captions_per_image < 1:
        raise UserError(f"config.evals.{name}.captions_per_image must be at least 1, or None")
    dataset = open_images(
        pairs,
        config_key=f"config.evals.{name}.pairs",
        source="auto" if source == "mixture" else source,  # that is a matter of training
        image_key=image_key,
        caption_key=caption_key,
        delimiter=delimiter,
    )

    def evaluate(encoders, output):
        image_embeds, indices = encoders.image_embeds(dataset)
        captions = dataset.source.captions()
        text_embeds = encoders.text_embeds([captions[index] for index in indices])
        image_ids, first_image = _distinct(dataset.source.keys(indices))
        if captions_per_image is not None:
            kept = _occurrence(image_ids) < captions_per_image
            image_embeds, text_embeds = image_embeds[kept], text_embeds[kept]
            indices = indices[kept]
            image_ids, first_image = _distinct(dataset.source.keys(indices))
        text_ids, first_text = _distinct([captions[index] for index in indices])
        images, texts = image_embeds[first_image], text_embeds[first_text]

        results = mean_loss(encoders, image_embeds, text_embeds)
        inmodal, crossmodal = cyclic_consistency(image_embeds, text_embeds)
        results["inmodal_consistency"] = max(float(inmodal), 0) / len(indices)
        results["crossmodal_consistency"] = max(float(crossmodal), 0) / len(indices)
        results |= recall("image_to_text", images, texts, image_ids, text_ids)
        results |= recall("text_to_image", texts, images, text_ids, image_ids)
        if published_recall:
            results |= published_recall_of(results)
        results |= {"images": len(images), "captions": len(texts), "pairs": len(indices)}
        if gallery_captions and output.is_wanted:
            chosen = np.random.default_rng(0).permutation(len(texts))[:gallery_captions]
            content = gallery(
                captions=[captions[indices[first_text[text]]] for text in chosen],
                ranked=np.argsort(-texts[chosen] @ images.T, axis=1),  # [captions, images]
                partners=[set(image_ids[text_ids == text].tolist()) for text in chosen],
                read_image=lambda image: _read(dataset.source, indices[first_image[image]]),
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


def recall(name, query_embeds, target_embeds, query_ids, target_ids):
    """Recall at k of `target` by `query`, and what chance gets.

    A query's rank is the number of wrong targets at least as similar as its best partner: ties are
    misses.

    Args:
      name: prefix of the results.
      query_embeds, target_embeds: distinct ones, [Q, D] and [T, D].
      query_ids, target_ids: int [P], the partners as pairs of row numbers.

    Returns:
      {"<name>_recall@k": …, "chance_<name>_recall@k": …} as fractions.
    """
    ranks = ranks_of_best_partner(query_embeds, target_embeds, query_ids, target_ids)
    targets = len(target_embeds)
    partners = np.bincount(query_ids, minlength=len(query_embeds))
    results = {}
    for k in _RECALL_AT:
        results[f"{name}_recall@{k}"] = float(np.mean(ranks < k))
        # A random order misses at k when the first k are drawn from the wrong targets alone.
        misses = [np.clip((targets - partners - i) / max(targets - i, 1), 0, 1) for i in range(k)]
        results[f"chance_{name}_recall@{k}"] = float(np.mean(1 - np.prod(misses, axis=0)))
    return results


def published_recall_of(results):
    """The text-retrieval recall that the official evaluation would report for the same ranks.

    Its array of ranks has five places for each image, of which it fills one; the others stay 0,
    which is the first rank and a hit at every k. So it reports (4 + recall)/5, 0.8 or more.

    Args:
      results: those of `recall` by the name of image_to_text.

    Returns:
      {"image_to_text_recall@k_as_published": …, "chance_…": …} as fractions.
    """
    hits = _PUBLISHED_PLACES - 1  # for each image, whatever the model
    return {
        f"{name}_as_published": (hits + value) / _PUBLISHED_PLACES
        for name, value in results.items()
        if "image_to_text_recall@" in name
    }


def ranks_of_best_partner(query_embeds, target_embeds, query_ids, target_ids, tile_rows=1024):
    """Rank (0 is first) of each query's best partner, int [Q], by tiles of the [Q, T] matrix."""
    by_query = np.argsort(query_ids, kind="stable")
    query_ids, target_ids = query_ids[by_query], target_ids[by_query]
    ranks = []
    for first in range(0, len(query_embeds), tile_rows):
        similarities = query_embeds[first : first + tile_rows] @ target_embeds.T  # [tile, T]
        low, high = np.searchsorted(query_ids, [first, first + len(similarities)])
        rows, columns = query_ids[low:high] - first, target_ids[low:high]
        best = np.full(len(similarities), -np.inf, similarities.dtype)
        with np.errstate(invalid="ignore"):  # NaN stays NaN
            np.maximum.at(best, rows, similarities[rows, columns])
        similarities[rows, columns] = -np.inf
        # Not ">=": with this a model of NaN embeddings misses everything.
        ranks.append((~(similarities < best[:, None])).sum(axis=1))
    return np.concatenate(ranks)


def _distinct(values):
    """Number of its distinct value for each, and where each distinct value first stands."""
    _, first, ids = np.unique(np.asarray(values, object), return_index=True, return_inverse=True)
    return ids, first


def _occurrence(ids):
    """How often each value of int [P] stood before: 0 for the first time, then 1, 2, …"""
    order = np.argsort(ids, kind="stable")
    _, starts, counts = np.unique(ids[order], return_index=True, return_counts=True)
    occurrence = np.empty_like(ids)
    occurrence[order] = np.arange(len(ids)) - np.repeat(starts, counts)
    return occurrence


def _read(dataset, index):
    """One picture of the source, uint8 [h, w, 3]."""
    return decode(tf.constant(dataset.read(index).image)).numpy()


def gallery(*, captions, ranked, partners, read_image, columns=6):
    """Captions with the images nearest to them, as the report shows them.

    Args:
      captions: the queries, list[str].
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
            "rank": min(list(row).index(partner) for partner in own) + 1,
            "of": len(row),
            "images": [
                {"jpeg": _thumbnail(read_image(image)), "is_partner": int(image) in own}
                for image in row[:columns]
            ],
        }
        for caption, row, own in zip(captions, ranked, partners, strict=True)
    ]


def _thumbnail(pixels, side=96):
    """A picture as JPEG in base64, at most `side` pixels wide and high."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()
