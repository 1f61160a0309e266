"""What the terminal shows of evaluations: a line each during a run, a table at its end."""

from cyclip_jax.evals.metric import LOSS_TERMS, by_evaluation, metrics_of

_WIDTH = 120  # characters of a line before the columns go on below
_ORDER = (*LOSS_TERMS, "inmodal_consistency", "crossmodal_consistency")


def final_table(metrics, *, headlines_only=False):
    """The last step's metrics as text: a column for training and one for each evaluation.

    A share is a percentage, followed by its 95 % interval and by what a random order gets.

    Args:
      metrics: {name: number}, evaluations' as "<evaluation>/<metric>".
      headlines_only: leaves out of evaluations what is no `Metric.is_headline`: further k, counts.
    """
    evaluations = by_evaluation(metrics)
    if headlines_only:
        evaluations = {
            evaluation: {name: metric for name, metric in found.items() if metric.is_headline}
            for evaluation, found in evaluations.items()
        }
    training = metrics_of({name: value for name, value in metrics.items() if "/" not in name})
    columns = {"training": training} if LOSS_TERMS[0] in training else {}
    columns |= evaluations
    names = _row_names(training, evaluations)
    rows = [
        (name, [c[name].text() if name in c else "" for c in columns.values()]) for name in names
    ]
    if "images_per_second" in metrics:
        rows.append(("images/s", [f"{metrics['images_per_second']:.0f}"] + [""] * len(evaluations)))
    lines = _aligned([("", list(columns)), *rows])
    notes = [
        f"{mark} {meaning}"
        for mark, meaning, is_there in (
            ("[ ]", "95 % interval", any(m.low is not None for m in _all(evaluations))),
            (
                "( )",
                "what a random order gets",
                any(m.chance is not None for m in _all(evaluations)),
            ),
        )
        if is_there
    ]
    return "\n".join(lines + ([", ".join(notes)] if notes else []))


def headline_lines(metrics, *, most=3):
    """A line for each evaluation, with its loss and the first of its headline metrics.

    Args:
      metrics: {"<evaluation>/<metric>": number}.
      most: how many metrics a line has at most besides the loss.
    """
    lines = []
    for evaluation, found in by_evaluation(metrics).items():
        told = [metric for metric in found.values() if metric.is_headline][:most]
        told = [found["loss"], *told] if "loss" in found else told
        numbers = "  ".join(f"{metric.name} {metric.number(metric.value)}" for metric in told)
        lines.append(f"{evaluation}: {numbers}")
    return lines


def _all(evaluations):
    return [metric for metrics in evaluations.values() for metric in metrics.values()]


def _row_names(training, evaluations):
    """Names of the rows: losses and consistencies, shares, other numbers, counts."""
    found = dict.fromkeys(metric.name for metric in _all(evaluations))
    named = {metric.name: metric for metric in _all(evaluations)}
    first = [name for name in _ORDER if name in training or name in found]
    others = [name for name in found if name not in first]
    kinds = [
        lambda metric: metric.is_share,
        lambda metric: not metric.is_share and not metric.is_count,
        lambda metric: metric.is_count,
    ]
    return first + [name for kind in kinds for name in others if kind(named[name])]


def _aligned(rows):
    """Lines of the table; columns that find no room in a line's width follow below."""
    label_width = max(len(label) for label, _ in rows)
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in rows), strict=True)]
    blocks, room = [[]], 0
    for column, width in enumerate(widths):
        if blocks[-1] and width + 2 > room:
            blocks.append([])
        if not blocks[-1]:
            room = _WIDTH - label_width
        blocks[-1].append(column)
        room -= width + 2
    lines = []
    for block in blocks:
        for label, cells in rows:
            if not any(cells[column] for column in block):
                continue
            shown = [f"{cells[column]:>{widths[column]}}" for column in block]
            lines.append(f"{label:{label_width}}  " + "  ".join(shown))
    return lines
