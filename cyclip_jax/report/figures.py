"""Every figure of the report: a function from numbers to a matplotlib Figure, see style.py."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter

from cyclip_jax.evals.metric import Metric
from cyclip_jax.report.style import (
    DIVERGING,
    FAINT,
    HATCHES,
    INK,
    LINES,
    MARKERS,
    PAPER,
    SEQUENTIAL,
    SERIES,
    blank,
)

_PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.6g}%")
_NAMED_CLASSES = 20  # more than this are not named beside a matrix
_MARKED_SHARE = 0.06  # of the rows of a matrix: smaller groups are neither named nor framed
_NO_GROUP = ("", "other")  # how evaluators call what is in no group
_VECTORS = 600  # more points than this are a picture within the SVG


def curves(
    series: Mapping[str, Sequence[tuple[Sequence[Any], Sequence[Any]]]], label: str
) -> Figure:
    """Lines over training steps, one look for each group of runs.

    Args:
      series: {group: [(steps, values)]}, a pair for each run; None breaks the line.
      label: of the vertical axis.
    """
    figure = blank(2.7)
    axes = figure.subplots()
    for number, runs in enumerate(series.values()):
        for steps, values in runs:
            every = max(len(steps) // 6, 1)
            axes.plot(
                steps,
                np.array(values, float),
                **_stroke(number),
                markersize=4.5,
                markevery=(number * every // 4, every),
                linewidth=1.6 if len(runs) == 1 else 1,
            )
    axes.set(xlabel="step", ylabel=label)
    axes.margins(x=0.02)
    axes.grid(True)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))
    _legend(figure, list(series), _lines)
    return figure


def bars(rows: Sequence[tuple[str, Sequence[Metric | None]]], names: Sequence[str]) -> Figure:
    """Horizontal bars with 95 % intervals, a block for each metric; shares have one scale.

    Args:
      rows: [(label, [Metric or None for each name])].
      names: of the groups.
    """
    is_one_scale = all(metric is None or metric.is_share for _, row in rows for metric in row)
    figure = blank(0.45 + 0.22 * len(names) + len(rows) * (0.42 + 0.2 * len(names)))
    all_axes = figure.subplots(len(rows), 1, sharex=is_one_scale, squeeze=False)[:, 0]
    for axes, (label, metrics) in zip(all_axes, rows, strict=True):
        _bar_block(axes, metrics)
        axes.set_title(_short(label, 46), loc="left", pad=3)
        if is_one_scale:
            axes.xaxis.set_major_formatter(_PERCENT)
    # Not before every block is drawn: a limit that was set stays, and the blocks may share it.
    for axes in all_axes[:1] if is_one_scale else all_axes:
        _room_for_labels(axes)
    _legend(figure, names, _patches)
    return figure


def _bar_block(axes, metrics):
    for number, metric in enumerate(metrics):
        if metric is None:
            continue
        value = metric.value if metric.is_finite else 0.0
        axes.barh(
            number,
            value,
            height=0.8,
            **_filling(number),
        )
        ends = [value, 0.0]
        if metric.bounds is not None:
            low, high = metric.bounds
            # Student's interval of two seeds may reach beyond what a share can be.
            bounds = [low, min(high, 1.0) if metric.is_share else high]
            ends += bounds
            axes.plot(bounds, [number] * 2, color=PAPER, linewidth=3.4)
            axes.plot(bounds, [number] * 2, "|-", color=INK, linewidth=1.4, markersize=6)
        axes.annotate(
            metric.number(),
            (max(ends), number),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
        )
        if metric.chance is not None:
            axes.plot([metric.chance] * 2, [number - 0.5, number + 0.5], ":", color=INK, lw=1.6)
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.set(yticks=[], ylim=(len(metrics) - 0.4, -0.6))
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.locator_params(axis="x", nbins=5)


def _room_for_labels(axes):
    """Widens the axis so that the number behind the longest bar has its place."""
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.17 * (high - low))


def between_models(
    path: Sequence[tuple[float, Mapping[str, tuple[float, float, float]]]], chosen: float
) -> Figure:
    """Accuracies of the models between one before fine-tuning and one after it.

    Args:
      path: [(α, {evaluation: (value, low, high)})].
      chosen: α that is marked.
    """
    figure = blank(2.9)
    axes = figure.subplots()
    alphas = [alpha for alpha, _ in path]
    names = list(path[0][1])
    for number, name in enumerate(names):
        values, lows, highs = np.transpose([top1[name] for _, top1 in path])
        stroke = _stroke(number)
        axes.fill_between(alphas, lows, highs, color=stroke["color"], alpha=0.15, linewidth=0)
        axes.plot(alphas, values, **stroke, markersize=4.5)
    axes.axvline(chosen, color=FAINT, linewidth=1, linestyle=":")
    axes.set(xlabel="α: 0 is the model before, 1 the one after", ylabel="accuracy")
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(True)
    _legend(figure, names, _lines)
    return figure


def at_k(series: Mapping[str, Mapping[int, Metric]], label: str) -> Figure:
    """A share over k, the number of answers or neighbours or examples that count.

    Args:
      series: {group: {k: Metric}}.
      label: of the vertical axis.
    """
    figure = blank(2.7)
    axes = figure.subplots()
    every_k = sorted({k for metrics in series.values() for k in metrics})
    for number, metrics in enumerate(series.values()):
        ks = [k for k in sorted(metrics) if metrics[k].is_finite]
        # Beside one another, so that their intervals can be told apart.
        places = [every_k.index(k) + 0.06 * (number - (len(series) - 1) / 2) for k in ks]
        values = [metrics[k].value for k in ks]
        axes.plot(places, values, **_stroke(number), markersize=5, linewidth=1.6)
        for place, k in zip(places, ks, strict=True):
            bounds = metrics[k].bounds
            if bounds is not None:
                axes.plot([place] * 2, bounds, color=_nth(SERIES, number), lw=1)
    axes.set(xlabel="k", ylabel=label, xticks=range(len(every_k)), xticklabels=every_k)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.02))
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.grid(True)
    _legend(figure, list(series), _lines)
    return figure


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
) -> Figure:
    """Image-image beside text-text cosines and their difference, which cyclic consistency shrinks.

    Args:
      image_image, text_text: cosines of the same n pairs in the same order, [n, n].
      groups: a word for each pair, ordered, str [n].
      largest: end of the differences' scale.
    """
    difference = image_image - text_text
    apart = ~np.eye(len(groups), dtype=bool)
    low, high = np.nanpercentile([image_image[apart], text_text[apart]], [2, 98])
    figure = blank(4.6)
    all_axes = figure.subplots(2, 2).ravel()
    scales = {"cmap": SEQUENTIAL, "vmin": low, "vmax": high}
    cosines = all_axes[0].imshow(image_image, **scales)
    all_axes[1].imshow(text_text, **scales)
    signed = all_axes[2].imshow(difference, cmap=DIVERGING, vmin=-largest, vmax=largest)
    titles = ("image · image", "text · text", "image − text")
    for axes, title in zip(all_axes, titles, strict=False):
        axes.set_title(title)
        _mark_groups(axes, groups, named=axes is not all_axes[1])
    corner = all_axes[3]
    corner.axis("off")
    root_mean_square = np.sqrt(np.nanmean(difference[apart] ** 2))
    corner.text(
        0.5,
        0.06,
        f"difference:\nroot mean square\n{root_mean_square:.3f}",
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
        names = [_short(groups[start] or "other", 14) for start in starts[large]]
        axes.set_yticks((starts + ends - 1)[large] / 2, names)
        axes.tick_params(axis="y", length=0)


def plane(
    image_xy: Float[np.ndarray, "n 2"],
    text_xy: Float[np.ndarray, "n 2"],
    groups: Shaped[np.ndarray, "n"],
) -> Figure:
    """Both modalities on one plane, each pair joined; the marker tells the modality.

    Args:
      image_xy, text_xy: [n, 2].
      groups: a word for each pair, the most frequent of which have a colour, str [n].
    """
    figure = blank(4.3)
    axes = figure.subplots()
    if len(groups) > _VECTORS:
        axes.set_rasterization_zorder(5)  # one picture of all that is drawn below
    joined = np.stack([image_xy, text_xy, np.full_like(text_xy, np.nan)], axis=1)  # [n, 3, 2]
    axes.plot(*joined.reshape(-1, 2).T, color=FAINT, linewidth=0.4, alpha=0.4, zorder=1)
    names, counts = np.unique(groups[~np.isin(groups, _NO_GROUP)], return_counts=True)
    shown = list(names[np.argsort(-counts, kind="stable")][: len(SERIES) - 1])
    has_groups = len(shown) > 1
    for modality, xy, marker in ((0, image_xy, "o"), (1, text_xy, "s")):
        colours = [_nth(SERIES, modality)] * len(xy)
        if has_groups:
            colours = [SERIES[shown.index(g)] if g in shown else FAINT for g in groups]
        face = colours if modality == 0 else "none"
        axes.scatter(*xy.T, s=18, marker=marker, facecolors=face, edgecolors=colours, lw=1)
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)
    colours = (INK, INK) if has_groups else SERIES
    keys = [
        Line2D([], [], ls="", marker="o", color=colours[0], label="image"),
        Line2D([], [], ls="", marker="s", color=colours[1], mfc="none", label="text"),
    ]
    if has_groups:
        keys += [
            Line2D([], [], ls="", marker="D", color=SERIES[i], label=_short(name, 18))
            for i, name in enumerate(shown)
        ]
        if np.any(~np.isin(groups, shown)):
            keys.append(Line2D([], [], ls="", marker="D", color=FAINT, label="others"))
    figure.legend(handles=keys, loc="outside upper left", ncols=2 if len(keys) > 2 else 3)
    return figure


def confusion(
    counts: Int[np.ndarray, "c c"], classes: Sequence[str] | Shaped[np.ndarray, "c"]
) -> Figure:
    """How often each class's images were taken for each class, rows summing to 1.

    Args:
      counts: int [C, C], true × predicted.
      classes: names, str [C].
    """
    sizes = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(sizes, 1)  # a class without images has a row of zeros
    figure = blank(3.9)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=SEQUENTIAL, vmin=0, vmax=1)
    axes.set(xlabel="predicted class, in the same order", ylabel="true class")
    axes.locator_params(integer=True, nbins=5)
    if len(classes) <= _NAMED_CLASSES:
        axes.set_xticks([])
        axes.set_yticks(range(len(classes)), [_short(name, 16) for name in classes])
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=30, pad=0.02)
    bar.set_label("share of the class's images")
    bar.ax.xaxis.set_major_formatter(_PERCENT)
    return figure


def effective_robustness(
    points: Mapping[str, Sequence[tuple[float, float, float | None, float | None]]],
    models: Sequence[tuple[float | None, float | None]],
    line: Mapping[str, Any] | None,
    shift: str,
) -> Figure:
    """Accuracy under a shift against accuracy without, and the line of other models.

    Args:
      points: {group: [(reference, accuracy, low, high)]}, fractions; low and high may be None.
      models: [(reference, accuracy)] of other models.
      line: {"slope", "intercept", "scale"}, scale "linear" or "logit", or None.
      shift: its name.
    """
    figure = blank(3.7)
    axes = figure.subplots()
    known = [(x, y) for x, y in models if x is not None and y is not None]
    if known:
        axes.scatter(*zip(*known, strict=True), s=16, facecolors="none", edgecolors=FAINT)
    for number, own in enumerate(points.values()):
        colour, marker = _nth(SERIES, number), _nth(MARKERS, number)
        for x, y, low, high in own:
            known.append((x, y))
            axes.plot(x, y, marker=marker, color=colour, markersize=7, ls="", zorder=3)
            if low is not None and high is not None:
                known += [(x, low), (x, high)]
                axes.plot([x, x], [low, high], color=colour, linewidth=1.2)
    is_logit = line is not None and line["scale"] == "logit"
    xlim = _span([x for x, _ in known], is_logit)
    ylim = _span([y for _, y in known], is_logit)
    if is_logit:
        axes.set(xscale="logit", yscale="logit")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator([0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97]))
            axis.set_minor_locator(FixedLocator([]))
    x = np.linspace(*xlim, 200)
    axes.plot(x, x, color=FAINT, linewidth=0.8)
    if line is not None:
        axes.plot(x, on_line(line, x), color=INK, linestyle="--", linewidth=1.4)
    axes.set(xlim=xlim, ylim=ylim, xlabel="reference accuracy", ylabel=_short(shift, 28))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_PERCENT)
    axes.grid(True)
    keys = _lines(list(points), linestyle="")
    if models:
        keys.append(Line2D([], [], ls="", marker="o", mfc="none", color=FAINT, label="others"))
    if line is not None:
        keys.append(Line2D([], [], color=INK, ls="--", label="their line"))
    keys.append(Line2D([], [], color=FAINT, lw=0.8, label="equal accuracy"))
    figure.legend(handles=keys, loc="outside upper left", ncols=2)
    return figure


def on_line(line: Mapping[str, Any], reference: Any) -> Any:
    """The accuracy that the line of other models gives to a reference accuracy."""
    if line["scale"] != "logit":
        return line["slope"] * reference + line["intercept"]
    logit = np.log(reference / (1 - reference))
    return 1 / (1 + np.exp(-line["slope"] * logit - line["intercept"]))


def _span(accuracies, is_logit):
    """Limits of an axis with some room around the accuracies."""
    margin = max(0.08 * np.ptp(accuracies), 0.02)
    edge = 0.004 if is_logit else 0.0
    return max(min(accuracies) - margin, edge), min(max(accuracies) + margin, 1 - edge)


def agreement(shares: Mapping[str, Sequence[float]]) -> Figure:
    """Who is right, the zero-shot or the nearest-neighbour prediction, stacked for each k.

    Args:
      shares: {"k": […], "both_right": […], "only_zeroshot": […], "only_knn": […],
        "both_wrong": […]}.
    """
    figure = blank(2.9)
    axes = figure.subplots()
    names = ("both_right", "only_zeroshot", "only_knn", "both_wrong")
    words = ("both right", "only zero-shot right", "only neighbours right", "both wrong")
    place, left = np.arange(len(shares["k"])), np.zeros(len(shares["k"]))
    for number, name in enumerate(names):
        values = np.array(shares[name], float)
        axes.barh(place, values, 0.75, left, **_filling(number))
        left = left + values
    axes.set_yticks(place, [f"k = {k}" for k in shares["k"]])
    axes.set(xlim=(0, 1), xlabel="share of the images")
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(_PERCENT)
    figure.legend(handles=_patches(words), loc="outside upper left", ncols=2)
    return figure


def _nth(choices, number):
    return choices[number % len(choices)]


def _stroke(number):
    """The look of a group's lines."""
    return {
        "color": _nth(SERIES, number),
        "linestyle": _nth(LINES, number),
        "marker": _nth(MARKERS, number),
    }


def _filling(number):
    """The look of a group's bars."""
    return {
        "facecolor": _nth(SERIES, number),
        "hatch": _nth(HATCHES, number),
        "edgecolor": PAPER,
        "linewidth": 0,
    }


def _short(text, length):
    text = str(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def _legend(figure, names, keys):
    """Names the groups above the axes, where there are several."""
    if len(names) > 1:
        columns = 2 if max(map(len, names)) <= 20 else 1
        figure.legend(handles=keys(names), loc="outside upper left", ncols=columns)


def _lines(names, **look):
    return [
        Line2D([], [], **_stroke(number) | look, markersize=5, label=_short(name, 44))
        for number, name in enumerate(names)
    ]


def _patches(names):
    return [Patch(**_filling(number), label=_short(name, 44)) for number, name in enumerate(names)]
