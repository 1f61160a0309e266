"""What a config file says of the parts of a mixture."""

from collections.abc import Sequence
from typing import Any

import ml_collections

from cyclip_jax.data.places import Place


def part(
    train: Place,
    weight: float | Sequence[tuple[int, float]] = 1.0,
    **settings: Any,
) -> ml_collections.ConfigDict:
    """Returns the settings of one source of config.data.mixture.

    Args:
      train: as config.data.train.
      weight: its share, in relation to the others'; or pairs (step, weight), with weights in
        between that change linearly.
      settings: source, kept, and image_key, caption_key, … where they differ from config.data's.
    """
    return ml_collections.ConfigDict({"train": train, "weight": weight, **settings})
