"""Weights with what is known of how to use them, and what does not fit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from cyclip_jax.errors import UserError
from cyclip_jax.models.clip import IMAGE_MEAN, IMAGE_STD

# What a model computes that no shape of its weights shows.
UNSEEN = ("quick_gelu", "vision_heads", "text_heads")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights, and what is known of how to use them.

    Attributes:
      source: where they come from, for messages.
      weights: {OpenAI name: numpy array}.
      model: keyword arguments of `create_model`: the sizes; numbers of heads and quick_gelu are
        absent where nothing tells them.
      tokenizer: {"tokenizer": name, "vocabulary": path or None} as in config.data; None: not ours.
      preprocess: what is known of OUR_PREPROCESS's keys, in open_clip's terms.
      step: of the run; None where unknown.
      config: of the run, a ConfigDict with {workdir} as written; None but for a workdir.
      metrics: what the run wrote at that step, {name: number}; empty but for a workdir.
    """

    source: str
    weights: dict[str, np.ndarray]
    model: dict[str, Any]
    tokenizer: dict[str, str | None] | None
    preprocess: dict[str, Any]
    step: int | None = None
    config: Any = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)


OUR_PREPROCESS: dict[str, Any] = {
    "image_mean": list(IMAGE_MEAN),
    "image_std": list(IMAGE_STD),
    "resize_mode": "shortest",
    "interpolation": "bicubic",
}


IMAGE_SETTINGS = ("image_mean", "image_std")  # those of them that are in config.data


def check_settings(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Compares what a model computes with the checkpoint, and warns of what that does not tell.

    Args:
      checkpoint: a Checkpoint.
      settings: {"quick_gelu": …, "vision_heads": …, "text_heads": …} of the model.

    Raises:
      UserError: the model would compute something else, though the weights may fit.
    """
    unknown = {name: value for name, value in settings.items() if name not in checkpoint.model}
    warn_of_guesses(checkpoint, unknown)
    differing = [
        f"{name} is {checkpoint.model[name]!r} there and {value!r} here"
        for name, value in settings.items()
        if checkpoint.model.get(name, value) != value
    ]
    if differing:
        raise UserError(
            f"the model of {checkpoint.source} is another one: {', '.join(differing)}; set "
            f"config.model.{differing[0].split()[0]} to its value"
        )


def other_resizing(checkpoint: Checkpoint) -> list[str]:
    """Which settings of how images are resized are not ours."""
    resizing = OUR_PREPROCESS.keys() - IMAGE_SETTINGS
    told = checkpoint.preprocess
    return sorted(name for name in resizing & told.keys() if told[name] != OUR_PREPROCESS[name])


def warn_of_guesses(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Warns of settings that are taken to be something, as no shape shows them."""
    if settings:
        told = ", ".join(f"{name}={value}" for name, value in settings.items())
        logging.warning(
            "%s does not say all of its settings; taken to be: %s.", checkpoint.source, told
        )
