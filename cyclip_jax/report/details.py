"""The sections of what evaluators write beside their numbers: matrices, maps, classes."""

import math
from collections.abc import Sequence

from cyclip_jax.evals.metric import SHARE
from cyclip_jax.page.markup import Cell, Html, folded, join, table
from cyclip_jax.report import figures, matrices
from cyclip_jax.report.parts import (
    Drawings,
    detailed,
    evaluations_of,
    grid,
    metric_cell,
    read_rows,
    require,
    require_shapes,
)
from cyclip_jax.report.runs import Group, read_all_arrays, read_arrays, read_json
from cyclip_jax.report.style import short

_TOLD = 80  # letters of a caption that is told beside a point
_AGREEMENT = ("k", "both_right", "only_zeroshot", "only_knn", "both_wrong")


def similarities(groups: Sequence[Group], drawings: Drawings) -> Html | None:
    """What cyclic consistency means: the two matrices of cosines, and their difference."""
    found = []
    for group, run, evaluation, path in detailed(groups, "similarities.npz"):
        image_image, text_text, words = read_arrays(path, "image_image", "text_text", "groups")
        require_shapes(path, image_image, text_text, rows=len(words), columns=len(words))
        if len(words) > 1:
            told = _names(path, len(words))
            found.append((group, run, evaluation, image_image, text_text, words, told))
    # One scale for all: paler is to mean more consistent.
    largest = max((matrices.largest_difference(*one[3:5]) for one in found), default=0)
    content = []
    for group, run, evaluation, image_image, text_text, words, told in found:
        figure, wide = (
            matrices.similarities(
                image_image, text_text, words, largest, names=told, is_wide=is_wide
            )
            for is_wide in (False, True)
        )
        caption = (
            f"{group.name} ({run.name}), {evaluation}: cosines among the same {len(words)} pairs' "
            "images and among their texts; the paler the difference, the more consistent the two "
            "spaces (one scale of differences in all of these figures)."
        )
        name = f"{evaluation}_similarities_{run.name}"
        content.append(drawings.add(name, figure, caption, main=True, wide=wide))
    return join(*content) if content else None


def planes(groups: Sequence[Group], drawings: Drawings) -> Html | None:
    """Images and texts on one plane."""
    content = []
    for group, run, evaluation, path in detailed(groups, "map.npz"):
        image_xy, text_xy, words = read_arrays(path, "image_xy", "text_xy", "groups")
        require_shapes(path, image_xy, text_xy, rows=len(words), columns=2)
        caption = (
            f"{group.name} ({run.name}), {evaluation}: {len(words)} pairs on the plane of "
            "their two principal components, a thin line between an image and its text; "
            "apart lie what the model tells apart, and the two modalities where there is a gap."
        )
        name = f"{evaluation}_map_{run.name}"
        told = _names(path, len(words))
        figure, wide = (
            matrices.plane(image_xy, text_xy, words, names=told, is_wide=is_wide)
            for is_wide in (False, True)
        )
        content.append(drawings.add(name, figure, caption, main=True, wide=wide))
    return join(*content) if content else None


def _names(path, count):
    """The captions of the pairs that a file is about, which older ones lack."""
    names = read_all_arrays(path).get("names", ())
    return [short(name, _TOLD) for name in names] if len(names) == count else []


def agreements(groups: Sequence[Group], drawings: Drawings) -> Html | None:
    """Who is right: the zero-shot prediction, the nearest neighbours, both or none."""
    content = []
    for group, run, evaluation, path in detailed(groups, "agreement.json"):
        shares = read_json(path)
        require(shares, _AGREEMENT, path)
        caption = (
            f"{group.name} ({run.name}), {evaluation}: from the left the shares of the test "
            "images that both predictions get right, one of them, or neither."
        )
        name = f"{evaluation}_agreement_{run.name}"
        content.append(drawings.add(name, figures.agreement(shares), caption))
    return grid(content)


def classes(groups: Sequence[Group], drawings: Drawings) -> Html | None:
    """Confusion matrices and the accuracy of each class."""
    content, tables = [], {}
    for group, run, evaluation, path in detailed(groups, "confusion.npz"):
        counts, names = read_arrays(path, "counts", "classes")
        require_shapes(path, counts, rows=len(names), columns=len(names))
        caption = (
            f"{group.name} ({run.name}), {evaluation}: each row is a true class and sums to "
            "1; what is bright off the diagonal is taken for another class."
        )
        name = f"{evaluation}_confusion_{run.name}"
        figure, wide = (matrices.confusion(counts, names, is_wide=w) for w in (False, True))
        content.append(drawings.add(name, figure, caption, wide=wide))
    for group, _, evaluation, path in detailed(groups, "classes.json"):
        rows = read_rows(path, ("class", "images", "top1", "most_confused_with"))
        tables.setdefault(evaluation, {})[group.name] = {row["class"]: row for row in rows}
    folds = []
    for evaluation, by_group in tables.items():
        names = dict.fromkeys(name for rows in by_group.values() for name in rows)
        rows = [_class_row(name, list(by_group.values())) for name in names]
        columns = ["class", "images"]
        for group in by_group:
            its = "" if len(by_group) == 1 else f" of {group}"
            columns += [f"top1{its}", f"most often taken for{its}"]
        caption = f"{evaluation}: the {len(rows)} classes, sorted by a click on a column's head"
        folds.append(folded(f"{evaluation}: each class", table(caption, columns, rows)))
    return join(*content, *folds) if content or folds else None


def _class_row(name, by_group):
    known = [rows[name] for rows in by_group if name in rows]
    row = [name, Cell(str(known[0]["images"]), known[0]["images"])]
    for rows in by_group:
        if name not in rows:
            row += ["", ""]
            continue
        top1 = rows[name]["top1"]
        confused = rows[name]["most_confused_with"]
        share = Cell("", None) if top1 is None else Cell(f"{top1:.1%}", top1)
        row += [share, "" if confused is None else confused]
    return row


def categories(groups: Sequence[Group], drawings: Drawings) -> Html | None:
    """Accuracy by category, where an evaluation has some."""
    content, folds = [], []
    for evaluation in evaluations_of(groups):
        found, what = {}, "accuracy"
        for group, _, its, path in detailed(groups, "categories.json"):
            if its == evaluation:
                what, found[group.name] = _by_category(path)
        names = list(dict.fromkeys(name for rows in found.values() for name in rows))
        if not names:
            continue
        metrics = [(n, [rows.get(n, (None, None))[1] for rows in found.values()]) for n in names]
        if len(names) <= 16:
            caption = f"{evaluation}: {what} in each category, with 95 % intervals."
            figure = figures.bars(metrics, list(found))
            content.append(drawings.add(f"{evaluation}_categories", figure, caption))
        rows = []
        for name, values in metrics:
            examples = next(rows[name][0] for rows in found.values() if name in rows)
            rows.append([name, Cell(str(examples), examples), *map(metric_cell, values)])
        title = f"{evaluation}: each category"
        folds.append(folded(title, table(title, ["category", "examples", *found], rows)))
    return join(grid(content) or "", *folds) if folds else None


def _by_category(path):
    """(what is measured, {category: (its examples, Metric)}) of a categories.json.

    Choices between captions have an accuracy; pairs of pictures and captions have three scores, of
    which the group score asks for all that the others ask for.
    """
    rows = read_rows(path, ("category", "examples"))
    if rows and "group_score" in rows[0]:
        what = "group score"
        keys = ("group_score", "group_score_ci_low", "group_score_ci_high")
    else:
        what, keys = "accuracy", ("accuracy", "low", "high")
    found = {}
    for row in rows:
        require(row, keys, path)
        value, low, high = (math.nan if row[key] is None else row[key] for key in keys)
        metric = SHARE.metric(value, (low, high))
        found[row["category"]] = row["examples"], metric
    return what, found
