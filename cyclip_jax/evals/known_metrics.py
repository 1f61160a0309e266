"""What metrics say of themselves, by their names.

Evaluators take it from here where it is more than that a number is a share or a count. So do the
metrics of workdirs from before metrics said it, which hold names and numbers alone. What the terms
of a loss measure is known from the terms themselves.
"""

import dataclasses

from cyclip_jax.evals.metric import COUNT, FURTHER_SHARE, SHARE, About, Unit
from cyclip_jax.losses.cyclip import contrastive_term, cyclic_term
from cyclip_jax.losses.terms import Reported

# The metrics of the terms that every run measures, in training and of held-out pairs.
KNOWN_REPORTS: dict[str, Reported] = {**contrastive_term().reports, **cyclic_term().reports}

LOSS = About(Unit.LOSS, "less", is_headline=False)
_RANK = About(Unit.RANK, "less")
_COSINE = About(Unit.COSINE)
_NATS = About(Unit.NATS)
_NUMBER = About()
_CORRELATION = About(better="more")

# {metric: About}; of one "at k" what stands before the "@".
KNOWN = {
    # The loss and its terms. Of their metrics the consistencies are headlines of an evaluation.
    "loss": LOSS,
    "temperature": About(is_headline=False),
    **{
        name: About(Unit(told.unit), told.better, is_headline=told.unit == Unit.NUMBER)
        for name, told in KNOWN_REPORTS.items()
    },
    # Labelled images: zero-shot, probes, few shots, consistency of two predictions.
    **dict.fromkeys(("top1", "zeroshot_top1", "gda_top1", "ensemble_top1", "knn_top1"), SHARE),
    **dict.fromkeys(("mean_per_class", "consistency", "fine_top1", "coarse_top1"), SHARE),
    **dict.fromkeys(("top3", "top5", "top10"), FURTHER_SHARE),
    **dict.fromkeys(("regularization", "alpha"), _NUMBER),
    "iterations": COUNT,
    "frequency_correlation": _NUMBER,
    # Retrieval.
    **dict.fromkeys(("image_to_text_recall", "text_to_image_recall", "mean_recall"), SHARE),
    **dict.fromkeys(("image_to_text_median_rank", "text_to_image_median_rank"), _RANK),
    **{f"image_to_text_recall@{k}_as_published": FURTHER_SHARE for k in (1, 5, 10)},
    # Choices between captions.
    **dict.fromkeys(("accuracy", "macro_accuracy"), SHARE),
    **dict.fromkeys(("accuracy_before", "macro_accuracy_before"), FURTHER_SHARE),
    **{f"{name}_score_before": FURTHER_SHARE for name in ("text", "image", "group")},
    **dict.fromkeys(
        ("blind_accuracy", "blind_accuracy_before"), About(Unit.SHARE, is_headline=False)
    ),
    **dict.fromkeys(("image_binding", "text_binding", "cross_modal_binding"), SHARE),
    "things": COUNT,
    **dict.fromkeys(("text_score", "image_score", "group_score"), SHARE),
    # The two clouds of embeddings.
    "alignment": About(Unit.COSINE, "more"),
    "uniformity": About(Unit.NATS, "less"),
    **dict.fromkeys(("image_uniformity", "text_uniformity"), About(Unit.NATS, "less")),
    "modality_gap": About(Unit.DISTANCE),
    "modality_separability": About(Unit.SHARE),
    **dict.fromkeys(("image_effective_rank", "text_effective_rank"), _NUMBER),
    **dict.fromkeys(("image_conformity", "text_conformity"), _COSINE),
    "conformity_correlation": _NUMBER,
    **dict.fromkeys(("image_log_likelihood", "text_log_likelihood"), _NATS),
    # Pairs of sentences.
    "spearman": _CORRELATION,
    "text_alignment": About(better="less"),
    # The reference set of shifts.
    "reference_top1": SHARE,
    # What was scored.
    **dict.fromkeys(("images", "train_images", "train_pairs", "captions", "classes"), COUNT),
    **dict.fromkeys(("examples", "pairs", "sentences"), COUNT),
    "unreadable": About(Unit.COUNT, "less", is_headline=False),
}
# Those of a shift or a task are called by it, `<shift>_top1`: only the last word is known.
_OF_A_PART = {
    "top1": SHARE,
    "effective": SHARE,
    "reference": About(Unit.SHARE),
    "images": COUNT,
    **dict.fromkeys(("spearman", "wmean"), dataclasses.replace(_CORRELATION, is_headline=False)),
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
    about = KNOWN.get(family.removesuffix("@")) or _OF_A_PART.get(family.rpartition("_")[2])
    if about is None:
        about = About(Unit.SHARE if has_chance else Unit.NUMBER)
    return dataclasses.replace(about, is_headline=about.is_headline and k == 1)


def family_at_k(name: str) -> tuple[str, int] | None:
    """The family and the k of a metric that is one of several over k; None of one without a k.

    They are ("image_to_text_recall@", 5) of `image_to_text_recall@5`, and ("top", 5) of `top5`.
    """
    if name in _TOP:
        return "top", _TOP[name]
    base, at, k = name.rpartition("@")
    return (base + at, int(k)) if at and k.isdecimal() else None
