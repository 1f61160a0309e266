"""What the terminal shows of evaluations: a line each during a run, a table at its end."""

import math
from collections.abc import Mapping

from cyclip_jax.evals.flat import by_evaluation, metrics_of
from cyclip_jax.evals.known_metrics import KNOWN_REPORTS
from cyclip_jax.evals.metric import About, Metric, Unit
from cyclip_jax.losses.terms import Reported

_WIDTH = 120  # characters of a line before the columns go on below
_LOSS = "loss"


def final_table(
    numbers: Mapping[str, float],
    abouts: Mapping[str, Mapping[str, About]] | None = None,
    *,
    reports: Mapping[str, Reported] = KNOWN_REPORTS,
    headlines_only: bool = False,
) -> str:
    """The last step's metrics as text: a column for training and one for each evaluation.

    A share is a percentage, followed by its 95 % interval and by what a random order gets.

    Args:
      numbers: {name: number}, evaluations' as "<evaluation>/<metric>".
      abouts: {evaluation: {metric: About}}, what the evaluations said of their metrics.
      reports: {metric: Reported}, what the terms of the loss said of theirs.
      headlines_only: leaves out of evaluations what is no `Metric.is_headline`: further k, counts.
    """
    evaluations = by_evaluation(numbers, abouts)
    if headlines_only:
        evaluations = {
            evaluation: {name: metric for name, metric in found.items() if metric.is_headline}
            for evaluation, found in evaluations.items()
        }
    training = metrics_of({name: value for name, value in numbers.items() if "/" not in name})
    columns = {"training": training} if _LOSS in training else {}
    columns |= evaluations
    rows = [
        (name, [c[name].text() if name in c else "" for c in columns.values()])
        for name in _row_names(training, evaluations, reports)
    ]
    for what in ("images", "sentences"):
        if (speed := numbers.get(f"{what}_per_second")) is not None:
            rows.append((f"{what}/s", [f"{speed:.0f}"] + [""] * len(evaluations)))
    lines = _aligned([("", list(columns)), *rows])
    return "\n".join(lines + _notes(evaluations))


def headline_lines(evaluations: Mapping[str, Mapping[str, Metric]], *, most: int = 3) -> list[str]:
    """A line for each evaluation, with its loss and the first of its headline metrics.

    Args:
      evaluations: {evaluation: {name: Metric}}.
      most: how many metrics a line has at most besides the loss.
    """
    lines = []
    for evaluation, found in evaluations.items():
        told = [name for name, metric in found.items() if metric.is_headline][:most]
        told = [_LOSS, *told] if _LOSS in found else told
        numbers = "  ".join(f"{name} {found[name].number()}" for name in told)
        lines.append(f"{evaluation}: {numbers}")
    return lines


def _notes(evaluations):
    """What the brackets of the table mean, a line or none."""
    found = [metric for metrics in evaluations.values() for metric in metrics.values()]
    notes = []
    if any(metric.interval is not None and math.isfinite(metric.interval[0]) for metric in found):
        notes.append("[ ] 95 % interval")
    if any(metric.chance is not None for metric in found):
        notes.append("( ) what a random order gets")
    return [", ".join(notes)] if notes else []


def _row_names(training, evaluations, reports):
    """Names of the rows: losses and consistencies, shares, other numbers, counts."""
    found = {name: metric for metrics in evaluations.values() for name, metric in metrics.items()}
    first = [_LOSS, *(name for name, told in reports.items() if told.unit != Unit.SHARE)]
    first = [name for name in first if name in training or name in found]
    others = {name: metric for name, metric in found.items() if name not in first}
    shares = [name for name, metric in others.items() if metric.is_share]
    counts = [name for name, metric in others.items() if metric.is_count]
    numbers = [name for name in others if name not in {*shares, *counts}]
    return first + shares + numbers + counts


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
