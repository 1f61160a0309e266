"""Training on fewer tokens: leaves patches out of images, and shortens texts."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from cyclip_jax.errors import UserError, check_known

PATCH_DROPPING = ("none", "random", "grid")
TEXT_CHOICES = ("first", "block", "random")


def check_patch_dropping(how: str, kept: float, grid: tuple[int, int] | None) -> None:
    """Checks that `choose_patches` can do what is asked of it.

    Args:
      how: as in `choose_patches`, or "none", which needs no check.
      kept: as in `choose_patches`.
      grid: (h, w) patches of an image; None is a model without patches, a ResNet.

    Raises:
      UserError: the patches cannot be chosen so.
    """
    check_known("config.tokens.patch_dropping", how, PATCH_DROPPING)
    if how == "none":
        return
    if grid is None:
        raise UserError(
            "config.tokens.patch_dropping does not apply to a ResNet: it has no patches"
        )
    if not 0 < kept <= 1:
        raise UserError(
            f"config.tokens.kept_patches {kept} is not a share of the patches; set it above 0 and "
            "up to 1"
        )
    if how == "grid":
        _window(kept, grid)


def choose_patches(
    key: Array, images: int, grid: tuple[int, int], kept: float, how: str
) -> Int[Array, "images k"]:
    """Draws the patches that each image keeps, independently for each image.

    Args:
      key: the random key of the draw.
      images: the number of images.
      grid: (h, w) patches of an image.
      kept: share of the patches that is kept, in (0, 1].
      how: "random" takes max(1, round(kept · h·w)) of them, all equally likely (FLIP, Li et al.
        2023, arXiv:2212.00794, section 3); "grid" cuts the grid into windows of 1/kept patches, as
        square as they tile it, and takes one of each (CLIPA, Li et al. 2023, arXiv:2305.07017).

    Returns:
      Rising indices of patches, counted row by row, int32 [images, K].
    """
    h, w = grid
    if how == "random":
        count = max(1, round(kept * h * w))
        order = jnp.argsort(jax.random.bits(key, (images, h * w)), axis=1)
        return jnp.sort(order[:, :count], axis=1).astype(jnp.int32)
    a, b = _window(kept, grid)
    inside = jax.random.randint(key, (images, h // a, w // b), 0, a * b)
    row = jnp.arange(h // a)[:, None] * a + inside // b  # [images, h/a, w/b]
    column = jnp.arange(w // b) * b + inside % b
    return jnp.sort((row * w + column).reshape(images, -1), axis=1).astype(jnp.int32)


def shorten(tokens: Int[Array, "n l"], length: int) -> Int[Array, "n length"]:
    """Cuts texts, [N, L] -> [N, length] with length ≤ L, and keeps their end-of-text token.

    If that token, the largest id of its row, stands behind the cut, it takes the last kept place.
    """
    cut = tokens[:, :length]
    end_is_cut = jnp.argmax(tokens, axis=-1) >= length  # [N]
    last = jnp.where(end_is_cut, tokens.max(axis=-1), cut[:, -1])
    return cut.at[:, -1].set(last)


def choose_tokens(
    key: Array, tokens: Int[Array, "n l"], length: int, how: str
) -> Int[Array, "n length"]:
    """Draws the tokens that each text keeps, [N, L] -> [N, length] (CLIPA, Li et al. 2023, 3.1).

    The first token and the end-of-text token, the largest id of its row, always stay, and a text
    that fits stays as it is.

    Args:
      key: the random key of the draw.
      tokens: ids of texts.
      length: how many are kept, from 2 to L.
      how: "block" keeps a run of neighbours, each run equally likely; "random" keeps any of them,
        all equally likely, in their order.
    """
    n, whole = tokens.shape
    end = jnp.argmax(tokens, axis=-1)[:, None]  # [N, 1]
    kept = jnp.minimum(end - 1, length - 2)  # of those between both ends, [N, 1]
    place = jnp.arange(length)  # in the shortened text
    if how == "block":
        first = jnp.floor(jax.random.uniform(key, (n, 1)) * (end - kept)).astype(end.dtype)
        inner = place + jnp.minimum(first, end - 1 - kept)
    else:
        places = jnp.arange(whole)
        is_inner = (places > 0) & (places < end)  # [N, L]
        drawn = jnp.where(is_inner, jax.random.uniform(key, tokens.shape), 2.0)
        # By their number, those that are drawn come first and in order, and behind them the others.
        rank = jnp.argsort(jnp.argsort(drawn, axis=1), axis=1)
        chosen = jnp.where(rank < kept, places, whole)
        inner = jnp.pad(jnp.sort(chosen, axis=1), ((0, 0), (1, 0)))[:, :length]
    behind = end + place - 1 - kept  # the end, and what is behind it
    taken = jnp.where(place == 0, 0, jnp.where(place <= kept, inner, behind))
    return jnp.take_along_axis(tokens, jnp.minimum(taken, whole - 1), axis=1)


def _window(kept: float, grid: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the squarest window of 1/kept patches that tiles the grid."""
    h, w = grid
    patches = round(1 / kept)
    windows = [
        (a, patches // a)
        for a in range(1, patches + 1)
        if patches % a == 0 and h % a == 0 and w % (patches // a) == 0
    ]
    # 0.33 is meant to be a third.
    if not windows or not math.isclose(kept * patches, 1, rel_tol=0.02):
        raise UserError(
            f"config.tokens.patch_dropping 'grid' finds no windows of 1/{kept} patches that tile "
            f"{h}×{w}; set config.tokens.kept_patches to another share, or patch_dropping to "
            "'random'"
        )
    return min(windows, key=lambda window: abs(window[0] - window[1]))
