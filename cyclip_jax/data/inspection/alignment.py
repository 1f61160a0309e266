"""Whether one picture is another, but for a small crop, another size or file, and its colours.

The model is this: picture B is a part of picture A, and its brightness and its colours are linear
functions of A's. The part and the functions are fitted by least squares, and what is left over is
compared with what another size, another file and a fit that is a little off leave over. All of it
happens on thumbnails, many pairs at once.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Complex, Float

from cyclip_jax.data.inspection.thumbnails import (
    PARTS,
    SAMPLES,
    Thumbnails,
    descriptors,
    sampling,
    without_shading,
)

_PAIRS = 512  # of one step
_TILES = 4  # a side, of which none may differ much
_STEPS = 3  # of the fit of a part
_MOST_CUT = 0.125  # of a side, at each edge
_MOST_MOVED = 0.04  # in a step
_SHIFT = 0.004  # of which derivatives are taken
_BLACK, _WHITE = 7, 248  # what is white may have been brighter, and what is black darker
_RIDGE = 0.02  # that colours move the brightness is believed where it explains enough

# What a copy may have left over, in grey levels, at each sample: for rounding, of the standard
# deviation of the detail, and of the contrast with the neighbours, which both pictures have.
_ROUNDING, _OF_DETAIL, _OF_CONTRAST = 0.5, 0.05, 0.125
_MOST_LEFT, _MOST_LEFT_OF_A_TILE = 1.0, 2.0
# What counts as the same picture in other colours: brightness and colours may be up to so many
# times as strong, hues may turn by so many radians, and colours may move the brightness so much.
_MOST_GAIN, _MOST_SATURATION, _MOST_TURNED, _MOST_MIXED = 2.0, 2.3, 0.42, 0.7
_COLOUR_LEFT, _COLOUR_LEFT_OF_A_TILE = 0.25, 0.5  # of the strength of the colours
_GREY, _COLOURED, _LEAST_STRENGTH = 2.0, 4.0, 6.0  # of colours
# The same before a part is fitted.
_MOST_LEFT_AT_FIRST, _COLOUR_LEFT_AT_FIRST, _MOST_TURNED_AT_FIRST = 6.0, 0.6, 0.6
# A copy without colours has the brightness of the original.
_MOST_GAIN_OF_GREY, _MOST_LIGHTER_OF_GREY = 1.15, 12.0


class _Fitted(NamedTuple):
    """P pairs, of which the second is fitted by a part of the first; S samples.

    Attributes:
      own: brightness of the second.
      fitted: what the part of the first makes of it.
      gain: of the brightness.
      mixed: how much colours moved it, per unit of colour.
      lighter: mean brightness of the second less that of the part.
    """

    own: Float[np.ndarray, "p s"]
    fitted: Float[np.ndarray, "p s"]
    gain: Float[np.ndarray, "p"]
    mixed: Float[np.ndarray, "p"]
    lighter: Float[np.ndarray, "p"]


def are_copies(first: Thumbnails, second: Thumbnails) -> Bool[np.ndarray, "p"]:
    """Whether each of the second pictures is a copy of the first beside it, or the other way round.

    Args:
      first, second: thumbnails of p pairs, none of them flat.
    """
    pairs = len(first.luma)
    steps = (slice(start, start + _PAIRS) for start in range(0, pairs, _PAIRS))
    found = [_are_copies(first.at(rows), second.at(rows)) for rows in steps]
    return np.concatenate([np.zeros(0, bool), *found])


def _are_copies(first, second):
    found, are_whole = _found(first, second)
    rows = np.flatnonzero(are_whole & ~found)  # of which either may have lost what the other has
    found[rows], _ = _found(second.at(rows), first.at(rows))
    return found


def _found(first, second):
    """(whether each pair is one of copies; whether neither is nearer to a part of the other)."""
    whole, part, margins = _whole_and_part(first, second)
    found, are_whole = np.zeros(len(margins), bool), (margins == 0).all(axis=1)
    rows = np.flatnonzero(_may_be_copies(whole, part, margins))
    whole, part = whole.at(rows), part.at(rows)
    margins = _aligned(whole.luma, part.luma, margins[rows])
    fitted = _fitted(whole, part, margins)
    mean, worst = _left_over(fitted)
    found[rows] = (
        (mean <= _MOST_LEFT)
        & (worst <= _MOST_LEFT_OF_A_TILE)
        & (_factor(fitted.gain) <= _MOST_GAIN)
        & (fitted.mixed <= _MOST_MIXED)
        & _has_colours_of(whole, part, margins, fitted)
    )
    return found, are_whole


def _may_be_copies(whole, part, margins):
    """Leaves out most pairs that are none, which spares the fit of a part."""
    strengths, factor, left = _colours(whole, part, margins)
    agree = (left.mean(axis=(1, 2)) <= _COLOUR_LEFT_AT_FIRST**2 * strengths[1] ** 2) & (
        np.abs(np.angle(factor)) <= _MOST_TURNED_AT_FIRST
    )
    found = agree | (strengths.min(axis=0) < _COLOURED)
    rows = np.flatnonzero(found)
    mean, _ = _left_over(_fitted(whole.at(rows), part.at(rows), margins[rows]))
    found[rows] = mean <= _MOST_LEFT_AT_FIRST
    return found


def _whole_and_part(first, second):
    """The pairs with the larger view first, and the margins that its nearest part leaves."""
    of_first, of_second = _products(first, second), _products(second, first)
    is_turned = of_second.max(axis=1) > of_first.max(axis=1)
    nearest = np.where(is_turned, of_second.argmax(axis=1), of_first.argmax(axis=1))

    def chosen(one, other):
        return np.where(is_turned.reshape(-1, *[1] * (one.ndim - 1)), other, one)

    whole = Thumbnails(*map(chosen, first, second))
    part = Thumbnails(*map(chosen, second, first))
    margins = [(rows[0], 1 - rows[1], columns[0], 1 - columns[1]) for rows, columns in PARTS]
    return whole, part, np.array(margins, np.float32)[nearest]


def _products(one, other):
    """How alike each part of one picture is to all of the other, [pairs, PARTS]."""
    whole = descriptors(other.luma, 0)
    return np.stack(
        [(descriptors(one.luma, part) * whole).sum(axis=1) for part in range(len(PARTS))], axis=1
    )


def _weights(margins, size, samples):
    """Weights of the rows and of the columns that margins leave, each [pairs, samples, size]."""
    top, bottom, left, right = margins.T
    return sampling(top, 1 - bottom, size, samples), sampling(left, 1 - right, size, samples)


def _part_of(plane, margins, samples):
    """The part of each picture's plane [pairs, size, size] that margins leave, in samples²."""
    rows, columns = _weights(margins, plane.shape[-1], samples)
    part = rows @ plane.astype(np.float32) @ columns.transpose(0, 2, 1)
    return part.reshape(len(plane), samples**2)


def _whole_of(plane, samples):
    weights = sampling(0, 1, plane.shape[-1], samples)
    return (weights @ plane.astype(np.float32) @ weights.T).reshape(len(plane), samples**2)


def _aligned(luma, other, margins):
    """Margins [pairs, 4] at which the rest of `luma` is most like `other`, by Gauss-Newton.

    In each step brightness, contrast and the four margins are the unknowns of a linear equation.
    """
    luma, own = luma.astype(np.float32), _whole_of(other, SAMPLES)
    for _ in range(_STEPS):
        part = _part_of(luma, margins, SAMPLES)
        moved = [
            (_part_of(luma, margins + _SHIFT * unit, SAMPLES) - part) / _SHIFT
            for unit in np.eye(4, dtype=np.float32)
        ]
        terms = np.stack([part, np.ones_like(part), *moved], axis=-1)
        solved = _least_squares(terms, own, np.array([1e-9, 1e-9, *[1e-6] * 4]))
        gain = np.where(np.abs(solved[:, :1]) < 0.1, 0.1, solved[:, :1])
        step = np.clip(solved[:, 2:] / gain, -_MOST_MOVED, _MOST_MOVED)
        margins = np.clip(margins + step, 0, _MOST_CUT).astype(np.float32)
    return margins


def _least_squares(terms, values, ridge, weights=None):
    """Coefficients [pairs, k] of terms [pairs, n, k] for values [pairs, n].

    A ridge is a share of the terms' own strength.
    """
    weighted = terms if weights is None else terms * weights[..., None]
    turned = weighted.transpose(0, 2, 1)
    normal = (turned @ terms).astype(np.float64)
    right = (turned @ values[..., None]).astype(np.float64)
    strength = np.trace(normal, axis1=1, axis2=2)[:, None, None]
    normal += strength * np.diag(ridge) + 1e-6 * np.eye(len(ridge))
    return np.linalg.solve(normal, right)[..., 0]


def _fitted(first, second, margins):
    """The brightness of the second pictures as linear functions of the parts of the first."""
    part = _part_of(first.luma, margins, SAMPLES)
    own = _whole_of(second.luma, SAMPLES)
    colours = [_part_of(first.chroma[:, c] - 128.0, margins, SAMPLES) for c in (0, 1)]
    # White stays white in a brighter copy, and so does not tell how much brighter it is.
    stays = ((part >= _WHITE) & (own >= _WHITE)) | ((part <= _BLACK) & (own <= _BLACK))
    weights = np.where(stays, 0.02, 1).astype(np.float32)
    total = weights.sum(axis=1, keepdims=True)

    def mean(values):
        return (weights * values).sum(axis=1, keepdims=True) / total

    terms = np.stack([values - mean(values) for values in (part, *colours)], axis=-1)
    solved = _least_squares(terms, own - mean(own), np.array([0, _RIDGE, _RIDGE]), weights)
    fitted = (terms @ solved[..., None].astype(np.float32))[..., 0] + mean(own)
    return _Fitted(
        own,
        np.clip(fitted, 0, 255),
        gain=solved[:, 0],
        mixed=np.abs(solved[:, 1:]).max(axis=1),
        lighter=own.mean(axis=1) - part.mean(axis=1),
    )


def _left_over(fitted):
    """What is left over, by what a copy may have left over: (all in all, of the worst tile)."""
    sides = (-1, SAMPLES, SAMPLES)
    contrast = np.minimum(
        _contrast(fitted.own.reshape(sides)), _contrast(fitted.fitted.reshape(sides))
    )
    detail = np.sqrt((without_shading(fitted.own) ** 2).mean(axis=1))[:, None, None]
    allowed = _ROUNDING + _OF_DETAIL * detail + _OF_CONTRAST * contrast
    left = ((fitted.own - fitted.fitted).reshape(sides) / allowed) ** 2
    return np.sqrt(left.mean(axis=(1, 2))), np.sqrt(_tiles(left).max(axis=(1, 2)))


def _contrast(plane):
    """Greatest less least of each sample and its neighbours."""
    most, least = plane, plane
    for axis in (1, 2):
        width = [(0, 0), (0, 0), (0, 0)]
        width[axis] = (1, 1)
        shifted = [slice(None)] * 3
        padded = np.pad(most, width, mode="edge"), np.pad(least, width, mode="edge")
        ends = []
        for start in range(3):
            shifted[axis] = slice(start, start + SAMPLES)
            ends.append(tuple(one[tuple(shifted)] for one in padded))
        most = np.maximum(np.maximum(ends[0][0], ends[1][0]), ends[2][0])
        least = np.minimum(np.minimum(ends[0][1], ends[1][1]), ends[2][1])
    return most - least


def _tiles(values):
    """Means [pairs, tiles, tiles] of what is [pairs, side, side]."""
    side = values.shape[-1] // _TILES
    return values.reshape(len(values), _TILES, side, _TILES, side).mean(axis=(2, 4))


def _colours(whole, part, margins):
    """How the colours of pictures go with those of the parts of others.

    Returns:
      (strengths [2, pairs] before and after; factor, complex [pairs], by which the colours were
      made stronger and turned; squares of what is left over [pairs, side, side]).
    """
    samples = SAMPLES // 2
    before = _complex(_part_of(whole.chroma[:, c] - 128.0, margins, samples) for c in (0, 1))
    after = _complex(_whole_of(part.chroma[:, c] - 128.0, samples) for c in (0, 1))
    strengths = np.sqrt(np.stack([(np.abs(one) ** 2).mean(axis=1) for one in (before, after)]))
    energy = np.maximum((np.abs(before) ** 2).sum(axis=1), 1e-6)
    factor = (before.conj() * after).sum(axis=1) / energy
    left = np.abs(after - factor[:, None] * before).reshape(-1, samples, samples) ** 2
    return strengths, factor, left


def _has_colours_of(whole, part, margins, fitted):
    """Whether pictures have the colours of the parts of others, or paler, turned or without any."""
    strengths, factor, left = _colours(whole, part, margins)
    scale = np.maximum(strengths[1], _LEAST_STRENGTH)
    agree = (
        (np.sqrt(left.mean(axis=(1, 2))) <= _COLOUR_LEFT * scale)
        & (np.sqrt(_tiles(left).max(axis=(1, 2))) <= _COLOUR_LEFT_OF_A_TILE * scale)
        & (np.abs(np.angle(factor)) <= _MOST_TURNED)
        & (_factor(np.abs(factor)) <= _MOST_SATURATION)
    )
    weaker, stronger = strengths.min(axis=0), strengths.max(axis=0)
    has_brightness = (_factor(fitted.gain) <= _MOST_GAIN_OF_GREY) & (
        np.abs(fitted.lighter) <= _MOST_LIGHTER_OF_GREY
    )
    return (stronger < _COLOURED) | np.where(weaker < _GREY, has_brightness, agree)


def _factor(gain):
    """By how much something is stronger or weaker, at least 1."""
    return np.exp(np.abs(np.log(np.maximum(gain, 1e-3))))


def _complex(planes) -> Complex[np.ndarray, "p s"]:
    """Cb + i·Cr: to turn its hues is to multiply a colour by a number of absolute value 1."""
    blue, red = planes
    return blue + 1j * red
