"""The parts of the page: each is a function of the groups of runs, and empty without content."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cyclip_jax.defaults import flat
from cyclip_jax.errors import UserError
from cyclip_jax.evals.metric import Metric
from cyclip_jax.report import figures
from cyclip_jax.report.markup import Cell, Html, breakable, element, folded, image, join, table
from cyclip_jax.report.runs import Group, differing, read_arrays, read_json, without_folder

if TYPE_CHECKING:
    from cyclip_jax.report.write import Figures  # which imports this module

_CURVES = {
    "loss": "The whole loss",
    "contrastive_loss": "The contrastive term",
    "inmodal_cyclic_loss": "The in-modal consistency term, without its weight",
    "crossmodal_cyclic_loss": "The cross-modal consistency term, without its weight",
    "learning_rate": "The learning rate",
    "images_per_second": "The speed in images per second over all devices",
}
_HEADLINES = 12  # of an evaluation; all its numbers are in the folded table
_AT_K = re.compile(r"(.+@|top)(\d+)$")
_BASELINE = "CLIP"
# Of an evaluation's headlines the one that its summary tells: the first of these, or the first.
_TOLD = ("image_to_text_recall@1", "top1", "consistency@1", "modality_gap")
_AGREEMENT = ("k", "both_right", "only_zeroshot", "only_knn", "both_wrong")


def summary(groups: Sequence[Group], _: Figures) -> Html | None:
    """Two sentences on each group: what was trained, and how good it is."""
    return join(*(element("p", *_sentences(group)) for group in groups))


def _sentences(group):
    run = group.runs[0]
    directories = ", ".join(run.name for run in group.runs)
    name = element("strong", group.name)
    first = f" ({directories}) is a model whose training is not recorded here"
    if run.config is not None:
        weights = run.config["loss"]["inmodal_weight"], run.config["loss"]["crossmodal_weight"]
        seeds = ", ".join(str(run.seed) for run in group.runs)
        first = (
            f" ({directories}) is {run.config['model']['name']}, trained with "
            f"λ1\u00a0=\u00a0{weights[0]:g} and λ2\u00a0=\u00a0{weights[1]:g} on "
            f"{_data(run.config)} in {_steps(group)} of {run.config['batch_size']} pairs, "
            f"seed{'s' if len(group.runs) > 1 else ''} {seeds}"
        )
    if run.training:
        last = [run.training[-1]["contrastive_loss"] for run in group.runs if run.training]
        values = ", ".join(Metric("contrastive_loss", value).text() for value in last)
        first += f"; its last contrastive loss was {values}"
    told = []
    for evaluation in _evaluations([group]):
        found = _headlines([group], evaluation)
        for metric in [metric for metric in found if metric.name in _TOLD][:1] or found[:1]:
            chance = "" if metric.chance is None else f" (chance {metric.chance:.2%})"
            told.append(f"{metric.name} is {metric.with_interval()}{chance} on {evaluation}")
    second = f" Its {'; '.join(told[:4])}." if told else " It was not evaluated."
    return name, first + ".", second


def _data(config):
    data = config["data"]
    if data["source"] == "mixture":
        return "a mixture of " + " and ".join(data["mixture"])
    return without_folder(data["train"])


def _steps(group):
    steps = {run.training[-1]["step"] for run in group.runs if run.training}
    return f"{', '.join(map(str, sorted(steps)))} steps" if steps else "steps"


def headlines(groups: Sequence[Group], _: Figures) -> Html | None:
    """The numbers that tell most, a column for each group."""
    rows = []
    for evaluation in _evaluations(groups):
        for metric in _headlines(groups, evaluation):
            values = [group.metric(evaluation, metric.name) for group in groups]
            chance = "" if metric.chance is None else f"{metric.chance:.2%}"
            cells = [_metric_cell(value) for value in values]
            name = _named(metric.name, evaluation)
            rows.append([name, *cells, Cell(chance, metric.chance)])
    if not rows:
        return None
    caption = "In brackets 95 % intervals"
    if any(len(group.runs) > 1 for group in groups):
        caption += " (of a mean over seeds by Student's t, of a single run by bootstrap)"
    caption += "; chance is what a random order gets"
    columns = ["metric", *(_counted(group) for group in groups), "chance"]
    behind = [
        element(
            "p",
            f"{run.name} is not in the means on {evaluation}: its evaluation is of step "
            f"{run.steps[evaluation]}, that of other seeds of a later one.",
        )
        for group in groups
        for evaluation in _evaluations([group])
        for run in group.behind(evaluation)
    ]
    return join(table(caption, columns, rows), *behind, _all_numbers(groups))


def differences(groups: Sequence[Group], _: Figures) -> Html | None:
    """What each objective changes beside plain CLIP, seed by seed."""
    baseline = next((group for group in groups if group.name == _BASELINE), None)
    others = [group for group in groups if group is not baseline]
    if baseline is None or not others:
        return None
    rows = []
    for evaluation in _evaluations(groups):
        for metric in _headlines(groups, evaluation):
            found = [group.difference(baseline, evaluation, metric.name) for group in others]
            if any(one is not None for one in found):
                cells = [_difference_cell(one, metric.is_share) for one in found]
                rows.append([_named(metric.name, evaluation), *cells])
    if not rows:
        return None
    caption = (
        f"Means over seeds of a run's number less {_BASELINE}'s with the same seed, of shares in "
        "percentage points; in brackets 95 % intervals by Student's t over the seeds, bold where "
        "they leave out 0, as one in twenty does by chance"
    )
    return table(caption, ["metric", *(group.name for group in others)], rows)


def _difference_cell(metric, is_share):
    if metric is None:
        return Cell("", None)
    values = np.array([metric.value, metric.low, metric.high]) * (100 if is_share else 1)
    form = "{:+.1f}" if is_share else "{:+.3g}"
    value, low, high = map(form.format, values)
    text = f"{value} [{low}, {high}]"
    is_clear = metric.low > 0 or metric.high < 0
    return Cell(element("strong", text) if is_clear else text, metric.value)


def _all_numbers(groups):
    runs = [run for group in groups for run in group.runs]
    rows = []
    for evaluation in _evaluations(groups):
        names = {
            name: None
            for run in runs
            if evaluation in run.evaluations
            for name in run.evaluations[evaluation]
        }
        for name in names:
            values = [run.evaluations.get(evaluation, {}).get(name) for run in runs]
            rows.append([_named(name, evaluation), *map(_metric_cell, values)])
        steps = [run.steps.get(evaluation) for run in runs]
        cells = [Cell("" if step is None else str(step), step) for step in steps]
        rows.append([_named("step", evaluation), *cells])
    columns = ["metric", *_run_names(groups)]
    return folded("All numbers of all runs", table("All numbers of all runs", columns, rows))


def training(groups: Sequence[Group], drawings: Figures) -> Html | None:
    """Curves over the steps of training."""
    content = []
    for name, meaning in _CURVES.items():
        series = {
            group.name: [
                ([line["step"] for line in lines], [_value(line, name) for line in lines])
                for lines in ([line for line in run.training if name in line] for run in group.runs)
                if lines
            ]
            for group in groups
        }
        series = {group: runs for group, runs in series.items() if runs}
        if series:
            caption = f"{meaning} at each logged step; a line is a run, and a gap not finite."
            label = name.replace("images_per_second", "images/s").replace("_", " ")
            content.append(drawings.add(name, figures.curves(series, label), caption, main=True))
    return _grid(content)


def _value(line, name):
    return np.nan if line[name] is None else line[name]


def comparison(groups: Sequence[Group], drawings: Figures) -> Html | None:
    """Bars of each evaluation's headlines: shares on one scale, other numbers each on its own."""
    content = []
    for evaluation in _evaluations(groups):
        rows = [
            (metric.name, [group.metric(evaluation, metric.name) for group in groups])
            for metric in _headlines(groups, evaluation)
        ]
        shares = [row for row in rows if all(m is None or m.is_share for m in row[1])]
        others = [row for row in rows if row not in shares]
        for kind, chosen in (("shares", shares), ("numbers", others)):
            if chosen:
                content.append(
                    drawings.add(
                        f"{evaluation}_{kind}",
                        figures.bars(chosen, [group.name for group in groups]),
                        f"{evaluation}: longer bars are larger values, the thin line across an end "
                        "is the 95 % interval"
                        + (", and dots stand at chance." if _has_chance(chosen) else "."),
                        main=True,
                    )
                )
    return _grid(content)


def _has_chance(rows):
    return any(m is not None and m.chance is not None for _, metrics in rows for m in metrics)


def at_k(groups: Sequence[Group], drawings: Figures) -> Html | None:
    """Consistency@k, recall@k, top-k and the like over k."""
    content = []
    for evaluation in _evaluations(groups):
        families = {}
        for name in _metric_names(groups, evaluation):
            match = _AT_K.fullmatch(name)
            if match:
                families.setdefault(match[1], {})[int(match[2])] = name
        for family, names in families.items():
            if len(names) < 3:
                continue
            series = {
                group.name: {
                    k: metric
                    for k, name in names.items()
                    if (metric := group.metric(evaluation, name)) is not None
                }
                for group in groups
            }
            series = {group: metrics for group, metrics in series.items() if metrics}
            label = family + "k" if family.endswith("@") else f"{family}-k"
            content.append(
                drawings.add(
                    f"{evaluation}_{family.rstrip('@')}_at_k",
                    figures.at_k(series, _short_label(label)),
                    f"{evaluation}: {label} for each k, with 95 % intervals as upright lines.",
                    main=family == "consistency@",
                )
            )
    return _grid(content)


def robustness(groups: Sequence[Group], drawings: Figures) -> Html | None:
    """Accuracy under each shift against the reference accuracy."""
    tables = {}
    for group in groups:
        for _, evaluation, path in _detailed(group, "robustness.json", every_run=True):
            content = read_json(path)
            if not isinstance(content, dict):
                raise UserError(f"{path} is not an object")
            _require(content, ("reference", "shifts", "models"), path)
            for shift in content["shifts"]:
                _require(shift, ("name", "accuracy", "low", "high", "line", "effective"), path)
                kept = tables.setdefault(
                    (evaluation, shift["name"]), ({}, content["models"], shift)
                )
                point = (content["reference"], shift["accuracy"], shift["low"], shift["high"])
                kept[0].setdefault(group.name, []).append(point)
    content = []
    for (evaluation, name), (points, models, shift) in tables.items():
        others = [(model["reference"], model[name]) for model in models if name in model]
        figure = figures.effective_robustness(points, others, shift["line"], name)
        told = "above the thin line lie models that the shift helps"
        if shift["line"] is not None:
            told = "what lies above the dashed line of other models is robust beyond its accuracy"
        caption = f"{evaluation}: accuracy on {name} over accuracy on the reference; {told}."
        content.append(drawings.add(f"{evaluation}_{name}", figure, caption, main=True))
    return _grid(content)


def similarities(groups: Sequence[Group], drawings: Figures) -> Html | None:
    """What cyclic consistency means: the two matrices of cosines, and their difference."""
    found = []
    for group in groups:
        for run, evaluation, path in _detailed(group, "similarities.npz"):
            image_image, text_text, words = read_arrays(path, "image_image", "text_text", "groups")
            _require_shapes(path, image_image, text_text, rows=len(words), columns=len(words))
            if len(words) > 1:
                found.append((group, run, evaluation, image_image, text_text, words))
    # One scale for all: paler is to mean more consistent.
    largest = max((figures.largest_difference(*one[3:5]) for one in found), default=0)
    content = []
    for group, run, evaluation, image_image, text_text, words in found:
        figure = figures.similarities(image_image, text_text, words, largest)
        caption = (
            f"{group.name} ({run.name}), {evaluation}: cosines among the same {len(words)} pairs' "
            "images and among their texts; the paler the difference, the more consistent the two "
            "spaces (one scale of differences in all of these figures)."
        )
        name = f"{evaluation}_similarities_{run.name}"
        content.append(drawings.add(name, figure, caption, main=True))
    return _grid(content)


def planes(groups: Sequence[Group], drawings: Figures) -> Html | None:
    """Images and texts on one plane."""
    content = []
    for group in groups:
        for run, evaluation, path in _detailed(group, "map.npz"):
            image_xy, text_xy, words = read_arrays(path, "image_xy", "text_xy", "groups")
            _require_shapes(path, image_xy, text_xy, rows=len(words), columns=2)
            caption = (
                f"{group.name} ({run.name}), {evaluation}: {len(words)} pairs on the plane of "
                "their two principal components, a thin line between an image and its text; "
                "apart lie what the model tells apart, and the two modalities where there is a gap."
            )
            name = f"{evaluation}_map_{run.name}"
            figure = figures.plane(image_xy, text_xy, words)
            content.append(drawings.add(name, figure, caption, main=True))
    return _grid(content)


def agreements(groups: Sequence[Group], drawings: Figures) -> Html | None:
    """Who is right: the zero-shot prediction, the nearest neighbours, both or none."""
    content = []
    for group in groups:
        for run, evaluation, path in _detailed(group, "agreement.json"):
            shares = read_json(path)
            _require(shares, _AGREEMENT, path)
            caption = (
                f"{group.name} ({run.name}), {evaluation}: from the left the shares of the test "
                "images that both predictions get right, one of them, or neither."
            )
            name = f"{evaluation}_agreement_{run.name}"
            content.append(drawings.add(name, figures.agreement(shares), caption))
    return _grid(content)


def classes(groups: Sequence[Group], drawings: Figures) -> Html | None:
    """Confusion matrices and the accuracy of each class."""
    content, tables = [], {}
    for group in groups:
        for run, evaluation, path in _detailed(group, "confusion.npz"):
            counts, names = read_arrays(path, "counts", "classes")
            _require_shapes(path, counts, rows=len(names), columns=len(names))
            caption = (
                f"{group.name} ({run.name}), {evaluation}: each row is a true class and sums to "
                "1; what is bright off the diagonal is taken for another class."
            )
            name = f"{evaluation}_confusion_{run.name}"
            content.append(drawings.add(name, figures.confusion(counts, names), caption))
        for _, evaluation, path in _detailed(group, "classes.json"):
            rows = _rows(path, ("class", "images", "top1", "most_confused_with"))
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
    return join(_grid(content) or "", *folds) if content or folds else None


def _class_row(name, by_group):
    known = [rows[name] for rows in by_group if name in rows]
    row = [name, Cell(str(known[0]["images"]), known[0]["images"])]
    for rows in by_group:
        if name not in rows:
            row += ["", ""]
            continue
        top1 = rows[name]["top1"]
        confused = rows[name]["most_confused_with"]
        row += [_share_cell(top1), "" if confused is None else confused]
    return row


def categories(groups: Sequence[Group], drawings: Figures) -> Html | None:
    """Accuracy by category, where an evaluation has some."""
    content, folds = [], []
    for evaluation in _evaluations(groups):
        found = {}
        for group in groups:
            for _, its, path in _detailed(group, "categories.json"):
                if its == evaluation:
                    rows = _rows(path, ("category", "examples", "accuracy", "low", "high"))
                    found[group.name] = {row["category"]: row for row in rows}
        names = list(dict.fromkeys(name for rows in found.values() for name in rows))
        if not names:
            continue
        metrics = [(n, [_category(rows, n) for rows in found.values()]) for n in names]
        if len(names) <= 16:
            caption = f"{evaluation}: accuracy in each category, with 95 % intervals."
            figure = figures.bars(metrics, list(found))
            content.append(drawings.add(f"{evaluation}_categories", figure, caption))
        rows = []
        for name, values in metrics:
            examples = next(rows[name]["examples"] for rows in found.values() if name in rows)
            rows.append([name, Cell(str(examples), examples), *map(_metric_cell, values)])
        title = f"{evaluation}: each category"
        folds.append(folded(title, table(title, ["category", "examples", *found], rows)))
    return join(_grid(content) or "", *folds) if folds else None


def _category(rows, name):
    if name not in rows:
        return None
    row = rows[name]
    return Metric("accuracy", row["accuracy"], row["low"], row["high"])


def galleries(groups: Sequence[Group], _: Figures) -> Html | None:
    """Captions and the pictures that they retrieve."""
    content = []
    for group in groups:
        for run, evaluation, path in _detailed(group, "gallery.json"):
            queries = _rows(path, ("caption", "rank", "of", "images"))
            for query in queries:
                for answer in query["images"]:
                    _require(answer, ("jpeg", "is_partner"), path)
            if queries:
                title = f"{evaluation}: {group.name} ({run.name})"
                shown = element("div", *map(_query, queries), class_="gallery")
                content.append(join(element("h3", title), shown))
    if not content:
        return None
    explained = (
        "Each caption with the pictures nearest to it, best first; its own are framed and ticked."
    )
    return join(element("p", explained), *content)


def _query(query):
    answers = []
    for place, answer in enumerate(query["images"], 1):
        own = answer["is_partner"]
        alt = f"Answer {place}: " + ("a picture of this caption" if own else "another picture")
        mark = element("span", f"{place} ✓ own" if own else str(place))
        answers.append(
            element("li", image(answer["jpeg"], alt), mark, class_="own" if own else None)
        )
    told = f" – its own picture comes {_ordinal(query['rank'])} of {query['of']}"
    return element(
        "div",
        element("p", element("q", query["caption"]), told),
        element("ol", *answers, class_="answers"),
        class_="query",
    )


def settings(groups: Sequence[Group], _: Figures) -> Html | None:
    """Where the configs differ, and one of each group in full."""
    runs = [run for group in groups for run in group.runs if run.config is not None]
    configs = [flat(run.config) for run in runs]
    if not runs:
        return None
    content = []
    names = differing(configs)
    if names:
        rows = [[n, *(_written(c[n]) if n in c else "" for c in configs)] for n in names]
        caption = "Settings that are not the same in all runs"
        content.append(table(caption, ["setting", *_run_names(groups, of=runs)], rows))
    for group in groups:
        run = group.runs[0]
        if run.config is None:
            continue
        rows = [[name, _written(value)] for name, value in flat(run.config).items()]
        rows += [[f"version of {name}", str(version)] for name, version in run.versions.items()]
        title = f"All settings of {group.name} ({run.name})"
        content.append(folded(title, table(title, ["setting", "value"], rows)))
    return join(*content)


SECTIONS: dict[str, Callable[[Sequence[Group], Figures], Html | None]] = {
    "Summary": summary,
    "Headline numbers": headlines,
    "Differences from CLIP": differences,
    "Metrics and their intervals": comparison,
    "Training": training,
    "Recall, accuracy and consistency over k": at_k,
    "Image space beside text space": similarities,
    "Images and texts on one plane": planes,
    "Zero-shot beside nearest neighbours": agreements,
    "Robustness to shifts": robustness,
    "Categories": categories,
    "Classes": classes,
    "Retrieval": galleries,
    "Configuration": settings,
}


def _evaluations(groups):
    """Names of the evaluations of any run."""
    return list(dict.fromkeys(e for g in groups for run in g.runs for e in run.evaluations))


def _metric_names(groups, evaluation):
    runs = [run for group in groups for run in group.runs if evaluation in run.evaluations]
    return list(dict.fromkeys(name for run in runs for name in run.evaluations[evaluation]))


def _headlines(groups, evaluation):
    """The first group's metrics that are headlines, shares first, at most _HEADLINES."""
    found = []
    for name in _metric_names(groups, evaluation):
        known = (group.metric(evaluation, name) for group in groups)
        metric = next((metric for metric in known if metric is not None), None)
        if metric is not None and metric.is_headline:
            found.append(metric)
    return sorted(found, key=lambda metric: not metric.is_share)[:_HEADLINES]


def _detailed(group, file_name, *, every_run=False):
    """(run, evaluation, path) of a group's files of details: of its first run that has one."""
    seen, found = set(), []
    for run in group.runs:
        for evaluation, directory in run.details.items():
            path = directory / file_name
            if path.exists() and (every_run or evaluation not in seen):
                seen.add(evaluation)
                found.append((run, evaluation, path))
    return found


def _rows(path, names):
    """The objects of a JSON list, which have these names."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path} is not a list")
    for row in rows:
        _require(row, names, path)
    return rows


def _require(content, names, path):
    missing = [n for n in names if not isinstance(content, dict) or n not in content]
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}; `python -m cyclip_jax.evaluate` writes it anew"
        )


def _require_shapes(path, *arrays, rows, columns):
    for array in arrays:
        if array.shape != (rows, columns):
            raise UserError(f"{path} has an array of {array.shape} for one of {(rows, columns)}")


def _metric_cell(metric):
    return Cell("", None) if metric is None else Cell(metric.with_interval(), metric.value)


def _named(metric, evaluation):
    return join(breakable(metric), " ", element("span", evaluation, class_="of"))


def _share_cell(value):
    return Cell("", None) if value is None else Cell(f"{value:.1%}", value)


def _written(value):
    return "" if value is None else str(value)


def _counted(group):
    return group.name if len(group.runs) == 1 else f"{group.name}, {len(group.runs)} seeds"


def _run_names(groups, of=None):
    """A name for each run: its group's and its directory's."""
    runs = [(group, run) for group in groups for run in group.runs if of is None or run in of]
    return [g.name if g.name == run.name else f"{g.name}: {run.name}" for g, run in runs]


def _short_label(label):
    return label if len(label) <= 30 else "share"


def _grid(content):
    return element("div", *content, class_="grid") if content else None


def _ordinal(number):
    suffix = (
        "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    )
    return f"{number}{suffix}"
