"""The sections of charts: over training, over metrics, over k, over shifts."""

from collections.abc import Sequence

from cyclip_jax.errors import UserError
from cyclip_jax.evals.known_metrics import family_at_k
from cyclip_jax.evals.metric import Unit
from cyclip_jax.page.markup import Html
from cyclip_jax.report import figures
from cyclip_jax.report.parts import (
    Drawings,
    detailed,
    evaluations_of,
    grid,
    headlines_of,
    metric_names,
    require,
)
from cyclip_jax.report.runs import Group, read_json
from cyclip_jax.workdir.layout import WISE_FT

# What every training measures, before and after the losses of its terms.
_FIRST = {"loss": "The whole loss"}
_LAST = {
    "embedding_rank": "The effective rank of the batch's embeddings, 1 where they are all equal,",
    "learning_rate": "The learning rate",
    "images_per_second": "The speed in images per second over all devices",
    "sentences_per_second": "The speed in sentences per second where they are seen alone",
}


def training(groups: Sequence[Group], drawings: Drawings) -> Html | None:
    """Curves over the steps of training."""
    content = []
    terms = {
        name: told.meaning
        for group in groups
        for run in group.runs
        for name, told in run.reports.items()
        if told.unit == Unit.LOSS
    }
    for name, meaning in (_FIRST | terms | _LAST).items():
        series = {
            group.name: [
                ([line["step"] for line in lines], [line[name] for line in lines])
                for lines in ([line for line in run.training if name in line] for run in group.runs)
                if lines
            ]
            for group in groups
        }
        series = {group: runs for group, runs in series.items() if runs}
        if series:
            caption = f"{meaning} at each logged step; a line is a run, and a gap not finite."
            label = name.replace("_per_second", "/s").replace("_", " ")
            content.append(drawings.add(name, figures.curves(series, label), caption, main=True))
    return grid(content)


def comparison(groups: Sequence[Group], drawings: Drawings) -> Html | None:
    """Bars of each evaluation's headlines: shares on one scale, other numbers each on its own."""
    content = []
    for evaluation in evaluations_of(groups):
        rows = [
            (name, [group.metric(evaluation, name) for group in groups])
            for name, _ in headlines_of(groups, evaluation)
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
    return grid(content)


def fine_tuning(groups: Sequence[Group], drawings: Drawings) -> Html | None:
    """Accuracies between the model before fine-tuning and the one after it (WiSE-FT)."""
    content = []
    for run in [run for group in groups for run in group.runs]:
        file = run.path / WISE_FT
        if not file.exists():
            continue
        told = read_json(file)
        require(told, ("alpha", "is_chosen", "path"), file)
        for row in told["path"]:
            require(row, ("alpha", "top1"), file)
        path = [(row["alpha"], row["top1"]) for row in told["path"]]
        if not path or not path[0][1]:
            continue
        by = "held-out pictures chose it" if told["is_chosen"] else "nothing chose it"
        caption = (
            f"{run.name}: accuracy of the models (1 − α)·before + α·after, with 95 % intervals. "
            f"The dotted line is α = {told['alpha']:g} of the model in wise_ft/; {by}."
        )
        figure = figures.between_models(path, told["alpha"])
        content.append(drawings.add(f"{run.name}_between_models", figure, caption, main=True))
    return grid(content)


def _has_chance(rows):
    return any(m is not None and m.chance is not None for _, metrics in rows for m in metrics)


def at_k(groups: Sequence[Group], drawings: Drawings) -> Html | None:
    """Consistency@k, recall@k, top-k and the like over k."""
    content = []
    for evaluation in evaluations_of(groups):
        families = {}
        for name in metric_names(groups, evaluation):
            if found := family_at_k(name):
                family, k = found
                families.setdefault(family, {})[k] = name
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
            short = label if len(label) <= 30 else "share"
            content.append(
                drawings.add(
                    f"{evaluation}_{family.rstrip('@')}_at_k",
                    figures.at_k(series, short),
                    f"{evaluation}: {label} for each k, with 95 % intervals as upright lines.",
                    main=family == "consistency@",
                )
            )
    return grid(content)


def robustness(groups: Sequence[Group], drawings: Drawings) -> Html | None:
    """Accuracy under each shift against the reference accuracy."""
    tables = {}
    for group, _, evaluation, path in detailed(groups, "robustness.json", every_run=True):
        content = read_json(path)
        if not isinstance(content, dict):
            raise UserError(f"{path} is not an object")
        require(content, ("reference", "shifts", "models"), path)
        for shift in content["shifts"]:
            require(shift, ("name", "accuracy", "low", "high", "line", "effective"), path)
            kept = tables.setdefault((evaluation, shift["name"]), ({}, content["models"], shift))
            point = (_reference(content), shift["accuracy"], shift["low"], shift["high"])
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
    return grid(content)


def _reference(content):
    """The accuracy on the reference set, which stands alone or with its interval."""
    reference = content["reference"]
    return reference["accuracy"] if isinstance(reference, dict) else reference
