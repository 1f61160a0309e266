"""Which examples a classifier is fitted on, and which choose its settings."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from cyclip_jax.data.order import order
from cyclip_jax.errors import UserError


def places_in_class(labels: Int[np.ndarray, "n"], draw: int) -> Int[np.ndarray, "n"]:
    """Each example's place in a random order of its class's, int [N].

    Args:
      labels: int [N].
      draw: number of the order. Those with a place below k are k of each class, without
        replacement, and among those of any larger k.
    """
    shuffled = order(draw, 0, len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, starts, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    places = np.empty(len(labels), np.int64)
    places[by_class] = np.arange(len(labels)) - np.repeat(starts, sizes)
    return places


def held_out(
    labels: Int[np.ndarray, "n"], share: float, seed: int, config_key: str, setting: str
) -> Bool[np.ndarray, "n"]:
    """Which examples choose a setting: a share of each class that has two or more, bool [N].

    Args:
      labels: int [N].
      share: rounded down, but one at least.
      seed: of the draw.
      config_key, setting: the data's and the setting's, for the message.

    Raises:
      UserError: every class has one image.
    """
    sizes = np.bincount(labels)
    held = np.where(sizes > 1, np.maximum((share * sizes).astype(int), 1), 0)
    is_held = places_in_class(labels, seed) < held[labels]
    if not is_held.any():
        raise UserError(
            f"{config_key} has one image of each class and none to choose `{setting}` by; set it"
        )
    return is_held


def check_share(key: str, share: float) -> None:
    """Raises UserError where a share is not between 0 and 1; `key` names the evaluation there."""
    if not 0 < share < 1:
        raise UserError(f"{key}.validation_share {share} must be between 0 and 1")


MOST_VALIDATION_SHOTS = 4  # images of each class that choose a setting, as in CoOp's few-shot sets


def k_shot(
    places: Int[np.ndarray, "n"], k: int
) -> tuple[Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """(the first k of each class by their `places`, up to min(k, 4) further ones), bool [N]."""
    return places < k, (places >= k) & (places < k + min(k, MOST_VALIDATION_SHOTS))


def missing_images(
    labels: Int[np.ndarray, "n"],
    names: Sequence[str],
    k: int,
    *,
    also_validation: bool,
    least: int | None = None,
) -> str | None:
    """What k images of each class, and others to choose a setting by, lack.

    Args:
      labels: int [N].
      names: of the classes.
      k: images of each class.
      also_validation: whether some class must have more.
      least: the fewest that any class may have; default k.

    Returns:
      What the data "has", as text; None where nothing lacks.
    """
    sizes = np.bincount(labels, minlength=len(names))
    least = least or k
    if sizes.min() < least:
        return (
            f"has {sizes.min()} images of the class {names[int(sizes.argmin())]!r}; "
            f"shots={k} needs at least {least} of every class"
        )
    if also_validation and sizes.max() <= k:
        return f"has only {k} images of each class; choose fewer shots"
    return None
