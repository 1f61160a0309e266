"""Stretches the positions of a text tower, so that it begins to read longer texts."""

import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from cyclip_jax.errors import UserError
from cyclip_jax.interop.weights import takes

KEY = "config.init_keep_positions"
_POSITIONS = "positional_embedding"  # of the text tower, under OpenAI's names


def check_stretch(
    keep: int | None, source: str | None, parts: Collection[str], model: Mapping[str, Any]
) -> None:
    """Raises UserError unless a run may stretch the positions of the model that it starts from.

    Args:
      keep: config.init_keep_positions.
      source: config.init_from.
      parts: config.init_parts.
      model: the settings of the run's model, with its sizes.
    """
    if keep is None:
        return
    if keep < 0:
        raise UserError(f"{KEY} {keep} must be at least 0")
    if source is None:
        raise UserError(
            f"{KEY} stretches the positions of config.init_from, which is not set; set it to the "
            "model that is to read longer texts"
        )
    if not takes("text", parts):
        raise UserError(
            f"{KEY} stretches the positions of a text tower, which config.init_parts leaves out; "
            "leave out one of the two"
        )
    if model["text_attention"] != "causal" or model["text_pool"] not in ("argmax", "eos"):
        raise UserError(
            f"{KEY} is for text towers that read from left to right up to the end-of-text token, "
            "and what this one makes of a short text would change with the padding behind it"
        )


def with_stretched_positions(
    weights: Mapping[str, np.ndarray],
    length: int,
    keep: int,
    *,
    source: str | os.PathLike[str],
) -> dict[str, np.ndarray]:
    """Weights whose text tower reads texts of `length` tokens.

    Args:
      weights: {OpenAI name: numpy array}.
      length: config.model.context_length.
      keep: config.init_keep_positions.
      source: what to call the weights in messages.

    Raises:
      UserError: no whole number of positions in place of each fills the length.
    """
    if _POSITIONS not in weights:
        return dict(weights)  # what is missing is said with all that does not fit
    positions = weights[_POSITIONS]
    rest = len(positions) - keep
    if rest < 2:
        raise UserError(
            f"{KEY} {keep} leaves fewer than two of the {len(positions)} positions of {source} to "
            f"be stretched; set it to at most {len(positions) - 2}"
        )
    if length < len(positions) or (length - keep) % rest:
        fitting = ", ".join(str(keep + factor * rest) for factor in (2, 3, 4))
        raise UserError(
            f"{KEY} {keep} leaves {rest} positions of {source}, each of which has to become the "
            f"same number of positions, and config.model.context_length {length} is not "
            f"{keep} + {rest}·n; set it to {fitting} or more such"
        )
    return {**weights, _POSITIONS: stretched_positions(positions, length, keep)}


def stretched_positions(
    positions: Float[np.ndarray, "old w"], length: int, keep: int
) -> Float[np.ndarray, "new w"]:
    """Position embeddings for longer texts (Long-CLIP, Zhang et al. 2024, section 3.2).

    The first `keep` rows, which most texts of training have filled, stay as they are. Of the others
    each becomes f rows, which lie on the line to the next one; behind the last one the line goes on
    as it came.

    Args:
      positions: of the model that there is.
      length: how many there are to be, keep + f·(old − keep) for a whole number f.
      keep: how many stay, at most old − 2.
    """
    factor = (length - keep) // (len(positions) - keep)
    rest = positions[keep:].astype(np.float64)
    towards = np.concatenate([np.diff(rest, axis=0), rest[-1:] - rest[-2:-1]])
    share = np.arange(factor)[:, None] / factor
    between = rest[:, None] + share * towards[:, None]  # [old − keep, f, W]
    stretched = between.reshape(-1, positions.shape[1]).astype(positions.dtype)
    return np.concatenate([positions[:keep], stretched])
