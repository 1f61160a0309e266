"""Every figure of the report: a function from numbers to a Chart of matplotlib, see style.py."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator

from cyclip_jax.evals.metric import Metric
from cyclip_jax.report.style import (
    FAINT,
    HATCHES,
    INK,
    LINES,
    MARKERS,
    PAPER,
    PERCENT,
    SERIES,
    Chart,
    blank,
    nth,
    short,
)

_POINTS_TOLD = 200  # of a curve


def curves(
    series: Mapping[str, Sequence[tuple[Sequence[Any], Sequence[Any]]]], label: str
) -> Chart:
    """Lines over training steps, one look for each group of runs.

    Args:
      series: {group: [(steps, values)]}, a pair for each run; None breaks the line.
      label: of the vertical axis.
    """
    figure = blank(2.7)
    axes = figure.subplots()
    for number, (name, runs) in enumerate(series.items()):
        for steps, values in runs:
            values = np.array(values, float)
            every = max(len(steps) // 6, 1)
            axes.plot(
                steps,
                values,
                **_stroke(number),
                markersize=4.5,
                markevery=(number * every // 4, every),
                linewidth=1.6 if len(runs) == 1 else 1,
            )
            told = slice(None, None, -(-len(steps) // _POINTS_TOLD))
            of = f"{name}, " if len(series) > 1 else ""
            for step, value in zip(steps[told], values[told], strict=True):
                figure.tell(axes, step, value, f"{of}step {step}: {value:.4g}")
    axes.set(xlabel="step", ylabel=label)
    axes.margins(x=0.02)
    axes.grid(True)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))
    _legend(figure, list(series), _lines)
    return figure


def bars(rows: Sequence[tuple[str, Sequence[Metric | None]]], names: Sequence[str]) -> Chart:
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
        for number, (name, metric) in enumerate(zip(names, metrics, strict=True)):
            if metric is not None:
                of = f"{name}, " if len(names) > 1 else ""
                for part in (0.25, 0.5, 0.75, 1):
                    text = f"{of}{label}: {_told(metric)}"
                    figure.tell(axes, part * metric.value, number, text)
        axes.set_title(short(label, 46), loc="left", pad=3)
        if is_one_scale:
            axes.xaxis.set_major_formatter(PERCENT)
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
) -> Chart:
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
        for alpha, value, low, high in zip(alphas, values, lows, highs, strict=True):
            text = f"{name}, α = {alpha:g}: {value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
            figure.tell(axes, alpha, value, text)
        axes.plot(alphas, values, **stroke, markersize=4.5)
    axes.axvline(chosen, color=FAINT, linewidth=1, linestyle=":")
    axes.set(xlabel="α: 0 is the model before, 1 the one after", ylabel="accuracy")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(True)
    _legend(figure, names, _lines)
    return figure


def at_k(series: Mapping[str, Mapping[int, Metric]], label: str) -> Chart:
    """A share over k, the number of answers or neighbours or examples that count.

    Args:
      series: {group: {k: Metric}}.
      label: of the vertical axis.
    """
    figure = blank(2.7)
    axes = figure.subplots()
    every_k = sorted({k for metrics in series.values() for k in metrics})
    for number, (name, metrics) in enumerate(series.items()):
        ks = [k for k in sorted(metrics) if metrics[k].is_finite]
        # Beside one another, so that their intervals can be told apart.
        places = [every_k.index(k) + 0.06 * (number - (len(series) - 1) / 2) for k in ks]
        values = [metrics[k].value for k in ks]
        axes.plot(places, values, **_stroke(number), markersize=5, linewidth=1.6)
        for place, k in zip(places, ks, strict=True):
            of = f"{name}, " if len(series) > 1 else ""
            figure.tell(axes, place, metrics[k].value, f"{of}k = {k}: {_told(metrics[k])}")
            bounds = metrics[k].bounds
            if bounds is not None:
                axes.plot([place] * 2, bounds, color=nth(SERIES, number), lw=1)
    axes.set(xlabel="k", ylabel=label, xticks=range(len(every_k)), xticklabels=every_k)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.02))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.grid(True)
    _legend(figure, list(series), _lines)
    return figure


def effective_robustness(
    points: Mapping[str, Sequence[tuple[float, float, float | None, float | None]]],
    models: Sequence[tuple[float | None, float | None]],
    line: Mapping[str, Any] | None,
    shift: str,
) -> Chart:
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
    for number, (name, own) in enumerate(points.items()):
        colour, marker = nth(SERIES, number), nth(MARKERS, number)
        for x, y, low, high in own:
            known.append((x, y))
            figure.tell(axes, x, y, f"{name}: {y:.1%} where the reference is {x:.1%}")
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
    axes.set(xlim=xlim, ylim=ylim, xlabel="reference accuracy", ylabel=short(shift, 28))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PERCENT)
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


def agreement(shares: Mapping[str, Sequence[float]]) -> Chart:
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
        for row, k in enumerate(shares["k"]):
            middle = left[row] + values[row] / 2
            figure.tell(axes, middle, row, f"k = {k}, {words[number]}: {values[row]:.1%}")
        left = left + values
    axes.set_yticks(place, [f"k = {k}" for k in shares["k"]])
    axes.set(xlim=(0, 1), xlabel="share of the images")
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PERCENT)
    figure.legend(handles=_patches(words), loc="outside upper left", ncols=2)
    return figure


def _told(metric):
    """A metric's value, interval and chance as a person hears them."""
    chance = "" if metric.chance is None else f", by chance {metric.chance:.2%}"
    return metric.with_interval() + chance


def _stroke(number):
    """The look of a group's lines."""
    return {
        "color": nth(SERIES, number),
        "linestyle": nth(LINES, number),
        "marker": nth(MARKERS, number),
    }


def _filling(number):
    """The look of a group's bars."""
    return {
        "facecolor": nth(SERIES, number),
        "hatch": nth(HATCHES, number),
        "edgecolor": PAPER,
        "linewidth": 0,
    }


def _legend(figure, names, keys):
    """Names the groups above the axes, where there are several."""
    if len(names) > 1:
        columns = 2 if max(map(len, names)) <= 20 else 1
        figure.legend(handles=keys(names), loc="outside upper left", ncols=columns)


def _lines(names, **look):
    return [
        Line2D([], [], **_stroke(number) | look, markersize=5, label=short(name, 44))
        for number, name in enumerate(names)
    ]


def _patches(names):
    return [Patch(**_filling(number), label=short(name, 44)) for number, name in enumerate(names)]
