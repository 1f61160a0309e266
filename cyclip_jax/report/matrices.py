"""Figures of matrices and maps: functions from numbers to a Chart, see style.py."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped
from matplotlib.lines import Line2D

from cyclip_jax.report.style import (
    DIVERGING,
    FAINT,
    INK,
    PAPER,
    PERCENT,
    SEQUENTIAL,
    SERIES,
    WIDE,
    WIDTH,
    Chart,
    blank,
    nth,
    short,
)

_NAMED_CLASSES, _NAMED_WIDE = 20, 40  # more than this are not named beside a matrix
_MARKED_SHARE = 0.06  # of the rows of a matrix: smaller groups are neither named nor framed
_RMS = "difference, root mean square "
_NO_GROUP = ("", "other")  # how evaluators call what is in no group
_VECTORS = 600  # more points than this are a picture within the SVG


def largest_difference(
    image_image: Float[np.ndarray, "n n"], text_text: Float[np.ndarray, "n n"]
) -> float:
    """The 98th percentile of |image-image − text-text|, cosines [n, n] of different pairs."""
    apart = ~np.eye(len(image_image), dtype=bool)  # the diagonals are 1
    return max(float(np.nanpercentile(np.abs(image_image - text_text)[apart], 98)), 1e-6)


def similarities(
    image_image: Float[np.ndarray, "n n"],
    text_text: Float[np.ndarray, "n n"],
    groups: Shaped[np.ndarray, "n"],
    largest: float,
    *,
    names: Sequence[str] = (),
    is_wide: bool = False,
) -> Chart:
    """Image-image beside text-text cosines and their difference, which cyclic consistency shrinks.

    Args:
      image_image, text_text: cosines of the same n pairs in the same order, [n, n].
      groups: a word for each pair, ordered, str [n].
      largest: end of the differences' scale.
      names: of the pairs, to be told; none where there are none.
      is_wide: whether it fills the width of a page.
    """
    difference = image_image - text_text
    apart = ~np.eye(len(groups), dtype=bool)
    low, high = np.nanpercentile([image_image[apart], text_text[apart]], [2, 98])
    figure = blank(4.45, WIDE) if is_wide else blank(4.6)
    all_axes = figure.subplots(1, 3) if is_wide else figure.subplots(2, 2).ravel()
    scales = {"cmap": SEQUENTIAL, "vmin": low, "vmax": high}
    cosines = all_axes[0].imshow(image_image, **scales)
    all_axes[1].imshow(text_text, **scales)
    signed = all_axes[2].imshow(difference, cmap=DIVERGING, vmin=-largest, vmax=largest)
    titles = ("image · image", "text · text", "image − text")
    matrices = (image_image, text_text, difference)
    names = list(map(str, names)) or [f"pair {number}" for number in range(len(groups))]
    for axes, title, matrix in zip(all_axes, titles, matrices, strict=False):
        axes.set_title(title)
        _mark_groups(
            axes, groups, named=axes is not all_axes[1] and not (is_wide and axes is all_axes[2])
        )
        figure.tell_cells(axes, matrix, names, names, "{row} · {column}: {value}")
    root_mean_square = f"{np.sqrt(np.nanmean(difference[apart] ** 2)):.3f}"
    if is_wide:
        bars = (
            (cosines, list(all_axes[:2]), "cosine"),
            (signed, [all_axes[2]], _RMS + root_mean_square),
        )
        for image, its_axes, label in bars:
            bar = figure.colorbar(
                image,
                ax=its_axes,
                location="bottom",
                extend="both",
                aspect=40 * len(its_axes) / 2,
                pad=0.02,
            )
            bar.set_label(label)
        return figure
    corner = all_axes[3]
    corner.axis("off")
    corner.text(
        0.5,
        0.06,
        f"difference:\nroot mean square\n{root_mean_square}",
        ha="center",
        va="bottom",
    )
    for top, image, label in ((0.9, cosines, "cosine"), (0.56, signed, "difference")):
        place = corner.inset_axes([0.05, top, 0.9, 0.06])
        figure.colorbar(image, cax=place, orientation="horizontal", extend="both")
        place.set_xlabel(label, labelpad=1)
        place.locator_params(axis="x", nbins=3)
    return figure


def _mark_groups(axes, groups, *, named):
    """Thin lines around the large groups of rows, and their names at the left."""
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    ends = np.r_[starts[1:], len(groups)]
    large = (ends - starts) >= _MARKED_SHARE * len(groups)
    for edge in {*starts[large], *ends[large]} - {0, len(groups)}:
        axes.axhline(edge - 0.5, color=PAPER, linewidth=0.7)
        axes.axvline(edge - 0.5, color=PAPER, linewidth=0.7)
    axes.set(xticks=[], yticks=[])
    if named and len(starts) > 1:
        names = [short(groups[start] or "other", 14) for start in starts[large]]
        axes.set_yticks((starts + ends - 1)[large] / 2, names)
        axes.tick_params(axis="y", length=0)


def plane(
    image_xy: Float[np.ndarray, "n 2"],
    text_xy: Float[np.ndarray, "n 2"],
    groups: Shaped[np.ndarray, "n"],
    *,
    names: Sequence[str] = (),
    is_wide: bool = False,
) -> Chart:
    """Both modalities on one plane, each pair joined; the marker tells the modality.

    Args:
      image_xy, text_xy: [n, 2].
      groups: a word for each pair, the most frequent of which have a colour, str [n].
      names: of the pairs, to be told; none where there are none.
      is_wide: whether it fills the width of a page.
    """
    figure = blank(6.0, WIDE) if is_wide else blank(4.3, WIDTH)
    axes = figure.subplots()
    if len(groups) > _VECTORS:
        axes.set_rasterization_zorder(5)  # one picture of all that is drawn below
    joined = np.stack([image_xy, text_xy, np.full_like(text_xy, np.nan)], axis=1)  # [n, 3, 2]
    axes.plot(*joined.reshape(-1, 2).T, color=FAINT, linewidth=0.4, alpha=0.4, zorder=1)
    words, counts = np.unique(groups[~np.isin(groups, _NO_GROUP)], return_counts=True)
    shown = list(words[np.argsort(-counts, kind="stable")][: len(SERIES) - 1])
    has_groups = len(shown) > 1
    for modality, xy, marker in ((0, image_xy, "o"), (1, text_xy, "s")):
        colours = [nth(SERIES, modality)] * len(xy)
        if has_groups:
            colours = [SERIES[shown.index(g)] if g in shown else FAINT for g in groups]
        face = colours if modality == 0 else "none"
        size = 28 if is_wide else 18
        axes.scatter(*xy.T, s=size, marker=marker, facecolors=face, edgecolors=colours, lw=1)
        for (x, y), name in zip(xy, names, strict=False):
            figure.tell(axes, x, y, f"{('image', 'text')[modality]}: {name}")
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim" if is_wide else "box")
    axes.spines[:].set_visible(False)
    colours = (INK, INK) if has_groups else SERIES
    keys = [
        Line2D([], [], ls="", marker="o", color=colours[0], label="image"),
        Line2D([], [], ls="", marker="s", color=colours[1], mfc="none", label="text"),
    ]
    if has_groups:
        keys += [
            Line2D([], [], ls="", marker="D", color=SERIES[i], label=short(name, 18))
            for i, name in enumerate(shown)
        ]
        if np.any(~np.isin(groups, shown)):
            keys.append(Line2D([], [], ls="", marker="D", color=FAINT, label="others"))
    columns = len(keys) if is_wide else 2 if len(keys) > 2 else 3
    figure.legend(handles=keys, loc="outside upper left", ncols=columns)
    return figure


def confusion(
    counts: Int[np.ndarray, "c c"],
    classes: Sequence[str] | Shaped[np.ndarray, "c"],
    *,
    is_wide: bool = False,
) -> Chart:
    """How often each class's images were taken for each class, rows summing to 1.

    Args:
      counts: int [C, C], true × predicted.
      classes: names, str [C].
      is_wide: whether it fills the width of a page.
    """
    sizes = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(sizes, 1)  # a class without images has a row of zeros
    figure = blank(8.0, WIDE) if is_wide else blank(3.9)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=SEQUENTIAL, vmin=0, vmax=1)
    names = list(map(str, classes))
    figure.tell_cells(axes, shares, names, names, "{row} taken for {column}: {value}")
    axes.set(xlabel="predicted class, in the same order", ylabel="true class")
    axes.locator_params(integer=True, nbins=5)
    if len(classes) <= (_NAMED_WIDE if is_wide else _NAMED_CLASSES):
        axes.set_xticks([])
        axes.set_yticks(range(len(classes)), [short(name, 16) for name in classes])
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=30, pad=0.02)
    bar.set_label("share of the class's images")
    bar.ax.xaxis.set_major_formatter(PERCENT)
    return figure
