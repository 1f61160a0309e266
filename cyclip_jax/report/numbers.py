"""The sections of numbers: the headlines, all numbers there are, and what they mean."""

from collections.abc import Sequence

from cyclip_jax.evals.flat import metrics_of
from cyclip_jax.evals.metric_words import in_words
from cyclip_jax.page.markup import Cell, Html, element, join, table
from cyclip_jax.report.differences import of_two, paired_cell
from cyclip_jax.report.parts import (
    ARROWS_MEAN,
    Drawings,
    capital,
    evaluations_of,
    headlines_of,
    metric_cell,
    metric_names,
    named,
    named_in_words,
    run_names,
)
from cyclip_jax.report.runs import (
    Group,
    is_of_head,
    trained_data,
    trained_sentences,
    without_folder,
)
from cyclip_jax.training.collapse import ADVICE, collapsed_steps

# Of an evaluation's headlines the one that its summary tells: the first of these, or the first.
_TOLD = ("image_to_text_recall@1", "top1", "consistency@1", "modality_gap")
# Of an evaluation's headlines those that stand in the short table, in this order; then the others.
_BEFORE_OTHERS = (
    *("image_to_text_recall@1", "text_to_image_recall@1", "mean_recall"),
    *("zeroshot_top1", "consistency@1", "coarse_top1", "top1"),
    *("modality_gap", "alignment", "text_uniformity"),
)
_FEW = 3


def alarms(groups: Sequence[Group]) -> Html | None:
    """What is wrong with a run, before all else; None where nothing is."""
    found = [_alarm(run) for group in groups for run in group.runs]
    return join(*found) if any(found) else None


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


def summary_sentences(group: Group) -> tuple[Html, str, str]:
    """A group's name, and two sentences: what was trained, and how good it is."""
    run = group.runs[0]
    config = run.config
    directories = ", ".join(run.name for run in group.runs)
    title = element("strong", group.name)
    first = f" ({directories}) is a model whose training is not recorded here"
    if config is not None:
        trained, rows = _trained(config)
        seeds = ", ".join(str(run.seed) for run in group.runs)
        first = (
            f" ({directories}) is {config['model']['name']}, {trained} on "
            f"{_data(config)}{_of_sentences(config)} in {_steps(group)} of "
            f"{config['batch_size']} {rows}, "
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
            words = in_words(name).title
            told.append(f"{words} on {evaluation} is {metric.with_interval()}{chance}")
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
    mixture = "a mixture of " if config["data"]["source"] == "mixture" else ""
    return mixture + (" and ".join(trained_data(config)) or "no pairs")


def _steps(group):
    steps = {run.training[-1]["step"] for run in group.runs if run.training}
    return f"{', '.join(map(str, sorted(steps)))} steps" if steps else "steps"


def headlines(groups: Sequence[Group], _: Drawings | None) -> Html | None:
    """The few numbers that tell most, in words, a column for each group."""
    changes, rows = of_two(groups), []
    for evaluation in evaluations_of(groups):
        found = headlines_of(groups, evaluation)
        first = {name: place for place, name in enumerate(_BEFORE_OTHERS)}
        found = sorted(found, key=lambda one: first.get(one[0], len(first)))[:_FEW]
        for name, metric in found:
            cells = [_measured(group.metric(evaluation, name)) for group in groups]
            row = [named_in_words(name, evaluation, metric.better), *cells]
            if changes is not None:
                row.append(paired_cell(changes.found.get((evaluation, name)), metric))
            chance = "" if metric.chance is None else f"{metric.chance:.2%}"
            rows.append([*row, Cell(chance, metric.chance)])
    if not rows:
        return None
    columns = ["", *(_counted(group) for group in groups)]
    columns += [] if changes is None else ["difference"]
    caption = _caption(groups) + "; the upright line is chance, what a random order gets"
    if changes is not None:
        caption += f". The difference is {changes.name}, item by item"
    shown = element("div", table(caption, [*columns, "chance"], rows), class_="meters")
    return join(shown, *_behind(groups))


def _caption(groups):
    caption = "In brackets 95 % intervals"
    if any(len(group.runs) > 1 for group in groups):
        caption += " (of a mean over seeds by Student's t, of a single run by bootstrap)"
    return f"{caption}; {ARROWS_MEAN}"


def _behind(groups):
    return [
        element(
            "p",
            f"{run.name} is not in the means on {evaluation}: its evaluation is of step "
            f"{run.steps[evaluation]}, that of other seeds of a later one.",
        )
        for group in groups
        for evaluation in evaluations_of([group])
        for run in group.behind(evaluation)
    ]


def _measured(metric):
    """The cell of a metric; of a share with a bar, its interval and chance."""
    cell = metric_cell(metric)
    if metric is None or not metric.is_share or not metric.is_finite:
        return cell
    places = {"value": metric.value}
    parts = [element("i")]
    if metric.bounds is not None:
        places |= dict(zip(("low", "high"), metric.bounds, strict=True))
        parts.append(element("b"))
    if metric.chance is not None:
        places["chance"] = metric.chance
        parts.append(element("u"))
    style = "; ".join(f"--{n}: {100 * min(max(v, 0), 1):.2f}%" for n, v in places.items())
    meter = element("span", *parts, class_="meter", style=style, aria_hidden="true")
    return Cell(join(cell.text, meter), cell.number, cell.bounds)


def all_headlines(groups: Sequence[Group], _: Drawings | None) -> Html | None:
    """The headlines of all evaluations by their names, a column for each group."""
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
    columns = ["metric", *(_counted(group) for group in groups), "chance"]
    caption = f"The headlines of all evaluations. {_caption(groups)}"
    return join(table(caption, columns, rows), _all_numbers(groups))


def meanings(groups: Sequence[Group], _: Drawings | None) -> Html | None:
    """What each of the numbers means, for those who cannot point at it."""
    names = [
        name for evaluation in evaluations_of(groups) for name in metric_names(groups, evaluation)
    ]
    known = [(in_words(name), name) for name in dict.fromkeys(names)]
    items = [
        join(
            element("dt", capital(words.title), " ", element("span", name, class_="of")),
            element("dd", f"{words.meaning}."),
        )
        for words, name in known
        if words.meaning
    ]
    return element("dl", *items) if items else None


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
    return table("All numbers of all runs", columns, rows)


def _counted(group):
    return group.name if len(group.runs) == 1 else f"{group.name}, {len(group.runs)} seeds"
