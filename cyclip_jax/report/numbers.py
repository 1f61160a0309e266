"""The sections of numbers: a summary, the headlines, the differences, and all numbers there are."""

from collections.abc import Sequence

from cyclip_jax.evals.flat import metrics_of
from cyclip_jax.page.markup import Cell, Html, element, folded, join, table
from cyclip_jax.report.parts import (
    Drawings,
    evaluations_of,
    headlines_of,
    metric_cell,
    metric_names,
    named,
    run_names,
)
from cyclip_jax.report.runs import Group, is_of_head, trained_sentences, without_folder
from cyclip_jax.training.collapse import ADVICE, collapsed_steps

_BASELINES = ("CLIP", "CyCLIP")  # the first that there is
_ARROWS_MEAN = "of a metric with ↑ more is better, of one with ↓ less"
# Of an evaluation's headlines the one that its summary tells: the first of these, or the first.
_TOLD = ("image_to_text_recall@1", "top1", "consistency@1", "modality_gap")


def summary(groups: Sequence[Group], _: Drawings | None) -> Html:
    """Two sentences on each group: what was trained, and how good it is; and the alarms."""
    alarms = [_alarm(run) for group in groups for run in group.runs]
    return join(*(element("p", *_sentences(group)) for group in groups), *alarms)


def _alarm(run):
    """A note where the embeddings of a run were equal; nothing where they were not."""
    steps = collapsed_steps(run.training)
    if not steps:
        return ""
    logged = [line for line in run.training if line["step"] >= steps[0]]
    return element(
        "p",
        element("strong", f"Alarm: {run.name} had learned nothing at step {steps[0]}. "),
        f"The embeddings were equal, or as good as, at {len(steps)} of the {len(logged)} logged "
        f"steps from there on, the last time at step {steps[-1]}. {ADVICE}.",
        class_="alarm",
    )


def _sentences(group):
    run = group.runs[0]
    directories = ", ".join(run.name for run in group.runs)
    title = element("strong", group.name)
    first = f" ({directories}) is a model whose training is not recorded here"
    if run.config is not None:
        trained, rows = _trained(run.config)
        seeds = ", ".join(str(run.seed) for run in group.runs)
        first = (
            f" ({directories}) is {run.config['model']['name']}, {trained} on "
            f"{_data(run.config)}{_of_sentences(run.config)} in {_steps(group)} of "
            f"{run.config['batch_size']} {rows}, "
            f"seed{'s' if len(group.runs) > 1 else ''} {seeds}"
        )
    for name, told in (
        ("contrastive_loss", "contrastive"),
        ("class_loss", "class"),
        ("sentence_loss", "sentences'"),
    ):
        last = [line[name] for run in group.runs for line in run.training[-1:] if name in line]
        if last:
            values = ", ".join(metrics_of({name: value})[name].number() for value in last)
            first += f"; its last {told} loss was {values}"
            break
    told = []
    for evaluation in evaluations_of([group]):
        found = headlines_of([group], evaluation)
        for name, metric in [one for one in found if one[0] in _TOLD][:1] or found[:1]:
            chance = "" if metric.chance is None else f" (chance {metric.chance:.2%})"
            told.append(f"{name} is {metric.with_interval()}{chance} on {evaluation}")
    second = f" Its {'; '.join(told[:4])}." if told else " It was not evaluated."
    return title, first + ".", second


def _trained(config):
    """(how a model was trained, what a step has so many of)."""
    if is_of_head(config):
        return f"fine-tuned to {config['model']['num_classes']} classes", "pictures"
    weights = config["loss"]["inmodal_weight"], config["loss"]["crossmodal_weight"]
    return (
        f"trained with λ1\u00a0=\u00a0{weights[0]:g} and λ2\u00a0=\u00a0{weights[1]:g}",
        "pairs",
    )


def _of_sentences(config):
    """What the text tower is trained on besides, and when; nothing where it is not."""
    sentences = trained_sentences(config)
    if not sentences:
        return ""
    only, until = sentences["only_steps"], sentences["until_step"]
    alone = f", alone in the first {only} steps" if only else ""
    end = f", up to step {until}" if until is not None else ""
    return (
        f" and, as sentences, on {without_folder(sentences['train'])}{alone}{end}, "
        f"{sentences['batch_size']} in a step,"
    )


def _data(config):
    data = config["data"]
    if data["source"] == "mixture":
        return "a mixture of " + " and ".join(data["mixture"])
    return without_folder(config["classes"]["train"] or data["train"]) or "no pairs"


def _steps(group):
    steps = {run.training[-1]["step"] for run in group.runs if run.training}
    return f"{', '.join(map(str, sorted(steps)))} steps" if steps else "steps"


def headlines(groups: Sequence[Group], _: Drawings | None) -> Html | None:
    """The numbers that tell most, a column for each group."""
    rows = []
    for evaluation in evaluations_of(groups):
        for name, metric in headlines_of(groups, evaluation):
            values = [group.metric(evaluation, name) for group in groups]
            chance = "" if metric.chance is None else f"{metric.chance:.2%}"
            cells = [metric_cell(value) for value in values]
            row = named(name, evaluation, metric.better)
            rows.append([row, *cells, Cell(chance, metric.chance)])
    if not rows:
        return None
    caption = "In brackets 95 % intervals"
    if any(len(group.runs) > 1 for group in groups):
        caption += " (of a mean over seeds by Student's t, of a single run by bootstrap)"
    caption += f"; chance is what a random order gets; {_ARROWS_MEAN}"
    columns = ["metric", *(_counted(group) for group in groups), "chance"]
    behind = [
        element(
            "p",
            f"{run.name} is not in the means on {evaluation}: its evaluation is of step "
            f"{run.steps[evaluation]}, that of other seeds of a later one.",
        )
        for group in groups
        for evaluation in evaluations_of([group])
        for run in group.behind(evaluation)
    ]
    return join(table(caption, columns, rows), *behind, _all_numbers(groups))


def differences(groups: Sequence[Group], _: Drawings | None) -> Html | None:
    """What each group changes beside plain CLIP, or else beside plain CyCLIP, seed by seed."""
    plain = [group for name in _BASELINES for group in groups if group.name == name]
    baseline = plain[0] if plain else None
    others = [group for group in groups if group is not baseline]
    if baseline is None or not others:
        return None
    rows = []
    for evaluation in evaluations_of(groups):
        for name, metric in headlines_of(groups, evaluation):
            found = [group.difference(baseline, evaluation, name) for group in others]
            if any(one is not None for one in found):
                row = named(name, evaluation, metric.better)
                rows.append([row, *map(_difference_cell, found)])
    if not rows:
        return None
    caption = (
        f"Means over seeds of a run's number less {baseline.name}'s with the same seed, of shares "
        "in percentage points; in brackets 95 % intervals by Student's t over the seeds, bold "
        f"where they leave out 0, as one in twenty does by chance; {_ARROWS_MEAN}"
    )
    return table(caption, ["metric", *(group.name for group in others)], rows)


def _difference_cell(metric):
    if metric is None or metric.bounds is None:
        return Cell("", None)
    low, high = metric.bounds
    form = "{:+.1f}" if metric.is_share else "{:+.3g}"
    scale = 100 if metric.is_share else 1
    value, *ends = (form.format(scale * number) for number in (metric.value, low, high))
    text = f"{value} [{', '.join(ends)}]"
    is_clear = low > 0 or high < 0
    return Cell(element("strong", text) if is_clear else text, metric.value)


def _all_numbers(groups):
    runs = [run for group in groups for run in group.runs]
    rows = []
    for evaluation in evaluations_of(groups):
        for name in metric_names(groups, evaluation):
            values = [run.evaluations.get(evaluation, {}).get(name) for run in runs]
            rows.append([named(name, evaluation), *map(metric_cell, values)])
        steps = [run.steps.get(evaluation) for run in runs]
        cells = [Cell("" if step is None else str(step), step) for step in steps]
        rows.append([named("step", evaluation), *cells])
    columns = ["metric", *run_names(groups)]
    return folded("All numbers of all runs", table("All numbers of all runs", columns, rows))


def _counted(group):
    return group.name if len(group.runs) == 1 else f"{group.name}, {len(group.runs)} seeds"
