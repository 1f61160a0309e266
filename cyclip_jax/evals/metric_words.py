"""What metrics are called in words, and what they mean, for people who see them first."""

import re
from typing import NamedTuple

from cyclip_jax.evals.known_metrics import family_at_k


class Words(NamedTuple):
    """A metric in words.

    Attributes:
      title: what it is called, as in the middle of a sentence.
      meaning: a sentence or two on it; empty where nothing is known but its name.
    """

    title: str
    meaning: str


# {metric: (title, meaning)}; of one "at k" by what stands before the "@", with {k} for k.
_KNOWN = {
    "loss": ("loss", "What training minimises, here of held-out pairs in groups of a batch's size"),
    "contrastive_loss": (
        "contrastive loss",
        "How surely each image finds its text among those of a batch, and each text its image; 0 "
        "is certainty, and ln of the batch's size is guessing",
    ),
    "inmodal_cyclic_loss": (
        "in-modal cyclic loss",
        "The sum over pairs of pairs behind the in-modal inconsistency, divided by the batch's "
        "size, as the loss adds it",
    ),
    "crossmodal_cyclic_loss": (
        "cross-modal cyclic loss",
        "The sum over pairs of pairs behind the cross-modal inconsistency, divided by the batch's "
        "size, as the loss adds it",
    ),
    "inmodal_consistency": (
        "in-modal inconsistency",
        "The mean over pairs of pairs of (cosine of the images − cosine of their texts)²; 0 where "
        "both spaces have the same geometry",
    ),
    "crossmodal_consistency": (
        "cross-modal inconsistency",
        "The mean over pairs of pairs of (cosine of image j with text k − of image k with text "
        "j)²; 0 where the two agree",
    ),
    "image_to_text_accuracy": (
        "right text within the batch",
        "The share of images that are nearest to their own text within a group of a batch's size",
    ),
    "text_to_image_accuracy": (
        "right image within the batch",
        "The share of texts that are nearest to their own image within a group of a batch's size",
    ),
    "temperature": ("temperature", "What cosines are divided by before the softmax; it is learned"),
    "image_to_text_recall@": (
        "texts found for an image, recall@{k}",
        "The share of images that have a text of theirs among the {k} nearest of all texts",
    ),
    "text_to_image_recall@": (
        "images found for a text, recall@{k}",
        "The share of texts that have an image of theirs among the {k} nearest of all images",
    ),
    "mean_recall": (
        "mean recall",
        "The mean of recall@1, @5 and @10 in both directions",
    ),
    "image_to_text_median_rank": (
        "median rank of an image's text",
        "Half of the images have a text of theirs at this place or before it; 1 is the first",
    ),
    "text_to_image_median_rank": (
        "median rank of a text's image",
        "Half of the texts have an image of theirs at this place or before it; 1 is the first",
    ),
    "top1": (
        "accuracy",
        "The share of images whose most similar class is the right one",
    ),
    "top": (
        "top-{k} accuracy",
        "The share of images whose right class is among the {k} most similar",
    ),
    "mean_per_class": (
        "mean accuracy of the classes",
        "The accuracy of each class by itself, and the mean of these: small classes count as much "
        "as large ones",
    ),
    "zeroshot_top1": (
        "zero-shot accuracy",
        "The share of images that are nearest to the text of their own class",
    ),
    "consistency@": (
        "consistency@{k}",
        "The share of images whose zero-shot class is also the majority among the {k} nearest "
        "training images: what texts say and what images say agree, right or wrong",
    ),
    "knn_top1@": (
        "nearest-neighbour accuracy, k = {k}",
        "The share of images whose class is the majority among the {k} nearest training images",
    ),
    "fine_top1": (
        "fine accuracy",
        "The share of images whose zero-shot class is right among the classes of their kind",
    ),
    "coarse_top1": (
        "coarse accuracy",
        "The share of images whose zero-shot class is at least of the right kind",
    ),
    "gda_top1": (
        "accuracy of discriminant analysis",
        "The share of images that a Gaussian around each class's training images puts right",
    ),
    "ensemble_top1": (
        "accuracy of both together",
        "The share of images that discriminant analysis and zero-shot together put right",
    ),
    "top1@": (
        "accuracy with {k} images of each class",
        "The accuracy of a linear probe that learned from {k} images of each class",
    ),
    "regularization": ("regularisation", "The strength that held-out images chose"),
    "alpha": (
        "weight of discriminant analysis",
        "How much it counts beside zero-shot, as held-out images chose",
    ),
    "iterations": ("iterations", "How many steps the optimiser took"),
    "frequency_correlation": (
        "correlation with the classes' frequency",
        "The rank correlation of the classes' accuracies with how many captions name them",
    ),
    "accuracy": (
        "right caption chosen",
        "The share of images that are nearer to the right caption than to the wrong one",
    ),
    "macro_accuracy": ("mean accuracy of the categories", "The mean over categories of examples"),
    "blind_accuracy": (
        "right caption chosen without the image",
        "The same choices made with the mean of all images: what the texts alone give away",
    ),
    "text_score": ("text score", "The share of examples in which each image has its own text"),
    "image_score": ("image score", "The share of examples in which each text has its own image"),
    "group_score": ("group score", "The share of examples in which both are right"),
    "image_binding": (
        "attributes bound in images",
        "How often a linear probe of the image tells whose attribute an attribute is",
    ),
    "text_binding": (
        "attributes bound in texts",
        "How often a linear probe of the text tells whose attribute an attribute is",
    ),
    "cross_modal_binding": (
        "attributes bound across",
        "How often an image is nearer to its caption than to one with its attributes moved",
    ),
    "alignment": ("alignment of pairs", "The mean cosine of an image and its text"),
    "uniformity": (
        "uniformity",
        "The log of the mean over images and other texts of exp(−cosine); less is more spread out",
    ),
    "image_uniformity": (
        "uniformity of images",
        "The log of the mean over pairs of images of exp(−2 · distance²); less is more spread out",
    ),
    "text_uniformity": (
        "uniformity of texts",
        "The log of the mean over pairs of texts of exp(−2 · distance²); less is more spread out",
    ),
    "modality_gap": (
        "modality gap",
        "The distance between the mean of the images and the mean of the texts, at most 2",
    ),
    "modality_separability": (
        "separability of the modalities",
        "The share of embeddings of which a plane tells whether they are of an image or a text",
    ),
    "image_effective_rank": ("effective rank of images", "Into how many directions images spread"),
    "text_effective_rank": ("effective rank of texts", "Into how many directions texts spread"),
    "image_conformity": ("conformity of images", "The mean cosine of an image with all others"),
    "text_conformity": ("conformity of texts", "The mean cosine of a text with all others"),
    "conformity_correlation": (
        "correlation of the conformities",
        "Whether common images have common texts",
    ),
    "image_log_likelihood": (
        "log-likelihood of images",
        "How usual whitened images are, in nats for each dimension",
    ),
    "text_log_likelihood": (
        "log-likelihood of texts",
        "How usual whitened texts are, in nats for each dimension",
    ),
    "spearman": (
        "correlation with people's scores",
        "Spearman's rank correlation of the sentences' cosines with people's scores",
    ),
    "spearman_wmean": (
        "correlation with people's scores, mean of subsets",
        "The mean over the subsets of a year, weighted by their sizes",
    ),
    "text_alignment": (
        "distance of alike texts",
        "The mean squared distance of sentences that people find alike",
    ),
    "images": ("images", "How many images were scored"),
    "train_images": ("training images", "How many images the predictions were learned from"),
    "train_pairs": ("training pairs", "How many pairs the matrix was learned from"),
    "captions": ("captions", "How many different captions were scored"),
    "classes": ("classes", "How many classes there are"),
    "examples": ("examples", "How many choices were scored"),
    "pairs": ("pairs", "How many pairs were scored"),
    "sentences": ("sentences", "How many sentences were scored"),
    "things": ("things", "How many things in images were scored"),
    "unreadable": ("unreadable", "How many images or texts could not be read, and do not count"),
}
# What stands behind the name of a shift, a task or another metric, and what it adds.
_PARTS = (
    (r"(.+)_before", "{}, before the matrix was learned"),
    (r"(.+)_as_published", "{}, as the official evaluation counts it"),
    (r"(mean_recall)_(\d+)_dims", "{}, first {} dimensions"),
)
_OF_A_SET = {
    "top1": ("accuracy on {}", "The share of its images whose most similar class is right"),
    "effective": (
        "effective robustness on {}",
        "The accuracy less what other models of the same reference accuracy have there",
    ),
    "reference": ("reference accuracy for {}", "The accuracy on the reference for its classes"),
    "images": ("images of {}", "How many of its images were scored"),
    "spearman": ("correlation with people's scores on {}", _KNOWN["spearman"][1]),
    "spearman_wmean": (
        "correlation with people's scores on {}, mean of subsets",
        _KNOWN["spearman_wmean"][1],
    ),
}


def in_words(name: str) -> Words:
    """What a metric is called in words, and what it means.

    Args:
      name: without the evaluation's, such as "image_to_text_recall@5".
    """
    if name in _KNOWN:
        return Words(*_KNOWN[name])
    family, k = family_at_k(name) or (name, 0)
    if family in _KNOWN:
        return Words(*(text.format(k=k) for text in _KNOWN[family]))
    for pattern, form in _PARTS:
        if found := re.fullmatch(pattern, name):
            known = in_words(found[1])
            return Words(form.format(known.title, *found.groups()[1:]), known.meaning)
    for ending in sorted(_OF_A_SET, key=len, reverse=True):
        if name.endswith(f"_{ending}"):
            form, meaning = _OF_A_SET[ending]
            return Words(form.format(name.removesuffix(f"_{ending}").replace("_", " ")), meaning)
    return Words(name.replace("_", " "), "")
