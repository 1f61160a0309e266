"""What the metrics of workdirs say of themselves that were written before metrics said it.

Such a workdir holds names and numbers alone. The same table tells of the terms of a loss, which
come from the model by their names.
"""

import dataclasses

from cyclip_jax.evals.metric import About, Unit

_SHARE = About(Unit.SHARE, "more")
_FURTHER_SHARE = About(Unit.SHARE, "more", is_headline=False)
_COUNT = About(Unit.COUNT, is_headline=False)
_RANK = About(Unit.RANK, "less")
_LOSS = About(Unit.LOSS, "less", is_headline=False)
_CONSISTENCY = About(Unit.NUMBER, "less")
_CONFORMITY = About(Unit.COSINE)
_LIKELIHOOD = About(Unit.NATS)

# {metric: About}; of one "at k" what stands before the "@".
KNOWN = {
    # The terms of the loss, in training and of held-out pairs.
    "loss": _LOSS,
    "contrastive_loss": _LOSS,
    "inmodal_cyclic_loss": _LOSS,
    "crossmodal_cyclic_loss": _LOSS,
    "image_to_text_accuracy": _FURTHER_SHARE,  # among the pairs of a batch
    "text_to_image_accuracy": _FURTHER_SHARE,
    "temperature": About(is_headline=False),
    "inmodal_consistency": _CONSISTENCY,
    "crossmodal_consistency": _CONSISTENCY,
    # Labelled images: zero-shot, linear and logistic probes, few shots.
    "top1": _SHARE,
    "top3": _FURTHER_SHARE,
    "top5": _FURTHER_SHARE,
    "top10": _FURTHER_SHARE,
    "mean_per_class": _SHARE,
    "regularization": About(),
    "iterations": _COUNT,
    "zeroshot_top1": _SHARE,
    "gda_top1": _SHARE,
    "ensemble_top1": _SHARE,
    "alpha": About(),
    # Consistency of two predictions.
    "consistency": _SHARE,
    "knn_top1": _SHARE,
    "fine_top1": _SHARE,
    "coarse_top1": _SHARE,
    # Retrieval.
    "image_to_text_recall": _SHARE,
    "text_to_image_recall": _SHARE,
    "mean_recall": _SHARE,
    "image_to_text_median_rank": _RANK,
    "text_to_image_median_rank": _RANK,
    "image_to_text_recall@1_as_published": _FURTHER_SHARE,
    "image_to_text_recall@5_as_published": _FURTHER_SHARE,
    "image_to_text_recall@10_as_published": _FURTHER_SHARE,
    # Choices between captions.
    "accuracy": _SHARE,
    "macro_accuracy": _SHARE,
    "text_score": _SHARE,
    "image_score": _SHARE,
    "group_score": _SHARE,
    # The two clouds of embeddings.
    "alignment": About(Unit.COSINE, "more"),
    "uniformity": About(Unit.NATS, "less"),
    "modality_gap": About(Unit.DISTANCE),
    "modality_separability": About(Unit.SHARE),
    "image_effective_rank": About(),
    "text_effective_rank": About(),
    "image_conformity": _CONFORMITY,
    "text_conformity": _CONFORMITY,
    "conformity_correlation": About(),
    "image_log_likelihood": _LIKELIHOOD,
    "text_log_likelihood": _LIKELIHOOD,
    # The reference set of shifts.
    "reference_top1": _SHARE,
    # What was scored.
    "images": _COUNT,
    "train_images": _COUNT,
    "captions": _COUNT,
    "classes": _COUNT,
    "examples": _COUNT,
    "pairs": _COUNT,
    "unreadable": About(Unit.COUNT, "less", is_headline=False),
}
# Those of a shift are called by it, `<shift>_top1`: only the last word is known.
_OF_A_SHIFT = {
    "top1": _SHARE,
    "effective": _SHARE,
    "reference": About(Unit.SHARE),
    "images": _COUNT,
}
# Families of metrics over k that are not written with an "@".
_TOP = {f"top{k}": k for k in (1, 3, 5, 10)}


def known_about(name: str, *, has_chance: bool = False) -> About:
    """What is known of a metric by its name.

    Args:
      name: without the evaluation's. At a k other than 1 it is no headline.
      has_chance: whether a chance stands beside it: then what the table lacks is a share, and else
        it is a plain number.
    """
    if name in KNOWN:
        return KNOWN[name]
    family, k = family_at_k(name) or (name, 1)
    about = KNOWN.get(family.removesuffix("@")) or _OF_A_SHIFT.get(family.rpartition("_")[2])
    if about is None:
        about = About(Unit.SHARE if has_chance else Unit.NUMBER)
    return dataclasses.replace(about, is_headline=about.is_headline and k == 1)


def family_at_k(name: str) -> tuple[str, int] | None:
    """The family and the k of a metric that is one of several over k.

    Args:
      name: without the evaluation's.

    Returns:
      ("image_to_text_recall@", 5) of `image_to_text_recall@5`, ("top", 5) of `top5`; None of a
      metric without a k.
    """
    if name in _TOP:
        return "top", _TOP[name]
    base, at, k = name.rpartition("@")
    return (base + at, int(k)) if at and k.isdecimal() else None
