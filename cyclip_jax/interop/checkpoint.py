"""A checkpoint: weights, what is known of how to use them, and whether a model agrees with that."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from cyclip_jax.data.tokenizers import CLIP_SUM, Tokenizer, vocabulary_sum
from cyclip_jax.data.transform import RESIZE_MODES
from cyclip_jax.errors import UserError
from cyclip_jax.files import file_errors
from cyclip_jax.models.clip import IMAGE_MEAN, IMAGE_STD

# Settings of a model that no shape of its weights shows.
UNSEEN = ("quick_gelu", "vision_heads", "text_heads")
# The same, of which hardly any model has another than the usual value.
RARELY_OTHER = ("pool", "text_attention", "text_pool", "text_eos_id", "text_epsilon")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights, and what is known of how to use them.

    Attributes:
      source: where the weights come from; the path of a workdir, where they come from one.
      weights: {OpenAI name: numpy array}.
      model: keyword arguments of `create_model`. The sizes are always there; the numbers of heads
        and quick_gelu are there if the source tells them.
      tokenizer: {"tokenizer": name, "vocabulary": path or None} as in config.data, or None if the
        tokenizer is not ours.
      vocabulary_sum: the `vocabulary_sum` of the vocabulary that the weights were trained with, or
        None if the source does not tell it.
      preprocess: those keys of OUR_PREPROCESS that the source tells, with open_clip's values.
      step: the step of the run, or None if it is not known.
      config: the config of the run, a ConfigDict in which {workdir} is not yet replaced. Only a
        workdir has one; it is None otherwise.
      classes: names of the classes of its head, in their order; None where it has none.
      metrics: what the run wrote at that step, {name: number}. Only a workdir has them; the dict is
        empty otherwise.
    """

    source: str
    weights: dict[str, np.ndarray]
    model: dict[str, Any]
    tokenizer: dict[str, Any] | None
    preprocess: dict[str, Any]
    vocabulary_sum: str | None = None
    step: int | None = None
    config: Any = None
    classes: list[str] | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    def weights_sum(self) -> str:
        """The SHA-256 of the weights, in hexadecimal digits."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            digest.update(name.encode() + np.ascontiguousarray(self.weights[name]).tobytes())
        return digest.hexdigest()


OUR_PREPROCESS: dict[str, Any] = {
    "image_mean": list(IMAGE_MEAN),
    "image_std": list(IMAGE_STD),
    "resize_mode": "shortest",
    "interpolation": "bicubic",
}
# The keys of OUR_PREPROCESS that config.data has.
IMAGE_SETTINGS = ("image_mean", "image_std", "resize_mode")


def check_settings(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Compares a model with a checkpoint, and warns of settings that the checkpoint does not tell.

    Args:
      checkpoint: a Checkpoint.
      settings: {name: value} of the model, those of UNSEEN and of RARELY_OTHER.

    Raises:
      UserError: the model would compute something else, even though the weights may fit.
    """
    unknown = [name for name in UNSEEN if name in settings and name not in checkpoint.model]
    warn_of_guesses(checkpoint, {name: settings[name] for name in unknown})
    differing = [
        f"{name} is {checkpoint.model[name]!r} in the checkpoint and {value!r} in the model"
        for name, value in settings.items()
        if checkpoint.model.get(name, value) != value
    ]
    if differing:
        raise UserError(
            f"{checkpoint.source} holds another model: {', '.join(differing)}; set "
            f"config.model.{differing[0].split()[0]} to the checkpoint's value"
        )


def check_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer, *, remedy: str = "") -> None:
    """Compares the vocabulary of a tokenizer with that of the weights; only its contents count.

    Args:
      checkpoint: a Checkpoint. Where it does not tell its vocabulary, a warning says so.
      tokenizer: the one that is to make token ids for its weights.
      remedy: what the error tells to do; by default, to bring back the file.

    Raises:
      UserError: the weights were trained with another vocabulary, in which a token has another id.
    """
    own = checkpoint.tokenizer
    path = None if own is None else own["vocabulary"]
    expected = checkpoint.vocabulary_sum
    if expected is None and own is not None:
        with contextlib.suppress(UserError, *file_errors()):  # it is gone: nothing to compare
            expected = vocabulary_sum(own["tokenizer"], path)
    if expected is None:
        logging.warning(
            "%s does not tell its vocabulary; it is taken to be %s.",
            checkpoint.source,
            tokenizer.vocabulary,
        )
    elif expected != tokenizer.vocabulary_sum:
        theirs = path or ("CLIP's own" if expected == CLIP_SUM else "another")
        if str(theirs) == tokenizer.vocabulary:
            theirs = "the earlier content of that file"
        raise UserError(
            f"{tokenizer.vocabulary} is not the vocabulary that the weights of {checkpoint.source} "
            f"were trained with, which is {theirs}; "
            + (remedy or f"bring back that vocabulary at {tokenizer.vocabulary}")
        )


def other_resizing(checkpoint: Checkpoint) -> list[str]:
    """Returns the names of the settings by which the checkpoint resizes images as we cannot."""
    told = OUR_PREPROCESS | checkpoint.preprocess
    ours = {"interpolation": (OUR_PREPROCESS["interpolation"],), "resize_mode": RESIZE_MODES}
    return [name for name, possible in ours.items() if told[name] not in possible]


def warn_of_guesses(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Warns that these settings were guessed, because the checkpoint does not tell them."""
    if settings:
        told = ", ".join(f"{name}={value}" for name, value in settings.items())
        logging.warning(
            "%s does not tell all of its settings; these are assumed: %s.", checkpoint.source, told
        )
