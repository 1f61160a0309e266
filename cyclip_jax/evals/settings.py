"""The settings of each evaluation as config files write them: functions that make its section."""

from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from cyclip_jax.data.places import Place


def retrieval(config: Any, pairs: Place, **arguments: Any) -> ml_collections.ConfigDict:
    """Returns the settings of a retrieval evaluation.

    Args:
      config: whose data say how `pairs` is read.
      pairs: a file like data.train, a .json of Karpathy's splits, or a folder of CLIP_benchmark's.
      arguments: other settings of the evaluator.
    """
    settings = ml_collections.ConfigDict({"type": "retrieval"})
    settings.pairs = pairs
    for name in ("source", "image_key", "caption_key", "delimiter"):
        settings[name] = config.data.get_ref(name)
    settings.images = placeholder(str)  # folder of the pictures of a .json; default its own
    settings.split = "test"  # of a .json or folder
    settings.captions_per_image = placeholder(int)  # the first so many are scored; default all
    settings.published_recall = False  # adds the inflated recall beside the true one
    settings.update(arguments)
    return settings


def compositional(examples: Place, **arguments: Any) -> ml_collections.ConfigDict:
    """Returns the settings of a choice between captions or pictures that differ by little.

    Args:
      examples: a file, or a folder with one for each category.
      arguments: other settings of the evaluator: layout, images, category_key.
    """
    settings = ml_collections.ConfigDict({"type": "compositional", "examples": examples})
    settings.layout = "choice"  # as ARO and SugarCrepe, or "winoground"
    settings.images = placeholder(str)  # folder of the pictures; default that of the examples
    settings.update(arguments)
    return settings


def binding(train: Place, test: Place, **arguments: Any) -> ml_collections.ConfigDict:
    """Returns the settings of probes for the attributes of things, on two files of scenes.

    Args:
      train, test: scenes, see cyclip_jax/evals/data/scenes.py.
      arguments: images, template, regularization, max_iterations.
    """
    return ml_collections.ConfigDict({"type": "binding", "train": train, "test": test} | arguments)


def labclip(train: Place, examples: Place, **arguments: Any) -> ml_collections.ConfigDict:
    """Returns the settings of such choices before and after a matrix is learned for the texts.

    Args:
      train: pairs to learn it on, a file like data.train.
      examples: the choices, as in `compositional`.
      arguments: other settings of the evaluator: negatives, negative_caption_key, epochs, …
    """
    settings = ml_collections.ConfigDict({"type": "labclip", "train": train, "examples": examples})
    settings.negatives = "swap"  # wrong captions of the pairs: as in data, or "none"
    settings.layout = "choice"  # as ARO and SugarCrepe, or "winoground"
    settings.update(arguments)
    return settings


def zeroshot(
    folder: Place = None, preset: Place = None, **arguments: Any
) -> ml_collections.ConfigDict:
    """Returns the settings of a zero-shot evaluation.

    Args:
      folder: labelled pictures, see cyclip_jax/evals/data/labelled.py.
      preset: a data set that cyclip_jax/evals/data/known.py knows, in `folder` or else in
        TensorFlow Datasets.
      arguments: split, classes, image_key, label_key; frequencies, captions in which the classes
        are counted; head and held_out_share, for fine-tuned models.
    """
    settings = ml_collections.ConfigDict({"type": "zeroshot"})
    for name in ("folder", "preset", "split", "classes", "image_key", "label_key"):
        settings[name] = placeholder(str)
    if folder is None and preset is not None:
        folder = f"preset:{preset}"
    settings.update({"folder": folder, "preset": preset} | arguments)
    return settings


def robustness(
    reference: Mapping[str, Any] | None, shifts: Mapping[str, Any], **arguments: Any
) -> ml_collections.ConfigDict:
    """Returns the settings of zero-shot evaluations of {name: settings} beside a reference set's.

    Args:
      reference, shifts: zero-shot settings, as {"preset": "imagenet"} or {"folder": …}.
      arguments: models, scale, head.
    """
    settings = ml_collections.ConfigDict({"reference": reference, "shifts": shifts})
    settings.type = "robustness"  # an evaluator's name
    settings.models = placeholder(str)  # CSV of reference models, which gives the shifts lines
    settings.scale = "logit"  # in what a line is fitted, or "linear"
    settings.update(arguments)
    return settings


def linear_probe(train: Place, test: Place, **arguments: Any) -> ml_collections.ConfigDict:
    """Returns the settings of a linear probe by AdamW, on two sets of labelled images.

    Args:
      train, test: labelled images.
      arguments: other settings: epochs, learning_rate, …; with method="lbfgs", as older config
        files have it, they are those of `logistic_probe`.
    """
    if arguments.get("method") == "lbfgs":
        idle = ("method", "batch_size", "epochs", "learning_rate", "weight_decay")
        kept = {name: value for name, value in arguments.items() if name not in idle}
        return logistic_probe(train, test, **kept)
    settings = ml_collections.ConfigDict({"type": "linear_probe", "train": train, "test": test})
    settings.batch_size = 16  # of the classifier's training, as in the published probe script
    settings.update(arguments)
    return settings


def logistic_probe(train: Place, test: Place, **arguments: Any) -> ml_collections.ConfigDict:
    """Returns the settings of logistic regression, CLIP's linear probe, on labelled images.

    Args:
      train, test: labelled images.
      arguments: other settings: regularization, validation_share, max_iterations, …
    """
    settings = {"type": "logistic_probe", "train": train, "test": test}
    return ml_collections.ConfigDict(settings | arguments)


def few_shot(train: Place, test: Place, **arguments: Any) -> ml_collections.ConfigDict:
    """Returns the settings of linear probes trained on k labelled images of each class."""
    return ml_collections.ConfigDict({"type": "few_shot", "train": train, "test": test} | arguments)


def gda(train: Place, test: Place, **arguments: Any) -> ml_collections.ConfigDict:
    """Returns the settings of zero-shot with Gaussian discriminant analysis of labelled images."""
    return ml_collections.ConfigDict({"type": "gda", "train": train, "test": test} | arguments)


def consistency(train: Place, test: Place, **arguments: Any) -> ml_collections.ConfigDict:
    """Returns the settings of a consistency evaluation between two sets of labelled images."""
    settings = {"type": "consistency", "train": train, "test": test}
    return ml_collections.ConfigDict(settings | arguments)


def geometry(pairs: Place, **arguments: Any) -> ml_collections.ConfigDict:
    """Returns the settings of a measurement of the embeddings of `pairs`, a file as data.train."""
    return ml_collections.ConfigDict({"type": "geometry", "pairs": pairs} | arguments)


def sts(sentences: Place, **arguments: Any) -> ml_collections.ConfigDict:
    """Returns the settings of a comparison of sentences' similarities with people's scores.

    Args:
      sentences: SentEval's folder, a table of two sentences and a score, or documents.
      arguments: other settings of the evaluator: similarities, split, score_key, …
    """
    return ml_collections.ConfigDict({"type": "sts", "sentences": sentences} | arguments)
